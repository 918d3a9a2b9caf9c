"""Records of a downloaded file, one by one: JSON (an array, or one in an object), JSONL, CSV or Parquet of any size.

A record that cannot be read comes as the error that says why, and so does what is left of a file that breaks off.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import pyarrow as pa

from rewarddance.data.fields import short
from rewarddance.data.tables import JsonlTable, ParquetTable, Row, parse_line
from rewarddance.errors import InputError

_CHUNK = 1 << 20
_LONGEST = 1 << 26
"""Characters that one record of a JSON array may have."""
_REST = "Repair or download the file again; what stands before is used."


def read_records(path: Path, array: str = "") -> Iterator[Row]:
    """The records of a .json, .jsonl, .csv or .parquet file. array: the key of the list of records in a JSON object.

    Raises InputError, before the first record, where the file is none of these, is empty or cannot be opened.
    """
    kinds = {".jsonl": _lines, ".ndjson": _lines, ".parquet": _columns, ".csv": _table, ".tsv": _table}
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder.", "Give its .json, .jsonl, .csv or .parquet files.")
        if path.suffix.lower() == ".json":
            return _json(path, array)
        if path.suffix.lower() not in kinds:
            raise InputError(f"{path} is no table of records.", "Give a .json, .jsonl, .csv or .parquet file.")
        if path.stat().st_size == 0:
            raise InputError(f"{path} is empty.", "Download it again.")
        return kinds[path.suffix.lower()](path)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read: {error}.", "Correct the path, or download it again.") from error


def _lines(path: Path) -> Iterator[Row]:
    return JsonlTable(path).rows()


def _columns(path: Path) -> Iterator[Row]:
    return _whole_parts(ParquetTable(path))


def _whole_parts(table: ParquetTable) -> Iterator[Row]:
    number = 0
    try:
        for row in table.rows():
            number = row.number
            yield row
    except (OSError, pa.ArrowException, EOFError) as error:
        yield Row(number + 1, InputError(f"the file is broken from here on: {error}.", _REST))


def _table(path: Path) -> Iterator[Row]:
    """A CSV with its columns' names in the first line; every value is text."""
    path.open("rb").close()
    return _csv_rows(path)


def _csv_rows(path: Path) -> Iterator[Row]:
    csv.field_size_limit(_LONGEST)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        names: list[str] | None = None
        number = 0
        while True:
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                number += 1
                yield Row(number, InputError(f"the line is no CSV: {error}.", "Correct or remove it."))
                continue
            if names is None:
                names = values
                continue
            if not values:  # a blank line
                continue
            number += 1
            yield Row(number, _named(names, values))


def _named(names: list[str], values: list[str]) -> dict[str, Any] | InputError:
    if len(values) != len(names):
        return InputError(f"it has {len(values)} values for {len(names)} columns.", "Correct or remove it.")
    if any("\udc80" <= character <= "\udcff" for value in values for character in value):
        return InputError("it is not UTF-8.", "Correct or remove it.")
    return dict(zip(names, values, strict=True))


# -- JSON --------------------------------------------------------------------------------------------------------------


def _json(path: Path, array: str) -> Iterator[Row]:
    """An array of records, or the one under the key `array` of an object, or, as some name it so, JSON Lines."""
    with path.open("rb") as file:
        head = file.read(1 << 16).removeprefix(b"\xef\xbb\xbf").lstrip()
        if not head:
            raise InputError(f"{path} is empty.", "Download it again.")
        if head[:1] == b"{":
            line = head.split(b"\n", 1)[0]
            found = parse_line(line) if b"\n" in head or len(head) < 1 << 16 else None
            if isinstance(found, dict) and not (array and isinstance(found.get(array), list)):
                return _lines(path)
        elif head[:1] != b"[":
            raise InputError(f"{path} is no JSON array of records.", "Give the file that the set's page names.")
    return _elements(path, array if head[:1] == b"{" else "")


def _elements(path: Path, key: str) -> Iterator[Row]:
    """The elements of a JSON array, read in pieces."""
    number = 0
    try:
        with path.open("rb") as raw, TextIOWrapper(raw, encoding="utf-8-sig") as file:
            text = _Pieces(file)
            if key:
                text.enter(key)
            text.expect("[")
            if text.peek() == "]":
                return
            while True:
                number += 1
                found = text.value()
                if isinstance(found, dict):
                    yield Row(number, found)
                else:
                    yield Row(number, InputError(f"it is {short(found)}, no object.", "Correct or remove it."))
                if text.expect(",]") == "]":
                    return
    except (ValueError, RecursionError, OSError) as error:  # ValueError: not JSON, or not UTF-8
        yield Row(max(number, 1), InputError(f"the file is broken from here on: {error}.", _REST))


class _Pieces:
    """A JSON text that is read as it is needed: values one by one, never more than a piece and a value in memory."""

    def __init__(self, file: TextIOWrapper) -> None:
        self.file, self.text, self.at, self.ended = file, "", 0, False
        self.decoder = json.JSONDecoder()

    def _more(self, size: int = _CHUNK) -> None:
        piece = self.file.read(size)
        self.text, self.at, self.ended = self.text[self.at :] + piece, 0, not piece

    def peek(self) -> str:
        """The next character that is no space. Raises ValueError at the end of the file."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in " \t\r\n":
                self.at += 1
            if self.at < len(self.text):
                return self.text[self.at]
            if self.ended:
                raise ValueError("it breaks off")
            self._more()

    def expect(self, characters: str) -> str:
        """One of these characters, and go past it."""
        found = self.peek()
        if found not in characters:
            raise ValueError(f"{found!r} stands where {' or '.join(characters)} should")
        self.at += 1
        return found

    def value(self) -> Any:
        """The next value, whole."""
        self.peek()
        size = _CHUNK
        while True:
            try:
                found, end = self.decoder.raw_decode(self.text, self.at)
                if end < len(self.text) or self.ended:  # a number at the very end may go on
                    self.at = end
                    return found
            except json.JSONDecodeError as error:
                wrong = error.pos < len(self.text) - 16 and not error.msg.startswith("Unterminated string")
                if self.ended or wrong or len(self.text) - self.at > _LONGEST:
                    raise ValueError("it breaks off" if self.ended and not wrong else error.msg) from None
            self._more(size)
            size *= 2

    def enter(self, key: str) -> None:
        """Go into an object, to the value of `key`. Raises ValueError where there is no such key."""
        self.expect("{")
        while self.peek() != "}":
            name = self.value()
            self.expect(":")
            if name == key:
                return
            self.value()
            if self.expect(",}") == "}":
                break
        raise ValueError(f"it has no {key!r}")
