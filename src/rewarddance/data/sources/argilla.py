"""Argilla's records with two pictures and a label, as `dataset.records.to_json` writes them."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from typing import Any

from rewarddance.data.fields import Fault, short, text
from rewarddance.data.sources.drafts import Draft, Medium, Source, as_medium, by_record, vote

_PROMPTS = ("prompt", "instruction", "caption", "text")
_SHARES = {"a": 0.0, "left": 0.0, "first": 0.0, "1": 0.0, "b": 1.0, "right": 1.0, "second": 1.0, "2": 1.0}
_SHARES |= {"tie": 0.5, "equal": 0.5, "both good": 0.5, "both bad": 0.5, "bad": 0.5}


def labelled(record: Mapping[str, Any]) -> Iterator[Draft | Fault]:
    """`{"fields": {prompt, image_a, image_b}, "responses": {question: [{"value", "user_id"}]}}`: one row a response.

    The two fields that are neither the prompt nor `image` are the sides, in their order. A value names a side (a, left,
    first, 1, or the field) or neither (tie, both bad). A question's name is the criterion, "preference" being none.
    """
    fields, responses = record.get("fields"), record.get("responses")
    if not isinstance(fields, Mapping) or not isinstance(responses, Mapping):
        raise Fault("fields", f"is {short(fields)}, which is no record", "Write it with dataset.records.to_json.")
    prompt = text(fields, *_PROMPTS)
    names = [name for name in fields if name not in (*_PROMPTS, "image", "source_image")]
    if len(names) != 2:
        raise Fault("fields", f"has {', '.join(names) or 'nothing'} beside the prompt, and two sides are needed")
    shares = _SHARES | {names[0].casefold(): 0.0, names[1].casefold(): 1.0}
    source = next((name for name in ("image", "source_image") if fields.get(name) is not None), None)
    image = None if source is None else _medium(source, fields[source])
    media = (_medium(names[0], fields[names[0]]), _medium(names[1], fields[names[1]]))
    for question, answers in responses.items():
        for answer in answers:
            try:
                value = answer.get("value")
                word = value.replace("_", " ") if isinstance(value, str) and value.casefold() not in shares else value
                criterion = "" if question == "preference" else str(question)
                who = str(answer.get("user_id") or "")
                yield Draft(prompt, media, vote(question, word, shares), criterion, image, annotator=who)
            except Fault as fault:  # of this response alone
                yield fault


def _medium(name: str, value: Any) -> Medium:
    """A path, or the bytes in a data URL, in which Argilla keeps pictures."""
    if isinstance(value, str) and value.startswith("data:"):
        head, _, rest = value.partition(",")
        try:
            if not head.endswith(";base64"):
                raise ValueError("it is not in base64")
            return as_medium(name, base64.b64decode(rest, validate=True))
        except (binascii.Error, ValueError) as error:
            raise Fault(name, f"is a data URL that cannot be read: {error}") from None
    return as_medium(name, value)


ARGILLA = Source("argilla", "Argilla's records of two pictures: records.to_json(...)", by_record(labelled))
