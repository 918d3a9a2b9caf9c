"""Rows of any number in and out: JSONL, Parquet, or a folder of pictures; never more than a batch of them in memory.

What is read is a `Table`: it knows its length and a digest of its content, and gives its rows from any place on. What
is written is a `RowFile`: it grows batch by batch and can be taken up where it stopped, after a kill too.
"""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from rewarddance.data.media import PICTURE_SUFFIXES, VIDEO_SUFFIXES, natural_order, pictures_in
from rewarddance.errors import InputError
from rewarddance.runtime.checkpoint import write_text_atomically

_ROW_GROUP = 10_000
"""Rows that a Parquet file is read and written by at once, at most."""


class Row(NamedTuple):
    """One row of a table. number: its line in the file, or its place, from 1. content: its keys, or why it has none."""

    number: int
    content: dict[str, Any] | InputError


class Table(ABC):
    """Rows in a file or folder. folder: what paths in the rows are relative to. digest: of the content."""

    path: Path
    folder: Path
    digest: str

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def rows(self, start: int = 0) -> Iterator[Row]:
        """The rows but the first `start`. A row that cannot be read comes as the InputError that says why."""

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
    if kind is None:
        raise InputError(f"the input {path} is no table.", "Give a folder of pictures, or a .jsonl or .parquet file.")
    try:
        table = kind(path)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"the input {path} cannot be read: {error}.", "Correct the path, or restore it.") from error
    if not len(table):
        raise InputError(f"the input {path} is empty.", "Give at least one row or picture.")
    return table


class JsonlTable(Table):
    """One JSON object a line; blank lines are no rows."""

    def __init__(self, path: Path) -> None:
        self.path, self.folder, self._length = path, path.parent, 0
        digest = hashlib.blake2b(digest_size=16)
        with path.open("rb") as file:
            for line in file:
                digest.update(line)
                self._length += not line.isspace()
        self.digest = digest.hexdigest()

    def __len__(self) -> int:
        return self._length

    def rows(self, start: int = 0) -> Iterator[Row]:
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.isspace():
                    continue
                if start:
                    start -= 1
                else:
                    yield Row(number, parse_line(line))

    def columns(self, untyped: frozenset[str]) -> dict[str, pa.DataType]:
        found: dict[str, pa.DataType] = {}
        part: dict[str, list[Any]] = {}
        for at, row in enumerate(self.rows(), start=1):
            if not isinstance(row.content, InputError):
                for key, value in row.content.items():
                    part.setdefault(key, []).append(None if key in untyped else value)
            if at % _ROW_GROUP == 0 or at == len(self):
                for key, values in part.items():
                    found[key] = _common_type(key, values, found.get(key, pa.null()), self.path)
                part = {}
        return found


class ParquetTable(Table):
    """Columns; bytes, as in datasets' Image and Video columns, are read as bytes."""

    def __init__(self, path: Path) -> None:
        self.path, self.folder = path, path.parent
        self._file = pq.ParquetFile(path)
        # The footer holds every part's place, size and statistics; the parts themselves may be hundreds of gigabytes.
        size = path.stat().st_size
        with path.open("rb") as file:
            file.seek(-8, os.SEEK_END)
            footer = int.from_bytes(file.read(4), "little")
            file.seek(-8 - footer, os.SEEK_END)
            self.digest = hashlib.blake2b(file.read(footer) + str(size).encode(), digest_size=16).hexdigest()

    def __len__(self) -> int:
        return self._file.metadata.num_rows

    def rows(self, start: int = 0) -> Iterator[Row]:
        groups, skipped = list(range(self._file.num_row_groups)), 0
        while groups and skipped + (size := self._file.metadata.row_group(groups[0]).num_rows) <= start:
            skipped += size
            groups.pop(0)
        number = skipped
        if not groups:
            return
        for batch in self._file.iter_batches(batch_size=64, row_groups=groups):
            for at in range(batch.num_rows):
                number += 1
                if number > start:
                    yield Row(number, _values(batch, at))

    def columns(self, untyped: frozenset[str]) -> dict[str, pa.DataType]:
        found = {field.name: field.type for field in self._file.schema_arrow}
        # A dictionary is how a column is stored; its values are what the rows hold.
        return {name: kind.value_type if pa.types.is_dictionary(kind) else kind for name, kind in found.items()}


class FolderTable(Table):
    """The pictures and videos right in a folder, in natural order; a folder of pictures in it is a video's frames.

    The prompt of `cat.png` is the content of `cat.txt` beside it, if there is one. Other files are passed over.
    """

    def __init__(self, path: Path) -> None:
        self.path = self.folder = path
        media = (one for one in path.iterdir() if one.name[0] != "." and _is_media(one))
        self.names = [one.name for one in sorted(media, key=natural_order)]
        told = ((name, _caption(path / name)) for name in self.names)
        sizes = [(name, _size(path / name), _size(text) if text.is_file() else -1) for name, text in told]
        self.has_prompts = any(size >= 0 for *_, size in sizes)
        self.digest = hashlib.blake2b(json.dumps(sizes).encode(), digest_size=16).hexdigest()

    def __len__(self) -> int:
        return len(self.names)

    def rows(self, start: int = 0) -> Iterator[Row]:
        for number, name in enumerate(self.names[start:], start=start + 1):
            text = _caption(self.path / name)
            try:
                prompt = {"prompt": text.read_text(encoding="utf-8").strip()} if text.is_file() else {}
                yield Row(number, prompt | {"candidate": name})
            except (OSError, UnicodeDecodeError) as error:
                yield Row(number, InputError(f"the prompt {text} cannot be read: {error}.", "Correct or remove it."))

    def columns(self, untyped: frozenset[str]) -> dict[str, pa.DataType]:
        return {"prompt": pa.string(), "candidate": pa.string()}


def _is_media(path: Path) -> bool:
    if path.is_dir():
        return bool(pictures_in(path))
    return path.suffix.lower() in PICTURE_SUFFIXES | VIDEO_SUFFIXES


def _caption(path: Path) -> Path:
    return path.with_name(path.name + ".txt") if path.is_dir() else path.with_suffix(".txt")


def _size(path: Path) -> int:
    return sum(one.stat().st_size for one in pictures_in(path)) if path.is_dir() else path.stat().st_size


def parse_line(line: bytes) -> dict[str, Any] | InputError:
    try:
        content = json.loads(line)
        if isinstance(content, dict):
            return content
        said = f"it is {type(content).__name__}, no object"
    except (ValueError, RecursionError) as error:  # ValueError: not JSON, or not UTF-8
        said = str(error)
    return InputError(f"the line is no JSON object: {said}.", "Correct or remove it.")


def _values(batch: pa.RecordBatch, at: int) -> dict[str, Any] | InputError:
    content = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            content[name] = column[at].as_py()
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


class Progress(NamedTuple):
    """How far a RowFile is: rows read, rows written and failures, the bytes that these take, whether it is finished."""

    read: int = 0
    written: int = 0
    failed: int = 0
    bytes: int = 0
    failed_bytes: int = 0
    finished: bool = False


class RowFile:
    """Rows on their way into a .jsonl or .parquet file, and beside it those that failed, `<name>.failed.jsonl`.

    Each `commit` appends a batch and then notes in `<name>.progress.json` how long the files are. Whatever a kill
    leaves behind that length is cut off by the next commit, so that a run taken up again ends with the same bytes as
    one that was never stopped. Parquet cannot grow: until `finish`, its rows stand in `<name>.rows`, an Arrow stream.

    schema: the columns; for .parquet only. Raises InputError naming what is broken beside the output.
    """

    def __init__(self, path: Path, schema: pa.Schema | None = None) -> None:
        self.path, self.schema = path, schema
        self.failures = beside(path, "failed.jsonl")
        self._growing = beside(path, "rows") if schema is not None else path
        self._journal = beside(path, "progress.json")
        self.progress = Progress()
        if self._journal.exists():
            try:
                self.progress = Progress(**json.loads(self._journal.read_text(encoding="utf-8")))
            except (OSError, TypeError, ValueError) as error:
                raise InputError(
                    f"{self._journal} cannot be read: {error}.", "Choose another output, or remove it to begin anew."
                ) from error

    def encode(self, rows: Sequence[dict[str, Any]]) -> bytes:
        """The rows as they stand in the growing file. Raises InputError saying what it cannot hold."""
        try:
            if self.schema is not None:
                if unknown := {key for row in rows for key in row} - set(self.schema.names):  # Arrow would drop them
                    raise TypeError(f"there is no column for {', '.join(sorted(unknown))}")
                return pa.RecordBatch.from_pylist(list(rows), schema=self.schema).serialize().to_pybytes()
            return "".join(json.dumps(row, ensure_ascii=False, default=_plain) + "\n" for row in rows).encode()
        except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:  # ValueError: half a surrogate pair
            kind = ".jsonl" if self.schema is None else ".parquet"
            raise InputError(f"the row cannot stand in {kind}: {error}.", "Correct or leave out the value.") from error

    def commit(self, rows: Sequence[dict[str, Any]], failures: Sequence[dict[str, Any]], read: int) -> None:
        """Append a batch that came from `read` rows: `rows` that went well and the `failures`."""
        before = self.progress
        data = self.encode(rows)
        if self.schema is not None and before.bytes == 0:
            data = self.schema.serialize().to_pybytes() + data
        failed = "".join(json.dumps(row) + "\n" for row in failures).encode()
        _append(self._growing, before.bytes, data)
        _append(self.failures, before.failed_bytes, failed)
        self._note(
            Progress(
                before.read + read,
                before.written + len(rows),
                before.failed + len(failures),
                before.bytes + len(data),
                before.failed_bytes + len(failed),
            )
        )

    def finish(self) -> None:
        """Close the file: from now on its rows are complete. Calling it again changes nothing."""
        if not self.progress.finished:
            _append(self._growing, self.progress.bytes, b"")
            _append(self.failures, self.progress.failed_bytes, b"")
            if self.schema is not None:
                self._join(self.schema)
            self._note(self.progress._replace(finished=True))
        if self.schema is not None:
            self._growing.unlink(missing_ok=True)

    def _join(self, schema: pa.Schema) -> None:
        scratch = beside(self.path, "partial")
        with pq.ParquetWriter(scratch, schema) as writer, self._growing.open("rb") as file:
            pending: list[pa.RecordBatch] = []
            for batch in pa.ipc.open_stream(file):
                pending.append(batch)
                if sum(one.num_rows for one in pending) >= _ROW_GROUP:
                    writer.write_table(pa.Table.from_batches(pending))
                    pending = []
            if pending:
                writer.write_table(pa.Table.from_batches(pending))
        os.replace(scratch, self.path)

    def _note(self, progress: Progress) -> None:
        write_text_atomically(self._journal, json.dumps(progress._asdict()) + "\n")
        self.progress = progress


def beside(path: Path, ending: str) -> Path:
    """`scores.jsonl` -> `scores.jsonl.<ending>`."""
    return path.with_name(f"{path.name}.{ending}")


def _append(path: Path, length: int, data: bytes) -> None:
    """Cut the file to `length` bytes, append `data`, and wait until it is on the disk."""
    if not data and not path.exists():
        return
    with path.open("r+b" if path.exists() else "w+b") as file:
        if file.seek(0, os.SEEK_END) < length:
            raise InputError(f"{path} has become shorter since it was written.", "Choose another output.")
        file.truncate(length)
        file.seek(length)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _plain(value: Any) -> Any:
    """What Parquet holds and JSON does not, as text; bytes have none."""
    if isinstance(value, date | time):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    raise TypeError(f"a value of the type {type(value).__name__}; write .parquet")
