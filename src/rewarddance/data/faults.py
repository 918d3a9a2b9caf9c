"""Rows that cannot be used, all of a run together, found before it begins."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rewarddance.errors import InputError
from rewarddance.runtime.checkpoint import write_text_atomically

_SHOWN = 10


class FaultyRow(NamedTuple):
    """A row that cannot be used. where: the item in words, such as "line 3 of the prompt file p.jsonl"."""

    where: str
    what: str
    remedy: str = ""


class FaultyRows(InputError):
    """All rows of a file, or of a run, that cannot be used. can_skip: there are others, which can."""

    def __init__(self, faults: Sequence[FaultyRow], can_skip: bool = False) -> None:
        lines = [f"{fault.where}: {fault.what}" for fault in faults[:_SHOWN]]
        if len(faults) > _SHOWN:
            lines.append(f"... and {len(faults) - _SHOWN} more")
        remedies = list(dict.fromkeys(fault.remedy for fault in faults if fault.remedy))[:3]
        if can_skip:
            remedies.append("Or leave them out with --skip-faulty (skip_faulty: true), which lists them in a file.")
        super().__init__("\n       ".join(lines), "\n       ".join(remedies))
        self.faults = list(faults)


def settle(faults: Sequence[FaultyRow], skip: bool, path: Path, left: int) -> None:
    """Refuse to begin, as `refuse_faulty` does, or list the faulty rows that are left out in `path`."""
    refuse_faulty(faults, skip, left)
    list_faulty(faults, path)


def refuse_faulty(faults: Sequence[FaultyRow], skip: bool, left: int) -> None:
    """Raises FaultyRows where there are faults and they shall not be skipped, or where nothing is left.

    left: how many rows can be used.
    """
    if faults and (not skip or not left):
        raise FaultyRows(faults, can_skip=bool(left))


def list_faulty(faults: Sequence[FaultyRow], path: Path) -> None:
    """Write the faulty rows that a run leaves out to `path`; without any it is removed. The run holds the folder."""
    if faults:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(path, "".join(json.dumps(fault._asdict()) + "\n" for fault in faults))
    elif path.is_file():
        path.unlink()


def skipped(path: Path) -> dict[str, object]:
    """What a result says of the rows that were left out: how many, and where they are listed; nothing where none."""
    if not path.is_file():
        return {}
    return {"skipped": sum(1 for line in path.read_text(encoding="utf-8").splitlines() if line), "faulty": str(path)}
