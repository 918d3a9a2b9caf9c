"""What the policy gradients share: how a step's prompts are split into updates, judged, and summed up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from rewarddance.alignment.group_rewards import (
    Advantages,
    Judging,
    Scores,
    advantages,
    combine,
    judging_of,
    preferred,
    scores,
)
from rewarddance.alignment.references import References
from rewarddance.alignment.train import Alignment, Figures, Trainable, TrainRecipe, prompts_of_step
from rewarddance.data.image_stats import step_image_stats
from rewarddance.errors import InputError
from rewarddance.generators.sampling import sample
from rewarddance.protocols import RewardModel
from rewarddance.runtime.memory import memory_for
from rewarddance.runtime.process_group import all_gather, local_shard
from rewarddance.types import PixelBatch, Pixels, as_prompts


class PolicyRecipe(TrainRecipe):
    """What policy gradients have in common. See `TrainRecipe` for the loop's keys.

    group_size: at least 2, for a sample is compared with the others of its prompt.
    updates: optimiser steps an iteration, each on its share of the prompts.
    judging: how the judge is asked, "alone", "group" (every sample against every other, the win rate) or "references";
        by default what suits it.
    spread: advantages are divided by the standard deviation of the prompt's scores, or of all (global).
    advantage_clip: their largest size.
    probe_prompts: how many prompts the averaged generator draws for `against_base`; 0 for none.
    checkpointing: as in ReFL; a gradient goes through the generator alone.
    """

    group_size: int = Field(default=8, ge=2)
    learning_rate: float = Field(default=1e-4, gt=0)
    updates: int = Field(default=1, ge=1)
    judging: Judging | None = None
    spread: Literal["prompt", "global"] = "prompt"
    advantage_clip: float = Field(default=5.0, gt=0)
    probe_prompts: int = Field(default=16, ge=0)
    checkpointing: tuple[Literal["generator"], ...] = ()

    @model_validator(mode="after")
    def _every_update_has_a_prompt(self) -> PolicyRecipe:
        if self.updates > self.prompts_per_step:
            raise ValueError(
                f"updates is {self.updates}, and each needs a prompt of the {self.prompts_per_step} a step"
            )
        return self

    def check_processes(self, processes: int) -> None:
        """Raises InputError where the processes cannot share each update's prompts: a group stays on one of them."""
        super().check_processes(processes)
        shares = self.updates * processes
        if processes > 1 and self.prompts_per_step % shares:
            raise InputError(
                f"{processes} processes cannot share {self.prompts_per_step} prompts equally in each of "
                f"{self.updates} updates (prompts_per_step, updates).",
                f"Set prompts_per_step to a multiple of {shares}.",
            )

    def judging_of(self, judge: RewardModel) -> Judging:
        return judging_of(judge, self.judging)

    @contextmanager
    def learning(self, generator: Trainable) -> Iterator[None]:
        """Within the block layers keep their inputs only, if `checkpointing` says so.

        Raises InputError where memory runs out, naming what to lower.
        """
        layers = generator.checkpointed(decoder=False) if self.checkpointing else nullcontext()
        with memory_for("the generator", "Lower generator_batch, or add generator to checkpointing."), layers:
            yield

    def batches(self, p: int) -> list[list[Tensor]]:
        """Rows of the P * G samples by update, and within an update by what goes through the generator together."""
        groups = torch.arange(p * self.group_size).view(p, self.group_size).tensor_split(self.updates)
        at_once = self.generator_batch or p * self.group_size
        return [list(rows.flatten().split(at_once)) for rows in groups]


class Draws(NamedTuple):
    """A step's random draws, alike in all processes.

    rng, noise_rng: for what is drawn later in the step.
    chosen: numbers of its prompts [P].
    seeds: of their samples' first noises [P][G].
    """

    rng: np.random.Generator
    noise_rng: torch.Generator
    chosen: list[int]
    seeds: list[list[int]]


def sample_step(step: int, n_prompts: int, recipe: PolicyRecipe, seed: int) -> Draws:
    """All depends on (seed, step) alone, as in ReFL."""
    rng = np.random.default_rng([seed, 2, step])
    noise_rng = torch.Generator().manual_seed(int(rng.integers(2**31)))
    chosen = prompts_of_step(n_prompts, recipe.prompts_per_step, seed, step)
    return Draws(rng, noise_rng, chosen, rng.integers(2**31, size=(len(chosen), recipe.group_size)).tolist())


class ScoredRollouts(NamedTuple):
    """A step's samples, judged.

    advantages: [P, G], clipped.
    scores: of each reward.
    image_stats: figures of the pictures.
    """

    advantages: Advantages
    scores: tuple[Scores, ...]
    image_stats: Figures


def score_rollouts(run: Alignment, pixels: PixelBatch, draws: Draws) -> ScoredRollouts:
    """Ask every reward about a step's samples [P * G, T, C, H, W], and combine their advantages.

    pixels: of this process's share of the prompts; what is returned is of all of them, the same in all processes.
    """
    recipe = run.recipe
    assert isinstance(recipe, PolicyRecipe)
    gather = partial(all_gather, parts=recipe.updates)
    own = local_shard(draws.chosen, recipe.updates)
    prompts = as_prompts(run.prompts[i] for i in own)
    groups = [list(group) for group in pixels.unflatten(0, (len(own), recipe.group_size))]
    references = None if run.bank is None else _choose_references(run.bank.references, draws, recipe.updates)
    local = [scores(reward, prompts, groups, references) for reward in run.rewards]
    of_rewards = tuple(Scores(gather(values), gather(margins)) for values, margins in local)
    combined = combine(
        [advantages(of_reward.values, recipe.spread) for of_reward in of_rewards],
        [reward.weight for reward in run.rewards],
    )
    clipped = combined.values.clamp(-recipe.advantage_clip, recipe.advantage_clip)
    image_stats = step_image_stats(pixels, len(draws.chosen), gather)
    return ScoredRollouts(Advantages(clipped, combined.zero_std_groups), of_rewards, image_stats)


def _choose_references(bank: Sequence[References], draws: Draws, updates: int) -> list[list[Pixels]]:
    """A reference for each of this process's samples [P][G]; chosen for all samples, alike in all processes."""
    chosen = []
    for number, seeds in zip(draws.chosen, draws.seeds, strict=True):
        references = bank[number]
        chosen.append([references.pictures[references.choose(draws.rng, seed)] for seed in seeds])
    return local_shard(chosen, updates)


def reward_figures(scored: ScoredRollouts) -> Figures:
    """What is logged of the pictures and of the rewards: all of the first, the margin of the others."""
    first, *others = scored.scores
    values, margins = first.values, first.margins
    compared = margins.ndim == 3  # in the group: P and margin are of all pairs, which are even by construction
    figures = scored.image_stats | {
        "reward": values.mean().item() if compared else margins.sigmoid().mean().item(),
        "margin": margins.mean().item(),
        "spread_within": values.std(1, correction=0).mean().item(),
        "zero_std_groups": scored.advantages.zero_std_groups,
    }
    if not compared:  # the mean win rate of every group is a half
        figures["spread_across"] = values.mean(1).std(correction=0).item()
        figures["spread_of_reward"] = margins.sigmoid().std(correction=0).item()
    return figures | {f"margin_{k}": other.margins.mean().item() for k, other in enumerate(others, start=2)}


def add_share(totals: Figures, figures: Figures, share: float) -> None:
    """Add a part's figures to a mean, weighted with the part's share of the whole."""
    for name, value in figures.items():
        totals[name] = totals.get(name, 0.0) + share * value


def against_base(run: Alignment) -> Callable[[], Figures]:
    """A probe: how likely the judge prefers the generator's pictures to those of before training, from the same noises.

    The one figure that can rise where samples are only compared with each other. A half at the start.
    """
    recipe = run.recipe
    assert isinstance(recipe, PolicyRecipe)
    prompts = as_prompts(run.prompts[: recipe.probe_prompts])
    seeds = np.random.SeedSequence([run.seed, 4]).generate_state(len(prompts)).tolist()
    draw = partial(sample, run.generator, prompts, seeds, recipe.generator_batch or len(prompts))
    before: list[PixelBatch] = []

    def probe() -> Figures:
        if not prompts:
            return {}
        if not before:
            with run.generator.as_before_training():
                before.append(draw())
        pairs = [list(pair) for pair in zip(draw(), before[0], strict=True)]
        return {"preferred_to_base": preferred(run.rewards[0], prompts, pairs).mean().item()}

    return probe
