"""Texts that were encoded, kept row by row: a step asks for the same few prompts dozens of times.

On the device those that were asked for last; in a folder, where there is one, all of them, for all processes.

A conditioning is whatever a family's network takes: a tensor whose rows are the texts, a list of one tensor a text, or
a mapping of these (and of None).
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

BUDGET = 512 * 2**20
"""Bytes of encoded texts that are kept; the ones that were asked for longest ago go first."""


def rows_of(condition: Any, rows: Sequence[int], shared: frozenset[str] = frozenset()) -> Any:
    """Some rows of a conditioning, in this order, any of them several times. shared: keys that all rows have alike."""
    if isinstance(condition, dict):
        return {key: value if key in shared else rows_of(value, rows, shared) for key, value in condition.items()}
    if isinstance(condition, Tensor):
        return condition[list(rows)]
    return None if condition is None else [condition[row] for row in rows]


def joined(conditions: Sequence[Any], shared: frozenset[str] = frozenset()) -> Any:
    """Conditionings of one text each as one of all. shared: keys that all rows have alike."""
    first = conditions[0]
    if isinstance(first, dict):
        return {
            key: value if key in shared else joined([condition[key] for condition in conditions], shared)
            for key, value in first.items()
        }
    if isinstance(first, Tensor):
        return torch.cat(list(conditions))
    return None if first is None else [row for condition in conditions for row in condition]


class TextMemory:
    """What `encode`, a function of a list of texts, gave for them.

    shared: keys of the conditioning that all rows have alike. by_itself: a text's rows do not depend on what is encoded
    beside it. Then each is encoded alone, so that they are the same bytes whatever was asked before, and kept; else
    (padding to the longest) the distinct texts of a call are encoded together and none is kept.
    """

    def __init__(self, shared: frozenset[str], by_itself: bool) -> None:
        self.shared, self.by_itself = shared, by_itself
        self.folder: Path | None = None
        """Where rows are kept by their texts too; it is of one generator with one set of options."""
        self._kept: OrderedDict[Hashable, Any] = OrderedDict()
        self._bytes = 0

    def __call__(self, texts: Sequence[str], encode: Callable[[list[str]], Any], place: Hashable = None) -> Any:
        """The conditioning of the texts. place: where it is wanted, such as a device; what is kept elsewhere is not."""
        if self.by_itself:
            return joined([self._row(text, encode, place) for text in texts], self.shared)
        distinct = list(dict.fromkeys(texts))
        condition = encode(distinct)
        return rows_of(condition, [distinct.index(text) for text in texts], self.shared)

    def _row(self, text: str, encode: Callable[[list[str]], Any], place: Hashable) -> Any:
        if (text, place) in self._kept:
            self._kept.move_to_end((text, place))
            return self._kept[text, place]
        row = self._kept[text, place] = self._read_or_made(text, encode, place)
        self._bytes += _bytes(row)
        while self._bytes > BUDGET and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= _bytes(dropped)
        return row

    def _read_or_made(self, text: str, encode: Callable[[list[str]], Any], place: Hashable) -> Any:
        if self.folder is None:
            return encode([text])
        path = self.folder / f"{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}.pt"
        try:
            return torch.load(path, map_location=place, weights_only=True)  # type: ignore[arg-type]
        except (OSError, RuntimeError, EOFError, UnpicklingError):  # not there yet, or cut off
            row = encode([text])
        self.folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")  # several processes may make the same one
        torch.save(row, part)
        part.replace(path)
        return row


def _bytes(condition: Any) -> int:
    if isinstance(condition, dict):
        return sum(map(_bytes, condition.values()))
    return sum(map(_bytes, condition)) if isinstance(condition, list) else getattr(condition, "nbytes", 0)
