"""How thoroughly a judge is examined."""

from __future__ import annotations

from pydantic import Field

from rewarddance.runtime.config import Recipe, Seed


class ExamRecipe(Recipe):
    """Sizes and the seed of an examination."""

    batch_size: int = Field(default=32, ge=1)
    """Pairs in memory together."""
    probes: int = Field(default=200, ge=1)
    """Pairs of a test set that are asked again with the candidate changed (eight questions each)."""
    groups: int = Field(default=50, ge=1)
    """Prompts of a test set whose pictures all meet, for the triples."""
    pictures: int = Field(default=5, ge=3)
    """How many pictures of each of these prompts meet."""
    seed: Seed = 0
    """Of which prompts are in which half, and which meet."""
