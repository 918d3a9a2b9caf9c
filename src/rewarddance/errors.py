"""Errors in the caller's words: what is wrong, with which item, and what to do about it."""

from __future__ import annotations


class RewardDanceError(Exception):
    """Every error this library raises on purpose. `what` names the item, `remedy` says what to do."""

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(f"{what} {remedy}".strip())
        self.what = what
        self.remedy = remedy


def first_line(error: BaseException) -> str:
    """What a foreign error says, without its tail and its full stop; its class where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")


class InputError(RewardDanceError):
    """The caller gave something that cannot be used: a file, a key, a picture, a prompt."""


class RewardError(RewardDanceError):
    """A reward that could not be had. It is never replaced by a number."""
