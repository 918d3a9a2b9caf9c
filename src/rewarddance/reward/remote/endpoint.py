"""A judge behind another program's server, asked for P("yes") and not differentiated: what all protocols share.

The words are ours whatever answers: a question is filled in from its instruction here, and the server is handed text
and pictures. Each distinct tensor is written as PNG once a call. A refusal, an answer without yes and no, a number that
is none, and a server that does not answer in all tries are errors that name the question; nothing is made up for them.
"""

from __future__ import annotations

import base64
import io
import math
import re
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from rewarddance.data.fields import short
from rewarddance.data.media import as_images
from rewarddance.errors import InputError, NoGradient, RewardDanceError, RewardError, shown
from rewarddance.reward.asking import Asking
from rewarddance.reward.generative import swapped
from rewarddance.reward.instructions import Instruction, Picture, load_instruction, pictures_of
from rewarddance.reward.judge import NO, YES, checked
from rewarddance.reward.pointwise import differences, distinct
from rewarddance.reward.remote.transport import Transport, TransportOptions
from rewarddance.reward.video_frames import as_read
from rewarddance.runtime.config import Recipe, parse_recipe
from rewarddance.types import Pixels, Prompt, Question, Verdict

CLOSEST = 1e-7
"""A probability is told as 0 or 1 where float32 has no number between: it is taken to be this far from it."""
_MODELS_OWN = re.compile(
    r"<\|[^<>|\s]{1,40}\|?>|</?(?:s|bos|eos|pad|img|image|video|image_soft_token|start_of_image|end_of_image"
    r"|IMG_CONTEXT|start_of_turn|end_of_turn|think|thought)>|\[/?(?:INST|IMG|IMG_BREAK|IMG_END|THINK)\]"
)
"""What some model takes for a token of its own. The server's tokenizer is not known, so no prompt may hold any."""


class EndpointOptions(Recipe):
    """Which model is asked, what it is asked, and how.

    Where the model is a judge of ours, kind, instruction, yes, no, frames and fps have to be those of its
    reward_config.json for the answers to be its own.
    """

    model: str | None = None
    """The model's name there. Default: the first that the server lists."""
    kind: Literal["pairwise", "pointwise"] = "pairwise"
    """Whether the candidate is better than the reference, or meets a high standard by itself."""
    instruction: str = "t2i"
    """The question: a template's name or file."""
    orders: Literal["forward", "both"] = "forward"
    """both also asks with the pictures swapped, and averages (pairwise)."""
    yes: tuple[str, ...] = Field(default=YES, min_length=1)
    """Spellings of yes, which are summed."""
    no: tuple[str, ...] = Field(default=NO, min_length=1)
    """Spellings of no."""
    frames: int | None = Field(default=None, ge=1)
    """How many frames of a video are shown, evenly from the first to the last. Default: all."""
    fps: float | None = Field(default=None, gt=0)
    """The rate of the videos that the judge knows; another is refused."""
    concurrency: int = Field(default=32, ge=1, le=1024)
    """Requests at once."""
    retries: int = Field(default=6, ge=0)
    """Further tries where the server is busy, breaks off or sends no answer."""
    backoff: float = Field(default=0.5, gt=0)
    """Seconds before the second try; doubled before each further one."""
    timeout: float = Field(default=120.0, gt=0)
    """Seconds for one answer."""
    api_key_env: str = "OPENAI_API_KEY"
    """The environment variable that holds the key; no key is sent where it is not set."""
    body: dict[str, Any] = Field(default_factory=dict)
    """Further fields of each request; one that is null is left out."""
    try_first: bool = True
    """Ask one question when the judge is loaded, so that what is wrong shows before hours of work."""

    @model_validator(mode="after")
    def _orders_are_of_pairs(self) -> EndpointOptions:
        if self.orders == "both" and self.kind != "pairwise":
            raise ValueError("only rewards of kind pairwise have two orders")
        return self


class RemoteQuestion(NamedTuple):
    """A question as it is sent.

    place: among those that are sent. about: names it in errors, by the number that the caller knows.
    parts: text and `Picture` places in order. pictures: the pixels of those places. question: where it comes from.
    """

    place: int
    about: str
    parts: tuple[str, ...]
    pictures: tuple[Tensor, ...]
    question: Question


class EndpointReward(Asking, ABC):
    """A RewardModel that another program answers for.

    address: http(s)://, as the protocol's own clients take it: mostly up to /v1. options: those of the protocol.
    Raises InputError for an unknown option, and where the server does not answer a first question (`try_first`).
    """

    Options: ClassVar[type[EndpointOptions]] = EndpointOptions
    scheme: ClassVar[str]
    differentiable = False
    elsewhere = True

    def __init__(self, address: str, **options: Any) -> None:
        self.config: Any = parse_recipe(self.Options, options, f"the options for {self.scheme}+{address}")
        request_options = self.config.model_dump(include={"concurrency", "retries", "backoff", "timeout"})
        self.address = address.rstrip("/")
        self.transport = Transport(self._root(), TransportOptions(**request_options, token_env=self.config.api_key_env))
        self.needs_reference = self.config.kind == "pairwise"
        self.instruction = load_instruction(self.config.instruction)
        self.model: str = self.config.model or self.transport.get_json(self._path("/models"), self._first_model)
        if not self._prepare() and self.config.try_first:
            self._try()

    def __repr__(self) -> str:
        fields = f"model={self.model!r}, kind={self.config.kind!r}, instruction={self.config.instruction!r}"
        return f"{type(self).__name__}({self.address!r}, {fields})"

    def __reduce__(self) -> Any:
        return _unpickled, (type(self), self.address, self.config.model_dump(exclude_unset=True))

    def __call__(self, questions: Sequence[Question]) -> Verdict:
        """Margins [B], the logits of the probabilities that the server tells.

        Raises InputError where pixels require a gradient, for a question that cannot be asked, and where the server
        takes no questions of ours at all; and RewardError naming the first question that it does not answer.
        """
        if not questions:
            return Verdict(torch.zeros(0))
        if torch.is_grad_enabled() and any(pixels.requires_grad for q in questions for pixels in _pixels_of(q)):
            raise NoGradient(
                f"{self!r} gives no gradient.",
                "Align with grpo or nft, which only ask; or serve the judge with `rewarddance serve`, which gives one.",
            )
        return checked(self._margins(questions), questions)

    def faults(self, questions: Sequence[Question]) -> Iterator[RewardDanceError | None]:
        """Of each question why it cannot be asked, or None; the server is not asked."""
        for number, question in enumerate(questions):
            try:
                both = self.config.orders == "both"
                self._remote_questions([question, swapped(question)] if both else [question], [number] * (1 + both))
                yield None
            except RewardDanceError as error:
                yield error

    # -- a protocol ----------------------------------------------------------------------------------------------------

    @abstractmethod
    def _answers(self, questions: Sequence[RemoteQuestion], png: PngPictures) -> list[float]:
        """The margin of each question."""

    def _prepare(self) -> bool:
        """Find out what the protocol needs to know of the server. Has that shown that it answers?"""
        return False

    def _root(self) -> str:
        """What all paths that are asked have in common."""
        return self.address

    def _path(self, path: str) -> str:
        """Where the protocol's own path is, behind the root."""
        return self.address[len(self._root()) :] + path

    # -- shared --------------------------------------------------------------------------------------------------------

    def _margins(self, questions: Sequence[Question]) -> Float[Tensor, " B"]:
        numbers = range(len(questions))
        if not self.needs_reference:
            alone, places = distinct(questions)
            first = {picture: number for number in reversed(numbers) for picture in places[number]}
            return differences(self._ask(alone, [first[picture] for picture in range(len(alone))]), places)
        if self.config.orders == "forward":
            return self._ask(questions, numbers)
        both = self._ask([*questions, *map(swapped, questions)], [*numbers, *numbers])
        return (both[: len(questions)] - both[len(questions) :]) / 2

    def _ask(self, questions: Sequence[Question], numbers: Sequence[int]) -> Float[Tensor, " B"]:
        remote = self._remote_questions(questions, numbers)
        return torch.tensor(self._answers(remote, PngPictures(remote)), dtype=torch.float32)

    def _remote_questions(self, questions: Sequence[Question], numbers: Sequence[int]) -> list[RemoteQuestion]:
        """The questions in words; numbers: by which the caller knows them. Raises InputError naming one that lacks a
        picture, or holds what a model may read as a token of its own."""
        remote = []
        read = as_read(questions, self.config.frames, self.config.fps)
        for place, (number, question) in enumerate(zip(numbers, read, strict=True)):
            about = f"question {number} ({short(question.prompt.text)})"
            instruction: Instruction = (
                load_instruction(question.instruction) if question.instruction else self.instruction
            )
            ask = instruction.question if self.needs_reference else instruction.pointwise_question
            parts = tuple(ask(question.prompt.text))
            if match := _MODELS_OWN.search("".join(part for part in parts if not isinstance(part, Picture))):
                raise InputError(
                    f"{about} holds {match[0]!r}, which a model may take for a token of its own.",
                    "Remove it from the prompt.",
                )
            remote.append(RemoteQuestion(place, about, parts, pictures_of(parts, question, number), question))
        return remote

    def _request(self, **fields: Any) -> dict[str, Any]:
        """A request's body: the model, the protocol's fields, and the user's own over them."""
        filled = {"model": self.model} | fields | self.config.body
        return {name: value for name, value in filled.items() if value is not None}

    def _first_model(self, reply: Any) -> str:
        if not reply["data"]:
            raise InputError(f"{self.address} lists no model.", "Say which with the option model.")
        return str(reply["data"][0]["id"])

    def _try(self) -> None:
        """Ask one question of grey pictures. Raises InputError where it is not answered."""
        parts = [*(self.instruction.question if self.needs_reference else self.instruction.pointwise_question)("")]
        grey = [torch.full((self.config.frames or 1, 3, 64, 64), value) for value in (0.4, 0.6)]
        prompt = Prompt("a grey square", image=torch.full((1, 3, 64, 64), 0.5) if "image" in parts else None)
        try:
            self([Question(prompt, grey[0], grey[1] if self.needs_reference else None)])
        except RewardDanceError as error:
            raise InputError(f"the judge at {self.address} cannot be used: {error.what}", error.remedy) from error


def _unpickled(kind: type[EndpointReward], address: str, options: dict[str, Any]) -> EndpointReward:
    return kind(address, **{**options, "try_first": False})


def _pixels_of(question: Question) -> list[Tensor]:
    pictures = question.prompt.image, question.candidate, question.reference
    return [pixels for pixels in pictures if pixels is not None]


class PngPictures:
    """Pictures as PNG data URLs, a frame each, from any thread: a tensor of several questions is written once.

    questions: all of a call. A picture is released once the last of them has taken it.
    """

    def __init__(self, questions: Sequence[RemoteQuestion]) -> None:
        self._uses_left = Counter(id(pixels) for question in questions for pixels in question.pictures)
        self._written: dict[int, Future[list[str]]] = {}
        self._lock = threading.Lock()

    def urls(self, pixels: Pixels, about: str) -> list[str]:
        """Raises InputError where the picture holds a NaN; about: whose picture it is."""
        with self._lock:
            future = self._written.get(id(pixels))
            if is_first := future is None:
                future = self._written[id(pixels)] = Future()
            self._uses_left[id(pixels)] -= 1
            if self._uses_left[id(pixels)] <= 0:
                self._written.pop(id(pixels))
        if is_first:
            try:
                future.set_result(_png_urls(pixels, about))
            except BaseException as error:
                future.set_exception(error)
        return future.result()

    def parts(self, parts: Sequence[str], pictures: Sequence[Tensor], about: str) -> list[tuple[bool, str]]:
        """Text as (False, text), and each frame of a picture as (True, data URL), in order."""
        remaining = iter(pictures)
        blocks: list[tuple[bool, str]] = []
        for part in parts:
            is_picture = isinstance(part, Picture)
            blocks += [(True, url) for url in self.urls(next(remaining), about)] if is_picture else [(False, part)]
        return blocks


def _png_urls(pixels: Pixels, about: str) -> list[str]:
    if not torch.isfinite(pixels).all():
        raise InputError(f"a picture of {about} holds values that are not finite.", "Look at what made it.")
    urls = []
    for image in as_images(pixels):
        file = io.BytesIO()
        image.save(file, "PNG", compress_level=1)
        urls.append("data:image/png;base64," + base64.b64encode(file.getvalue()).decode())
    return urls


def checked_probability(probability: Any, about: str) -> float:
    """A probability that a server told. Raises RewardError where it is none."""
    if isinstance(probability, bool) or not isinstance(probability, int | float) or not 0 <= probability <= 1:
        raise RewardError(f"{about} was answered with {shown(probability)}.", "Look at the server's log.")
    return float(probability)


def logit(probability: Any, about: str) -> float:
    """The margin of a probability that a server told. Raises RewardError where it is none."""
    inside = min(max(checked_probability(probability, about), CLOSEST), 1 - CLOSEST)
    return math.log(inside) - math.log1p(-inside)


def refused(about: str, reason: Any = None) -> RewardError:
    """The error of a question that a model does not want to answer."""
    quoted = f": {shown(str(reason), 200)}" if reason else ""
    return RewardError(f"{about} was refused{quoted}.", "Ask another judge, or leave it out.")
