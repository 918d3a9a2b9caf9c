"""Zero-order search: better noises near the best noise so far (Ma et al. 2501.09732, section 3.1)."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from rewarddance.runtime.config import Recipe, changed
from rewarddance.search.batch import Batch
from rewarddance.search.judging import Groups


class ZeroOrder(Recipe):
    """neighbours: how many are tried around each pivot. radius: how far they are from it, see `search_zero_order`.

    Both defaults are ours, and so is the rule that a pivot stays until a neighbour beats it.
    """

    neighbours: int = Field(default=4, ge=1)
    radius: float = Field(default=0.4, gt=0, le=1)


def search_zero_order(batch: Batch, recipe: ZeroOrder) -> None:
    """Try neighbours sqrt(1 - r^2) n + r eps of the pivot n, the noise of the best picture so far, until all is spent.

    Such a neighbour has the distribution of the pivot, in every family's scale; at radius 1 this is random search.
    """
    batch.check_width("neighbours", recipe.neighbours if changed(recipe, "neighbours") else 0)
    seeds = batch.next_seeds(1)
    new = _candidates(batch, batch.init_noise(seeds), [[{"noise": seed}] for (seed,) in seeds])
    batch.first = [group[0] for group in new]
    batch.add(new)
    while count := batch.max_affordable(batch.plain_cost, recipe.neighbours):
        batch.rounds += 1
        seeds, best = batch.next_seeds(count), [kept[0] for kept in batch.kept]
        pivots = torch.stack([pivot.latent for pivot in best]).repeat_interleave(count, 0)
        noises = math.sqrt(1 - recipe.radius**2) * pivots + recipe.radius * batch.init_noise(seeds)
        origins = [
            [{**pivot.origin, "moved": [*pivot.origin.get("moved", ()), seed]} for seed in row]
            for pivot, row in zip(best, seeds, strict=True)
        ]
        batch.add(_candidates(batch, noises, origins))


def _candidates(batch: Batch, noises: Tensor, origins: list[list[dict]]) -> Groups:
    """The candidates [P][N] that noises [P * N, ...] give, with those noises as their latents."""
    groups = batch.candidates(batch.denoise(noises, 0, batch.steps), origins)
    for candidate, noise in zip((candidate for group in groups for candidate in group), noises, strict=True):
        candidate.latent = noise.clone()  # a view would keep the whole batch in memory
    return groups
