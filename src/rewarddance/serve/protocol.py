"""What a protocol is: a path, how its request is read, and how its answer is written."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from rewarddance.errors import InputError, RewardDanceError, shown, without_frames
from rewarddance.reward.remote.wire import Answer
from rewarddance.runtime.files import parse_json
from rewarddance.serve.judge import ServedJudge
from rewarddance.serve.pictures import RequestPictures, TooLarge
from rewarddance.types import Pixels, Prompt, Question, Verdict

Outcome = Answer | RewardDanceError


@dataclass(frozen=True, eq=False)
class Request:
    """A request that was read.

    questions: in the order of the answers; one that is broken is the reason why. wanted: of each question the roles
    whose gradient is asked for, () of none. form: what the answer repeats of the request.
    """

    questions: Sequence[Question | RewardDanceError]
    wanted: Sequence[tuple[str, ...]] = ()
    form: Any = None


class Protocol(NamedTuple):
    """One way to ask, at `path`.

    read: raises InputError where nothing can be answered. write: the body of the reply, from one outcome a question.
    """

    path: str
    read: Callable[[bytes, RequestPictures, ServedJudge, int], Request]
    write: Callable[[Request, Sequence[Outcome], ServedJudge], bytes]
    media_type: str = "application/json"


def json_object(body: bytes) -> dict[str, Any]:
    """The JSON object that a body holds. Raises InputError where it is none."""
    try:
        content = parse_json(body)
    except ValueError as error:
        raise InputError(f"the body is no JSON: {error}.", "Correct it.") from error
    if not isinstance(content, dict):
        raise InputError("the body is no JSON object.", "Correct it.")
    return content


def as_json(content: Any) -> bytes:
    return json.dumps(content, allow_nan=False).encode()


def items_of(content: Mapping[str, Any], key: str, most: int) -> list[Any]:
    """A list of 1 to `most` items. Raises InputError where it is none, and TooLarge."""
    items = content.get(key)
    if not isinstance(items, list) or not items:
        raise InputError(f"{key} is {shown(items)}, and a list of one item or more is needed.", "Send one a question.")
    if len(items) > most:
        raise TooLarge(f"the request has {len(items)} {key}, of {most} that it may have.", "Ask in parts.")
    return items


def text_of(content: Mapping[str, Any], key: str) -> str | None:
    """A text, or None where there is none. Raises InputError where it is something else."""
    value = content.get(key)
    if value is not None and not isinstance(value, str):
        raise InputError(f"{key} is {shown(value)}, which is no text.", "Correct it.")
    return value or None


def asked_prompt(text: str | None, metadata: Mapping[str, Any] | None = None, image: Pixels | None = None) -> Prompt:
    """Raises InputError where there is no text: a judge would answer something all the same."""
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"the prompt is {shown(text)}.", "Send what the picture is to show.")
    return Prompt(text, metadata=dict(metadata or {}), image=image)


def rates(
    judge: ServedJudge, pictures: RequestPictures, candidate: Pixels, reference: Pixels | None
) -> tuple[float | None, float | None]:
    """Frames a second of the candidate's and the reference's file, for a judge that knows one rate only."""
    if judge.fps is None:
        return None, None
    return pictures.rate_of(candidate), pictures.rate_of(reference)


def can_be_repeated(value: Any) -> bool:
    """Can a reply hold what the request named something by? JSON has no NaN and no Infinity."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


def each(makes: Sequence[Callable[[], Question]]) -> list[Question | RewardDanceError]:
    """The questions, or why one is none. Raises TooLarge, which is of the whole request."""
    found: list[Question | RewardDanceError] = []
    for make in makes:
        try:
            found.append(make())
        except TooLarge:
            raise
        except InputError as error:
            found.append(without_frames(error))
    return found


def probability(answer: Answer) -> float:
    """P("yes"), as `Verdict` says it."""
    return Verdict(torch.tensor([answer.margin])).probability.item()
