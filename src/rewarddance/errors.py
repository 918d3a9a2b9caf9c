"""Errors in the caller's words: what is wrong, with which item, and what to do about it."""

from __future__ import annotations


class RewardDanceError(Exception):
    """Every error this library raises on purpose. `what` names the item, `remedy` says what to do."""

    def __init__(self, what: str, remedy: str = "") -> None:
        what = printable(what.encode("utf-8", "backslashreplace").decode())
        super().__init__(f"{what} {remedy}".strip())
        self.what = what
        self.remedy = remedy


def shown(value: object, longest: int = 80) -> str:
    """A value as it may stand in a sentence: in quotes, without what a terminal would act on, and never long."""
    text = repr(value[: 2 * longest]) if isinstance(value, str) else repr(value)
    return text if len(text) <= longest else text[: longest - 3] + "..."


def printable(text: str) -> str:
    """A text without what a terminal would act on: control characters and marks of direction as their escapes."""
    return "".join(c if c in "\n\t" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def first_line(error: BaseException) -> str:
    """What a foreign error says, without its tail and its full stop; its class where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")


class InputError(RewardDanceError):
    """The caller gave something that cannot be used: a file, a key, a picture, a prompt."""


class RewardError(RewardDanceError):
    """A reward that could not be had. It is never replaced by a number."""
