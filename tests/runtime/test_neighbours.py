"""Runs beside one another, and what is not theirs: locks, links, foreign folders, keys, recipes that unfold."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rewarddance.errors import InputError
from rewarddance.report.run_folder import read_picture
from rewarddance.reward.recipe import JudgeRecipe
from rewarddance.runtime.checkpoint import COMPLETE, replacing, write_text_atomically
from rewarddance.runtime.config import load_recipe, parse_yaml
from rewarddance.runtime.lock import locked
from rewarddance.runtime.tracking import Metrics

HOLD = """
import sys, time
from pathlib import Path
from rewarddance.runtime.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_in_use_is_refused_by_who_uses_it_and_free_when_that_dies(tmp_path):
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    try:
        with pytest.raises(InputError, match=f"process {other.pid} on") as caught, locked(tmp_path):
            pass
        assert str(tmp_path) in caught.value.what
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
    with locked(tmp_path):
        assert (tmp_path / ".lock").is_file()
    assert not list(tmp_path.iterdir())


def test_a_lock_is_let_go_after_an_error(tmp_path):
    with pytest.raises(ValueError), locked(tmp_path):
        raise ValueError
    with locked(tmp_path), pytest.raises(InputError, match="in use"), locked(tmp_path):
        pass


def test_folders_that_no_run_wrote_are_neither_replaced_nor_removed(tmp_path):
    for name in ("reward", "reward.old", "reward.partial", ".reward.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("mine")
    for name in ("reward", "other"):
        if name == "other":
            os.rename(tmp_path / ".reward.partial", tmp_path / ".other.partial")
        with pytest.raises(InputError, match=name), replacing(tmp_path / name):
            pass
    left = {path.parent.name for path in tmp_path.rglob("thesis.txt")}
    assert left == {".other.partial", "reward", "reward.old", "reward.partial"}


def test_what_a_kill_left_is_known_and_taken_away(tmp_path):
    folder = tmp_path / "reward"
    for text in ("old", "new"):
        with replacing(folder) as written:
            (written / "weights").write_text(text)
    with pytest.raises(KeyboardInterrupt), replacing(folder) as written:
        (written / "weights").write_text("half")
        raise KeyboardInterrupt
    assert (folder / "weights").read_text() == "new"
    with replacing(folder) as written:
        (written / "weights").write_text("newest")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["reward"]
    assert sorted(path.name for path in folder.iterdir()) == [COMPLETE, "weights"]


def test_a_planted_link_is_not_written_through(tmp_path):
    target = tmp_path / "profile"
    target.write_text("mine")
    for name in ("a.json", ".b.json.partial", "metrics.jsonl"):
        (tmp_path / name).symlink_to(target)
    write_text_atomically(tmp_path / "a.json", "ours")
    write_text_atomically(tmp_path / "b.json", "ours")
    with pytest.raises(InputError, match="symbolic link"):
        Metrics(tmp_path / "metrics.jsonl").log("judge", 1, loss=0.5)
    (tmp_path / "reward").symlink_to(tmp_path)
    with pytest.raises(InputError, match="reward"), replacing(tmp_path / "reward"):
        pass
    assert target.read_text() == "mine" and (tmp_path / "a.json").read_text() == "ours"


def test_files_have_the_mode_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_text_atomically(tmp_path / "a.json", "x")
        Metrics(tmp_path / "metrics.jsonl").log("judge", 1, loss=0.5)
    finally:
        os.umask(before)
    assert {oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()} == {"0o640"}


def test_a_key_that_a_server_quotes_is_not_told(monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "sk-0123456789abcdef")
    error = InputError("the server says: bad key sk-0123456789abcdef.", "Correct sk-0123456789abcdef.")
    assert "sk-0" not in str(error) + error.what + error.remedy and "($SOME_API_KEY)" in error.what


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname", "pictures/../../secret.png", "link.png"])
def test_a_report_shows_nothing_from_outside_of_its_run(tmp_path, name):
    (tmp_path / "secret.png").write_bytes(b"secret")
    run = tmp_path / "run"
    run.mkdir()
    (run / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(InputError, match="outside"):
        read_picture(run, name)


BOMBS = {
    "aliases": "a: &a [x, x, x, x, x, x, x, x, x]\n"
    + "\n".join(f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]" for i in range(12)),
    "itself": "seed: &a [*a]",
    "deep": "seed: " + "[" * 5000,
    "deep in blocks": "\n".join(" " * n + "a:" for n in range(600)),
    "a date that is none": "seed: 2024-99-99",
    "large": "seed: 0\n# " + "x" * (5 << 20),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_recipe_that_would_unfold_is_refused_within_seconds(tmp_path, kind):
    path: Path = tmp_path / "recipe.yaml"
    path.write_text(BOMBS[kind])
    began = time.monotonic()
    with pytest.raises(InputError, match=r"recipe\.yaml"):
        load_recipe(JudgeRecipe, path)
    assert time.monotonic() - began < 10


def test_aliases_in_a_recipe_are_no_fault():
    assert parse_yaml("a: &x {k: 1}\nb: *x\nc: [*x, *x]") == {"a": {"k": 1}, "b": {"k": 1}, "c": [{"k": 1}] * 2}
