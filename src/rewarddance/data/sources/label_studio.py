"""Label Studio's JSON export of pairwise tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

from rewarddance.data.fields import Fault, listed, optional_text, short, text
from rewarddance.data.sources.drafts import Draft, Medium, Source, as_medium, by_record, vote

_SHARES = {"left": 0.0, "right": 1.0, "tie": 0.5, "equal": 0.5, "same": 0.5, "both bad": 0.5}
_SIDES = (
    *(("image_a", "image_b"), ("image1", "image2"), ("image_1", "image_2"), ("left", "right"), ("img1", "img2")),
    *(("left_image", "right_image"), ("video_a", "video_b"), ("video1", "video2"), ("left_video", "right_video")),
)
"""Keys of a task's data under which the two sides stand, where the control tag does not name them."""
_PROMPTS = ("prompt", "text", "caption", "instruction")


def pairwise(record: Mapping[str, Any]) -> Iterator[Draft | Fault]:
    """`{"data": {prompt, image_a, image_b}, "annotations": [{"completed_by", "result": [...]}]}`: one row an answer.

    A result is of the Pairwise tag (`selected`: left or right), or of Choices for what that tag cannot say (tie, both
    bad). The name of a tag is the criterion, "preference" and "tie" being none. Cancelled annotations are left out.
    """
    data = record.get("data")
    if not isinstance(data, Mapping):
        raise Fault("data", f"is {short(data)}, which is no task", "Export as JSON, not as JSON-MIN.")
    prompt = text(data, *_PROMPTS)
    image = None if data.get("source_image") is None else _medium(data, "source_image")
    for annotation in listed(record, "annotations")[1]:
        if annotation.get("was_cancelled"):
            continue
        who, when = _who(annotation.get("completed_by")), optional_text(annotation, "created_at")
        for result in listed(annotation, "result")[1]:
            if result.get("type") not in ("pairwise", "choices"):
                continue
            try:
                sides = _sides(data, result)
                share = vote("selected", _answer(result), _SHARES)
                criterion = optional_text(result, "from_name")
                criterion = "" if criterion in ("preference", "pairwise", "pw", "tie") else criterion
                media = (_medium(data, sides[0]), _medium(data, sides[1]))
                yield Draft(prompt, media, share, criterion, image, annotator=who, date=when)
            except Fault as fault:  # of this answer alone
                yield fault


def _answer(result: Mapping[str, Any]) -> Any:
    value = result.get("value")
    if not isinstance(value, Mapping):
        return value
    choices = value.get("choices")
    answer = choices[0] if isinstance(choices, list) and len(choices) == 1 else value.get("selected", choices)
    return answer.replace("_", " ") if isinstance(answer, str) else answer


def _sides(data: Mapping[str, Any], result: Mapping[str, Any]) -> tuple[str, str]:
    """The keys of the two sides: those that the tag is about, or the first usual ones that the task has."""
    named = [name.strip() for name in str(result.get("to_name", "")).split(",")]
    for first, second in ([(named[0], named[1])] if len(named) == 2 else []) + list(_SIDES):
        if data.get(first) is not None and data.get(second) is not None:
            return first, second
    raise Fault("data", f"has the keys {', '.join(map(str, data))}, of which no two are known as sides")


def _medium(data: Mapping[str, Any], key: str) -> Medium:
    """A path as it is; of Label Studio's addresses of local files the path in them."""
    value = data.get(key)
    if isinstance(value, str) and value.startswith("/data/local-files/"):
        value = (parse_qs(urlsplit(value).query).get("d") or [""])[0]
    elif isinstance(value, str) and value.startswith("/data/"):
        value = value.removeprefix("/data/")
    return as_medium(key, value)


def _who(value: Any) -> str:
    if isinstance(value, Mapping):
        return str(value.get("email") or value.get("id") or "")
    return "" if value is None else str(value)


LABEL_STUDIO = Source(
    "label-studio",
    "Label Studio, a project with a Pairwise tag: its export as JSON",
    by_record(pairwise),
    ("", "media"),
)
