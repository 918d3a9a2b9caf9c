"""Simulated people: they see the oracle's order through noise, and some of them do not look."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from rewarddance.runtime.config import Recipe


class AnnotatorRecipe(Recipe):
    """Who votes on a pair.

    votes: people a pair. noise: deviation of the Gaussian that each adds to the difference of the two pictures'
    overall scores. tie_within: a perceived difference smaller than this is a tie. careless: share of votes cast at
    random. brightness_bias: how much a picture's mean brightness (0 to 1) adds to its perceived score; 0 is off.
    """

    votes: int = Field(default=3, ge=1)
    noise: float = Field(default=0.08, ge=0)
    tie_within: float = Field(default=0.02, ge=0)
    careless: float = Field(default=0.05, ge=0, le=1)
    brightness_bias: float = 0.0


def vote(
    first: np.ndarray, second: np.ndarray, difference: float, recipe: AnnotatorRecipe, rng: np.random.Generator
) -> float:
    """The share of votes that find `second` better; a tie counts half.

    first, second: pictures [H, W, 3] in [0, 1]. difference: the oracle's overall score of second minus that of first.
    """
    seen = difference + recipe.brightness_bias * float(second.mean() - first.mean())
    perceived = seen + recipe.noise * rng.standard_normal(recipe.votes)
    votes = np.where(np.abs(perceived) < recipe.tie_within, 0.5, (perceived > 0).astype(np.float64))
    careless = rng.random(recipe.votes) < recipe.careless
    votes = np.where(careless, rng.integers(0, 2, recipe.votes), votes)
    return float(votes.mean())
