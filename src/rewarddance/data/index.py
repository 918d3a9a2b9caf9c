"""Rows of a JSONL or Parquet file by their place, with 8 bytes of memory a row or less: training asks in any order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rewarddance.data.tables import Row, parse_line
from rewarddance.errors import InputError

_PARTS = 4
"""Row groups of a Parquet file that are kept in memory."""


class RowIndex(ABC):
    """Rows by place, from 0. `scan` must have come to its end before `at` is asked."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def scan(self) -> Iterator[Row]:
        """All rows in order, each with its line (its place from 1 in Parquet), or with the error that says why not."""

    @abstractmethod
    def at(self, place: int) -> dict[str, Any] | InputError: ...


def open_index(path: Path) -> RowIndex:
    """The rows of a .parquet file, or of a JSONL file of any other name. Raises OSError or pyarrow's errors."""
    return ParquetIndex(path) if path.suffix.lower() == ".parquet" else JsonlIndex(path)


class JsonlIndex(RowIndex):
    """One JSON object a line; blank lines are no rows. Remembers where each line begins."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._begins = array("Q")
        path.open("rb").close()

    def __len__(self) -> int:
        return len(self._begins)

    def scan(self) -> Iterator[Row]:
        self._begins, begin = array("Q"), 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.isspace():
                    self._begins.append(begin)
                    yield Row(number, parse_line(line))
                begin += len(line)

    def at(self, place: int) -> dict[str, Any] | InputError:
        with self.path.open("rb") as file:  # opened anew: worker processes must not share a position
            file.seek(self._begins[place])
            return parse_line(file.readline())


class ParquetIndex(RowIndex):
    """Columns, of which nulls are left out. Remembers the last few row groups it read."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with pq.ParquetFile(path) as file:
            sizes = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
        self._ends = [sum(sizes[: n + 1]) for n in range(len(sizes))]
        self._parts: OrderedDict[int, pa.Table] = OrderedDict()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def scan(self) -> Iterator[Row]:
        number = 0
        try:
            with pq.ParquetFile(self.path) as file:
                for batch in file.iter_batches(batch_size=256):
                    for at in range(batch.num_rows):
                        number += 1
                        yield Row(number, _values(batch, at))
        except (OSError, pa.ArrowException) as error:
            yield Row(number + 1, InputError(f"the file is broken from here on: {error}.", "Restore the file."))

    def at(self, place: int) -> dict[str, Any] | InputError:
        part = bisect_right(self._ends, place)
        if part not in self._parts:
            with pq.ParquetFile(self.path) as file:
                self._parts[part] = file.read_row_group(part)
            if len(self._parts) > _PARTS:
                self._parts.popitem(last=False)
        self._parts.move_to_end(part)
        return _values(self._parts[part], place - (self._ends[part - 1] if part else 0))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_parts": OrderedDict()}  # a worker process reads its own


def _values(table: pa.Table | pa.RecordBatch, at: int) -> dict[str, Any] | InputError:
    try:
        found = {name: table.column(n)[at].as_py() for n, name in enumerate(table.schema.names)}
    except (ValueError, OverflowError, pa.ArrowException) as error:  # text that is not UTF-8, nanoseconds
        return InputError(f"a column cannot be read: {error}.", "Correct or remove the value.")
    return {name: value for name, value in found.items() if value is not None}
