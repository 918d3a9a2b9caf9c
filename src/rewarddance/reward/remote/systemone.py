"""`POST /v1/systemone`, as `transformers serve` speaks it: a state with marks for pictures, and questions about it.

By default the state is the whole question in our words, which a judge's folder puts into one user's turn
(`decision_files`) and any other model is asked with transformers' own few words about yes and no behind it. With
state="places" only the prompt and the pictures are sent, and a judge's folder asks its own question.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from rewarddance.errors import InputError
from rewarddance.reward.instructions import Picture
from rewarddance.reward.remote.endpoint import (
    EndpointOptions,
    EndpointReward,
    PngPictures,
    RemoteQuestion,
    checked_probability,
    logit,
    refused,
)
from rewarddance.types import Question

NAME = "better"
_ROUNDING = 1e-3
"""By which the probabilities of several spellings may exceed 1 in all: servers round them."""


class SystemOneOptions(EndpointOptions):
    """How a System One server is asked.

    yes, no: one spelling each is asked as a noul. Several are asked as a choice, and must be those of the folder's
    decision.json (labels.choice), in their order.
    """

    yes: tuple[str, ...] = Field(default=("yes",), min_length=1)
    no: tuple[str, ...] = Field(default=("no",), min_length=1)
    state: Literal["question", "places"] = "question"
    """Whether the question is sent in words, or its prompt and pictures for the folder's own words."""


class SystemOneReward(EndpointReward):
    """`systemone+http(s)://HOST/v1`."""

    Options = SystemOneOptions
    scheme = "systemone"

    def _remote_questions(self, questions: Sequence[Question], numbers: Sequence[int]) -> list[RemoteQuestion]:
        remote = super()._remote_questions(questions, numbers)
        for question in remote if self.config.state == "places" else ():
            if question.question.instruction is not None:
                raise InputError(
                    f"{question.about} names an instruction, and the served judge asks its own.",
                    "Set state to question.",
                )
        return remote

    def _answers(self, questions: Sequence[RemoteQuestion], png: PngPictures) -> list[float]:
        return self.transport.map(lambda question: self._answer(question, png), questions)

    def _answer(self, remote: RemoteQuestion, png: PngPictures) -> float:
        state, assets = self._state(remote, png)
        answers = [*self.config.yes, *self.config.no]
        question: dict[str, Any] = {"type": "noul"}
        if len(answers) > 2:
            question = {"type": "choice", "criteria": dict.fromkeys(answers)}
        body = self._request(state=state, questions={NAME: question}, assets=assets)

        def read(reply: Any) -> float:
            answer = reply["answers"][NAME]
            if "error" in answer or answer.get("type") == "refusal":
                raise refused(remote.about, answer.get("error"))
            if question["type"] == "noul":
                return logit(answer["noul"], remote.about)
            shares = [checked_probability(answer["probabilities"][word], remote.about) for word in self.config.yes]
            total = sum(shares)
            return logit(min(1.0, total) if total <= 1 + _ROUNDING else total, remote.about)

        return self.transport.post_json(self._path("/systemone"), body, read, remote.about)

    def _state(self, remote: RemoteQuestion, png: PngPictures) -> tuple[Any, dict[str, Any]]:
        """The state, and the pictures under the marks that stand for them in it."""
        text = "".join(remote.parts)
        opening = "<picture"
        while opening in text:  # a prompt that says so would be taken for a picture
            opening += "-"
        assets: dict[str, Any] = {}
        remaining = iter(remote.pictures)
        places: dict[str, str] = {"prompt": remote.question.prompt.text}
        words = ""
        for part in remote.parts:
            if not isinstance(part, Picture):
                words += part
                continue
            marks = ""
            for url in png.urls(next(remaining), remote.about):
                mark = f"{opening}{len(assets)}>"
                assets[mark] = {"type": "image", "format": "png", "data_base64": url.partition(",")[2]}
                marks += mark
            places[str(part)] = marks
            words += marks
        return (places if self.config.state == "places" else words), assets
