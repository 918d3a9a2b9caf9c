"""A judge that `rewarddance serve` answers for, as the reward model that it is: asked, ranked with, differentiated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from pydantic import BaseModel, Field
from torch import Tensor
from torch.autograd.function import once_differentiable

from rewarddance.errors import NoGradient, RewardDanceError, RewardError
from rewarddance.reward.asking import Asking
from rewarddance.reward.judge import checked
from rewarddance.reward.remote.transport import Transport, TransportOptions
from rewarddance.reward.remote.wire import ROLES, Reply, picture_of, read_reply, write_questions
from rewarddance.runtime.config import parse_recipe
from rewarddance.types import Question, Verdict

_LARGEST_PART = 1 << 26
"""Bytes of pixels in a request of several questions: they are sent while the last ones are judged."""


class ServedOptions(TransportOptions):
    """How a server of ours is asked."""

    batch_size: int = Field(default=64, ge=1)
    """Questions of a request."""
    gradient_batch: int = Field(default=16, ge=1)
    """Questions of a request for gradients."""


class Info(BaseModel):
    """What `GET /info` says of a server.

    version: of the binary form. judge: its name; mark: of its weights and options, which every reply repeats.
    orders: in which a judge of pairs is asked, forward or both; None of a function.
    differentiable: does /gradient answer? reads_metadata: does the reward read what prompts carry along?
    """

    version: Literal["1"]
    judge: str
    mark: str
    kind: str
    instruction: str | None
    needs_reference: bool
    orders: str | None = None
    differentiable: bool
    reads_metadata: bool
    fps: float | None
    max_questions: int
    max_body_bytes: int
    max_pixels: int


class ServedConfig(NamedTuple):
    """What is read of a judge's config elsewhere: its kind, its orders and the rate of its videos."""

    kind: str
    orders: str | None
    fps: float | None


class ServedReward(Asking):
    """A RewardModel whose judge is at the other end of `address`, a server of `rewarddance serve`.

    Margins are the server's, and where a question's pixels require a gradient so are d margin / d pixels, which come in
    the same reply. options: those of `ServedOptions`. Raises InputError where no such server is there, or it does not
    take the token.
    """

    elsewhere = True

    def __init__(self, address: str, **options: Any) -> None:
        self.options = parse_recipe(ServedOptions, options, f"the options for {address!r}")
        self.transport = Transport(address, self.options)
        self.info = self.transport.get_json("/info", Info.model_validate)
        self.needs_reference = self.info.needs_reference
        self.config = ServedConfig(self.info.kind, self.info.orders, self.info.fps)

    def __repr__(self) -> str:
        return f"ServedReward({self.transport.address!r}, judge={self.info.judge!r}, kind={self.info.kind!r})"

    def __reduce__(self) -> Any:
        given = self.options.model_dump(exclude_unset=True)
        return _unpickled, (self.transport.address, given)

    @property
    def differentiable(self) -> bool:
        return self.info.differentiable

    def __call__(self, questions: Sequence[Question]) -> Verdict:
        """Margins [B] on the candidates' device, in the graph where a question's pixels require a gradient.

        Raises InputError or RewardError, as the judge does there, naming the first question that failed; and
        RewardError where the server does not answer, or has another judge by now.
        """
        if not questions:
            return Verdict(torch.zeros(0))
        wanted = _wanted(questions) if torch.is_grad_enabled() else []
        if wanted and not self.differentiable:
            raise NoGradient(f"{self!r} gives no gradient.", "Align with algorithm grpo or nft.")
        margin = _Margins.apply(self, questions, *wanted) if wanted else self._ask(questions, frozenset()).margin
        return checked(margin.to(questions[0].candidate.device), questions)

    def _ask(self, questions: Sequence[Question], wanted: frozenset[int]) -> Reply:
        """The replies to all parts as one. wanted: ids of the tensors whose gradient is asked for."""
        max_questions = min(self.options.gradient_batch if wanted else self.options.batch_size, self.info.max_questions)
        largest = min(self.info.max_body_bytes // 2, _LARGEST_PART, 12 * self.info.max_pixels)  # bytes as float32
        parts = list(_parts(questions, max_questions, largest))
        path = "/gradient" if wanted else "/questions"

        def ask(part: range) -> Reply:
            part_questions = questions[part.start : part.stop]
            body = write_questions(part_questions, lambda pixels: id(pixels) in wanted, self.info.reads_metadata)
            about = f"questions {part.start} to {part.stop - 1}" if len(part) > 1 else f"question {part.start}"
            return self.transport.post_bytes(path, body, lambda reply: read_reply(reply, len(part_questions)), about)

        replies = self.transport.map(ask, parts)
        errors: dict[int, RewardDanceError] = {}
        gradients: dict[tuple[int, str], Tensor] = {}
        for part, reply in zip(parts, replies, strict=True):
            if reply.judge != self.info.mark:
                raise RewardError(
                    f"another judge is served at {self.transport.address} than when it was loaded.",
                    "Load it again, and begin a new run with it.",
                )
            errors |= {part.start + number: error for number, error in reply.errors.items()}
            gradients |= {(part.start + number, role): gradient for (number, role), gradient in reply.gradients.items()}
        for number, error in sorted(errors.items()):
            text = questions[number].prompt.text
            raise type(error)(
                f"question {number} (prompt {text!r}) at {self.transport.address}: {error.what}", error.remedy
            )
        return Reply(self.info.mark, torch.cat([reply.margin for reply in replies]), {}, gradients)


def _unpickled(address: str, options: dict[str, Any]) -> ServedReward:
    return ServedReward(address, **options)


class _Margins(torch.autograd.Function):
    """Margins [B] with the server's gradients: one request gives both, and the backward pass asks nothing."""

    @staticmethod
    def forward(ctx: Any, reward: ServedReward, questions: Sequence[Question], *wanted: Tensor) -> Float[Tensor, " B"]:
        places = {id(pixels): place for place, pixels in enumerate(wanted)}
        reply = reward._ask(questions, frozenset(places))
        ctx.forms, ctx.gradients = [(pixels.dtype, pixels.device) for pixels in wanted], []
        for number, question in enumerate(questions):
            for role in ROLES:
                place = places.get(id(picture_of(question, role)))
                if place is None:
                    continue
                gradient = reply.gradients.get((number, role))
                if gradient is None or gradient.shape != wanted[place].shape:
                    raise RewardError(f"{reward!r} sent no gradient for question {number}.", "Look at its log.")
                ctx.gradients.append((place, number, gradient))
        return reply.margin

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Float[Tensor, " B"]) -> Any:
        total: list[Tensor | None] = [None] * len(ctx.forms)
        for place, number, gradient in ctx.gradients:
            device = ctx.forms[place][1]
            part, before = upstream[number].to(device) * gradient.to(device), total[place]
            total[place] = part if before is None else before + part
        gradients = [g if g is None else g.to(dtype) for g, (dtype, _) in zip(total, ctx.forms, strict=True)]
        return None, None, *gradients


def _wanted(questions: Sequence[Question]) -> list[Tensor]:
    """The distinct pictures that require a gradient."""
    pictures = (picture_of(question, role) for question in questions for role in ROLES)
    return list({id(pixels): pixels for pixels in pictures if pixels is not None and pixels.requires_grad}.values())


def _parts(questions: Sequence[Question], max_questions: int, max_bytes: int) -> Iterator[range]:
    """Ranges of at most `max_questions`, whose distinct pictures have at most `max_bytes` as float32."""
    start, size, seen = 0, 0, set()
    for number, question in enumerate(questions):
        pictures = [pixels for role in ROLES if (pixels := picture_of(question, role)) is not None]
        added = sum(4 * pixels.numel() for pixels in pictures if id(pixels) not in seen)
        if number > start and (number - start == max_questions or size + added > max_bytes):
            yield range(start, number)
            start, size, seen = number, 0, set()
            added = sum(4 * pixels.numel() for pixels in pictures)
        size += added
        seen |= {id(pixels) for pixels in pictures}
    yield range(start, len(questions))
