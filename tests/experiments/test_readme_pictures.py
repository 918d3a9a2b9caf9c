"""README's pictures are made of a run's files, and a run that lacks them is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from test_run_page import made_up
from tiny import command

from experiments.__main__ import app


def run_with_oracle(folder: Path, falls: bool) -> Path:
    folder.mkdir()
    rows = []
    for step in range(0, 41, 8):
        oracle = 0.5 - step / 100 if falls else 0.5 + step / 400
        rows.append({"phase": "refl", "kind": "probe", "step": step, "oracle": oracle, "proxy": 0.5 + step / 100})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    alarm = {"phase": "refl", "kind": "alarm", "step": 24, "name": "distance", "stop": not falls}
    (folder / "alarms.jsonl").write_text(json.dumps(alarm) + "\n")
    return folder


def test_both_pictures_are_made_by_one_command(tmp_path):
    run = made_up(tmp_path / "run")
    hacked, guarded = (run_with_oracle(tmp_path / name, name == "hacked") for name in ("hacked", "guarded"))
    words = ("pictures", run, "--hacked", hacked, "--guarded", guarded, "--output", tmp_path / "made")
    done = command(*words, commands=app)
    assert done.code == 0, done.err
    assert Image.open(tmp_path / "made" / "before_after.png").width > 200
    drawing = (tmp_path / "made" / "hacked_guarded.svg").read_text()
    assert all(drawing.count(f">{word}<") == 2 for word in ("oracle", "P(yes)"))
    assert all(drawing.count(f">{words}<") == 1 for words in ("an alarm rings", "an alarm ends the run"))


@pytest.mark.parametrize("lacking", ["samples.json", "metrics.jsonl"])
def test_a_run_that_lacks_what_is_drawn_is_named(tmp_path, lacking):
    run = made_up(tmp_path / "run")
    other = run_with_oracle(tmp_path / "other", falls=True)
    (run / lacking).unlink()
    done = command("pictures", run, "--hacked", run, "--guarded", other, "--output", tmp_path, commands=app)
    assert done.code == 2 and str(run) in done.err


def test_one_of_two_runs_alone_is_refused(tmp_path):
    run = made_up(tmp_path / "run")
    assert command("pictures", run, "--hacked", run, "--output", tmp_path, commands=app).code == 2
