"""Which of many things are the same, by hashes on disk: memory does not grow with their number."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from tempfile import TemporaryFile
from typing import NamedTuple

import numpy as np

_PART = 1 << 16
"""Entries that are in memory at once."""
_ENTRY = np.dtype([("key", "<u8"), ("value", "<u8")])


class Same(NamedTuple):
    """The entries of a part of the keys, sorted by key: all entries of a key stand together, in the order they came."""

    keys: np.ndarray
    values: np.ndarray

    def begins(self) -> np.ndarray:
        """Where each key's entries begin, and where the last ends."""
        return np.flatnonzero(np.concatenate([[True], self.keys[1:] != self.keys[:-1], [True]]))


def key_of(*parts: str | bytes) -> int:
    """64 bits of a hash of the parts; equal parts have equal keys, and others the same by a chance of 2^-64."""
    digest = blake2b(digest_size=8)
    for part in parts:
        data = part.encode(errors="surrogatepass") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return int.from_bytes(digest.digest(), "little")


class Ledger:
    """Entries of a key and a value, 16 bytes each in a temporary file."""

    def __init__(self) -> None:
        self._file = TemporaryFile()  # noqa: SIM115, it lives as long as the ledger
        self._pending = np.empty(4096, _ENTRY)
        self._filled = self._written = 0

    def __len__(self) -> int:
        return self._written + self._filled

    def add(self, key: int, value: int) -> None:
        self._pending[self._filled] = (key, value)
        self._filled += 1
        if self._filled == len(self._pending):
            self._flush()

    def parts(self) -> Iterator[Same]:
        """All entries, some keys at a time."""
        self._flush()
        passes = -(-self._written // _PART)
        for number in range(passes):
            self._file.seek(0)
            found = [np.empty(0, _ENTRY)]
            while data := self._file.read(_PART * _ENTRY.itemsize):
                entries = np.frombuffer(data, _ENTRY)
                found.append(entries[entries["key"] % np.uint64(passes) == number])
            entries = np.concatenate(found)
            if len(entries):
                order = np.argsort(entries["key"], kind="stable")
                yield Same(entries["key"][order], entries["value"][order])

    def distinct(self) -> int:
        """How many keys there are."""
        return sum(len(part.begins()) - 1 for part in self.parts())

    def _flush(self) -> None:
        self._file.seek(0, 2)
        self._file.write(self._pending[: self._filled].tobytes())
        self._written += self._filled
        self._filled = 0
