"""Errors in the caller's words: what is wrong, with which item, and what to do about it."""

from __future__ import annotations

import copyreg
import errno
import os
from collections.abc import Sequence
from typing import Any, TypeVar

_SECRET = ("_KEY", "_TOKEN", "_SECRET", "_PASSWORD", "_PASSWD", "_CREDENTIALS")
"""How names of variables end that hold what must not be shown."""


class RewardDanceError(Exception):
    """Every error this library raises on purpose. `what` names the item, `remedy` says what to do."""

    def __init__(self, what: str, remedy: str = "") -> None:
        what, remedy = redacted(what), redacted(remedy)
        what = printable(what.encode("utf-8", "backslashreplace").decode())
        super().__init__(f"{what} {remedy}".strip())
        self.what = what
        self.remedy = remedy

    def __reduce__(self) -> Any:
        """Pickled without its class's own arguments: workers hand errors over as answers."""
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


SomeError = TypeVar("SomeError", bound=RewardDanceError)


def reworded(error: SomeError, what: str) -> SomeError:
    """The same error, which says `what` of its item."""
    error.what, error.args = what, (f"{what} {error.remedy}".strip(),)
    return error


def without_frames(error: SomeError) -> SomeError:
    """An error that is kept as an answer, without the frames that it went through and the error that it came from.

    They hold what was worked on, such as a request's pictures, and often the error itself: memory that a server would
    keep until the next full collection of garbage.
    """
    error.__traceback__ = error.__cause__ = error.__context__ = None
    return error


def shown(value: object, longest: int = 80) -> str:
    """A value as it may stand in a sentence: in quotes, without what a terminal would act on, and never long."""
    text = repr(value[: 2 * longest]) if isinstance(value, str) else repr(value)
    return text if len(text) <= longest else text[: longest - 3] + "..."


def printable(text: str) -> str:
    """A text without what a terminal would act on: control characters and marks of direction as their escapes."""
    return "".join(c if c in "\n\t" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def redacted(text: str) -> str:
    """A text without the keys and tokens that stand in the environment: servers quote them when they refuse them."""
    for name, value in os.environ.items():
        if len(value) >= 8 and name.upper().endswith(_SECRET) and value in text:
            text = text.replace(value, f"(${name})")
    return text


def first_line(error: BaseException) -> str:
    """What a foreign error says, without its tail and its full stop; its class where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")


class InputError(RewardDanceError):
    """The caller gave something that cannot be used: a file, a key, a picture, a prompt."""


class RewardError(RewardDanceError):
    """A reward that could not be had. It is never replaced by a number."""


class WrongScoreCount(RewardError):
    """A reward that gave another number of scores than there were pictures, which it would do of any others, too."""


class NoGradient(RewardError):
    """A reward whose answers do not depend on the pictures in the autograd graph, whatever it is asked."""


class SearchIncomplete(RewardDanceError):
    """Some prompts of a search failed. results: in the prompts' order what was found for each, or its own error."""

    def __init__(self, what: str, remedy: str, results: Sequence[Any]) -> None:
        super().__init__(what, remedy)
        self.results = list(results)


_DISK = {
    errno.ENOSPC: ("the disk is full", "Make room; the same command then goes on."),
    errno.EDQUOT: ("the disk's quota is used up", "Make room; the same command then goes on."),
    errno.EROFS: ("the disk can only be read", "Choose another place, or mount it for writing."),
    errno.EACCES: ("it is not permitted", "Correct its permissions, or choose another place."),
    errno.EPERM: ("it is not permitted", "Correct its permissions, or choose another place."),
    errno.EIO: ("the disk does not answer", "Mount it again; the same command then goes on."),
    errno.ESTALE: ("the disk was taken away", "Mount it again; the same command then goes on."),
    errno.ENOTCONN: ("the disk was taken away", "Mount it again; the same command then goes on."),
    errno.EFBIG: ("the file would be too large for its disk", "Choose another place."),
    errno.ENAMETOOLONG: ("its name is too long", "Choose a shorter one."),
    errno.ELOOP: ("its links lead in a circle", "Correct them."),
    errno.ENOENT: ("it is not there", "Correct the path, or bring it back."),
    errno.ENOTDIR: ("a file stands where a folder should", "Choose another place, or move the file away."),
    errno.EISDIR: ("a folder stands where a file should", "Choose another place, or move the folder away."),
    errno.EMFILE: ("too many files are open", "Raise the limit (ulimit -n), or use fewer workers."),
}


def for_clients(error: Exception) -> tuple[str, str]:
    """What a server says of an error that it did not expect, and what to do: no paths, which are for its log."""
    if isinstance(error, MemoryError) or "out of memory" in first_line(error).casefold():
        return "the server's memory is not enough for this.", "Ask in smaller parts."
    return "the server failed at this.", "Its log says why."


def as_ours(error: BaseException) -> RewardDanceError:
    """Any error of another library as one of ours: what the disk, the memory or the library said, and what to do."""
    text = first_line(error)
    if isinstance(error, OSError) and error.errno in _DISK:
        why, remedy = _DISK[error.errno]
        at = f"{error.filename}: " if error.filename else ""
        return RewardDanceError(f"{at}{why} ({type(error).__name__}).", remedy)
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):  # what other libraries make of it is in their words only
        if f"os error {code}" in text or f"[errno {code}]" in text.casefold():
            return RewardDanceError(f"{_DISK[code][0]}: {shown(text, 200)}.", _DISK[code][1])
    if isinstance(error, RuntimeError) and text.startswith("Symlink loop"):  # pathlib's own, of resolve()
        return RewardDanceError(f"{text}: {_DISK[errno.ELOOP][0]}.", _DISK[errno.ELOOP][1])
    if isinstance(error, MemoryError) or "out of memory" in text.casefold() or "can't allocate memory" in text:
        return RewardDanceError(
            "the memory is not enough for this run.",
            "Lower batch_size (or batches of judge and generator), or take a smaller checkpoint; "
            "`rewarddance plan` says what a recipe needs.",
        )
    where = f"{type(error).__module__}.{type(error).__name__}".removeprefix("builtins.")
    return RewardDanceError(
        f"{where}: {shown(text, 300)}.",
        "This was not expected here. --debug shows where it came from; what was done so far is kept.",
    )
