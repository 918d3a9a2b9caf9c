"""Which frames of a question's videos a judge reads, and whether their rate is the one that it knows."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import replace

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from rewarddance.data.frame_sampling import frames_read
from rewarddance.errors import InputError
from rewarddance.types import Question

_CUTS: MutableMapping[Tensor, dict[int, tuple[int, Tensor]]] = WeakTensorKeyDictionary()
"""Of videos that are alive: their frames that a judge reads, by how many, and the version of the video."""
RATE_SLACK = 0.02
"""Share by which two rates may differ and be one: 29.97 is 30."""


def as_read(questions: Sequence[Question], frames: int | None, fps: float | None) -> list[Question]:
    """The questions with the frames of their videos that a judge reads (all where `frames` is None), in the graph.

    fps: the rate of the videos that the judge knows, if it knows one. A prompt's picture is shown whole. One tensor in
    several questions is one tensor still, so that it is encoded once. Raises InputError naming the question whose video
    has too few frames, or another rate.
    """
    if frames is None and fps is None:
        return list(questions)
    read_of: dict[int, Tensor] = {}

    def read(pixels: Tensor | None, name: str) -> Tensor | None:
        if pixels is None or frames is None:
            return pixels
        if id(pixels) not in read_of:
            read_of[id(pixels)] = _kept_cut(pixels, frames, name)
        return read_of[id(pixels)]

    read_questions = []
    for number, question in enumerate(questions):
        where = f"of question {number} ({question.prompt.text!r})"
        for what, rate in zip(("candidate", "reference"), question.fps, strict=True):
            check_rate(rate, fps, f"the {what} {where}")
        candidate = read(question.candidate, f"the candidate {where}")
        assert candidate is not None
        read_questions.append(
            replace(question, candidate=candidate, reference=read(question.reference, f"the reference {where}"))
        )
    return read_questions


def _kept_cut(pixels: Tensor, frames: int, name: str) -> Tensor:
    """`frames_read`; the same tensor for the same video as long as that lives unchanged, so that what a judge keeps of
    it (its prefix, its features) is found again."""
    if pixels.requires_grad or pixels.is_inference() or len(pixels) == frames:
        return frames_read(pixels, frames, name)
    kept = _CUTS.setdefault(pixels, {})
    version, cut = kept.get(frames, (-1, pixels))
    if version != pixels._version:
        cut = frames_read(pixels, frames, name)
        kept[frames] = pixels._version, cut
    return cut


def check_rate(rate: float | None, wanted: float | None, name: str) -> None:
    """Raises InputError naming a video whose rate is known and is not the one that is wanted."""
    if rate is None or wanted is None:
        return
    if not abs(rate - wanted) <= RATE_SLACK * wanted:  # written so that NaN does not pass
        raise InputError(
            f"{name} has {rate:g} frames a second, and this judge knows videos of {wanted:g}.",
            "Give videos of that rate, or a judge with another fps.",
        )
