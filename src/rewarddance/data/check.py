"""What is in preferences files, and what is wrong with them: duplicates, leaks between splits, balance, overlap."""

from __future__ import annotations

import os
import sqlite3
from collections import Counter, OrderedDict
from collections.abc import Sequence
from contextlib import closing
from hashlib import blake2b
from pathlib import Path
from typing import Any

from rewarddance.data.fields import Fault, fingerprint, normal
from rewarddance.data.media import inspect_media
from rewarddance.data.preferences import KEYS, PreferenceRow, ScoredRow, open_preferences, parse_row
from rewarddance.data.prompts import read_prompts
from rewarddance.data.sources import refusal
from rewarddance.errors import InputError

_EXAMPLES = 10
"""Examples of each kind of fault that are named."""
_NAMES = 100
"""Sources, criteria and keys that are counted by name; those met after them are counted together."""
_OTHERS = "(others)"
_REMEMBERED = 8192
"""Media whose digests are kept in memory."""


def check(files: Sequence[Path], benchmark: Path | None = None, decode: bool = True) -> dict[str, Any]:
    """Read all files once and report. Files are taken for splits of one set: what two of them share is a leak.

    benchmark: prompts that training must not have seen, one a line or as JSONL. decode: decode each picture and video
    to its end, and do not only read its bytes. Media are the same where their bytes are. Memory does not grow with the
    rows. Raises InputError naming a file that cannot be opened.
    """
    names = [str(path) for path in files]
    if len(set(names)) < len(names):
        raise InputError("a file is named twice.", "Name each file once.")
    prompts = [] if benchmark is None else read_prompts(benchmark)
    wanted = {fingerprint(normal(prompt.text)): prompt.text for prompt in prompts}
    with closing(sqlite3.connect("")) as database:  # a temporary file on disk
        places = Places(names, database)
        reports = {name: _read(Path(name), number, places, wanted, decode) for number, name in enumerate(names)}
        media = places.distinct("media")
        result: dict[str, Any] = {
            "files": reports,
            "broken": sum(report["broken"] for report in reports.values()),
            "prompts": places.distinct("prompt"),
            "media": media,
            "duplicate_rows": places.duplicates("row"),
            "duplicate_media": {"count": places.distinct("media", "digest, path") - media},
            "leaks": {"prompts": places.leaks("prompt"), "media": places.leaks("media")},
        }
    if benchmark is not None:
        result["benchmark"] = {
            "prompts": len(wanted),
            "seen": len(places.seen),
            "rows": sum(places.seen.values()),
            "first": [wanted[digest] for digest in list(places.seen)[:_EXAMPLES]],
        }
    return result


def faulty(report: dict[str, Any]) -> list[str]:
    """What in a report should be put right before training, in sentences; duplicates and overlap may be meant."""
    faults = [f"{report['broken']} rows are broken"] if report["broken"] else []
    for what, leak in report["leaks"].items():
        if leak["count"]:
            faults.append(f"{leak['count']} {what} are in more than one file")
    if report.get("benchmark", {}).get("seen"):
        faults.append(f"{report['benchmark']['seen']} prompts of the benchmark are in the files")
    return faults


class Places:
    """Where prompts, media, rows and annotators stand in all files, by digest."""

    def __init__(self, files: list[str], database: sqlite3.Connection) -> None:
        self.files, self._database = files, database
        self.seen: Counter[bytes] = Counter()
        self._media: OrderedDict[Path, bytes | InputError] = OrderedDict()
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("CREATE TABLE places (kind TEXT, digest BLOB, path BLOB, file INTEGER, line INTEGER)")

    def add(self, kind: str, digest: bytes, file: int, line: int, path: bytes = b"") -> None:
        self._database.execute("INSERT INTO places VALUES (?, ?, ?, ?, ?)", (kind, digest, path, file, line))

    def media_digest(self, path: Path, decode: bool) -> bytes:
        """Of a file's bytes. Raises InputError where it cannot be read or, with `decode`, decoded."""
        if path not in self._media:
            try:
                if decode:
                    inspect_media(path)
                self._media[path] = _content_digest(path)
            except InputError as error:
                self._media[path] = error
            if len(self._media) > _REMEMBERED:
                self._media.popitem(last=False)
        digest = self._media[path]
        if isinstance(digest, InputError):
            raise digest
        return digest

    def distinct(self, kind: str, columns: str = "digest") -> int:
        """How many different values the columns have."""
        query = f"SELECT COUNT(*) FROM (SELECT DISTINCT {columns} FROM places WHERE kind = ?)"
        return self._database.execute(query, (kind,)).fetchone()[0]

    def duplicates(self, kind: str) -> dict[str, Any]:
        """Entries beyond the first of their digest, and the first few as [first, duplicate]."""
        return self._pairs(kind, "next_file IS NOT NULL", "COUNT(*)")

    def leaks(self, kind: str) -> dict[str, Any]:
        """Digests in more than one file, and the first few as [place in one, place in the other]."""
        return self._pairs(kind, "file != next_file", "1")

    def _pairs(self, kind: str, condition: str, counted: str) -> dict[str, Any]:
        """Of each digest the first entry and its next that fulfil the condition, in the order of the rows."""
        query = f"""
            SELECT MIN(id), {counted}, file, line, next_file, next_line FROM (
                SELECT rowid AS id, digest, file, line, LEAD(file) OVER w AS next_file, LEAD(line) OVER w AS next_line
                FROM places WHERE kind = ? WINDOW w AS (PARTITION BY digest ORDER BY rowid)
            ) WHERE {condition} GROUP BY digest ORDER BY 1"""
        count, first = 0, []
        for _, n, file, line, next_file, next_line in self._database.execute(query, (kind,)):
            count += n
            if len(first) < _EXAMPLES:
                first.append([f"{self.files[file]}:{line}", f"{self.files[next_file]}:{next_line}"])
        return {"count": count, "first": first}


def _read(path: Path, number: int, places: Places, wanted: dict[bytes, str], decode: bool) -> dict[str, Any]:
    """The report of one file; where its content stands goes to `places`."""
    tally = Tally()
    for line, content in open_preferences(path).rows():
        try:
            if isinstance(content, InputError):
                raise content
            row = parse_row(content, path.parent)
            media = [row.media] if isinstance(row, ScoredRow) else [row.media_a, row.media_b]
            media += [row.image] if row.image else []
            digests = [places.media_digest(file, decode) for file in media]
        except InputError as error:
            tally.refuse(line, error)
            continue
        prompt = fingerprint(normal(row.prompt))
        places.add("prompt", prompt, number, line)
        if prompt in wanted:
            places.seen[prompt] += 1
        for file, digest in zip(media, digests, strict=True):
            places.add("media", digest, number, line, fingerprint(os.path.abspath(file)))
        if row.annotator:
            places.add(f"annotator {number}", fingerprint(row.annotator), number, line)
        tally.add(row, content, alike=isinstance(row, PreferenceRow) and digests[0] == digests[1])
        if isinstance(row, PreferenceRow):  # whichever of the two stands first
            digests[:2] = sorted(digests[:2])
        places.add("row", fingerprint(row.prompt, b"".join(digests), row.criterion, row.annotator), number, line)
    if not tally.count.total():
        raise InputError(f"the preferences file {path} is empty.", "Give a file with one preference a row.")
    return tally.report(places.distinct(f"annotator {number}"))


class Tally:
    """The counts of one file."""

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()
        self.labels: Counter[str] = Counter()
        self.sources: Counter[str] = Counter()
        self.criteria: Counter[str] = Counter()
        self.unread: Counter[str] = Counter()
        self.faults: list[dict[str, Any]] = []
        self.shares = 0.0

    def refuse(self, line: int, error: InputError) -> None:
        self.count["broken"] += 1
        if len(self.faults) < _EXAMPLES:
            field = error.field if isinstance(error, Fault) else ""
            self.faults.append({"line": line, "field": field, "reason": error.what})

    def add(self, row: PreferenceRow | ScoredRow, content: dict[str, Any], alike: bool) -> None:
        _count(self.sources, row.source or "(none)")
        _count(self.criteria, row.criterion or "(none)")
        for key in content.keys() - KEYS:
            if content[key] is not None:  # in Parquet, every row has every column
                _count(self.unread, key)
        if isinstance(row, ScoredRow):
            self.count["scores"] += 1
            return
        self.count["pairs"] += 1
        self.count["alike"] += alike
        self.count["divided"] += row.share not in (0.0, 0.5, 1.0)
        self.labels["tie" if row.share == 0.5 else "ab"[row.share > 0.5]] += 1
        self.shares += row.share

    def report(self, annotators: int) -> dict[str, Any]:
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
            "annotators": annotators,
            "evaluation_only": sorted(name for name in self.sources if refusal(name)),
            "unread_keys": dict(self.unread),
        }


def _count(counts: Counter[str], name: str) -> None:
    counts[name if name in counts or len(counts) < _NAMES else _OTHERS] += 1


def _content_digest(path: Path) -> bytes:
    """Of a file's bytes, or of all files of a folder in the order of their names."""
    digest = blake2b(digest_size=16)
    try:
        for file in sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]:
            with file.open("rb") as opened:
                while piece := opened.read(1 << 20):
                    digest.update(piece)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.", "Restore the file or remove the row.") from error
    return digest.digest()
