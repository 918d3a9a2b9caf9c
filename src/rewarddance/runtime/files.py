"""Files that come from outside: plain files alone, of bounded size, and text in any of the usual encodings."""

from __future__ import annotations

import codecs
import errno
import json
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rewarddance.errors import shown

LARGEST_TEXT = 1 << 28
"""Bytes of a text that is read whole."""
DEEPEST = 200
"""Levels of brackets in a JSON text; Python's reader takes memory and then the whole stack for more."""
_JSON_MARKS = re.compile(r'["\\\[\]{}]')
_KINDS = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISDIR, "a folder"),
)
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order marks; UTF-32's begins with UTF-16's."""


def check_plain(path: Path) -> Path:
    """The path. Raises OSError where it is there and no plain file: a pipe or a device may never end."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise OSError(f"it is {next((name for test, name in _KINDS if test(mode)), 'no plain file')}")
    return path


def encoding_of(head: bytes) -> str:
    """How a text that begins so is encoded: by its byte order mark, or UTF-16 by its many zeros, or else UTF-8."""
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding
    sample = head[: 1 << 10]
    for first, encoding in ((0, "utf-16-be"), (1, "utf-16-le")):
        zeros, others = sample[first::2].count(0), sample[1 - first :: 2].count(0)
        if len(sample) >= 4 and zeros > 0.4 * len(sample[first::2]) and not others:
            return encoding
    return "utf-8"


def decoded(data: bytes) -> str:
    """A text, whatever its encoding and line ends. Raises ValueError that says at which line it is none."""
    encoding = encoding_of(data)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"it is not {encoding.removesuffix('-sig').upper()}, at line {line}") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_text(path: Path, largest: int = LARGEST_TEXT) -> str:
    """`decoded` content of a plain file. Raises OSError or ValueError that says why there is none."""
    size = check_plain(path).stat().st_size
    if size > largest:
        raise ValueError(f"it has {size:,} bytes, of which {largest:,} can be read")
    return decoded(path.read_bytes())


def is_there(path: Path) -> bool:
    """`path.exists()`, and False of a name that is too long to be a file's, where that raises OSError."""
    try:
        return path.exists()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return False
        raise


def parse_json(text: str | bytes) -> Any:
    """What a JSON text holds. Raises ValueError, also where it is nested too deep to be anything but an attack, and
    where a key stands twice in an object: Python's reader keeps the last, and says nothing."""
    if not isinstance(text, str):
        text = decoded(text)
    if text.count("[") + text.count("{") > DEEPEST:
        depth = end_of_escape = 0
        inside = False  # of a string, whose brackets do not count
        for bracket in _JSON_MARKS.finditer(text):  # what lies between them may be megabytes of a picture
            mark, place = bracket[0], bracket.start()
            if place < end_of_escape:
                continue
            if inside:
                inside = mark != '"'
                end_of_escape = place + 2 if mark == "\\" else 0
            elif mark == '"':
                inside = True
            elif mark in "[{":
                depth += 1
                if depth > DEEPEST:
                    raise ValueError(f"it is nested more than {DEEPEST} deep")
            elif mark in "]}":
                depth -= 1
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError(f"the key {shown(first_twice([key for key, _ in pairs]))} stands twice in one object")
    return content


def first_twice(names: Sequence[str]) -> str | None:
    """The first name that stands a second time; of two values under one name the first would be lost in silence."""
    return next((name for place, name in enumerate(names) if name in names[:place]), None)
