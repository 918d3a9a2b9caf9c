"""Simulated annotators: they see the oracle's order through noise, and some of them vote at random."""

from __future__ import annotations

import numpy as np
from pydantic import Field, model_validator

from rewarddance.runtime.config import Recipe


class AnnotatorRecipe(Recipe):
    """Who votes on a pair.

    votes: how many people vote on each pair.
    noise: standard deviation of the Gaussian that each adds to the difference of the two pictures' overall scores.
    tie_within: a perceived difference smaller than this is a tie.
    careless: share of votes cast at random.
    brightness_bias: how much a picture's mean brightness (0 to 1) adds to its perceived score; 0 is off.
    crowd: how many people there are in all, each pair's voters among them; then a share `careless` of them, rounded,
    always votes at random and the others never do. 0: nobody votes twice, and each vote may be a careless one.
    """

    votes: int = Field(default=3, ge=1)
    noise: float = Field(default=0.08, ge=0)
    tie_within: float = Field(default=0.02, ge=0)
    careless: float = Field(default=0.05, ge=0, le=1)
    brightness_bias: float = 0.0
    crowd: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _crowd_is_large_enough(self) -> AnnotatorRecipe:
        if 0 < self.crowd < self.votes:
            raise ValueError(f"{self.votes} votes a pair need a crowd of as many, and it has {self.crowd}")
        return self


def cast_votes(
    first: np.ndarray, second: np.ndarray, difference: float, recipe: AnnotatorRecipe, rng: np.random.Generator
) -> list[tuple[float, str]]:
    """The votes on a pair as (share, annotator): 1 where `second` is better, 0.5 a tie.

    With a crowd, each vote is returned with its annotator's number from 0. Without one, only the mean is returned, with
    the annotator "".

    first, second: pictures [..., H, W, 3] in [0, 1].
    difference: the oracle's overall score of second minus that of first.
    """
    biased = difference + recipe.brightness_bias * float(second.mean() - first.mean())
    perceived = biased + recipe.noise * rng.standard_normal(recipe.votes)
    votes = np.where(np.abs(perceived) < recipe.tie_within, 0.5, (perceived > 0).astype(np.float64))
    if recipe.crowd:
        people = rng.choice(recipe.crowd, recipe.votes, replace=False)
        careless = people < round(recipe.careless * recipe.crowd)
    else:
        people = np.arange(recipe.votes)
        careless = rng.random(recipe.votes) < recipe.careless
    votes = np.where(careless, rng.integers(0, 2, recipe.votes), votes)
    if not recipe.crowd:
        return [(float(votes.mean()), "")]
    return [(float(vote), str(person)) for vote, person in zip(votes, people, strict=True)]
