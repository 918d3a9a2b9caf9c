"""Preferences on disk: what is written is read back, and every kind of broken line is named."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from tiny import pictures

from rewarddance.data.preferences import PreferenceSet, read_rows, write_preferences
from rewarddance.errors import InputError
from rewarddance.types import Preference, Prompt


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
        assert (pair.prompt.text, pair.share, pair.source) == (f"prompt {i}", i / 2, f"source {i}")
        assert torch.equal(pair.first, shown[2 * i]) and torch.equal(pair.second, shown[2 * i + 1])


def test_pictures_lie_beside_the_file_under_relative_names(path):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["media_a"] for row in rows] == [f"p_media/{i:06d}_a.png" for i in range(3)]
    moved = path.parent.rename(path.parent.with_name("moved"))
    assert PreferenceSet(moved / "p.jsonl")[2].prompt.text == "prompt 2"


def test_votes_on_one_pair_share_its_files(tmp_path):
    first, second = pictures(2)
    rows = [Preference("p", first, second, share, annotator=str(share)) for share in (0.0, 1.0)]
    write_preferences([*rows, Preference("p", second, first, 1.0)], tmp_path / "p.jsonl")
    read = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert read[0]["media_a"] == read[1]["media_a"] != read[2]["media_a"]
    assert len(list((tmp_path / "p_media").iterdir())) == 4
    found = PreferenceSet(tmp_path / "p.jsonl")
    assert torch.equal(found[1].second, second) and torch.equal(found[2].second, first)


@pytest.mark.parametrize(("label", "share"), [("a", 0.0), ("tie", 0.5), ("b", 1.0)])
def test_a_label_is_a_share(path, label, share):
    row = {"prompt": "p", "media_a": "p_media/000000_a.png", "media_b": "p_media/000000_b.png", "label": label}
    path.write_text(json.dumps(row) + "\n")
    (found,) = PreferenceSet(path)
    assert (found.share, found.source) == (share, "")


GOOD = {"prompt": "p", "media_a": "p_media/000000_a.png", "media_b": "p_media/000000_b.png", "share": 1.0}


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
    assert found[0].prompt.text == "prompt 0"
    with pytest.raises(InputError, match=r"000001_b.png cannot be read"):
        found[1]


def test_reasons_and_conditions_come_back_as_they_were_written(tmp_path):
    a, b, source = pictures(3)
    told = Preference(Prompt("p", image=source), a, b, 1.0, "s", reason="b is “sharp”", reason_swapped="a is not")
    silent = Preference("p", a, b, 1.0)
    write_preferences([told, silent], tmp_path / "told.jsonl")
    found, other = PreferenceSet(tmp_path / "told.jsonl")
    assert (found.reason, found.reason_swapped) == (told.reason, told.reason_swapped)
    assert found.prompt.image is not None and torch.equal(found.prompt.image, source)
    assert other.prompt.image is None and other.reason == other.reason_swapped == ""


# -- what else a row can hold ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_every_key_of_the_schema_comes_back_from_both_kinds_of_file(tmp_path, kind):
    a, b, source = pictures(3)
    video = pictures(3, seed=1)[:, 0]
    asked = {"criterion": "motion", "annotator": "ann", "fps": (8.0, None), "reason": "b moves"}
    rows = [Preference(Prompt("p", image=source), a, video, 0.75, "s", **asked), Preference("q", b, a, 0.5)]
    assert write_preferences(rows, tmp_path / f"p.{kind}") == 2
    found = PreferenceSet(tmp_path / f"p.{kind}")
    first, second = found
    assert (first.prompt.text, first.share, first.source, first.reason) == ("p", 0.75, "s", "b moves")
    assert (first.criterion, first.annotator, first.fps) == ("motion", "ann", (8.0, None))
    assert len(first.second) == 3 and (first.second - video).abs().max() < 0.5 / 255 + 1e-6
    assert first.prompt.image is not None and (first.prompt.image - source).abs().max() < 0.5 / 255 + 1e-6
    assert (second.criterion, second.annotator, second.fps, second.prompt.image) == ("", "", (None, None), None)
    assert [row.share for row in read_rows(tmp_path / f"p.{kind}")] == [0.75, 0.5]


def test_one_fps_is_that_of_both_videos(path):
    path.write_text(json.dumps(GOOD | {"fps": 24}) + "\n" + json.dumps(GOOD | {"fps": 24, "fps_b": "8"}) + "\n")
    assert [pair.fps for pair in PreferenceSet(path)] == [(24, 24), (24, 8)]


def test_blank_lines_are_no_rows_and_numbers_may_be_texts(path):
    path.write_text("\n" + json.dumps(GOOD | {"share": "0.25", "annotator": 17}) + "\n\n")
    (found,) = PreferenceSet(path)
    assert (found.share, found.annotator) == (0.25, "17")


def test_scores_under_one_prompt_are_compared_and_those_alone_are_counted_aloud(path, capsys):
    def scored(prompt: str, picture: int, score: float, **more) -> str:
        return json.dumps({"prompt": prompt, "media": f"p_media/{picture:06d}_a.png", "score": score} | more)

    lines = [scored("p", 0, 1), scored("q", 1, 5), scored("p", 1, 3), json.dumps(GOOD), scored("p", 2, 3)]
    lines += [scored("p", 2, 9, criterion="style"), scored("p", 2, 9, annotator="ann")]
    path.write_text("\n".join(lines) + "\n")
    found = PreferenceSet(path)
    assert sorted((pair.prompt.text, pair.share) for pair in found) == [("p", 0.5), ("p", 1.0), ("p", 1.0), ("p", 1.0)]
    shown = pictures(6)
    assert torch.equal(found[1].first, shown[0]) and torch.equal(found[1].second, shown[2])
    assert "3 scored pictures have no other under their prompt" in " ".join(capsys.readouterr().err.split())


def test_scores_of_which_no_two_can_be_compared_are_an_error(path):
    path.write_text(json.dumps({"prompt": "p", "media": "p_media/000000_a.png", "score": 1}) + "\n")
    with pytest.raises(InputError, match=r"no two scores in .* can be compared"):
        PreferenceSet(path)


def test_rows_from_a_set_for_evaluation_only_are_tested_on_and_not_trained_on(path):
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD | {"source": "mmrb2/dreambench"}) + "\n")
    assert len(PreferenceSet(path)) == 2
    with pytest.raises(
        InputError, match=r"line 2 of .* comes from mmrb2/dreambench, which is for evaluation only"
    ) as error:
        PreferenceSet(path, for_training=True)
    assert error.value.remedy.startswith("Train on another set")


def test_rows_are_found_again_in_any_order_across_row_groups(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    write_preferences([Preference("p", *pictures(2), 1.0)], tmp_path / "one.jsonl")
    media = {f"media_{side}": f"one_media/000000_{side}.png" for side in "ab"}
    rows = [{"prompt": f"prompt {i}", "share": i / 40} | media for i in range(40)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet", row_group_size=3)
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for kind in ("parquet", "jsonl"):
        found = PreferenceSet(tmp_path / f"p.{kind}")
        for i in (39, 0, 17, 3, 2, 38, 17):
            assert (found.row(i).prompt, found.row(i).share) == (f"prompt {i}", i / 40)
        assert pickle.loads(pickle.dumps(found)).row(21).prompt == "prompt 21"
