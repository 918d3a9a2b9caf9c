"""Rows written batch by batch into a JSONL or Parquet file, so that a run which was killed ends with the same bytes."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Sequence
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rewarddance.errors import InputError, first_line
from rewarddance.runtime.checkpoint import open_to_append, write_text_atomically
from rewarddance.runtime.files import parse_json

_ROW_GROUP = 10_000
"""Rows in a row group of a Parquet file, at least."""


class Progress(NamedTuple):
    """How far a RowFile is.

    read: rows that the written ones came from.
    written, failed: rows in the file, and in that of the failures.
    bytes, failed_bytes: the lengths of the two.
    finished: whether no rows will follow.
    checksum, failed_checksum: CRC-32 of the two.
    """

    read: int = 0
    written: int = 0
    failed: int = 0
    bytes: int = 0
    failed_bytes: int = 0
    finished: bool = False
    checksum: int = 0
    failed_checksum: int = 0


class RowFile:
    """A .jsonl or .parquet file that grows, and beside it the rows that failed, `<name>.failed.jsonl`.

    Each `commit` appends a batch and then notes the lengths of both files in `<name>.progress.json`. The next commit
    cuts off what a kill left behind these lengths. Parquet cannot grow: until `finish`, its rows stand in
    `<name>.rows`, an Arrow stream.

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
                self.progress = _read_progress(self._journal)
            except (OSError, TypeError, ValueError) as error:
                raise InputError(
                    f"{self._journal} cannot be read: {first_line(error)}.",
                    "Choose another output, or remove it to begin anew.",
                ) from error
        if schema is None or not self.progress.finished:
            _check_written(self._growing, self.progress.bytes, self.progress.checksum)
        else:  # of a finished Parquet file the length was never noted
            _check_parquet(path, self.progress.written)
        _check_written(self.failures, self.progress.failed_bytes, self.progress.failed_checksum)

    def encode(self, rows: Sequence[dict[str, Any]]) -> bytes:
        """The rows as they stand in the growing file. Raises InputError saying what it cannot hold."""
        try:
            if self.schema is not None:
                if unknown := {key for row in rows for key in row} - set(self.schema.names):  # Arrow would drop them
                    raise TypeError(f"there is no column for {', '.join(sorted(unknown))}")
                return pa.RecordBatch.from_pylist(list(rows), schema=self.schema).serialize().to_pybytes()
            return "".join(map(_line, rows)).encode()
        except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:  # ValueError: NaN, or half a pair
            kind, more = (".jsonl", ", or write .parquet") if self.schema is None else (".parquet", "")
            key = None if self.schema is not None else _first_unwritable(rows)
            raise InputError(
                f"the row cannot stand in {kind}: {'' if key is None else f'{key}: '}{error}.",
                f"Correct or leave out the value{more}.",
            ) from error

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
                checksum=zlib.crc32(data, before.checksum),
                failed_checksum=zlib.crc32(failed, before.failed_checksum),
            )
        )

    def finish(self) -> None:
        """Close the file: from now on its rows are complete. Calling it again changes nothing."""
        if not self.progress.finished:
            _append(self._growing, self.progress.bytes, b"")
            _append(self.failures, self.progress.failed_bytes, b"")
            if self.schema is not None:
                self._write_parquet(self.schema)
            self._note(self.progress._replace(finished=True))
        if self.schema is not None:
            self._growing.unlink(missing_ok=True)

    def _write_parquet(self, schema: pa.Schema) -> None:
        scratch = beside(self.path, "partial")
        with pq.ParquetWriter(scratch, schema) as writer, self._growing.open("rb") as file:
            pending: list[pa.RecordBatch] = []
            for batch in pa.ipc.open_stream(file):
                pending.append(batch)
                if sum(batch.num_rows for batch in pending) >= _ROW_GROUP:
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
    with open_to_append(path) as file:
        if file.seek(0, os.SEEK_END) < length:
            raise InputError(f"{path} has become shorter since it was written.", "Choose another output.")
        file.truncate(length)
        file.seek(length)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _read_progress(path: Path) -> Progress:
    """Raises OSError, TypeError or ValueError where the file is not what `RowFile` notes."""
    noted = parse_json(path.read_bytes())
    if not isinstance(noted, dict) or noted.keys() != set(Progress._fields):
        raise ValueError(f"it does not say {', '.join(Progress._fields)}")
    if not all(isinstance(value, int) and value >= 0 for value in noted.values()):
        raise ValueError("its numbers are none")
    return Progress(**noted)


def _check_parquet(path: Path, rows: int) -> None:
    """Raises InputError where a finished file is gone, or has other rows."""
    try:
        if pq.read_metadata(path).num_rows == rows:
            return
        what = "has been changed since it was written"
    except (OSError, pa.ArrowException) as error:
        what = f"cannot be read any more: {first_line(error)}"
    raise InputError(f"{path} {what}.", "Restore it, or choose another output.")


def _check_written(path: Path, length: int, checksum: int) -> None:
    """Raises InputError where rows that were written are gone, or are others now: a run would go on behind them, and a
    finished file would count as whole. It names the first line that is no row any more."""
    remedy = "Restore it, or choose another output."
    if length and (path.stat().st_size if path.exists() else 0) < length:
        raise InputError(f"{path} has become shorter since it was written.", remedy)
    if not length:
        return
    with path.open("rb") as file:
        left, found = length, 0
        while left and (data := file.read(min(left, 1 << 20))):
            left, found = left - len(data), zlib.crc32(data, found)
    if found != checksum:
        line = "" if path.name.endswith(".rows") else _broken_line(path, length)
        raise InputError(f"{line}{path} has been changed since it was written.", remedy)


def _broken_line(path: Path, length: int) -> str:
    """`line N of ` a file, of the first line that is no row; "" where all are."""
    with path.open("rb") as file:
        for number, line in enumerate(iter(file.readline, b""), start=1):
            if (length := length - len(line)) < 0:
                break
            try:
                if isinstance(parse_json(line), dict):
                    continue
            except ValueError:
                pass
            return f"line {number} of "
    return ""


def json_value(value: Any) -> Any:
    """What JSON has for a value of Parquet or numpy: text for dates and decimals, numpy's numbers; none for bytes."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, date | time):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    raise TypeError(f"a value of the type {type(value).__name__}")


def _line(row: dict[str, Any]) -> str:
    """A row as a line of JSON. Raises ValueError or TypeError for what that cannot hold."""
    return json.dumps(row, ensure_ascii=False, default=json_value, allow_nan=False) + "\n"


def _first_unwritable(rows: Sequence[dict[str, Any]]) -> str | None:
    """The first key whose value is what JSON, or UTF-8, cannot hold."""
    for row in rows:
        for key, value in row.items():
            try:
                _line({key: value}).encode()
            except (ValueError, TypeError, OverflowError):
                return key
    return None
