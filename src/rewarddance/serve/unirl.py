"""UniRL's reward service, protocol 1: `POST /score`, as its `RemoteRewardBackend` speaks it.

The last turn of a history is the prompt and the candidate; the turn before it, of an edit, has what the prompt came
with. Their metadata may hold "reference_b64" and "instruction". The one reward is called rewarddance; its metrics are
probability, which comes first, and margin. A request that failed has no result and a reason among the errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rewarddance.errors import InputError, RewardDanceError, shown
from rewarddance.serve.judge import REWARD, ServedJudge
from rewarddance.serve.pictures import RequestPictures
from rewarddance.serve.protocol import (
    Outcome,
    Protocol,
    Request,
    as_json,
    asked_prompt,
    can_be_repeated,
    each,
    items_of,
    json_object,
    probability,
    rates,
    text_of,
)
from rewarddance.types import Pixels, Question

_IDENTITY = ("request_id", "sample_id", "group_id", "source_rank", "policy_version", "idempotency_key")


def read(body: bytes, pictures: RequestPictures, judge: ServedJudge, most: int) -> Request:
    content = json_object(body)
    version = content.get("protocol_version", "1")
    if version != "1":
        raise InputError(f"the protocol version is {shown(version)}.", "Speak version 1.")
    if content.get("grad_mode"):
        raise InputError("this protocol's gradients are not served.", "Ask /gradient.")
    asked = items_of(content, "requests", most)
    makes = [lambda one=one: _question(one, pictures, judge) for one in asked]
    return Request(each(makes), form=[_repeated(one) for one in asked])


def write(request: Request, outcomes: Sequence[Outcome], judge: ServedJudge) -> bytes:
    results, errors, identities = [], [], []
    for asked, outcome in zip(request.form, outcomes, strict=True):
        wanted = asked.get("required_rewards") or [REWARD]
        wanted = [str(name) for name in wanted] if isinstance(wanted, list) else [REWARD]
        unknown = {name: f"the only reward here is {REWARD}" for name in wanted if name != REWARD}
        if isinstance(outcome, RewardDanceError):
            results.append({})
            errors.append(unknown | {REWARD: str(outcome)})
        else:
            results.append({REWARD: {"probability": probability(outcome), "margin": outcome.margin}})
            errors.append(unknown)
        identities.append({key: asked.get(key) for key in _IDENTITY} | {"scorer_version": judge.mark})
    return as_json({"protocol_version": "1", "results": results, "errors": errors, "identities": identities})


PROTOCOL = Protocol("/score", read, write)


def _repeated(asked: Any) -> dict[str, Any]:
    """What the reply repeats of a request, and which rewards it wants."""
    given = asked if isinstance(asked, dict) else {}
    identity = {key: given.get(key) for key in _IDENTITY if can_be_repeated(given.get(key))}
    return identity | {"required_rewards": given.get("required_rewards")}


def _question(asked: Any, pictures: RequestPictures, judge: ServedJudge) -> Question:
    history = asked.get("history") if isinstance(asked, dict) else None
    if isinstance(asked, dict) and (key := next((k for k in _IDENTITY if not can_be_repeated(asked.get(k))), None)):
        raise InputError(f"{key} is {shown(asked[key])}, which no reply can repeat.", "Send a text or a number.")
    if not isinstance(history, list) or len(history) not in (1, 2) or not all(isinstance(t, dict) for t in history):
        raise InputError("a request has no history of one or two turns.", "Send the prompt with its picture.")
    metadata = asked.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise InputError("a request's metadata are no mapping.", "Correct them.")
    source = _medium(history[0], pictures, "the source") if len(history) == 2 else None
    prompt = asked_prompt(text_of(history[-1], "text"), metadata, source)
    reference = metadata.get("reference_b64")
    candidate = _medium(history[-1], pictures, "the candidate")
    other = None if reference is None else pictures.from_base64(reference, "the reference")
    fps = rates(judge, pictures, candidate, other)
    return judge.question(prompt, candidate, other, text_of(metadata, "instruction"), fps)


def _medium(turn: Mapping[str, Any], pictures: RequestPictures, name: str) -> Pixels:
    if turn.get("video_path"):
        raise InputError(f"{name} is a path, and this server reads no files for its clients.", "Send video_b64.")
    return pictures.from_base64(turn.get("image_b64") or turn.get("video_b64"), name)
