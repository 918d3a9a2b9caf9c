"""Preferences on disk: what is written is read back, and every kind of broken line is named."""

from __future__ import annotations

import json

import pytest
import torch
from tiny import pictures

from rewarddance.data.preferences import PreferenceSet, write_preferences
from rewarddance.errors import InputError
from rewarddance.types import Preference


@pytest.fixture
def path(tmp_path):
    """A file of three good lines."""
    shown = pictures(6)
    pairs = [Preference(f"prompt {i}", shown[2 * i], shown[2 * i + 1], i / 2, f"source {i}") for i in range(3)]
    assert write_preferences(pairs, tmp_path / "sets" / "p.jsonl") == 3
    return tmp_path / "sets" / "p.jsonl"


def test_what_is_written_is_read_back(path):
    found, shown = PreferenceSet(path), pictures(6)
    assert len(found) == 3
    for i, pair in enumerate(found):
        assert (pair.prompt, pair.share, pair.source) == (f"prompt {i}", i / 2, f"source {i}")
        assert torch.equal(pair.first, shown[2 * i]) and torch.equal(pair.second, shown[2 * i + 1])


def test_pictures_lie_beside_the_file_under_relative_names(path):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["media_a"] for row in rows] == [f"p_media/{i:06d}_a.png" for i in range(3)]
    moved = path.parent.rename(path.parent.with_name("moved"))
    assert PreferenceSet(moved / "p.jsonl")[2].prompt == "prompt 2"


@pytest.mark.parametrize(("label", "share"), [("a", 0.0), ("tie", 0.5), ("b", 1.0)])
def test_a_label_is_a_share(path, label, share):
    row = {"prompt": "p", "media_a": "p_media/000000_a.png", "media_b": "p_media/000000_b.png", "label": label}
    path.write_text(json.dumps(row) + "\n")
    (found,) = PreferenceSet(path)
    assert (found.share, found.source) == (share, "")


GOOD = {"prompt": "p", "media_a": "p_media/000000_a.png", "media_b": "p_media/000000_b.png", "share": 1.0}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"prompt": "p", ', "is not JSON"),
        ("", "is not JSON"),
        ("[1, 2]", "a value of the wrong kind"),
        ("7", "a value of the wrong kind"),
        (json.dumps({k: v for k, v in GOOD.items() if k != "prompt"}), "has no 'prompt'"),
        (json.dumps({k: v for k, v in GOOD.items() if k != "media_b"}), "has no 'media_b'"),
        (json.dumps({k: v for k, v in GOOD.items() if k != "share"}), "has no 'label'"),
        (json.dumps(GOOD | {"share": "many"}), "a value of the wrong kind"),
        (json.dumps(GOOD | {"share": None}), "a value of the wrong kind"),
        (json.dumps(GOOD | {"share": 1.5}), "share 1.5"),
        (json.dumps(GOOD | {"share": float("nan")}), "share nan"),
        (json.dumps(GOOD | {"prompt": 3}), "prompt 3"),
        (json.dumps(GOOD | {"media_a": 3}), "a value of the wrong kind"),
        (json.dumps(GOOD | {"media_a": "lost.png"}), "lost.png, which is not there"),
        (json.dumps(GOOD | {"media_a": ""}), "which is not there"),
        (json.dumps({k: v for k, v in GOOD.items() if k != "share"} | {"label": "c"}), "has no 'c'"),
        ("\xff\xfe", "is not JSON"),
    ],
)
def test_a_broken_line_is_an_error_that_names_file_line_and_fault(path, line, said):
    path.write_bytes(json.dumps(GOOD).encode() + b"\n" + line.encode("latin-1") + b"\n")
    with pytest.raises(InputError) as caught:
        PreferenceSet(path)
    assert f"line 2 of the preferences file {path}" in caught.value.what
    assert said in caught.value.what and caught.value.remedy


def test_an_empty_file_is_an_error(path):
    path.write_text("")
    with pytest.raises(InputError, match=f"{path} is empty"):
        PreferenceSet(path)


def test_a_missing_file_is_an_error_that_names_it(tmp_path):
    with pytest.raises(InputError, match=r"nowhere.jsonl cannot be read: No such file"):
        PreferenceSet(tmp_path / "nowhere.jsonl")


def test_a_picture_that_broke_later_is_an_error_that_names_it(path):
    found = PreferenceSet(path)
    (path.parent / "p_media" / "000001_b.png").write_bytes(b"broken")
    assert found[0].prompt == "prompt 0"
    with pytest.raises(InputError, match=r"000001_b.png cannot be read"):
        found[1]


def test_reasons_and_conditions_come_back_as_they_were_written(tmp_path):
    a, b, source = pictures(3)
    told = Preference("p", a, b, 1.0, "s", condition=source, reason="b is “sharp”", reason_swapped="a is not")
    silent = Preference("p", a, b, 1.0)
    write_preferences([told, silent], tmp_path / "told.jsonl")
    found, other = PreferenceSet(tmp_path / "told.jsonl")
    assert (found.reason, found.reason_swapped) == (told.reason, told.reason_swapped)
    assert found.condition is not None and torch.equal(found.condition, source)
    assert other.condition is None and other.reason == other.reason_swapped == ""


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"reason": 3}, "has a reason that is no text"),
        ({"reason_swapped": None}, "has a reason that is no text"),
        ({"condition": "gone.png"}, "which is not there"),
        ({"condition": 3}, "of the wrong kind"),
    ],
)
def test_a_reason_or_condition_that_cannot_be_used_is_an_error(path, extra, said):
    path.write_text(json.dumps(GOOD | extra) + "\n")
    with pytest.raises(InputError, match=said):
        PreferenceSet(path)
