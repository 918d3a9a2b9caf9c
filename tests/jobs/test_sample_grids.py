"""Samples during training: the same prompts and noises at each probe, and nothing of the training is moved by them."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import torch
from tiny import BrightnessJudge, TinyGenerator, pictures

from rewarddance.alignment.algorithms import align_generator
from rewarddance.alignment.flow_grpo import GrpoRecipe
from rewarddance.alignment.group_rewards import Reward
from rewarddance.alignment.references import ReferenceBank, References
from rewarddance.alignment.refl_recipe import ReflRecipe
from rewarddance.alignment.train import Alignment
from rewarddance.data.media import read_picture
from rewarddance.data.picture_grid import LABEL
from rewarddance.jobs import sample_grids as grids
from rewarddance.jobs.sample_grids import with_grids
from rewarddance.report.run_folder import find_grids
from rewarddance.runtime.tracking import Metrics
from rewarddance.types import Prompt

PROMPTS = ["a red circle", "a blue cross", "two dots", "a green ring", "a line"]
LOOP = {"steps": 5, "prompts_per_step": 2, "learning_rate": 0.05, "lora_rank": 2, "ema_decay": 0.2}
LOOP |= {"probe_every": 2, "save_every": 4}
BANK = [
    References(Prompt(prompt), tuple(pictures(2, seed=i, size=4)), (91, 92), (1.0, 0.0), torch.zeros(2, 3, 4, 4))
    for i, prompt in enumerate(PROMPTS)
]


class Recorder:
    """A tracker that keeps what it is told."""

    name = "recorder"

    def __init__(self) -> None:
        self.figures: list[tuple[int, dict]] = []
        self.shown: list[int] = []

    def log(self, values, step=None):
        self.figures.append((step, values))

    def log_images(self, values, step=None):
        assert list(values) == ["refl/samples"] and values["refl/samples"].ndim == 4
        self.shown.append(step)


def aligned(folder: Path, count: int = 3, tracker: Recorder | None = None) -> None:
    generator, metrics = TinyGenerator(), Metrics(folder / "metrics.jsonl", [tracker] if tracker else [])
    options = {"count": count, "phase": "refl", "seed": 0, "batch_size": 4}
    probe = with_grids(lambda: {"seen": 1.0}, generator, PROMPTS, metrics, **options)
    run = Alignment(
        generator, [Reward(BrightnessJudge(), "references")], PROMPTS, ReflRecipe(**LOOP), 0, ReferenceBank(BANK)
    )
    align_generator(run, folder=folder, metrics=metrics, probe=probe)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run in one go, and what its tracker was told."""
    folder, tracker = tmp_path_factory.mktemp("whole"), Recorder()
    aligned(folder, tracker=tracker)
    return folder, tracker


def test_every_probe_leaves_a_grid_of_its_step(whole):
    folder, _ = whole
    assert {step: path.name for step, path in find_grids(folder).items()} == {
        step: f"step-{step:04d}.png" for step in (0, 2, 4, 5)
    }
    first, *later = (read_picture(path) for path in find_grids(folder).values())
    assert first.shape == (1, 3, 3 * 100 + 4, LABEL + 2 * 100)
    assert all(torch.equal(first[..., :LABEL], grid[..., :LABEL]) for grid in later)
    assert all(not torch.equal(first, grid) for grid in later)


def test_grids_move_nothing_that_training_draws(whole, tmp_path):
    folder, _ = whole
    torch.manual_seed(11)
    state = torch.get_rng_state()
    aligned(tmp_path, count=0)
    without = torch.get_rng_state()
    torch.manual_seed(11)
    aligned(tmp_path / "again")
    assert torch.equal(torch.get_rng_state(), without) and not torch.equal(state, without)
    assert not (tmp_path / "samples").exists()
    assert (tmp_path / "metrics.jsonl").read_text() == (folder / "metrics.jsonl").read_text()
    name = "lora/lora.safetensors"
    assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_a_run_killed_at_any_grid_ends_as_one_in_one_go(whole, tmp_path, monkeypatch, at):
    (folder, uninterrupted), tracker, left = whole, Recorder(), [at]

    def killed(write, *arguments):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        write(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(grids, "write_grid", functools.partial(killed, grids.write_grid))
        aligned(tmp_path, tracker=tracker)
    aligned(tmp_path, tracker=tracker)
    ours, theirs = find_grids(tmp_path), find_grids(folder)
    assert ours.keys() == theirs.keys()
    assert all(ours[step].read_bytes() == theirs[step].read_bytes() for step in ours)
    assert (tmp_path / "metrics.jsonl").read_text() == (folder / "metrics.jsonl").read_text()
    assert tracker.figures == uninterrupted.figures and tracker.shown == uninterrupted.shown == [0, 2, 4, 5]


def test_the_trackers_are_told_every_figure_of_metrics_jsonl(whole):
    folder, tracker = whole
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    expected = [
        (row.pop("step"), {f"{row['phase']}/{k}": v for k, v in row.items() if k not in ("phase", "kind")})
        for row in rows
    ]
    assert tracker.figures == expected


def test_a_policy_gradient_shows_the_average_that_it_delivers(tmp_path):
    generator, metrics = TinyGenerator(), Metrics(tmp_path / "metrics.jsonl")
    recipe = GrpoRecipe(**LOOP | {"group_size": 4, "probe_prompts": 0, "window": 1, "window_range": (0, 1)})
    options = {"count": 2, "phase": "grpo", "seed": 0}
    probe = with_grids(dict, generator, PROMPTS, metrics, **options, batch_size=8)
    run = Alignment(generator, [Reward(BrightnessJudge(), "group")], PROMPTS, recipe)
    align_generator(run, folder=tmp_path, metrics=metrics, probe=probe)
    assert list(find_grids(tmp_path)) == [0, 2, 4, 5]
    delivered = Metrics(tmp_path / "delivered" / "metrics.jsonl")
    delivered.step = 5
    with_grids(dict, generator, PROMPTS, delivered, **options, batch_size=3)()
    again = read_picture(find_grids(tmp_path / "delivered")[5])
    assert (again - read_picture(find_grids(tmp_path)[5])).abs().max() <= 1 / 255
