"""OpenAI's `POST /v1/decisions`: questions about one input, each answered with a probability or a refusal.

What candidates have in common, the prompt's words and the reference, is the input, sent once; each candidate with the
rest of the words is a predicate about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from rewarddance.reward.instructions import Picture
from rewarddance.reward.remote.endpoint import (
    EndpointOptions,
    EndpointReward,
    PngPictures,
    RemoteQuestion,
    logit,
    refused,
)


class DecisionsOptions(EndpointOptions):
    """How a decisions server is asked; yes and no are its own affair."""

    predicates: int = Field(default=32, ge=1, le=400)
    """Candidates of a request, at most."""


class DecisionsReward(EndpointReward):
    """`decisions+http(s)://HOST/v1`."""

    Options = DecisionsOptions
    scheme = "decisions"

    def _answers(self, questions: Sequence[RemoteQuestion], png: PngPictures) -> list[float]:
        groups: dict[tuple[Any, ...], list[RemoteQuestion]] = {}
        for question in questions:
            *shared, _ = question.pictures
            groups.setdefault((_shared_parts(question), *map(id, shared)), []).append(question)
        max_candidates = self.config.predicates
        requests = [
            group[start : start + max_candidates]
            for group in groups.values()
            for start in range(0, len(group), max_candidates)
        ]
        margins: dict[int, float] = {}
        for request, answers in zip(
            requests, self.transport.map(lambda request: self._answer(request, png), requests), strict=True
        ):
            margins |= zip((question.place for question in request), answers, strict=True)
        return [margins[question.place] for question in questions]

    def _answer(self, request: Sequence[RemoteQuestion], png: PngPictures) -> list[float]:
        first = request[0]
        shared_parts = _shared_parts(first)
        body = self._request(
            input=[
                {"type": "message", "role": "user", "content": _content(png, shared_parts, first.pictures[:-1], first)}
            ],
            questions=[
                {
                    "type": "predicate",
                    "name": str(question.place),
                    "instructions": _content(
                        png, question.parts[len(shared_parts) :], question.pictures[-1:], question
                    ),
                }
                for question in request
            ],
        )

        def read(reply: Any) -> list[float]:
            answers = {answer["name"]: answer for answer in reply["answers"]}
            if len(answers) < len(reply["answers"]):
                raise ValueError("a question has two answers")
            return [_margin(answers[str(question.place)], question.about) for question in request]

        about = first.about if len(request) == 1 else f"{first.about} and {len(request) - 1} more"
        return self.transport.post_json(self._path("/decisions"), body, read, about)


def _shared_parts(question: RemoteQuestion) -> tuple[str, ...]:
    """The parts in front of the candidate, which is a question's last picture."""
    last = max(place for place, part in enumerate(question.parts) if isinstance(part, Picture))
    return question.parts[:last]


def _content(
    png: PngPictures, parts: Sequence[str], pictures: Sequence[Any], question: RemoteQuestion
) -> list[dict[str, str]]:
    return [
        {"type": "input_image", "image_url": part} if is_picture else {"type": "input_text", "text": part}
        for is_picture, part in png.parts(parts, pictures, question.about)
    ]


def _margin(answer: Any, about: str) -> float:
    if answer["type"] == "refusal":
        raise refused(about, answer.get("reason"))
    return logit(answer["probability"], about)
