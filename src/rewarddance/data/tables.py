"""Rows of any number in JSONL, Parquet or a folder of pictures, never more than a batch of them in memory.

A `Table` knows its length and a digest of its content, and gives its rows in order from any place on. JSONL and Parquet
also give single rows in any order, as training asks for them.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
from abc import ABC, abstractmethod
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from rewarddance.data.media import PICTURE_SUFFIXES, VIDEO_SUFFIXES, looks_like_media, natural_order, pictures_in
from rewarddance.data.video_io import File
from rewarddance.errors import InputError, first_line, shown
from rewarddance.runtime.files import check_plain, encoding_of, first_twice, parse_json, read_text

_BLANK = b" \t\r\n\v\f" + codecs.BOM_UTF8
"""What a line without a row consists of."""
_TYPED_TOGETHER = 10_000
"""Rows of JSONL whose columns' types are found at once."""
_READ_TOGETHER = 64
"""Rows of a Parquet file that are read at once: of a damaged group those before the damage can be had."""
_CACHED_GROUPS = 4
"""Row groups of a Parquet file that are kept in memory."""


class Row(NamedTuple):
    """One row of a table. number: its line in the file, or its place, from 1. content: its keys, or why it has none."""

    number: int
    content: dict[str, Any] | InputError


class Table(ABC):
    """Rows in a file or folder. folder: what paths in the rows are relative to. digest: of the content, or
    of a folder's files by name, size and time of writing."""

    path: Path
    folder: Path
    digest: str

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def rows(self, start: int = 0) -> Iterator[Row]:
        """The rows but the first `start`. A row that cannot be read comes as the InputError that says why."""

    def where(self, number: int) -> str:
        """A row in words, by its number from 1."""
        return f"line {number} of {self.path}"

    def texts(self, key: str) -> set[str]:
        """The different texts that rows have under a key."""
        found = (content.get(key) for _, content in self.rows() if isinstance(content, dict))
        return {text for text in found if isinstance(text, str)}

    @abstractmethod
    def columns(self, untyped: frozenset[str]) -> dict[str, pa.DataType]:
        """The keys of all rows and the type that their values have in common; of `untyped` keys any type.

        Raises InputError naming a key whose values have none.
        """


def open_table(path: Path) -> Table:
    """A .jsonl (or .ndjson) file, a .parquet file, or a folder of pictures and videos.

    Raises InputError naming it where it is none of these, cannot be read, or holds no rows.
    """
    kinds = {".jsonl": JsonlTable, ".ndjson": JsonlTable, ".parquet": ParquetTable}
    kind = FolderTable if path.is_dir() else kinds.get(path.suffix.lower())
    if kind is None and not path.exists():
        raise InputError(f"the input {path} is not there.", "Correct the path.")
    if kind is None:
        raise InputError(f"the input {path} is no table.", "Give a folder of pictures, or a .jsonl or .parquet file.")
    try:
        table = kind(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"the input {path} cannot be read: {error}.", "Correct the path, or restore it.") from error
    if not len(table):
        raise InputError(f"the input {path} is empty.", "Give at least one row or picture.")
    return table


class JsonlTable(Table):
    """One JSON object a line; blank lines are no rows. Remembers where each row stands: 16 bytes of memory a row."""

    def __init__(self, path: Path) -> None:
        self.path, self.folder, self._utf8 = path, path.parent, None
        with check_plain(path).open("rb") as file:
            if encoding_of(file.read(1 << 10)).startswith(("utf-16", "utf-32")):  # as Excel and PowerShell write it
                self._utf8 = read_text(path).encode()
        self._begins, self._lines, begin, digest = array("Q"), array("Q"), 0, hashlib.blake2b(digest_size=16)
        with self._opened() as file:
            for number, line in enumerate(file, start=1):
                digest.update(line)
                if line.strip(_BLANK):
                    self._begins.append(begin)
                    self._lines.append(number)
                begin += len(line)
        self.digest = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._begins)

    def _opened(self) -> File:
        """The rows' bytes in UTF-8."""
        return self.path.open("rb") if self._utf8 is None else BytesIO(self._utf8)

    def rows(self, start: int = 0) -> Iterator[Row]:
        if start >= len(self):
            return
        with self._opened() as file:
            file.seek(self._begins[start])
            for number, line in enumerate(file, start=self._lines[start]):
                if line.strip(_BLANK):
                    yield Row(number, parse_line(line))

    def at(self, place: int) -> dict[str, Any] | InputError:
        """The row at a place, from 0."""
        with self._opened() as file:  # opened anew: worker processes must not share a position
            file.seek(self._begins[place])
            return parse_line(file.readline())

    def texts(self, key: str) -> set[str]:
        with self._opened() as file:  # most files have the key nowhere, and are not parsed for it
            rows = [parse_line(line) for line in file if f'"{key}"'.encode() in line]
        return {row[key] for row in rows if isinstance(row, dict) and isinstance(row.get(key), str)}

    def columns(self, untyped: frozenset[str]) -> dict[str, pa.DataType]:
        types: dict[str, pa.DataType] = {}
        values: dict[str, list[Any]] = {}
        for count, row in enumerate(self.rows(), start=1):
            if not isinstance(row.content, InputError):
                for key, value in row.content.items():
                    values.setdefault(key, []).append(None if key in untyped else value)
            if count % _TYPED_TOGETHER == 0 or count == len(self):
                for key in values:
                    types[key] = _common_type(key, values[key], types.get(key, pa.null()), self.path)
                values = {}
        return types


class ParquetTable(Table):
    """Columns; bytes, as in datasets' Image and Video columns, are read as bytes. Keeps a few row groups in memory."""

    def __init__(self, path: Path) -> None:
        self.path, self.folder = path, path.parent
        with pq.ParquetFile(check_plain(path)) as file:
            self._ends = [*accumulate(file.metadata.row_group(n).num_rows for n in range(file.num_row_groups))]
            self._schema = file.schema_arrow
        if (name := first_twice(self._schema.names)) is not None:
            raise ValueError(f"its column {shown(name)} stands twice")
        self._groups: OrderedDict[int, pa.Table] = OrderedDict()
        # The footer holds every part's place, size and statistics; the parts themselves may be hundreds of gigabytes.
        size = path.stat().st_size
        with path.open("rb") as file:
            file.seek(-8, os.SEEK_END)
            footer = int.from_bytes(file.read(4), "little")
            file.seek(-8 - footer, os.SEEK_END)
            self.digest = hashlib.blake2b(file.read(footer) + str(size).encode(), digest_size=16).hexdigest()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_groups": OrderedDict()}  # a worker process reads its own

    def rows(self, start: int = 0) -> Iterator[Row]:
        first = bisect_right(self._ends, start)
        number = self._ends[first - 1] if first else 0
        try:
            with pq.ParquetFile(self.path) as file:
                for batch in file.iter_batches(batch_size=_READ_TOGETHER, row_groups=range(first, len(self._ends))):
                    for place in range(batch.num_rows):
                        number += 1
                        if number > start:
                            yield Row(number, _values(batch, place))
        except (OSError, pa.ArrowException, EOFError) as error:
            yield Row(number + 1, broken_off(error))

    def at(self, place: int) -> dict[str, Any] | InputError:
        """The row at a place, from 0."""
        group = bisect_right(self._ends, place)
        if group not in self._groups:
            self._groups[group] = pa.Table.from_batches([*self._batches(group)], self._schema)
            if len(self._groups) > _CACHED_GROUPS:
                self._groups.popitem(last=False)
        self._groups.move_to_end(group)
        rows, within = self._groups[group], place - (self._ends[group - 1] if group else 0)
        if within >= len(rows):
            return broken_off(ValueError(f"row {place + 1} cannot be read"))
        return _values(rows, within)

    def _batches(self, group: int) -> Iterator[pa.RecordBatch]:
        """A row group, as far as it can be read."""
        with pq.ParquetFile(self.path) as file, suppress(OSError, pa.ArrowException, EOFError):
            yield from file.iter_batches(batch_size=_READ_TOGETHER, row_groups=[group])

    def texts(self, key: str) -> set[str]:
        return super().texts(key) if key in self._schema.names else set()

    def columns(self, untyped: frozenset[str]) -> dict[str, pa.DataType]:
        types = {field.name: field.type for field in self._schema}
        # A dictionary is how a column is stored; its values are what the rows hold.
        return {name: kind.value_type if pa.types.is_dictionary(kind) else kind for name, kind in types.items()}


class FolderTable(Table):
    """The pictures and videos right in a folder, in natural order; a folder of pictures in it is a video's frames.

    The prompt of `cat.png` is the content of `cat.txt` beside it, if there is one. What a file holds decides, not its
    name. left_out: how many other files and folders there are that are no prompts.
    """

    def __init__(self, path: Path) -> None:
        self.path = self.folder = path
        files = [file for file in path.iterdir() if file.name[0] != "."]
        self.names = [file.name for file in sorted(filter(_is_media, files), key=natural_order)]
        known = {*self.names, *(_caption(path / name).name for name in self.names)}
        self.left_out = sum(file.name not in known for file in files)
        captions = ((name, _caption(path / name)) for name in self.names)
        stats = [(name, _stat(path / name), _stat(text) if text.is_file() else None) for name, text in captions]
        self.has_prompts = any(caption is not None for *_, caption in stats)
        self.digest = hashlib.blake2b(json.dumps(stats).encode(), digest_size=16).hexdigest()

    def __len__(self) -> int:
        return len(self.names)

    def rows(self, start: int = 0) -> Iterator[Row]:
        for number, name in enumerate(self.names[start:], start=start + 1):
            text = _caption(self.path / name)
            try:
                prompt = {"prompt": read_text(text).strip()} if text.is_file() else {}
                yield Row(number, prompt | {"candidate": name})
            except (OSError, ValueError) as error:
                yield Row(number, InputError(f"the prompt {text} cannot be read: {error}.", "Correct or remove it."))

    def where(self, number: int) -> str:
        return str(self.path / self.names[number - 1])

    def texts(self, key: str) -> set[str]:
        return set()

    def columns(self, untyped: frozenset[str]) -> dict[str, pa.DataType]:
        return {"prompt": pa.string(), "candidate": pa.string()}


def _is_media(path: Path) -> bool:
    if path.is_dir():
        return bool(pictures_in(path))
    return path.suffix.lower() in PICTURE_SUFFIXES | VIDEO_SUFFIXES or (path.is_file() and looks_like_media(path))


def _caption(path: Path) -> Path:
    return path.with_name(path.name + ".txt") if path.is_dir() else path.with_suffix(".txt")


def _stat(path: Path) -> list[tuple[int, int]]:
    """The size and the time of writing of a file, or of each picture of a folder: pictures are too many to be read.

    Nothing of a link that leads nowhere: its row says so.
    """
    try:
        stats = [file.stat() for file in (pictures_in(path) if path.is_dir() else [path])]
    except OSError:
        return []
    return [(stat.st_size, stat.st_mtime_ns) for stat in stats]


def parse_line(line: bytes) -> dict[str, Any] | InputError:
    """A line of JSONL, or why it holds no object."""
    try:
        content = parse_json(line)
        if isinstance(content, dict):
            return content
        fault = f"it is {type(content).__name__}, no object, and each line has to hold one"
    except ValueError as error:  # not JSON, or not UTF-8
        fault = first_line(error)
    return InputError(f"the line is no JSON object: {fault}.", "Correct or remove it.")


def broken_off(error: Exception) -> InputError:
    """What stands for the rest of a file that can be read no further."""
    what = f"the file is broken from here on: {error}."
    return InputError(what, "Repair or download the file again; what stands before is used.")


def _values(rows: pa.Table | pa.RecordBatch, place: int) -> dict[str, Any] | InputError:
    content = {}
    for name, column in zip(rows.schema.names, rows.columns, strict=True):
        try:
            content[name] = column[place].as_py()
        except (ValueError, OverflowError, pa.ArrowException) as error:  # text that is not UTF-8, nanoseconds
            return InputError(f"its column {name!r} cannot be read: {error}.", "Correct or remove the value.")
    return content


def _common_type(key: str, values: list[Any], before: pa.DataType, path: Path) -> pa.DataType:
    try:
        kinds = [pa.schema([(key, kind)]) for kind in (before, pa.array(values).type)]
        kind = pa.unify_schemas(kinds, promote_options="permissive").field(key).type
        if "struct<>" in str(kind):
            raise pa.ArrowInvalid("Parquet has no empty objects")
        return kind
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        raise InputError(
            f"the key {key!r} of {path} has values that no Parquet column can hold: {error}.",
            "Write .jsonl, or give the key values of one kind.",
        ) from error
