"""Image to video from the command line: planned, aligned and searched from a prompt file with pictures."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
from tiny import command, judge_folder, scratch
from tiny_pipelines import FIRST_FRAMES, pipeline_folder

from rewarddance import load_reward
from rewarddance.data.media import read_picture, read_video, write_picture

SIZE = {"height": 32, "width": 48, "num_frames": 5}


@functools.cache
def reward() -> Path:
    load_reward(str(judge_folder()), instruction="i2v").save(scratch() / "i2v-reward")
    return scratch() / "i2v-reward"


@pytest.fixture
def prompts(tmp_path) -> Path:
    for number, picture in enumerate(FIRST_FRAMES):
        write_picture(picture, tmp_path / f"first{number}.png")
    rows = [{"prompt": "a red circle", "image": f"first{number}.png"} for number in range(2)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "prompts.jsonl"


def recipe(folder: Path, prompts: Path, family: str) -> Path:
    run = {
        "generator": str(pipeline_folder(family)), "num_inference_steps": 2, "generator_options": SIZE,
        "judge": str(reward()), "prompts": str(prompts), "output": str(folder / "run"),
        "references": {"candidates": 3, "keep": 2},
        "refl": {"steps": 1, "prompts_per_step": 2, "group_size": 1, "lora_rank": 2, "reference_mse": 0.1},
    }  # fmt: skip
    (folder / "align.yaml").write_text(json.dumps(run))
    return folder / "align.yaml"


@pytest.mark.parametrize("family", ["wan-i2v", "wan-2.2-i2v"])
def test_a_generator_of_image_to_video_is_aligned_on_prompts_with_pictures(family, prompts, tmp_path):
    file = recipe(tmp_path, prompts, family)
    planned = command("plan", file)
    assert planned.code == 0 and "fits" in planned.out, planned.err
    done = command("align", file)
    assert done.code == 0 and json.loads(done.out)["prompts"] == 2, done.err
    assert (tmp_path / "run" / "lora" / "pytorch_lora_weights.safetensors").is_file()
    rows = [json.loads(row) for row in (tmp_path / "run/references/references.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["a red circle"] * 2 and rows[0]["image"] != rows[1]["image"]
    assert read_video(tmp_path / "run/references" / rows[0]["files"][0]).shape == (5, 3, 32, 48)


def test_a_search_writes_videos_and_resumes_only_with_the_same_pictures(prompts, tmp_path):
    asked = [
        "search", prompts, "--generator", pipeline_folder("wan-2.2-i2v"), "--judge", reward(), "--method", "best_of_n",
        "--budget", "samples=2", "--num-inference-steps", "2", "--output", tmp_path / "found",
        *(part for key, value in SIZE.items() for part in ("--generator-options", f"{key}={value}")),
    ]  # fmt: skip
    done = command(*asked)
    assert done.code == 0, done.err
    rows = [json.loads(row) for row in (tmp_path / "found/results.jsonl").read_text().splitlines()]
    videos = [read_video(tmp_path / "found" / row["winner"]["picture"]) for row in rows]
    assert [row["image"] for row in rows] == [str(tmp_path / f"first{number}.png") for number in range(2)]
    assert [video.shape for video in videos] == [(5, 3, 32, 48)] * 2
    write_picture(1 - read_picture(tmp_path / "first0.png"), tmp_path / "first0.png")
    changed = command(*asked)
    assert changed.code == 2 and "the same prompts" in changed.err


def test_a_judge_that_does_not_show_the_picture_says_which_instruction_would(prompts, tmp_path):
    done = command("align", recipe(tmp_path, prompts, "wan-2.2-i2v"), f"judge={judge_folder()}")
    assert done.code == 2 and "has an image" in done.err and "i2v" in done.err
