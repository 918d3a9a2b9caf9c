"""Chat completions with log-probabilities: vLLM, SGLang, llama.cpp and other OpenAI-compatible servers.

A question is one user's turn of our own words and pictures, and its answer one token. P("yes") is the share of yes
among the tokens of yes and no. A vLLM is asked for the log-probabilities of exactly these tokens; elsewhere they have
to be among the likeliest 20, and what those leave unseen bounds how far P("yes") may be off (`tolerance`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from pydantic import Field

from rewarddance.errors import InputError, RewardDanceError, RewardError
from rewarddance.reward.remote.endpoint import (
    CLOSEST,
    EndpointOptions,
    EndpointReward,
    PngPictures,
    RemoteQuestion,
    refused,
)

MOST = 20
"""Likeliest tokens that a server tells."""


class ChatOptions(EndpointOptions):
    """How a chat model is asked."""

    token_ids: bool | None = None
    """Ask for the tokens of yes and no by their numbers, as vLLM can. Default: where it can."""
    tolerance: float = Field(default=1e-3, gt=0, lt=0.5)
    """How far P("yes") may be off for what the likeliest tokens do not show; a question beyond it is a failure."""
    least: float = Field(default=1e-3, ge=0, lt=1)
    """The probability that yes and no must have together: a model that is about to say something else has no answer."""


class ChatReward(EndpointReward):
    """`chat+http(s)://HOST/v1`. tokens: the numbers of the spellings of yes and of no, or None by their text."""

    Options = ChatOptions
    scheme = "chat"
    tokens: tuple[list[int], list[int]] | None = None

    def _root(self) -> str:
        return self.address.removesuffix("/v1")  # beside it vLLM's tokenizer is asked

    def _prepare(self) -> bool:
        """Find the tokens of yes and no, and whether the server tells just these. Raises InputError where it must."""
        if self.config.token_ids is False:
            return False
        if self.config.model is not None:
            with suppress(InputError):  # it need not list its models; but where it is not there, no more is tried
                self.transport.get_json(self._path("/models"))
        try:
            self.tokens = self._numbers(self.config.yes), self._numbers(self.config.no)
            self._try()
            return True
        except RewardDanceError as error:
            self.tokens = None
            if self.config.token_ids:
                raise InputError(
                    f"{self.address} does not tell the tokens of yes and no by number: {error.what}",
                    "Leave out token_ids, or ask a vLLM of July 2026 or later.",
                ) from error
            return False

    def _numbers(self, words: Sequence[str]) -> list[int]:
        """The spellings that are one token there."""
        single = set()
        for word in words:
            body = {"model": self.model, "prompt": word, "add_special_tokens": False}
            ids = self.transport.post_json("/tokenize", body, lambda reply: [int(n) for n in reply["tokens"]])
            if len(ids) == 1:
                single |= {*ids}
        if not single:
            raise InputError(
                f"the model {self.model!r} has no single token for any of {', '.join(map(repr, words))}.",
                "Choose a model that can answer in one token.",
            )
        return sorted(single)

    def _answers(self, questions: Sequence[RemoteQuestion], png: PngPictures) -> list[float]:
        return self.transport.map(lambda question: self._answer(question, png), questions)

    def _answer(self, question: RemoteQuestion, png: PngPictures) -> float:
        content = [
            {"type": "image_url", "image_url": {"url": part}} if is_picture else {"type": "text", "text": part}
            for is_picture, part in png.parts(question.parts, question.pictures, question.about)
        ]
        logprob_options: dict[str, Any] = {"top_logprobs": MOST}
        if self.tokens:
            logprob_options = {
                "logprob_token_ids": [*self.tokens[0], *self.tokens[1]],
                "return_tokens_as_token_ids": True,
            }
        body = self._request(
            messages=[{"role": "user", "content": content}],
            max_tokens=1,
            temperature=0,
            logprobs=True,
            **logprob_options,
        )
        path = self._path("/chat/completions")
        return self.transport.post_json(path, body, lambda reply: self._margin(reply, question.about), question.about)

    def _margin(self, reply: Any, about: str) -> float:
        choice = reply["choices"][0]
        if choice.get("finish_reason") == "content_filter" or choice["message"].get("refusal"):
            raise refused(about, choice["message"].get("refusal"))
        if not (choice.get("logprobs") or {}).get("content"):
            raise RewardError(
                f"{about} was answered without log-probabilities.",
                "Ask a server that tells them, such as vLLM or SGLang; transformers serve is asked by systemone+http.",
            )
        entries = choice["logprobs"]["content"][0]["top_logprobs"]
        top = {str(entry["token"]): float(entry["logprob"]) for entry in entries}
        if bad := [token for token, value in top.items() if not value <= 1e-3]:
            what = f"{about} was answered with the log-probability {top[bad[0]]} for {bad[0]!r}."
            raise RewardError(what, "Look at the server's log.")
        if self.tokens:
            return self._of_numbers(top, self.tokens, about)
        return self._of_texts(top, about)

    def _of_numbers(self, top: dict[str, float], tokens: tuple[list[int], list[int]], about: str) -> float:
        names = [[f"token_id:{number}" for number in numbers] for numbers in tokens]
        if missing := [name for group in names for name in group if name not in top]:
            raise RewardError(
                f"{about} was answered without the log-probability of {missing[0]}.",
                "Set token_ids to false: this server tells the likeliest tokens only.",
            )
        yes, no = ([top[name] for name in group] for group in names)
        self._check_answered(yes, no, about)
        return _logsumexp(yes) - _logsumexp(no)

    def _of_texts(self, top: dict[str, float], about: str) -> float:
        yes, no = ([top[word] for word in words if word in top] for words in (self.config.yes, self.config.no))
        seen = sum(map(math.exp, [*yes, *no]))
        unseen = max(0.0, 1 - sum(map(math.exp, top.values())))  # what yes or no may have beside it
        if not seen or unseen > self.config.tolerance * (seen + unseen):
            likeliest = max(top, key=top.__getitem__, default="")
            raise RewardError(
                f"{about} was answered with {likeliest!r}: yes and no have {seen:.1%}, and tokens that are not told "
                f"may have {unseen:.2%}.",
                "Ask a model that was trained to answer yes or no, or a server that tells chosen tokens (vLLM).",
            )
        self._check_answered(yes, no, about)
        # An answer that is not among them has at most the least that is told, and no more than is left.
        lowest = min(*top.values(), math.log(max(unseen, CLOSEST)))
        return _logsumexp(yes or [lowest]) - _logsumexp(no or [lowest])

    def _check_answered(self, yes: Sequence[float], no: Sequence[float], about: str) -> None:
        """Raises RewardError where the model is about to say something that is neither yes nor no."""
        together = sum(map(math.exp, [*yes, *no]))
        if together < self.config.least:
            raise RewardError(
                f"{about} was not answered: yes and no have a probability of {together:.2g} together.",
                "Ask a model that was trained to answer yes or no; of one that thinks first, turn that off "
                '(body={"chat_template_kwargs": {"enable_thinking": false}}).',
            )


def _logsumexp(values: Sequence[float]) -> float:
    largest = max(values)
    return largest + math.log(sum(math.exp(value - largest) for value in values))
