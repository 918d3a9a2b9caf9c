"""OpenAI's `POST /v1/decisions`: questions about one input, each answered with a probability or a refusal.

What candidates have in common, the prompt's words and the reference, is the input, sent once; each candidate with the
rest of the words is a predicate about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from rewarddance.reward.instructions import Picture
from rewarddance.reward.remote.endpoint import Asked, EndpointOptions, EndpointReward, PngPictures, logit, refused


class DecisionsOptions(EndpointOptions):
    """How a decisions server is asked; yes and no are its own affair."""

    predicates: int = Field(default=32, ge=1, le=400)
    """Candidates of a request, at most."""


class DecisionsReward(EndpointReward):
    """`decisions+http(s)://HOST/v1`."""

    Options = DecisionsOptions
    scheme = "decisions"

    def _answers(self, asked: Sequence[Asked], png: PngPictures) -> list[float]:
        groups: dict[tuple[Any, ...], list[Asked]] = {}
        for one in asked:
            *shared, _ = one.pictures
            groups.setdefault((_before(one), *map(id, shared)), []).append(one)
        most = self.config.predicates
        requests = [group[at : at + most] for group in groups.values() for at in range(0, len(group), most)]
        margins: dict[int, float] = {}
        for request, found in zip(
            requests, self.transport.map(lambda request: self._answer(request, png), requests), strict=True
        ):
            margins |= zip((one.place for one in request), found, strict=True)
        return [margins[one.place] for one in asked]

    def _answer(self, request: Sequence[Asked], png: PngPictures) -> list[float]:
        first = request[0]
        before = _before(first)
        body = self._request(
            input=[{"type": "message", "role": "user", "content": _content(png, before, first.pictures[:-1], first)}],
            questions=[
                {
                    "type": "predicate",
                    "name": str(one.place),
                    "instructions": _content(png, one.parts[len(before) :], one.pictures[-1:], one),
                }
                for one in request
            ],
        )

        def read(reply: Any) -> list[float]:
            answers = {answer["name"]: answer for answer in reply["answers"]}
            return [_margin(answers[str(one.place)], one.about) for one in request]

        about = first.about if len(request) == 1 else f"{first.about} and {len(request) - 1} more"
        return self.transport.post_json(self._path("/decisions"), body, read, about)


def _before(asked: Asked) -> tuple[str, ...]:
    """The parts in front of the candidate, which is a question's last picture."""
    last = max(place for place, part in enumerate(asked.parts) if isinstance(part, Picture))
    return asked.parts[:last]


def _content(png: PngPictures, parts: Sequence[str], pictures: Sequence[Any], asked: Asked) -> list[dict[str, str]]:
    return [
        {"type": "input_image", "image_url": part} if is_picture else {"type": "input_text", "text": part}
        for is_picture, part in png.parts(parts, pictures, asked.about)
    ]


def _margin(answer: Any, about: str) -> float:
    if answer["type"] == "refusal":
        raise refused(about, answer.get("reason"))
    return logit(answer["probability"], about)
