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

from rewarddance.alignment.advantages import Advantages, advantages, combine
from rewarddance.alignment.references import References
from rewarddance.alignment.rewards import Judging, Reward, Scores, preferred, scores
from rewarddance.alignment.train import Figures, Trainable, TrainRecipe, prompts_of_step
from rewarddance.data.image_stats import step_image_stats
from rewarddance.errors import InputError
from rewarddance.generators.sampling import sample
from rewarddance.runtime.memory import memory_for
from rewarddance.runtime.process_group import all_gather, local_shard
from rewarddance.types import PixelBatch, Prompt, as_prompts


class PolicyRecipe(TrainRecipe):
    """What policy gradients have in common. See `TrainRecipe` for the loop's keys.

    group_size: at least 2, for a sample is compared with the others of its prompt. updates: optimiser steps an
    iteration, each on its share of the prompts. judging: how the judge is asked, "alone", "group" (every sample against
    every other, the win rate) or "references"; by default what suits it. spread: advantages are divided by the standard
    deviation of the prompt's scores, or of all (global). advantage_clip: their largest size. probe_prompts: how many
    prompts the averaged generator draws for `against_base`; 0 for none. checkpointing: as in ReFL; a gradient goes
    through the generator alone.
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
    """A step's random draws: chosen [P], numbers of its prompts; seeds [P][G], of their first noises."""

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
    """advantages [P, G] of a step's samples, clipped; of: each reward's own scores; looks: of their pictures."""

    advantages: Advantages
    of: tuple[Scores, ...]
    looks: Figures


def judged(
    rewards: Sequence[Reward],
    prompts: Sequence[Prompt],
    pixels: PixelBatch,
    draws: Draws,
    recipe: PolicyRecipe,
    bank: Sequence[References] | None,
) -> ScoredRollouts:
    """Ask every reward about a step's samples [P * G, T, C, H, W], and weigh what they say.

    pixels: of this process's share of the prompts; what is returned is of all of them, the same in all processes.
    """
    rng, _, chosen, seeds = draws
    mine = local_shard(chosen, recipe.updates)
    asked = [prompts[i] for i in mine]
    groups = [list(group) for group in pixels.unflatten(0, (len(mine), recipe.group_size))]
    references = None
    if bank is not None:
        of = [bank[i] for i in chosen]
        places = [[one.choose(rng, s) for s in each] for one, each in zip(of, seeds, strict=True)]
        drawn = [[one.pictures[place] for place in each] for one, each in zip(of, places, strict=True)]
        references = local_shard(drawn, recipe.updates)
    together = partial(all_gather, parts=recipe.updates)
    said = [scores(reward, asked, groups, references) for reward in rewards]
    found = tuple(Scores(together(one.values), together(one.margins)) for one in said)
    each = [advantages(one.values, recipe.spread) for one in found]
    both = combine(each, [reward.weight for reward in rewards])
    clipped = both.values.clamp(-recipe.advantage_clip, recipe.advantage_clip)
    return ScoredRollouts(
        Advantages(clipped, both.zero_std_groups), found, step_image_stats(pixels, len(chosen), together)
    )


def summary(found: ScoredRollouts) -> Figures:
    """What is logged of the pictures, and of what the judges said: of the first reward where there are several, of the
    others the margin."""
    first, *others = found.of
    values, margins = first.values, first.margins
    compared = margins.ndim == 3  # in the group: P and margin are of all pairs, which are even by construction
    figures = found.looks | {
        "reward": values.mean().item() if compared else margins.sigmoid().mean().item(),
        "margin": margins.mean().item(),
        "spread_within": values.std(1, correction=0).mean().item(),
        "zero_std_groups": found.advantages.zero_std_groups,
    }
    if not compared:  # the mean win rate of every group is a half
        figures["spread_across"] = values.mean(1).std(correction=0).item()
        figures["spread_of_reward"] = margins.sigmoid().std(correction=0).item()
    return figures | {f"margin_{k}": one.margins.mean().item() for k, one in enumerate(others, start=2)}


def against_base(
    generator: Trainable, reward: Reward, prompts: Sequence[str | Prompt], recipe: PolicyRecipe, seed: int
) -> Callable[[], Figures]:
    """A probe: how likely the judge prefers the generator's pictures to those of before training, from the same noises.

    The one figure that can rise where samples are only compared with each other. A half at the start.
    """
    asked = as_prompts(prompts[: recipe.probe_prompts])
    seeds = np.random.SeedSequence([seed, 4]).generate_state(len(asked)).tolist()
    before: list[PixelBatch] = []

    def probe() -> Figures:
        if not asked:
            return {}
        at_once = recipe.generator_batch or len(asked)
        if not before:
            with generator.as_before_training():
                before.append(sample(generator, asked, seeds, at_once))
        drawn = sample(generator, asked, seeds, at_once)
        pairs = [[now, was] for now, was in zip(drawn, before[0], strict=True)]
        return {"preferred_to_base": preferred(reward, asked, pairs).mean().item()}

    return probe
