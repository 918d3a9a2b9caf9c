"""How thoroughly a judge is examined, and how it is stressed."""

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


class StressRecipe(Recipe):
    """How a reward is stressed (`evaluation.stress`)."""

    questions: int = Field(default=64, ge=1)
    """Pairs of a test set whose second picture is changed, against their first; of as many prompts as there are."""
    steps: int = Field(default=4, ge=1)
    """Along the gradient's sign, within each radius."""
    decoder: str | None = None
    """A generator, or an autoencoder's folder, whose latent is moved too."""
    batch_size: int = Field(default=16, ge=1)
    """Pairs whose changed pictures are in memory together."""
