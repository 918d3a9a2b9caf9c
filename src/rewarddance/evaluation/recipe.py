"""How thoroughly a judge is examined, how it is stressed, and by which rules objects are counted."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rewarddance.runtime.config import Recipe, Seed

AnswerForm = Literal["first_token", "yes_no"]
"""How a judge answers a question about a picture: by the first token of its answer, or by P("yes") to it."""


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


class GenEvalRules(Recipe):
    """Which detections count, and from where on one object is left of another; the defaults are GenEval's."""

    threshold: float = Field(default=0.3, ge=0, le=1)
    """Score from which on a detection counts."""
    counting_threshold: float = Field(default=0.9, ge=0, le=1)
    """The same for the prompts that count."""
    max_objects: int = Field(default=16, ge=1)
    """Of a class, the surest."""
    max_overlap: float = Field(default=1.0, ge=0, le=1)
    """Intersection over union of two of a class from which on they are one object; at 1 never."""
    position_threshold: float = Field(default=0.1, ge=0)
    """Share of both boxes' sizes by which the offset of two objects is lessened."""
