"""transformers' `POST /v1/systemone`, as `transformers serve` 5.24 speaks it.

The state is a mapping with the keys prompt, candidate and, where there are any, reference and image (what the prompt
came with); a picture is the placeholder of an asset. Every question is a noul, whose instructions are left out or the
name of an instruction: the judge asks its own question. A question that cannot be answered has an error in place of a
number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rewarddance.errors import InputError, RewardDanceError, shown
from rewarddance.serve.judge import ServedJudge
from rewarddance.serve.pictures import RequestPictures, TooLarge
from rewarddance.serve.protocol import (
    Outcome,
    Protocol,
    Request,
    as_json,
    asked_prompt,
    each,
    json_object,
    probability,
    rates,
    text_of,
)
from rewarddance.types import Pixels, Question

_KEYS = ("prompt", "image", "reference", "candidate")


def read(body: bytes, pictures: RequestPictures, judge: ServedJudge, most: int) -> Request:
    content = json_object(body)
    state, asked, assets = content.get("state"), content.get("questions"), content.get("assets") or {}
    if not isinstance(state, dict) or set(state) - set(_KEYS) or not isinstance(state.get("prompt"), str):
        raise InputError(f"the state is {shown(state)}.", f"Send a mapping with {', '.join(_KEYS)}.")
    if not isinstance(asked, dict) or not asked or not isinstance(assets, dict):
        raise InputError("questions and assets have to be mappings.", "Send one question at least.")
    if len(asked) > min(most, 64):
        raise TooLarge(f"the request has {len(asked)} questions, of {min(most, 64)}.", "Ask in parts.")
    shown_pictures = {key: _picture(state, key, assets, pictures) for key in _KEYS[1:]}
    candidate = shown_pictures["candidate"]
    if candidate is None:
        raise InputError("the state has no candidate.", "Send one as an asset.")
    prompt = asked_prompt(state["prompt"], image=shown_pictures["image"])
    fps = rates(judge, pictures, candidate, shown_pictures["reference"])

    def question(name: str, content: Any) -> Question:
        if not isinstance(content, dict) or content.get("type") != "noul" or content.get("criteria"):
            raise InputError(
                f"the question {shown(name)} is none that a judge answers.", "Ask a noul, without criteria of its own."
            )
        return judge.question(prompt, candidate, shown_pictures["reference"], text_of(content, "instructions"), fps)

    makes = [lambda name=name, content=content: question(name, content) for name, content in asked.items()]
    return Request(each(makes), form=[*asked])


def write(request: Request, outcomes: Sequence[Outcome], judge: ServedJudge) -> bytes:
    answers: dict[str, Any] = {}
    for name, outcome in zip(request.form, outcomes, strict=True):
        failed = isinstance(outcome, RewardDanceError)
        answers[name] = {"error": str(outcome)} if failed else {"type": "noul", "noul": probability(outcome)}
    return as_json({"model": judge.name, "answers": answers, "usage": {"input_tokens": 0, "output_tokens": 0}})


PROTOCOL = Protocol("/v1/systemone", read, write)


def _picture(state: Mapping[str, Any], key: str, assets: Mapping[str, Any], pictures: RequestPictures) -> Pixels | None:
    place = state.get(key)
    if place is None:
        return None
    asset = assets.get(place) if isinstance(place, str) else None
    if not isinstance(asset, dict) or asset.get("type") != "image":
        raise InputError(f"the {key} {shown(place)} is the place of no picture among the assets.", "Send it there.")
    return pictures.from_base64(asset.get("data_base64"), f"the {key}")
