"""Public sets about edits become rows whose image is the source, with a criterion where the set has one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sets import as_json, as_parquet, imported, png, put

from rewarddance.data.media import as_pixels
from rewarddance.data.preferences import PreferenceSet
from rewarddance.data.prompts import read_prompts
from rewarddance.errors import InputError


def level(folder: Path, name: str) -> int:
    """Which of `put`'s or `png`'s pictures this is."""
    return int((as_pixels(folder / name)[0, 0, 0, 0] * 255).round())


def sides(folder: Path, row: dict) -> tuple[int, int, float]:
    """The two pictures in order and the share of the second, as if no sides had been changed."""
    first, second = level(folder, row["media_a"]), level(folder, row["media_b"])
    return (first, second, row["share"]) if first < second else (second, first, 1 - row["share"])


def published(number: int, vote: str, following: tuple[int, int], quality: tuple[int, int]) -> dict:
    """A row of EditReward-Data, whose source has the level 7 and whose edits have 10 and 20."""
    row = {"key": "eff5", "unique_key": f"eff5_{number}", "pair_index": number, "instruction": "add a hat"}
    row |= {"source_img": {"bytes": png(7), "path": "source.png"}, "vote_type": vote}
    scores = zip(("left", "right"), (10, 20), following, quality, strict=True)
    for side, picture, follows, looks in scores:
        row |= {f"{side}_output_image": {"bytes": png(picture), "path": "o.png"}, f"{side}_model": "m"}
        row |= {f"{side}_instruction_following_score": float(follows)}
        row |= {f"{side}_quality_aesthetic_score": float(looks), f"{side}_overall_score": float(follows + looks)}
    return row


def test_editrewards_votes_and_its_two_scores_are_rows_of_their_own(tmp_path):
    rows = [published(0, "leftvote", (4, 2), (3, 3)), published(1, "tie", (1, 2), (4, 3))]
    found, broken = imported("editreward", as_parquet(tmp_path / "train.parquet", rows))
    assert not broken and {row["prompt"] for row in found} == {"add a hat"}
    folder = tmp_path / "out"
    assert {level(folder, row["image"]) for row in found} == {7}
    read = [(row.get("criterion") or "", *sides(folder, row)) for row in found]
    assert read == [
        ("", 10, 20, 0.0), ("instruction_following", 10, 20, 0.0), ("quality", 10, 20, 0.5),
        ("", 10, 20, 0.5), ("instruction_following", 10, 20, 1.0), ("quality", 10, 20, 0.0),
    ]  # fmt: skip


def test_editrewards_training_file_prefers_its_first_path(tmp_path):
    put(tmp_path, *[f"a/{n}.png" for n in range(3)])
    row = {"prompt": "Make it a hot dog.", "choice_dist": None, "confidence": None, "path_src": "a/0.png"}
    row |= {"path1": "a/1.png", "path2": "a/2.png", "model1": "ovis_u1", "model2": "qwen_edit_seed2025"}
    row |= {"model1_dim1_score": 1, "model1_dim2_score": 3, "model1_overall_score": 4}
    row |= {"model2_dim1_score": 1, "model2_dim2_score": 2, "model2_overall_score": 3, "tie_case": False}
    bare = {key: value for key, value in row.items() if "dim" not in key} | {"tie_case": True}
    odd = row | {"model1_dim2_score": "good"}
    found, broken = imported("editreward", as_json(tmp_path / "train.json", [row, bare, odd]))
    read = [(row.get("criterion") or "", *sides(tmp_path / "out", row)) for row in found]
    assert read[:4] == [("", 1, 2, 0.0), ("instruction_following", 1, 2, 0.5), ("quality", 1, 2, 0.0), ("", 1, 2, 0.5)]
    assert [(row["row"], row["field"]) for row in broken] == [(3, "model1_dim2_score")]
    assert len(found) == 6 and {level(tmp_path / "out", row["image"]) for row in found} == {0}


def test_editscores_benchmark_is_for_evaluation_and_says_its_dimension(tmp_path):
    row = {"key": ["a_1", "a_2"], "instruction": "make it night", "task_type": "tone_transfer"}
    row |= {"input_image": {"bytes": png(7), "path": "i.png"}, "dimension": "overall"}
    row |= {"output_images": [{"bytes": png(10), "path": "1.png"}, {"bytes": png(20), "path": "2.png"}]}
    rows = [row, row | {"dimension": "consistency"}, row | {"dimension": "taste"}]
    rows += [row | {"output_images": row["output_images"][:1]}]
    found, broken = imported("editscore-bench", as_parquet(tmp_path / "bench.parquet", rows))
    assert [row.get("criterion") or "" for row in found] == ["", "consistency"]
    assert {sides(tmp_path / "out", row) for row in found} == {(10, 20, 0.0)}
    assert {row["source"] for row in found} == {"editscore-bench/tone_transfer"}
    assert [(row["row"], row["field"]) for row in broken] == [(3, "dimension"), (4, "output_images")]
    with pytest.raises(InputError, match="for evaluation only"):
        PreferenceSet(tmp_path / "out" / "rows.jsonl", for_training=True)


def test_edit_r1s_training_file_is_a_prompt_file_as_it_is(tmp_path):
    put(tmp_path, "images/a.png")
    row = {"prompt": "make the sky orange", "image": "images/a.png", "requirement": "the sky alone changes"}
    (tmp_path / "train_metadata.jsonl").write_text(json.dumps(row))
    (prompt,) = read_prompts(tmp_path / "train_metadata.jsonl")
    assert prompt.image is not None and prompt.image.shape[:2] == (1, 3)
    assert (prompt.text, prompt.metadata["requirement"]) == ("make the sky orange", "the sky alone changes")
