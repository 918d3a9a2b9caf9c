"""`messages` with `images` or `videos`, as LLaMA-Factory and ms-swift take them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from rewarddance.data.fields import Fault, as_number, listed, optional_text, short
from rewarddance.data.sources.drafts import Draft, Medium, Source, as_medium, by_record

_TAG = re.compile(r"<(?:image|video)>")
_CAPTION = re.compile(r"\bcaption: *\[(.*)\]", re.IGNORECASE | re.DOTALL)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_TIE = re.compile(r"\b(tie|same|equal|equally)\b")
_BETTER = re.compile(r"\b(?:image|picture|video|candidate|response) ?(1|2|a|b|one|two) is (?:much |slightly )?better\b")
_WORD = re.compile(r"(?:the )?(?:(?:image|picture|video) ?)?(1|2|a|b|first|second)(?: (?:image|picture|video|one))?")
_SECOND = {"2", "b", "two", "second"}


def pair_or_score(record: Mapping[str, Any]) -> Iterator[Draft]:
    """Three forms, by what stands beside `messages` (or `conversations`) and `images` (or `videos`):

    `rejected_images`: the last picture of `images` is preferred to the last of these; a picture that both begin with
    is the prompt's image. `label`: a number, the score of the one picture. Neither: the answer says which of the two
    pictures is better ("Image 1 is better", "B", "second", "tie"). The prompt is the record's `prompt`, or what stands
    in "Caption: [...]", or else what the user says without its tags.
    """
    question, answer = _turns(record)
    kind = "videos" if record.get("videos") else "images"
    media = _media(record, kind)
    prompt = optional_text(record, "prompt") or _prompt(question)
    rejected = f"rejected_{kind}"
    if record.get(rejected):
        against = _media(record, rejected)
        shared = media[:-1]
        if len(shared) > 1 or [medium.given for medium in shared] != [medium.given for medium in against[:-1]]:
            raise Fault(rejected, f"and {kind} must be one picture each, behind at most one that both begin with")
        yield Draft(prompt, (media[-1], against[-1]), 0.0, image=shared[0] if shared else None)
    elif record.get("label") is not None:
        if len(media) != 1:
            raise Fault(kind, f"has {len(media)} entries; a label scores one")
        label = record["label"]
        score = float(label) if isinstance(label, bool) else as_number(label, "label")
        yield Draft(prompt, (media[0],), score, fps=(None,))
    else:
        if len(media) != 2:
            raise Fault(kind, f"has {len(media)} entries; an answer compares two")
        yield Draft(prompt, (media[0], media[1]), _share(answer))


def _turns(record: Mapping[str, Any]) -> tuple[str, str]:
    """What the user says, all turns, and the assistant's last turn."""
    field, turns = listed(record, "messages", "conversations")
    texts: dict[str, list[str]] = {"user": [], "assistant": []}
    for turn in turns:
        if not isinstance(turn, Mapping):
            raise Fault(field, f"holds {short(turn)}, which is no turn")
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        role = {"human": "user", "gpt": "assistant"}.get(str(role), role)
        if isinstance(content, list):  # parts, as the OpenAI protocol has them
            content = "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
        if not isinstance(content, str):
            raise Fault(field, f"has a turn whose content is {short(content)}")
        texts.setdefault(str(role), []).append(content)
    return "\n".join(texts["user"]), texts["assistant"][-1] if texts["assistant"] else ""


def _media(record: Mapping[str, Any], name: str) -> list[Medium]:
    _, given = listed(record, name)
    if not given:
        raise Fault(name, "is empty")
    return [as_medium(name, value) for value in given]


def _prompt(question: str) -> str:
    caption = _CAPTION.search(question)
    prompt = (caption[1] if caption else _TAG.sub("", question)).strip()
    if not prompt:
        raise Fault("messages", "have no text from the user, which is the prompt")
    return prompt


def _share(answer: str) -> float:
    tagged = _ANSWER.search(answer)
    text = (tagged[1] if tagged else answer).strip().casefold()
    word = _WORD.fullmatch(text.rstrip(".! "))
    better = {name in _SECOND for name in ([word[1]] if word else _BETTER.findall(text))}
    if len(better) == 1:
        return float(better.pop())
    if not better and _TIE.search(text):
        return 0.5
    raise Fault("messages", f"end with {short(answer)}, which does not say which one is better")


MESSAGES = Source("messages", "messages and images, as in LLaMA-Factory and ms-swift", by_record(pair_or_score))
