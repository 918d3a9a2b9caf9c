"""What the policy gradients share: how a step's prompts are split into updates, judged, and summed up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from rewarddance.alignment.advantages import Advantages, advantages, weighed
from rewarddance.alignment.references import References
from rewarddance.alignment.rewards import Judging, Reward, Scores, scores
from rewarddance.alignment.train import Figures, TrainRecipe
from rewarddance.data.looks import figures_of_step
from rewarddance.types import PixelBatch


class PolicyRecipe(TrainRecipe):
    """What policy gradients have in common. See `TrainRecipe` for the loop's keys.

    group_size: at least 2, for a sample is compared with the others of its prompt. updates: optimiser steps an
    iteration, each on its share of the prompts. judging: how the judge is asked, "alone", "group" (every sample against
    every other, the win rate) or "references"; by default what suits it. spread: advantages are divided by the standard
    deviation of the prompt's scores, or of all (global). advantage_clip: their largest size.
    """

    group_size: int = Field(default=8, ge=2)
    learning_rate: float = Field(default=1e-4, gt=0)
    updates: int = Field(default=1, ge=1)
    judging: Judging | None = None
    spread: Literal["prompt", "global"] = "prompt"
    advantage_clip: float = Field(default=5.0, gt=0)

    def batches(self, p: int) -> list[list[Tensor]]:
        """Rows of the P * G samples by update, and within an update by what goes through the generator together."""
        groups = torch.arange(p * self.group_size).view(p, self.group_size).chunk(self.updates)
        at_once = self.generator_batch or p * self.group_size
        return [list(rows.flatten().split(at_once)) for rows in groups]


class Judged(NamedTuple):
    """advantages [P, G] of a step's samples, clipped; of: each reward's own scores; looks: of their pictures."""

    advantages: Advantages
    of: tuple[Scores, ...]
    looks: Figures


def judged(
    rewards: Sequence[Reward],
    chosen: Sequence[int],
    prompts: Sequence[str],
    pixels: PixelBatch,
    seeds: Sequence[Sequence[int]],
    recipe: PolicyRecipe,
    draw: np.random.Generator,
    bank: Sequence[References] | None,
) -> Judged:
    """Ask every reward about samples [P * G, T, C, H, W] of the prompts numbered `chosen`, and weigh what they say."""
    asked = [prompts[i] for i in chosen]
    groups = [list(group) for group in pixels.unflatten(0, (len(chosen), recipe.group_size))]
    references = None
    if bank is not None:
        of = [bank[i] for i in chosen]
        references = [[one.pictures[one.choose(draw, s)] for s in own] for one, own in zip(of, seeds, strict=True)]
    found = tuple(scores(reward, asked, groups, references) for reward in rewards)
    each = [advantages(one.values, recipe.spread) for one in found]
    both = weighed(each, [reward.weight for reward in rewards])
    clipped = both.values.clamp(-recipe.advantage_clip, recipe.advantage_clip)
    return Judged(Advantages(clipped, both.without_spread), found, figures_of_step(pixels, len(chosen)))


def summary(found: Judged) -> Figures:
    """What is logged of the pictures, and of what the judges said: of the first reward where there are several, of the
    others the margin."""
    first, *others = found.of
    values, margins = first.values, first.margins
    compared = margins.ndim == 3  # in the group: P and margin are of all pairs, which are even by construction
    figures = found.looks | {
        "reward": values.mean().item() if compared else margins.sigmoid().mean().item(),
        "margin": margins.mean().item(),
        "spread_within": values.std(1, correction=0).mean().item(),
        "spread_across": values.mean(1).std(correction=0).item(),
        "groups_without_spread": found.advantages.without_spread,
    }
    return figures | {f"margin_{k}": one.margins.mean().item() for k, one in enumerate(others, start=2)}
