"""Fields of a record, or the fault that names the field: for rows of preferences files and of public sets."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

from rewarddance.errors import InputError


class Fault(InputError):
    """What is wrong with one row. field: where it is, "" for the row as a whole; why: the rest of the sentence."""

    def __init__(self, field: str, why: str, remedy: str = "Correct or remove the row.") -> None:
        super().__init__(f"{field} {why}." if field else f"{why}.", remedy)
        self.field, self.why = field, why


def text(record: Mapping[str, Any], *names: str) -> str:
    """The text in the first of these fields that is there. Raises Fault where there is none, or a blank or no text."""
    name, value = present(record, *names)
    if not isinstance(value, str):
        raise Fault(name, f"is {short(value)}, which is no text")
    if not value.strip():
        raise Fault(name, "is blank")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Fault(name, "holds half a character (a lone surrogate)") from None
    if "\0" in value:
        raise Fault(name, "holds a null byte")
    return value


def number(record: Mapping[str, Any], *names: str) -> float:
    """The finite number in the first of these fields that is there; a text such as "0.9" is one, true is none."""
    name, value = present(record, *names)
    return as_number(value, name)


def as_number(value: Any, name: str) -> float:
    """A finite number. Raises Fault that names the field `name` where it is none."""
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise TypeError
        converted = float(value)
    except (TypeError, ValueError, OverflowError):
        raise Fault(name, f"is {short(value)}, which is no number") from None
    if not math.isfinite(converted):
        raise Fault(name, f"is {converted}, which is no finite number")
    return converted


def optional_text(record: Mapping[str, Any], name: str) -> str:
    """The text in a field; "" where it is not there or blank. A number is written as text: ids often are numbers."""
    value = record.get(name)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return "" if value is None or (isinstance(value, str) and not value.strip()) else text(record, name)


def optional_rate(record: Mapping[str, Any], name: str) -> float | None:
    """Frames a second, above 0, or None where the field is not there or blank."""
    value = record.get(name)
    if value is None or value == "":
        return None
    rate = as_number(value, name)
    if rate <= 0:
        raise Fault(name, f"is {rate:g}; frames a second are above 0")
    return rate


def listed(record: Mapping[str, Any], *names: str) -> tuple[str, list[Any]]:
    """The first of these fields that is there, by name, and the list in it."""
    name, value = present(record, *names)
    if not isinstance(value, list):
        raise Fault(name, f"is {short(value)}, which is no list")
    return name, value


def present(record: Mapping[str, Any], *names: str) -> tuple[str, Any]:
    """The first of these fields that is there and not null. Raises Fault where there is none."""
    for name in names:
        if record.get(name) is not None:
            return name, record[name]
    raise Fault(names[0], "is missing" + (f" ({', '.join(names[1:])} too)" if names[1:] else ""))


def normal(prompt: str) -> str:
    """A prompt without case, punctuation and spacing: prompts that differ in no more are the same prompt."""
    return " ".join(re.findall(r"\w+", prompt.casefold())) or prompt.strip()


def short(value: Any) -> str:
    """A value as it may stand in a sentence."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def fingerprint(*parts: str | bytes) -> bytes:
    """A digest of 16 bytes of the parts. Equal parts have equal digests, and others do not in practice."""
    digest = blake2b(digest_size=16)
    for part in parts:
        data = part.encode(errors="surrogatepass") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.digest()
