"""kill -9 at any moment: what is left can be read, and the run that goes on from it repeats the uninterrupted one."""

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
from tiny import colour_preferences, judge_folder

from rewarddance.protocols import RewardModel
from rewarddance.report.run_folder import read_metrics
from rewarddance.reward.recipe import JudgeRecipe
from rewarddance.reward.train import train_judge
from rewarddance.runtime.tracking import Metrics
from rewarddance.types import Question

PAIRS = colour_preferences(12)
RECIPE = JudgeRecipe(
    base=str(judge_folder()),
    instruction="t2i-brief",
    learning_rate=1e-3,
    batch_size=4,
    gradient_accumulation_steps=2,
    epochs=4,
    pixel_noise=0.05,
    save_every=2,
    keep_best="accuracy_ood",
)
"""12 steps, six checkpoints."""


def accuracy(judge: RewardModel) -> dict[str, float]:
    margin = judge([Question(p.prompt, p.second, p.first) for p in PAIRS[:3]]).margin
    return {"accuracy_ood": float(margin.sigmoid().mean())}


def train(folder: Path) -> None:
    train_judge(RECIPE, PAIRS, folder, Metrics(folder / "metrics.jsonl"), seed=7, evaluate=accuracy)


def assert_readable(folder: Path) -> int:
    """Every checkpoint that there is can be read; returns the step of the newest, or 0."""
    steps = [0]
    for checkpoint in folder.glob("checkpoint-*[0-9]"):
        if not (checkpoint / "complete").exists():  # an old one, on its way out
            continue
        assert load_file(checkpoint / "model.safetensors")
        assert torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"]
        steps.append(json.loads((checkpoint / "progress.json").read_text())["step"])
    newest = max(folder.glob("checkpoint-*[0-9]"), key=lambda path: int(path.name.split("-")[1]), default=None)
    assert newest is None or (newest / "complete").exists()
    return max(steps)


def last_step(folder: Path) -> int:
    return max((row["step"] for row in read_metrics(folder)), default=-1)


def test_a_run_killed_at_ten_random_moments_repeats_the_uninterrupted_one(tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    begun = time.monotonic()
    os.waitpid(forked(lambda: train(whole), tmp_path / "answer"), 0)
    took = time.monotonic() - begun
    assert (whole / "reward" / "model.safetensors").is_file()
    rng, kills, reached = random.Random(0), 0, [0]
    while kills < 10:
        child = forked(lambda: train(folder), tmp_path / "answer")
        # beyond what a killed run told of, which stands there until one goes on
        begin = max(reached[-1], last_step(folder)) + rng.randint(0, 4)
        if ended_before(child, lambda: last_step(folder), begin, rng.uniform(0, 0.1) * took):
            assert read_metrics(folder) == read_metrics(whole)
            shutil.rmtree(folder)
            reached.append(0)
            continue
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        kills += 1
        if (folder / "metrics.jsonl").exists():
            reached.append(assert_readable(folder))
            rows = [row for row in read_metrics(folder) if row["step"] <= reached[-1]]
            assert rows == [row for row in read_metrics(whole) if row["step"] <= reached[-1]]
    assert len(set(reached)) > 2  # they were spread over the run
    train(folder)
    assert read_metrics(folder) == read_metrics(whole)
    ours, theirs = (load_file(run / "reward" / "model.safetensors") for run in (folder, whole))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not list(folder.glob("*.partial"))
