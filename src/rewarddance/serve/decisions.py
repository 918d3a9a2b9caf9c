"""OpenAI's `POST /v1/decisions`, as `openai` 3.57's `client.decisions.create` speaks it.

The texts of the input are the prompt. The pictures of the input and then of a predicate stand in the order of our own
questions: what the prompt came with, the reference, the candidate. So the last one is the candidate; the one before it
is the reference where the judge needs one. The judge asks its own question: the text of a predicate is empty or the
name of an instruction. What cannot be answered is a refusal, with the reason beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from rewarddance.errors import InputError, RewardDanceError, shown
from rewarddance.serve.judge import ServedJudge
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
)
from rewarddance.types import Pixels, Question


class Parts(NamedTuple):
    """What an input or a predicate says and shows."""

    text: str
    pictures: tuple[Pixels, ...]


def read(body: bytes, pictures: RequestPictures, judge: ServedJudge, most: int) -> Request:
    content = json_object(body)
    asked = items_of(content, "questions", min(most, 400))
    shared = _input(content.get("input"), pictures)
    names = [question.get("name") if isinstance(question, dict) else None for question in asked]
    makes = [lambda question=question: _question(shared, question, pictures, judge) for question in asked]
    return Request(each(makes), form=[name if can_be_repeated(name) else None for name in names])


def write(request: Request, outcomes: Sequence[Outcome], judge: ServedJudge) -> bytes:
    answers = []
    for name, outcome in zip(request.form, outcomes, strict=True):
        if isinstance(outcome, RewardDanceError):
            answers.append({"type": "refusal", "name": name, "reason": str(outcome)})
        else:
            answers.append({"type": "predicate", "name": name, "probability": probability(outcome)})
    # No text is read or written token by token for a bill, and the form asks for numbers.
    usage: dict[str, Any] = dict.fromkeys(("input_tokens", "output_tokens", "total_tokens"), 0)
    usage["input_tokens_details"] = {"cached_tokens": 0, "cache_write_tokens": 0}
    usage["output_tokens_details"] = {"reasoning_tokens": 0}
    return as_json({"model": judge.name, "answers": answers, "usage": usage})


PROTOCOL = Protocol("/v1/decisions", read, write)


def _input(given: Any, pictures: RequestPictures) -> Parts:
    """The texts and pictures of a text, or of a user's messages."""
    if isinstance(given, str):
        return Parts(given, ())
    if not isinstance(given, list) or not given:
        raise InputError("input is neither a text nor a list of messages.", "Send the prompt, and its pictures.")
    texts, shown_pictures = [], []
    for message in given:
        if not isinstance(message, dict) or message.get("role") != "user":
            raise InputError("the input has a message that is not a user's.", "Send the prompt as the user's message.")
        parts = _parts(message.get("content"), pictures, "the input")
        texts.append(parts.text)
        shown_pictures += parts.pictures
    return Parts("\n".join(text for text in texts if text), tuple(shown_pictures))


def _parts(given: Any, pictures: RequestPictures, name: str) -> Parts:
    if isinstance(given, str):
        return Parts(given, ())
    if not isinstance(given, list):
        raise InputError(f"{name} is neither a text nor a list of parts.", "Send input_text and input_image.")
    texts, images = [], []
    for part in given:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "input_text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "input_image":
            images.append(pictures.from_base64(part.get("image_url"), f"picture {len(images)} of {name}"))
        else:
            raise InputError(
                f"{name} has a part {shown(kind)} that cannot be read.", "Send input_text and input_image."
            )
    return Parts("\n".join(texts), tuple(images))


def _question(shared: Parts, question: Any, pictures: RequestPictures, judge: ServedJudge) -> Question:
    if not isinstance(question, dict) or question.get("type") != "predicate":
        kind = question.get("type") if isinstance(question, dict) else question
        raise InputError(f"a judge answers yes or no, and the question is {shown(kind)}.", "Ask a predicate.")
    if not can_be_repeated(question.get("name")):
        raise InputError(f"a question's name is {shown(question['name'])}, which no reply can repeat.", "Send a text.")
    own_parts = _parts(question.get("instructions", ""), pictures, f"the question {shown(question.get('name'))}")
    shown_pictures = [*shared.pictures, *own_parts.pictures]
    if not 1 <= len(shown_pictures) <= 3:
        raise InputError(
            f"the question has {len(shown_pictures)} pictures.",
            "Send what the prompt came with, the reference and the candidate, of which the candidate has to be.",
        )
    candidate, before = shown_pictures[-1], shown_pictures[:-1]
    reference = before.pop() if before and (judge.needs_reference or len(before) == 2) else None
    prompt = asked_prompt(shared.text, image=before[0] if before else None)
    fps = rates(judge, pictures, candidate, reference)
    return judge.question(prompt, candidate, reference, own_parts.text.strip() or None, fps)
