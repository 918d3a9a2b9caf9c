"""The reward's gradient in pixels, taken by itself: the judge's graph is gone before the generator's is walked.

The relay of ReFL's backward pass: judge -> pixels, then pixels -> decoder -> the last denoising step. The peak of
memory is the larger of the two, not their sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from rewarddance.errors import InputError, NoGradient, RewardError
from rewarddance.protocols import RewardModel
from rewarddance.types import Question, Verdict


class PixelGradient(NamedTuple):
    """loss: the mean over all questions. verdict: theirs, without graph. gradients: d loss / d candidate, one each."""

    loss: float
    verdict: Verdict
    gradients: tuple[Tensor, ...]


@contextmanager
def checkpointing(judge: RewardModel) -> Iterator[None]:
    """Within the block the judge keeps its layers' inputs only: far less memory, a third more time.

    Raises InputError for a judge that cannot.
    """
    model: Any = getattr(judge, "vlm", None)
    if model is None:
        raise InputError("the layers of this judge cannot be computed again.", "Leave judge out of checkpointing.")
    before, model.checkpointing = model.checkpointing, True
    try:
        yield
    finally:
        model.checkpointing = before


def pixel_gradient(
    judge: RewardModel,
    questions: Sequence[Question],
    loss: Callable[[Float[Tensor, " b"]], Float[Tensor, ""]],
    at_once: int = 16,
) -> PixelGradient:
    """d loss / d pixels of each question's candidate, `at_once` questions a time, and the verdicts on the way.

    loss: a mean over questions of a function of their margins, such as `refl_losses.LOSSES`. Send the result on with
    `torch.autograd.backward([q.candidate for q in questions], gradients)`.
    Raises RewardError naming the first question whose margin or gradient is not finite, and InputError where there is
    none.
    """
    margins, gradients, losses = [], [], []
    for start in range(0, len(questions), at_once):
        part = questions[start : start + at_once]
        leaves = [question.candidate.detach().requires_grad_() for question in part]
        with torch.enable_grad():
            margin = judge([replace(q, candidate=pixels) for q, pixels in zip(part, leaves, strict=True)]).margin
            if not margin.requires_grad:
                raise NoGradient("the reward gives no gradient in its pictures.", "Align with grpo or nft instead.")
            value = loss(margin) * (len(part) / len(questions))
            gradients += torch.autograd.grad(value, leaves)
        margins.append(margin.detach())
        losses.append(value.detach())
    margin = torch.cat(margins)
    are_finite = [torch.isfinite(gradient).all().to(margin.device) for gradient in gradients]
    if not torch.stack([torch.isfinite(margin).all(), *are_finite]).all():  # asked of all at once: a GPU is waited for
        for what, values in (("margin", margin), ("gradient", gradients)):
            for number, value in enumerate(values):
                if not torch.isfinite(value).all():
                    raise RewardError(
                        f"the {what} of question {number} (prompt {questions[number].prompt.text!r}) is not finite.",
                        "Look at its picture for values that are not finite, and at the judge's weights and precision.",
                    )
    return PixelGradient(torch.stack(losses).sum().item(), Verdict(margin), tuple(gradients))
