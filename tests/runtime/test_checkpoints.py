"""A kill at any moment leaves a folder that can be read, and what was cut off is never read."""

from __future__ import annotations

import errno
import os
from types import SimpleNamespace

import pytest
import torch

from rewarddance.errors import InputError, as_ours
from rewarddance.runtime import checkpoint
from rewarddance.runtime.checkpoint import (
    find_checkpoint,
    newest_complete,
    read_run_json,
    replacing,
    save_state,
    writable_folder,
    write_text_atomically,
)


def contents(folder) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.iterdir()}


def test_a_folder_appears_whole_and_marked(tmp_path):
    folder = tmp_path / "deep" / "checkpoint-5"
    with replacing(folder) as place:
        (place / "weights").write_text("new")
        assert not folder.exists()
    assert contents(folder) == {"weights": "new", "complete": ""}
    assert [one.name for one in folder.parent.iterdir()] == ["checkpoint-5"]


def test_a_folder_takes_the_place_of_an_older_one_with_nothing_left_of_it(tmp_path):
    folder = tmp_path / "checkpoint-5"
    for name in ("old", "new"):
        with replacing(folder) as place:
            (place / name).write_text(name)
    assert contents(folder) == {"new": "new", "complete": ""}
    assert [one.name for one in tmp_path.iterdir()] == ["checkpoint-5"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_while_writing_leaves_the_old_folder(tmp_path, error):
    folder = tmp_path / "checkpoint-5"
    with replacing(folder) as place:
        (place / "weights").write_text("old")
    with pytest.raises(error), replacing(folder) as place:
        (place / "weights").write_text("ha")
        raise error
    assert contents(folder) == {"weights": "old", "complete": ""}
    assert newest_complete(tmp_path) == folder
    with replacing(folder) as place:
        (place / "weights").write_text("new")
    assert contents(folder) == {"weights": "new", "complete": ""}


def test_a_kill_while_the_old_folder_is_removed_leaves_the_new_one(tmp_path, monkeypatch):
    folder = tmp_path / "checkpoint-5"
    with replacing(folder) as place:
        (place / "weights").write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(folder) as place:
        (place / "weights").write_text("new")

        def killed(path, ignore_errors=True):
            if path.exists():
                raise KeyboardInterrupt

        monkeypatch.setattr(checkpoint.shutil, "rmtree", killed)
    assert contents(folder) == {"weights": "new", "complete": ""}
    assert newest_complete(tmp_path) == folder


def test_the_newest_complete_folder_is_the_one_of_the_highest_step(tmp_path):
    assert newest_complete(tmp_path) is None
    for step in (5, 10, 100, 20):
        with replacing(tmp_path / f"checkpoint-{step}"):
            pass
    assert newest_complete(tmp_path) == tmp_path / "checkpoint-100"
    (tmp_path / "checkpoint-100" / "complete").unlink()
    assert newest_complete(tmp_path) == tmp_path / "checkpoint-20"


def test_a_folder_that_was_complete_but_not_yet_in_place_is_not_read(tmp_path):
    for name in ("checkpoint-7.partial", "checkpoint-7.old", "checkpoint-final"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "complete").touch()
    assert newest_complete(tmp_path) is None


def test_a_text_file_is_replaced_at_once(tmp_path):
    for text in ("first", "second"):
        write_text_atomically(tmp_path / "a.json", text)
        assert contents(tmp_path) == {"a.json": text}


def test_a_checkpoint_is_found_by_path_before_name(tmp_path, monkeypatch):
    for folder in (tmp_path / "bundled" / "judge", tmp_path / "own"):
        folder.mkdir(parents=True)
        (folder / "config.json").touch()
    monkeypatch.setattr(checkpoint, "BUNDLED", tmp_path / "bundled")
    assert find_checkpoint("judge") == tmp_path / "bundled" / "judge"
    assert find_checkpoint(str(tmp_path / "own")) == tmp_path / "own"


def test_a_checkpoint_that_is_nowhere_is_refused_with_the_bundled_names(tmp_path, monkeypatch):
    for name in ("judge", "generator"):
        (tmp_path / "bundled" / name).mkdir(parents=True)
    monkeypatch.setattr(checkpoint, "BUNDLED", tmp_path / "bundled")
    (tmp_path / "empty").mkdir()
    for name in ("nowhere", str(tmp_path / "empty"), "judge"):
        with pytest.raises(InputError) as caught:
            find_checkpoint(name)
        assert caught.value.what == f"there is no checkpoint at {name!r}."
        assert "generator, judge" in caught.value.remedy


def test_an_output_folder_is_made_and_left_clean(tmp_path):
    folder = tmp_path / "a" / "b"
    assert writable_folder(folder) == folder
    assert writable_folder(folder) == folder
    assert contents(folder) == {}


def test_an_output_folder_that_cannot_be_written_is_refused_by_name(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "runs"):
        with pytest.raises(InputError) as caught:
            writable_folder(folder)
        assert f"the output folder {folder} cannot be written" in caught.value.what
        assert "another folder" in caught.value.remedy


def test_an_id_of_the_hub_is_looked_for_there(tmp_path, monkeypatch):
    def snapshot_download(name, allow_patterns):
        assert name == "OpenGVLab/InternVL3-8B-hf" and "*.safetensors" in allow_patterns
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert find_checkpoint("OpenGVLab/InternVL3-8B-hf") == tmp_path


def test_what_the_hub_does_not_give_is_named_with_its_reason():
    with pytest.raises(InputError, match=r"no checkpoint at 'nobody/nothing' \(the model hub: .+\)"):
        find_checkpoint("nobody/nothing")


@pytest.mark.parametrize(("free", "read_only", "code"), [(3, 0, errno.ENOSPC), (9**9, 1, errno.EROFS)])
def test_a_state_that_torch_could_not_write_says_what_the_disk_is(tmp_path, monkeypatch, free, read_only, code):
    def stopped(state, path):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 4537920 vs 4537808")

    monkeypatch.setattr(torch, "save", stopped)
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=free, f_flag=read_only))
    with pytest.raises(OSError) as caught:
        save_state({}, tmp_path / "optimiser.pt")
    assert caught.value.errno == code and "optimiser.pt" in as_ours(caught.value).what


def test_a_base_that_does_not_come_along_says_how_it_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "BUNDLED", tmp_path)
    with pytest.raises(InputError, match="shapeworld-judge-5m does not come with this package") as caught:
        find_checkpoint("shapeworld-judge-5m")
    assert "rewarddance bases judge-sizes --output bases" in caught.value.remedy


@pytest.mark.parametrize("text", ["", "cut off", "[1]", '{"a": 1}\n{"b'])
def test_a_runs_own_file_that_is_damaged_is_named(tmp_path, text):
    path = tmp_path / "stages.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"stages.json is not what a run writes there"):
        read_run_json(path)
    path.write_text('{"a": 1}\n{"b": 2}\n')
    assert read_run_json(path, lines=True) == [{"a": 1}, {"b": 2}]
