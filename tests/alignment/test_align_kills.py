"""kill -9 at any moment of `rewarddance align`: the run that goes on from what is left repeats the whole one."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import torch
from safetensors.torch import load_file
from several import ended_before, forked
from tiny import generator_folder, judge_folder

from rewarddance.alignment.recipe import AlignRun
from rewarddance.jobs.align import run_alignment

KILLS = 10


def recipe(folder: Path) -> AlignRun:
    """8 steps, four checkpoints, three banks (of the start, and of steps 3 and 6), three grids."""
    (folder / "prompts.txt").write_text("a red circle\na blue cross\ntwo green squares\n")
    refl = {
        "steps": 8, "prompts_per_step": 1, "group_size": 2, "learning_rate": 1e-2, "lora_rank": 2, "lora_alpha": 2,
        "loss": "linear", "ema_decay": 0.5, "reference_mse": 0.1, "jitter_copies": 2, "jitter_noise": 0.05,
        "refresh_every": 3, "save_every": 2, "probe_every": 4,
    }  # fmt: skip
    content = {
        "generator": str(generator_folder()), "judge": str(judge_folder()), "prompts": folder / "prompts.txt",
        "num_inference_steps": 2, "references": {"candidates": 2, "batch_size": 2}, "grid_prompts": 1, "seed": 5,
        "refl": refl, "output": folder / "run",
    }  # fmt: skip
    return AlignRun.model_validate(content)


def rows(folder: Path) -> list[dict]:
    """The lines of the metrics but for a last one that was cut off."""
    found = []
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return found


def logged(folder: Path) -> int:
    """The last step of which the metrics tell, -1 where there are none."""
    return max((row["step"] for row in rows(folder)), default=-1) if (folder / "metrics.jsonl").exists() else -1


def newest(folder: Path) -> int:
    """The step of the newest checkpoint that can be read, or 0."""
    steps = [0]
    for checkpoint in folder.glob("checkpoint-*"):
        if (checkpoint / "complete").exists():
            assert load_file(checkpoint / "weights.safetensors") and load_file(checkpoint / "ema.safetensors")
            assert torch.load(checkpoint / "optimiser.pt", weights_only=True)["state"]
            steps.append(int(checkpoint.name.split("-")[1]))
    return max(steps)


def pictures(folder: Path) -> dict[str, bytes]:
    """The files of the banks and of the grids."""
    places = [*(folder / "references").rglob("*.*"), *folder.rglob("*.png")]
    return {str(one.relative_to(folder)): one.read_bytes() for one in places}


def assert_same_run(folder: Path, other: Path) -> None:
    assert rows(folder) == rows(other) and pictures(folder) == pictures(other)
    last = newest(folder)
    assert last == newest(other)
    files = [
        "lora/pytorch_lora_weights.safetensors",
        *(f"checkpoint-{last}/{n}.safetensors" for n in ("weights", "ema")),
    ]
    for file in files:
        ours, theirs = load_file(folder / file), load_file(other / file)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    ours, theirs = (
        torch.load(run / f"checkpoint-{last}" / "optimiser.pt", weights_only=True)["state"] for run in (folder, other)
    )
    assert all(torch.equal(ours[i][name], theirs[i][name]) for i in theirs for name in theirs[i])


def test_an_alignment_killed_at_ten_random_moments_ends_as_the_whole_one(tmp_path):
    places = [tmp_path / "whole", tmp_path / "killed"]
    for place in places:
        place.mkdir()
    (whole, folder), (first, again) = [place / "run" for place in places], map(recipe, places)
    begun = time.monotonic()
    os.waitpid(forked(lambda: run_alignment(first), tmp_path / "answer"), 0)
    took = time.monotonic() - begun
    assert (whole / "lora").is_dir()
    rng, kills, reached = random.Random(0), 0, [0]
    while kills < KILLS:
        child = forked(lambda: run_alignment(again), tmp_path / "answer")
        # -1: at once, or within the first bank. Beyond what a killed run told of: it stands there until one goes on
        begin = max(reached[-1], logged(folder)) + rng.randint(0, 3) - 1
        if ended_before(child, lambda: logged(folder), begin, rng.uniform(0, 0.2) * took):
            assert_same_run(folder, whole)
            shutil.rmtree(folder)
            reached.append(0)
            continue
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        kills += 1
        reached.append(newest(folder) if folder.exists() else 0)
        if (folder / "metrics.jsonl").exists():
            kept = [row for row in rows(folder) if row["step"] <= reached[-1]]
            assert kept == [row for row in rows(whole) if row["step"] <= reached[-1]]
    assert len(set(reached)) > 2  # they were spread over the run
    run_alignment(again)
    assert_same_run(folder, whole)
