"""The two seams. Algorithms know a reward model and a generator only by these."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from rewarddance.errors import InputError, RewardError, shown
from rewarddance.types import PixelBatch, Prompt, Question, Scales, Verdict


@runtime_checkable
class RewardModel(Protocol):
    """Answers questions. Raises RewardError where a verdict cannot be had; it never returns a stand-in number.

    needs_reference: does it compare a candidate with a reference? Otherwise it scores each candidate by itself, and the
    margin of a question with a reference is the difference of two scores.
    """

    @property
    def needs_reference(self) -> bool: ...

    def __call__(self, questions: Sequence[Question]) -> Verdict: ...


def needs_reference(reward: Any) -> bool:
    """Does a reward model compare a candidate with a reference? Raises InputError for one that does not say."""
    try:
        return reward.needs_reference
    except AttributeError:
        raise InputError(
            f"the reward {reward!r} does not say whether it needs a reference.",
            "Wrap a function with as_reward, or give your class the attribute needs_reference (True or False).",
        ) from None


def is_elsewhere(reward: Any) -> bool:
    """Is a reward model's work done by another program, or on another machine? Its attribute `elsewhere` says so.

    Then it may be asked in a thread of its own, while this process computes something else.
    """
    return getattr(reward, "elsewhere", False)


def check_margins(verdict: Any, count: int) -> None:
    """Raises RewardError where a reward's answer to `count` questions is none with a margin for each."""
    margin = getattr(verdict, "margin", None)
    if not isinstance(margin, Tensor) or margin.shape != (count,):
        found = f"margins of the shape {list(margin.shape)}" if isinstance(margin, Tensor) else shown(verdict)
        raise RewardError(
            f"the reward answered {count} questions with {found}.",
            "Return a Verdict with one margin for each question.",
        )


def checked_verdict(verdict: Verdict, questions: Sequence[Question]) -> Verdict:
    """The verdict of any reward, if it is one: NaN would be written down, or sorted to some place, without an error.

    Raises RewardError where it has no finite margin for each question.
    """
    check_margins(verdict, len(questions))
    margin = verdict.margin
    if not torch.isfinite(margin).all():
        number = int((~torch.isfinite(margin)).nonzero()[0])
        raise RewardError(
            f"the reward of {questions[number].prompt.text!r} is {margin[number].item()}.",
            "Look at its pictures, and at the reward's weights and precision.",
        )
    return verdict


def margins_on_host(reward: RewardModel, questions: Sequence[Question]) -> Tensor:
    """The margins [B] of a reward in float32 on the CPU, where it costs no wait to look whether they are finite.

    Raises RewardError as `checked_verdict` does.
    """
    verdict = reward(questions)
    check_margins(verdict, len(questions))
    return checked_verdict(Verdict(verdict.margin.float().cpu()), questions).margin


def judging(reward: Any) -> AbstractContextManager[None]:
    """Within the block a reward model is asked as often as it takes.

    One whose weights are in pieces over several processes needs all of them for each answer: they enter the block
    alike, and leave it when all are done. One that is kept off the device while unused is on it.
    """
    return getattr(reward, "together", nullcontext)()


@runtime_checkable
class Generator(Protocol):
    """A denoiser, whatever its family. Samplers and algorithms are written once, over these methods.

    `condition` is opaque: what `encode` returned for a batch of B prompts. Steps are numbered 0 .. S - 1 from pure
    noise; `x_t` at step s is the latent before that step.
    """

    def encode(self, prompts: Sequence[Prompt]) -> Any:
        """The conditioning of B prompts, each with its picture and its negative text.

        Raises InputError naming a prompt that has a picture for nothing, or lacks the one that is needed.
        """
        ...

    def init_noise(self, seeds: Sequence[int]) -> Tensor:
        """The noise [B, ...] of these seeds: one seed, one noise, whatever the batch."""
        ...

    def predict(self, x_t: Tensor, step: int, condition: Any) -> Tensor:
        """The network's prediction at `step` (a velocity for flow models), in the autograd graph."""
        ...

    def advance(self, x_t: Tensor, prediction: Tensor, step: int) -> Tensor:
        """One sampler step: the latent before step + 1."""
        ...

    def predict_x0(self, x_t: Tensor, prediction: Tensor, step: int) -> Tensor:
        """The one-step estimate of x_0 that `prediction` implies."""
        ...

    def scales(self, step: int) -> Scales:
        """What the latent before `step` is made of: x_t = alpha x_0 + sigma eps; (1, 0) after the last, at S."""
        ...

    def decode(self, x_0: Tensor) -> PixelBatch:
        """Pixels [B, T, C, H, W] in [0, 1], in the autograd graph."""
        ...

    @property
    def num_steps(self) -> int:
        """S: the number of sampler steps."""
        ...
