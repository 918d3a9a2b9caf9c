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
from rewarddance.data.tables import JsonlTable, ParquetTable, Row, broken_off, parse_line
from rewarddance.errors import InputError, shown
from rewarddance.runtime.files import check_plain, encoding_of, first_twice

_CHUNK = 1 << 14
"""Characters of a JSON array that are read at once, at least."""
_LONGEST = 1 << 26
"""Characters that one record of a JSON array may have."""


def read_records(path: Path, array: str = "") -> Iterator[Row]:
    """The records of a .json, .jsonl, .csv or .parquet file. array: the key of the list of records in a JSON object.

    Raises InputError, before the first record, where the file is none of these, is empty or cannot be opened.
    """
    suffix = path.suffix.lower()
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder.", "Give its .json, .jsonl, .csv or .parquet files.")
        if suffix not in (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet"):
            raise InputError(f"{path} is no table of records.", "Give a .json, .jsonl, .csv or .parquet file.")
        with check_plain(path).open("rb") as file:
            head = file.read(1 << 16).removeprefix(b"\xef\xbb\xbf")
        encoding = encoding_of(head)
        if not head or (suffix == ".json" and head.isspace()):
            raise InputError(f"{path} is empty.", "Download it again.")
        if suffix == ".parquet":
            return ParquetTable(path).rows()
        if suffix in (".csv", ".tsv"):
            return _csv_rows(path, "\t" if suffix == ".tsv" else ",", encoding)
        if suffix == ".json":
            head = head.decode(encoding, "ignore").lstrip("\ufeff \t\r\n").encode()
            if head[:1] == b"[":
                return _elements(path, "", encoding)
            if head[:1] != b"{":
                raise InputError(f"{path} is no JSON array of records.", "Give the file that the set's page names.")
            first = parse_line(head.split(b"\n", 1)[0])
            if not isinstance(first, dict) or isinstance(first.get(array), list):
                return _elements(path, array, encoding)
        return JsonlTable(path).rows()  # some name JSON Lines .json
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read: {error}.", "Correct the path, or download it again.") from error


def _csv_rows(path: Path, delimiter: str, encoding: str) -> Iterator[Row]:
    """A CSV with its columns' names in the first line; every value is text."""
    csv.field_size_limit(_LONGEST)
    encoding, errors = ("utf-8-sig", "surrogateescape") if encoding.startswith("utf-8") else (encoding, "replace")
    with path.open(encoding=encoding, errors=errors, newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        names: list[str] = []
        number = 0
        while True:
            before = reader.line_num
            try:
                values = next(reader)
                if not values:  # a blank line
                    continue
                if not names:
                    names = values
                    if (name := first_twice(names)) is not None:
                        raise InputError(f"{path} has two columns named {shown(name)}.", "Rename or remove one.")
                    continue
                content = _named(names, values)
            except StopIteration:
                return
            except csv.Error as error:
                content = InputError(f"the line is no CSV: {error}.", "Correct or remove it.")
                if "unexpected end of data" in str(error):  # a quote that nothing closes has taken all that follows
                    content = broken_off(ValueError(f"a quote that begins after line {before} is never closed"))
            number += 1
            yield Row(number, content)


def _named(names: list[str], values: list[str]) -> dict[str, Any] | InputError:
    if len(values) != len(names):
        return InputError(f"it has {len(values)} values for {len(names)} columns.", "Correct or remove it.")
    if any("\udc80" <= character <= "\udcff" for value in values for character in value):
        return InputError("it is not UTF-8.", "Correct or remove it.")
    return dict(zip(names, values, strict=True))


def _elements(path: Path, key: str, encoding: str = "utf-8") -> Iterator[Row]:
    """The elements of a JSON array; of an object, those of the array under `key`."""
    number = 0
    try:
        encoding = "utf-8-sig" if encoding.startswith("utf-8") else encoding
        with path.open("rb") as raw, TextIOWrapper(raw, encoding=encoding) as file:
            text = _JsonText(file)
            if key and (names := text.enter(key)) is not None:
                what = f"the object has no list {key!r} of records; it has {', '.join(names[:8]) or 'nothing'}."
                yield Row(1, InputError(what, "Give the file that the set's page names."))
                return
            text.expect("[")
            if text.peek() == "]":
                text.expect("]")
                if not key:
                    text.expect_end()
                return
            while True:
                value = text.value()
                number += 1
                if isinstance(value, dict):
                    yield Row(number, value)
                else:
                    yield Row(number, InputError(f"it is {short(value)}, no object.", "Correct or remove it."))
                if text.expect(",]") == "]":
                    if not key:
                        text.expect_end()
                    return
    except (ValueError, RecursionError, OSError) as error:  # ValueError: not JSON, or not UTF-8
        yield Row(number + 1, broken_off(error))


class _JsonText:
    """A JSON text read value by value, with one value and one chunk of the file in memory.

    ijson would end the file at one NaN or long number, and turn half a surrogate pair into "?" without a word.
    """

    def __init__(self, file: TextIOWrapper) -> None:
        self.file, self.text = file, ""
        self.decoder = json.JSONDecoder()

    def peek(self) -> str:
        """The next character that is no space. Raises ValueError at the end of the file."""
        while not (text := self.text.lstrip(" \t\r\n")):
            self.text = self.file.read(_CHUNK)
            if not self.text:
                raise ValueError("it breaks off")
        self.text = text
        return text[0]

    def expect(self, characters: str) -> str:
        """The next character, which must be one of these, and go past it."""
        character = self.peek()
        if character not in characters:
            raise ValueError(f"{character!r} stands where {' or '.join(characters)} should")
        self.text = self.text[1:]
        return character

    def expect_end(self) -> None:
        """Raises ValueError where there is more than the one value that a JSON file holds."""
        while not self.text.strip(" \t\r\n"):
            self.text = self.file.read(_CHUNK)
            if not self.text:
                return
        raise ValueError("there is more after the end of its list")

    def value(self) -> Any:
        """The next value, whole, and go past it."""
        self.peek()
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text)
                more = self.file.read(_CHUNK) if end == len(self.text) else ""  # a number at the end may go on
                if not more:
                    self.text = self.text[end:]
                    return value
            except json.JSONDecodeError as error:
                more = self.file.read(max(_CHUNK, len(self.text)))
                if not more or len(self.text) > _LONGEST:
                    raise ValueError(error.msg) from None
            self.text += more

    def enter(self, key: str) -> list[str] | None:
        """Go into an object, to the value of `key`; where there is no such key, returns those that there are."""
        names: list[str] = []
        self.expect("{")
        while self.peek() != "}":
            name = self.value()
            self.expect(":")
            if name == key:
                return None
            names.append(short(name))
            self.value()
            if self.expect(",}") == "}":
                break
        return names
