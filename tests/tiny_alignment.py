"""Alignments of small generators: a whole run, and the updates of one step."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tiny import BrightnessJudge, TinyGenerator
from torch import nn

from rewarddance.alignment.algorithms import algorithm_of, align_generator
from rewarddance.alignment.group_rewards import Reward
from rewarddance.alignment.references import ReferenceBank, References
from rewarddance.alignment.refl_recipe import ReflRecipe
from rewarddance.alignment.safeguards import Ema
from rewarddance.alignment.train import Alignment, Figures, TrainRecipe
from rewarddance.protocols import RewardModel
from rewarddance.runtime.tracking import Metrics
from rewarddance.types import Question, Verdict


def interrupt() -> None:
    raise KeyboardInterrupt


def align_by_refl(
    generator: Any,
    judge: RewardModel,
    bank: Sequence[References],
    recipe: ReflRecipe,
    folder: Path,
    *,
    seed: int = 3,
    probe: Callable[[], Figures] = dict,
    redraw: Callable[[int, bool], Sequence[References]] | None = None,
) -> Path:
    prompts = [references.prompt for references in bank]
    run = Alignment(generator, [Reward(judge, "references")], prompts, recipe, seed, ReferenceBank(bank, redraw))
    return align_generator(run, folder=folder, metrics=Metrics(folder / "metrics.jsonl"), probe=probe)


def updates_of(
    generator: Any,
    rewards: Sequence[Reward],
    prompts: Sequence[Any],
    recipe: TrainRecipe,
    *,
    seed: int = 1,
    step: int = 0,
    bank: Sequence[References] | None = None,
    weights: Sequence[nn.Parameter] = (),
) -> list[Figures]:
    """What the updates of a step yield. weights: whose average samples, in DiffusionNFT."""
    run = Alignment(generator, rewards, prompts, recipe, seed, ReferenceBank(bank) if bank is not None else None)
    return list(algorithm_of(recipe).updates(run, step, Ema(weights, 0.5)))


class WatchedJudge(BrightnessJudge):
    """Keeps the questions that it is asked. After `calls` calls it is interrupted, or does what `stop` does."""

    def __init__(self, calls: int = 10**6, stop: Callable[[], None] = interrupt) -> None:
        super().__init__()
        self.calls, self.stop, self.questions = calls, stop, []

    def __call__(self, questions: Sequence[Question]) -> Verdict:
        self.calls -= 1
        if self.calls < 0:
            self.stop()
        self.questions += questions
        return super().__call__(questions)


def with_lora(kind: type[TinyGenerator] = TinyGenerator, num_steps: int = 6) -> tuple[Any, list[nn.Parameter]]:
    """A tiny generator with a LoRA that is the same at every call, and its weights."""
    torch.manual_seed(0)
    generator = kind(num_steps)
    return generator, moved(generator.add_lora(2, 2))


def moved(weights: Sequence[nn.Parameter], size: float = 0.1) -> list[nn.Parameter]:
    """The weights, moved at random: a LoRA that has just been made does nothing."""
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in weights:
            weight.add_(size * torch.randn(weight.shape, generator=rng))
    return list(weights)


def logged(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(folder: Path, other: Path, weights: str = "lora/lora.safetensors") -> None:
    """The metrics and the delivered weights of two runs are the same to the bit."""
    ours, theirs = load_file(folder / weights), load_file(other / weights)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert logged(folder) == logged(other)
