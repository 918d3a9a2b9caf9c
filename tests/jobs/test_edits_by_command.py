"""Edits from the command line: planned and aligned from a prompt file with sources, and bad sources refused by name."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import torch
from tiny import command, judge_folder, scratch
from tiny_pipelines import given_pictures, pipeline_folder

from rewarddance import load_reward
from rewarddance.data.media import write_picture


@functools.cache
def reward() -> Path:
    load_reward(str(judge_folder()), instruction="edit").save(scratch() / "edit-reward")
    return scratch() / "edit-reward"


@pytest.fixture
def prompts(tmp_path) -> Path:
    sources = given_pictures("flux-kontext")
    assert sources is not None
    for number, picture in enumerate(sources):
        write_picture(picture, tmp_path / f"source{number}.png")
    rows = [{"prompt": "make the circle red", "image": f"source{number}.png"} for number in range(2)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "prompts.jsonl"


def recipe(folder: Path, prompts: Path, family: str) -> Path:
    run = {
        "generator": str(pipeline_folder(family)), "num_inference_steps": 2,
        "generator_options": {"height": 32, "width": 48},
        "judge": str(reward()), "prompts": str(prompts), "output": str(folder / "run"),
        "references": {"candidates": 3, "keep": 2},
        "refl": {"steps": 1, "prompts_per_step": 2, "group_size": 1, "lora_rank": 2, "reference_mse": 0.1},
    }  # fmt: skip
    (folder / "align.yaml").write_text(json.dumps(run))
    return folder / "align.yaml"


@pytest.mark.parametrize("family", ["flux-kontext", "qwen-image-edit"])
def test_an_editor_is_planned_and_aligned_on_prompts_with_sources(family, prompts, tmp_path):
    file = recipe(tmp_path, prompts, family)
    planned = command("plan", file)
    assert planned.code == 0 and "fits" in planned.out, planned.err
    done = command("align", file, "refl.alarms.stop_on=[untouched, repainted]", "refl.alarms.window=4", "refl.steps=8")
    assert done.code == 0 and json.loads(done.out)["prompts"] == 2, done.err
    assert (tmp_path / "run" / "lora" / "pytorch_lora_weights.safetensors").is_file()
    rows = [json.loads(row) for row in (tmp_path / "run/references/references.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["make the circle red"] * 2 and rows[0]["image"] != rows[1]["image"]


def test_scoring_names_the_rows_whose_source_is_missing_or_a_video(prompts, tmp_path):
    sources = given_pictures("flux-kontext")
    assert sources is not None
    write_picture(torch.cat([*sources, *sources]), tmp_path / "moving.png")
    row = {"prompt": "make the circle red", "candidate": "source1.png", "reference": "source0.png"}
    rows = [row | {"image": "source0.png"}, row | {"prompt": "remove the cross"}, row | {"image": "moving.png"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    ask = ("score", tmp_path / "rows.jsonl", "--judge", reward(), "--output", tmp_path / "scores.jsonl")
    done = command(*ask)
    assert done.code == 2, done.out
    for said in ("line 2", "remove the cross", "has no image", "line 3", "a video of 4 frames", "first frame"):
        assert said in done.err, done.err
    done = command(*ask, "--skip-faulty")
    assert len((tmp_path / "scores.jsonl").read_text().splitlines()) == 1, done.err


def test_sources_that_cannot_be_edited_are_named_before_the_work_begins(prompts, tmp_path):
    small = given_pictures("flux-kontext")
    assert small is not None
    write_picture(small[0][..., :16, :16], tmp_path / "small.png")
    rows = [{"prompt": "remove the cross", "image": "small.png"}, {"prompt": "add a square"}]
    prompts.write_text(prompts.read_text() + "\n" + "\n".join(map(json.dumps, rows)))
    done = command("align", recipe(tmp_path, prompts, "flux-kontext"))
    assert done.code == 2
    for said in ("remove the cross", "16 x 16", "32 x 48", "add a square", "has none"):
        assert said in done.err
    assert not (tmp_path / "run" / "lora").exists()


def test_klein_is_not_given_prompts_with_and_without_a_picture_in_one_run(prompts, tmp_path):
    prompts.write_text(prompts.read_text() + "\n" + json.dumps({"prompt": "a square"}))
    (tmp_path / "bright.py").write_text("def make():\n    return lambda images, texts, rows: images.mean((1, 2, 3))\n")
    done = command("align", recipe(tmp_path, prompts, "flux2-klein-edit"), f"judge={tmp_path}/bright.py:make")
    assert done.code == 2 and "'a square' comes with no picture, and others beside it do" in done.err, done.err
    assert not (tmp_path / "run").exists()
