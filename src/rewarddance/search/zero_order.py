"""Zero-order search: better noises near the best noise so far (Ma et al. 2501.09732, section 3.1)."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from rewarddance.runtime.config import Recipe
from rewarddance.search.batch import Batch
from rewarddance.search.judging import Candidate


class ZeroOrder(Recipe):
    """neighbours: tried around each pivot. radius: how far they are from it, see `search_zero_order`.

    Both defaults are ours, and so is that a pivot stays until a neighbour beats it.
    """

    neighbours: int = Field(default=4, ge=1)
    radius: float = Field(default=0.4, gt=0, le=1)


def search_zero_order(batch: Batch, recipe: ZeroOrder) -> None:
    """Try neighbours sqrt(1 - r^2) n + r eps of the pivot n, the noise of the best picture so far, until all is spent.

    Such a neighbour is as Gaussian as the pivot, in every family's scale; at radius 1 this is random search.
    """
    pivots = batch.init_noise(seeds := batch.seeds(1))
    batch.first = _finished(batch, pivots, [[{"noise": own[0]}] for own in seeds])
    batch.offer([[one] for one in batch.first])
    while count := batch.max_affordable(batch.plain, recipe.neighbours):
        batch.rounds += 1
        seeds = batch.seeds(count)
        pivots = torch.stack([own[0].latent for own in batch.found for _ in range(count)])
        noises = math.sqrt(1 - recipe.radius**2) * pivots + recipe.radius * batch.init_noise(seeds)
        origins = [
            [{**own[0].origin, "moved": [*own[0].origin.get("moved", ()), seed]} for seed in mine]
            for own, mine in zip(batch.found, seeds, strict=True)
        ]
        found = iter(_finished(batch, noises, origins))
        batch.offer([[next(found) for _ in range(count)] for _ in batch.prompts])


def _finished(batch: Batch, noises: Tensor, origins: list[list[dict]]) -> list[Candidate]:
    """The pictures of noises, which remember them."""
    found = batch.candidates(batch.denoised(noises, 0, batch.steps), origins)
    flat = [one for own in found for one in own]
    for one, noise in zip(flat, noises, strict=True):
        one.latent = noise.clone()  # as its pixels, or it would keep all the batch
    return flat
