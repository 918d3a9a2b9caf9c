"""What is in preferences files, and what is wrong with them: doubles, leaks between splits, balance, overlap."""

from __future__ import annotations

import os
from collections import Counter, OrderedDict
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from rewarddance.data.fields import Fault, normal
from rewarddance.data.ledger import Ledger, key_of
from rewarddance.data.media import inspect_media
from rewarddance.data.preferences import KEYS, PreferenceRow, ScoredRow, open_preferences, parse_row
from rewarddance.data.prompts import read_prompts
from rewarddance.data.sources import refusal
from rewarddance.errors import InputError

_SHOWN = 10
"""Examples of each kind of fault that are named."""
_NAMES = 100
"""Sources, criteria and keys that are counted by name; those met after them are counted together."""
_OTHERS = "(others)"
_REMEMBERED = 8192
_ROWS = 40
"""Bits of a place that hold the line; those above hold the file."""


def check(files: Sequence[Path], benchmark: Path | None = None, decode: bool = True) -> dict[str, Any]:
    """Read all files once and report. Files are taken for splits of one set: what two of them share is a leak.

    benchmark: prompts that training must not have seen, one a line or as JSONL. decode: look at each picture and video
    to its end, not only at its bytes. Media are the same where their bytes are. Memory does not grow with the rows.
    Raises InputError naming a file that cannot be opened.
    """
    names = [str(path) for path in files]
    if len(set(names)) < len(names):
        raise InputError("a file is named twice.", "Name each file once.")
    wanted = {} if benchmark is None else {key_of(normal(one.text)): one.text for one in read_prompts(benchmark)}
    found = Findings(names)
    reports = {str(path): _read(path, number, found, wanted, decode) for number, path in enumerate(files)}
    result: dict[str, Any] = {"files": reports, "broken": sum(report["broken"] for report in reports.values())}
    result["prompts"] = found.prompts.distinct()
    result["media"] = found.media.distinct()
    result["duplicate_rows"] = found.doubles(found.rows)
    result["duplicate_media"] = _renamed(found.names)
    result["leaks"] = {"prompts": found.leaks(found.prompts), "media": found.leaks(found.media)}
    if benchmark is not None:
        result["benchmark"] = {
            "prompts": len(wanted),
            "seen": len(found.seen),
            "rows": sum(found.seen.values()),
            "first": [wanted[key] for key in list(found.seen)[:_SHOWN]],
        }
    return result


def faulty(report: dict[str, Any]) -> list[str]:
    """What in a report should be put right before training, in sentences; doubles and overlap may be meant."""
    leaks = {what: found["count"] for what, found in report["leaks"].items() if found["count"]}
    said = [f"{report['broken']} rows are broken"] if report["broken"] else []
    said += [f"{count} {what} are in more than one file" for what, count in leaks.items()]
    if report.get("benchmark", {}).get("seen"):
        said.append(f"{report['benchmark']['seen']} prompts of the benchmark are in the files")
    return said


class Findings:
    """What is gather_full_tensors over all files: ledgers of prompts, rows and media, by place."""

    def __init__(self, files: list[str]) -> None:
        self.files = files
        self.prompts, self.rows, self.media, self.names = Ledger(), Ledger(), Ledger(), Ledger()
        self.seen: Counter[int] = Counter()
        self.known: OrderedDict[Path, int | InputError] = OrderedDict()

    def content(self, path: Path, decode: bool) -> int:
        """The key of a file's bytes. Raises InputError where it cannot be read or, with `decode`, shown."""
        if path not in self.known:
            try:
                if decode:
                    inspect_media(path)
                self.known[path] = _content_key(path)
            except InputError as error:
                self.known[path] = error
            if len(self.known) > _REMEMBERED:
                self.known.popitem(last=False)
        found = self.known[path]
        if isinstance(found, InputError):
            raise found
        return found

    def where(self, place: int) -> str:
        return f"{self.files[place >> _ROWS]}:{place & ((1 << _ROWS) - 1)}"

    def doubles(self, ledger: Ledger) -> dict[str, Any]:
        """Entries beyond the first of their key, and the first few as [first, double]."""
        count, first = 0, []
        for part in ledger.parts():
            begins = part.begins()
            sizes = np.diff(begins)
            count += int((sizes - 1).sum())
            for at in begins[:-1][sizes > 1][: _SHOWN - len(first)]:
                first.append([self.where(int(part.values[at])), self.where(int(part.values[at + 1]))])
        return {"count": count, "first": first}

    def leaks(self, ledger: Ledger) -> dict[str, Any]:
        """Keys that are in more than one file, and the first few as [place in one, place in the other]."""
        count, first = 0, []
        for part in ledger.parts():
            begins, file = part.begins(), part.values >> np.uint64(_ROWS)
            crossed = np.flatnonzero((part.keys[1:] == part.keys[:-1]) & (file[1:] != file[:-1]))
            groups = np.unique(np.searchsorted(begins, crossed, side="right"))
            count += len(groups)
            for group in groups[: _SHOWN - len(first)]:
                at = int(crossed[np.searchsorted(crossed, begins[group - 1])])
                first.append([self.where(int(part.values[at])), self.where(int(part.values[at + 1]))])
        return {"count": count, "first": first}


def _read(path: Path, number: int, found: Findings, wanted: dict[int, str], decode: bool) -> dict[str, Any]:
    """The report of one file; its rows go into the findings."""
    index = open_preferences(path)
    tally = Tally()
    for line, content in index.scan():
        try:
            if isinstance(content, InputError):
                raise content
            row = parse_row(content, path.parent)
            media = [row.media] if isinstance(row, ScoredRow) else [row.media_a, row.media_b]
            media += [row.condition] if row.condition else []
            keys = [found.content(one, decode) for one in media]
        except InputError as error:
            tally.refuse(line, error)
            continue
        place, prompt = (number << _ROWS) | line, key_of(normal(row.prompt))
        found.prompts.add(prompt, place)
        if prompt in wanted:
            found.seen[prompt] += 1
        for one, key in zip(media, keys, strict=True):
            found.media.add(key, place)
            found.names.add(key, key_of(os.path.abspath(one)))
        if isinstance(row, PreferenceRow):  # whichever of the two stands first
            keys[:2] = sorted(keys[:2])
        told = b"".join(key.to_bytes(8, "little") for key in keys)
        found.rows.add(key_of(row.prompt, told, row.criterion, row.annotator), place)
        tally.add(row, content, alike=isinstance(row, PreferenceRow) and keys[0] == keys[1])
    return tally.report()


class Tally:
    """The counts of one file."""

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()
        self.labels: Counter[str] = Counter()
        self.sources: Counter[str] = Counter()
        self.criteria: Counter[str] = Counter()
        self.unread: Counter[str] = Counter()
        self.annotators = Ledger()
        self.faults: list[dict[str, Any]] = []
        self.shares = 0.0

    def refuse(self, line: int, error: InputError) -> None:
        self.count["broken"] += 1
        if len(self.faults) < _SHOWN:
            field = error.field if isinstance(error, Fault) else ""
            self.faults.append({"line": line, "field": field, "reason": error.what})

    def add(self, row: PreferenceRow | ScoredRow, content: dict[str, Any], alike: bool) -> None:
        _count(self.sources, row.source or "(none)")
        _count(self.criteria, row.criterion or "(none)")
        for key in content.keys() - KEYS:
            _count(self.unread, key)
        if row.annotator:
            self.annotators.add(key_of(row.annotator), 0)
        if isinstance(row, ScoredRow):
            self.count["scores"] += 1
            return
        self.count["pairs"] += 1
        self.count["alike"] += alike
        self.count["divided"] += row.share not in (0.0, 0.5, 1.0)
        self.labels["tie" if row.share == 0.5 else "ab"[row.share > 0.5]] += 1
        self.shares += row.share

    def report(self) -> dict[str, Any]:
        pairs, scores, broken = (self.count[name] for name in ("pairs", "scores", "broken"))
        return {
            "rows": pairs + scores + broken,
            "pairs": pairs,
            "scores": scores,
            "broken": broken,
            "faults": self.faults,
            "balance": {name: self.labels[name] for name in ("a", "tie", "b")},
            "mean_share": round(self.shares / pairs, 4) if pairs else None,
            "divided_votes": self.count["divided"],
            "same_media_twice": self.count["alike"],
            "sources": dict(self.sources),
            "criteria": dict(self.criteria),
            "annotators": self.annotators.distinct(),
            "evaluation_only": sorted(name for name in self.sources if refusal(name)),
            "unread_keys": dict(self.unread),
        }


def _count(counts: Counter[str], name: str) -> None:
    counts[name if name in counts or len(counts) < _NAMES else _OTHERS] += 1


def _content_key(path: Path) -> int:
    """Of a file's bytes, or of all files of a folder in the order of their names."""
    digest = blake2b(digest_size=8)
    try:
        for file in sorted(one for one in path.iterdir() if one.is_file()) if path.is_dir() else [path]:
            with file.open("rb") as opened:
                while piece := opened.read(1 << 20):
                    digest.update(piece)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.", "Restore the file or remove the row.") from error
    return int.from_bytes(digest.digest(), "little")


def _renamed(names: Ledger) -> dict[str, Any]:
    """How many media are there under further paths, with the same bytes."""
    count = 0
    for part in names.parts():
        order = np.lexsort((part.values, part.keys))
        keys, paths = part.keys[order], part.values[order]
        count += int(((keys[1:] == keys[:-1]) & (paths[1:] != paths[:-1])).sum())
    return {"count": count}
