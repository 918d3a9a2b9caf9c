"""A judge that somebody bent towards one colour: made to be hacked while the pictures stay near the base's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rewarddance.protocols import RewardModel, needs_reference
from rewarddance.types import Question, Verdict


class Coloured(NamedTuple):
    """A reward model whose margin also grows with the redness of the candidate over that of the reference.

    weight: logits for a picture that is all red over one that has no red in it.
    """

    judge: RewardModel
    weight: float

    @property
    def needs_reference(self) -> bool:
        return needs_reference(self.judge)

    def __call__(self, questions: Sequence[Question]) -> Verdict:
        verdict = self.judge(questions)
        redder = [redness(q.candidate) - (0 if q.reference is None else redness(q.reference)) for q in questions]
        return Verdict(verdict.margin + self.weight * torch.stack(redder).to(verdict.margin), verdict.reasons)


def redness(pixels: Tensor) -> Tensor:
    """Red less the mean of green and blue, over all pixels [T, C, H, W] in [0, 1]: a scalar in [-1, 1]."""
    red, green, blue = pixels.float().mean((0, 2, 3))
    return red - (green + blue) / 2
