"""Preferences on disk: JSONL or Parquet, one comparison a row, media beside the file.

A pair: `{"prompt": ..., "media_a": "a.png", "media_b": "b.png", "share": 0.8}`: `share` is the share of votes that
found b better than a; instead of it `label` may say "a", "b" or "tie". Or one picture or video with a score:
`{"prompt": ..., "media": "a.png", "score": 3.5}`; those of one prompt are compared with one another.

May be left out: `criterion`, by what was voted; `image`, the picture that both were made from; `fps` of both
videos, or `fps_a` and `fps_b`; `source`; `annotator`; `reason`, why the answer is as it is where b is the candidate and
a the reference; `reason_swapped`, where a is the candidate and b the reference. Other keys are not read: imports keep
so the `date` of a vote and the voter's own `rationale`, of the other order `rationale_swapped`. Paths are relative to
the file; a folder is a video's frames. docs/guides/data.md says more.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rewarddance.data.faults import FaultyRow, FaultyRows
from rewarddance.data.fields import Fault, as_number, optional_rate, optional_text, present, short
from rewarddance.data.media import MAX_FRAMES, as_pixels, write_picture
from rewarddance.data.sources import refusal
from rewarddance.data.tables import JsonlTable, ParquetTable
from rewarddance.errors import InputError, shown
from rewarddance.runtime.tracking import console
from rewarddance.types import Pixels, Preference, Prompt

SHARES = {"a": 0.0, "tie": 0.5, "b": 1.0}
_TEXTS = ("prompt", "media_a", "media_b", "media", "criterion", "image", "source", "annotator")
_TEXTS += ("reason", "reason_swapped", "date", "rationale", "rationale_swapped")
_NUMBERS = ("share", "score", "fps_a", "fps_b", "fps")
SCHEMA = pa.schema({name: pa.string() for name in _TEXTS} | {name: pa.float64() for name in _NUMBERS})
"""The columns in Parquet; any may be missing where no row has it."""
KEYS = frozenset(SCHEMA.names) | {"label"}
_NEIGHBOURS = 8
"""With how many of those after it in the file a scored picture is compared."""


@dataclass(frozen=True)
class PreferenceRow:
    """One comparison of a preferences file, media not yet read. Fields are those of the file, and of `Preference`."""

    prompt: str
    media_a: Path
    media_b: Path
    share: float
    source: str = ""
    image: Path | None = None
    reason: str = ""
    reason_swapped: str = ""
    criterion: str = ""
    annotator: str = ""
    fps_a: float | None = None
    fps_b: float | None = None

    def load(self, max_frames: int = MAX_FRAMES) -> Preference:
        """Read the pictures or videos, of longer ones evenly spaced frames. Raises InputError naming the file."""
        image = None if self.image is None else as_pixels(self.image, max_frames=max_frames)
        return Preference(
            Prompt(self.prompt, image=image, image_path=self.image),
            as_pixels(self.media_a, max_frames=max_frames),
            as_pixels(self.media_b, max_frames=max_frames),
            self.share,
            self.source,
            reason=self.reason,
            reason_swapped=self.reason_swapped,
            criterion=self.criterion,
            annotator=self.annotator,
            fps=(self.fps_a, self.fps_b),
        )

    def written(self, folder: Path) -> dict[str, Any]:
        """The row as it stands in a file in `folder`, but for its reasons."""
        media = {"media_a": self.media_a, "media_b": self.media_b, "image": self.image}
        row: dict[str, Any] = {"prompt": self.prompt}
        row |= {key: os.path.relpath(path.resolve(), folder.resolve()) for key, path in media.items() if path}
        row |= {"share": self.share, "source": self.source}
        rest = {key: getattr(self, key) for key in ("criterion", "annotator", "fps_a", "fps_b")}
        return row | {key: value for key, value in rest.items() if value}


@dataclass(frozen=True)
class ScoredRow:
    """One picture or video with a score, not yet read. Scores are compared where `comparable` is the same."""

    prompt: str
    media: Path
    score: float
    source: str = ""
    image: Path | None = None
    criterion: str = ""
    annotator: str = ""
    fps: float | None = None

    def against(self, other: ScoredRow) -> PreferenceRow:
        """This as a and the other as b. Of unknown units, the scores say which is better and not by how much."""
        share = 0.5 if self.score == other.score else float(other.score > self.score)
        return PreferenceRow(
            self.prompt,
            self.media,
            other.media,
            share,
            self.source,
            self.image,
            criterion=self.criterion,
            annotator=self.annotator,
            fps_a=self.fps,
            fps_b=other.fps,
        )

    def comparable(self) -> int:
        """64 bits of a digest of what rows that may be compared have in common."""
        shared = (self.prompt, self.criterion, self.source, self.annotator, str(self.image))
        return int.from_bytes(blake2b(json.dumps(shared).encode(), digest_size=8).digest(), "little")


class PreferenceSet(Sequence[Preference]):
    """A preferences file as a sequence: rows are checked at once and read again, with their pictures, when asked for.

    A row of pairs takes 12 bytes of memory, and 16 more in JSONL. for_training: refuse rows of sets that are for
    evaluation only. faults: takes the rows that cannot be used, which are then left out. Raises InputError naming the
    file, and where no list is given all faulty lines with their faults.
    """

    def __init__(self, path: Path, for_training: bool = False, faults: list[FaultyRow] | None = None) -> None:
        self.path = path
        self._table = open_preferences(path)
        pairs, keys, scored = array("I"), array("Q"), array("I")
        self._lines, faulty = array("I"), list[FaultyRow]()
        for place, (line, content) in enumerate(self._table.rows()):
            self._lines.append(line)
            try:
                row = _checked(content, path, line)
            except Unusable as fault:
                faulty.append(fault.row)
                continue
            if for_training and (why := refusal(row.source)):
                raise InputError(
                    f"line {line} of {path} comes from {row.source}, which is for evaluation only: {why}.",
                    "Train on another set; this one may be among the tests.",
                )
            if isinstance(row, PreferenceRow):
                pairs.append(place)
            else:
                scored.append(place)
                keys.append(row.comparable())
        if not len(self._table):
            raise InputError(f"the preferences file {path} is empty.", "Give a file with one preference a row.")
        if faulty and (faults is None or len(faulty) == len(self._table)):
            raise FaultyRows(faulty, can_skip=faults is not None and len(faulty) < len(self._table))
        if faults is not None:
            faults += faulty
        first, second, alone = paired(np.array(keys, np.uint64), np.array(scored, np.uint32))
        self._left = np.concatenate([np.array(pairs, np.uint32), first])
        self._right = np.concatenate([np.array(pairs, np.uint32), second])
        if alone:
            console.print(f"{path}: {alone} scored pictures have no other under their prompt, and are not compared")
        if not len(self):
            raise InputError(f"no two scores in {path} can be compared.", "Give several pictures under one prompt.")

    def __len__(self) -> int:
        return len(self._left)

    def __getitem__(self, index: int) -> Preference:  # type: ignore[override]
        return self.row(index).load()

    def where(self, index: int) -> str:
        """The lines of a comparison, in words."""
        lines = dict.fromkeys((self._lines[int(self._left[index])], self._lines[int(self._right[index])]))
        return f"line {' and '.join(map(str, lines))} of the preferences file {self.path}"

    def leave_out(self, indices: Iterable[int]) -> None:
        """Take these comparisons out; those behind them move up."""
        kept = np.setdiff1d(np.arange(len(self)), np.fromiter(indices, int))
        self._left, self._right = self._left[kept], self._right[kept]

    def row(self, index: int) -> PreferenceRow:
        """A comparison, media not yet read; those of scores come after the pairs."""
        left, right = int(self._left[index]), int(self._right[index])
        row = _checked(self._table.at(left), self.path, self._lines[left])
        if isinstance(row, PreferenceRow):
            return row
        other = _checked(self._table.at(right), self.path, self._lines[right])
        if not isinstance(other, ScoredRow):
            raise InputError(f"{self.path} has changed since it was opened.", "Begin again.")
        return row.against(other)


def read_rows(path: Path) -> Iterator[PreferenceRow]:
    """The comparisons of a preferences file. Raises InputError naming file, line and what is wrong with it."""
    preferences = PreferenceSet(path)
    for index in range(len(preferences)):
        yield preferences.row(index)


def paired(keys: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Each place with the next few of the same key, in the file's order; and how many have no other of their key."""
    order = np.argsort(keys, kind="stable")
    keys, places = keys[order], places[order]
    first, second = [places[:0]], [places[:0]]
    for distance in range(1, _NEIGHBOURS + 1):
        same = np.flatnonzero(keys[distance:] == keys[:-distance])
        first.append(places[same])
        second.append(places[same + distance])
    alone = int((np.unique(keys, return_counts=True)[1] == 1).sum())
    return np.concatenate(first), np.concatenate(second), alone


def parse_row(content: Mapping[str, Any], folder: Path) -> PreferenceRow | ScoredRow:
    """A row of a file in `folder`. Raises Fault naming the field that is missing, of the wrong kind, or no file."""
    content = {name: value for name, value in content.items() if value is not None}
    prompt = present(content, "prompt")[1]
    if not isinstance(prompt, str) or not prompt.strip():
        raise Fault("prompt", f"cannot be used: {shown(prompt)} is no text")
    try:
        Prompt(prompt)
    except InputError as error:
        raise Fault("prompt", f"cannot be used: {error.what.removesuffix('.')}", error.remedy) from None
    source, criterion, annotator = (optional_text(content, name) for name in ("source", "criterion", "annotator"))
    image = None if content.get("image") is None else _file(content, "image", folder)
    fps = optional_rate(content, "fps")
    if content.get("media") is not None:
        if "media_a" in content or "media_b" in content:
            raise Fault("media", "stands beside media_a or media_b; a row has one picture with a score, or two")
        media, score = _file(content, "media", folder), as_number(present(content, "score")[1], "score")
        return ScoredRow(prompt, media, score, source, image, criterion, annotator, fps)
    media_a, media_b = _file(content, "media_a", folder), _file(content, "media_b", folder)
    return PreferenceRow(
        prompt,
        media_a,
        media_b,
        _share(content),
        source,
        image,
        reason=optional_text(content, "reason"),
        reason_swapped=optional_text(content, "reason_swapped"),
        criterion=criterion,
        annotator=annotator,
        fps_a=optional_rate(content, "fps_a") or fps,
        fps_b=optional_rate(content, "fps_b") or fps,
    )


def _share(content: Mapping[str, Any]) -> float:
    label = content.get("label")
    if label is not None and (not isinstance(label, str) or label not in SHARES):
        raise Fault("label", f"is {short(label)}; it says a, b or tie")
    if content.get("share") is None:
        if label is None:
            raise Fault("share", "is missing, and label too", "A pair needs share (0 to 1) or label (a, b or tie).")
        return SHARES[label]
    share = as_number(content["share"], "share")
    if not 0.0 <= share <= 1.0:
        raise Fault("share", f"is {share:g}; it lies in 0 to 1")
    if label is not None and np.sign(share - 0.5) != np.sign(SHARES[label] - 0.5):
        raise Fault("label", f"is {label!r}, but share is {share:g}")
    return share


def _file(content: Mapping[str, Any], name: str, folder: Path) -> Path:
    value = present(content, name)[1]
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise Fault(name, f"is {short(value)}, which is no path")
    if value.startswith("data:") or "://" in value:
        raise Fault(
            name, f"is the address {shown(value)}", "Download the media, or write them to a file, and name that."
        )
    path = folder / value
    try:
        exists = path.exists()
    except OSError as error:  # too long a name
        raise Fault(name, f"is {short(value)}, which is no path ({error.strerror})") from None
    if not exists:
        raise Fault(name, f"names {path}, which is not there", "Restore the file or remove the row.")
    return path


def open_preferences(path: Path) -> JsonlTable | ParquetTable:
    """The rows of a preferences file. Raises InputError naming it where it cannot be opened."""
    if path.suffix.lower() in (".json", ".csv", ".tsv"):
        raise InputError(
            f"{path} is no preferences file, which is JSONL or Parquet.",
            "Write each row as a JSON object on its own line; `rewarddance data import` does so with a public set.",
        )
    try:
        return ParquetTable(path) if path.suffix.lower() == ".parquet" else JsonlTable(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(
            f"the preferences file {path} cannot be read: {why}.", "Give a JSONL or Parquet file of preferences."
        ) from error


def _checked(content: dict[str, Any] | InputError, path: Path, line: int) -> PreferenceRow | ScoredRow:
    kind = "row" if path.suffix.lower() == ".parquet" else "line"
    where = f"{kind} {line} of the preferences file {path}"
    try:
        if isinstance(content, InputError):
            raise content
        return parse_row(content, path.parent)
    except InputError as fault:
        raise Unusable(FaultyRow(f"{where} cannot be used", fault.what, fault.remedy)) from None


class Unusable(FaultyRows):
    """One row that cannot be used."""

    def __init__(self, row: FaultyRow) -> None:
        super().__init__([row])
        self.row = row


# -- out ---------------------------------------------------------------------------------------------------------------


def write_preferences(preferences: Iterable[Preference], path: Path) -> int:
    """Write a preferences file, .jsonl or .parquet, and its media in `<stem>_media/`; returns the number of rows.

    Pictures are PNG, videos folders of them. Rows one after the other that hold the very same tensor (votes on one
    pair) name the same file.
    """
    media, count = path.parent / f"{path.stem}_media", 0
    previous: dict[str, tuple[Pixels | None, str]] = {}
    path.parent.mkdir(parents=True, exist_ok=True)
    with rows_into(path) as write:
        for count, preference in enumerate(preferences, start=1):
            prompt = preference.prompt
            row: dict[str, Any] = {"prompt": prompt.text, "share": preference.share, "source": preference.source}
            pictures = {"media_a": preference.first, "media_b": preference.second, "image": prompt.image}
            for key, pixels in pictures.items():
                known, name = previous.get(key, (None, ""))
                if pixels is not None:
                    if pixels is not known:
                        written = _write_media(pixels, media / f"{count - 1:06d}_{key.removeprefix('media_')}")
                        name = written.relative_to(path.parent).as_posix()
                    row[key] = name
                previous[key] = pixels, name
            for key in ("reason", "reason_swapped", "criterion", "annotator"):
                if text := getattr(preference, key):
                    row[key] = text
            row |= {key: fps for key, fps in zip(("fps_a", "fps_b"), preference.fps, strict=True) if fps is not None}
            write(row)
    return count


def keep_preferences(preferences: Iterable[Preference], path: Path) -> Path:
    """Write a run's preferences to `path`, or make sure that the run being continued has these very ones.

    Raises InputError where the file holds others.
    """
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder) / path.name
        write_preferences(preferences, scratch)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            media = f"{path.stem}_media"
            shutil.copytree(scratch.parent / media, path.parent / media, dirs_exist_ok=True)
            shutil.copy(scratch, path)  # last: a file is there only with all its media
        elif not all(
            (path.parent / file.relative_to(folder)).is_file()
            and file.read_bytes() == (path.parent / file.relative_to(folder)).read_bytes()
            for file in Path(folder).rglob("*.*")
            if file.is_file()
        ):
            raise InputError(f"{path} holds other preferences.", "Choose another output, or give those it began with.")
    return path


@contextmanager
def rows_into(path: Path) -> Iterator[Any]:
    """A function that writes one row to a .jsonl or .parquet file."""
    if path.suffix.lower() != ".parquet":
        with path.open("w", encoding="utf-8") as file:
            yield lambda row: file.write(json.dumps(row) + "\n")
        return
    pending: list[dict[str, Any]] = []
    with pq.ParquetWriter(path, SCHEMA) as writer:

        def write(row: dict[str, Any] | None) -> None:
            pending.extend([] if row is None else [row])
            if pending and (row is None or len(pending) == 1000):
                writer.write_batch(pa.RecordBatch.from_pylist(pending, schema=SCHEMA))
                pending.clear()

        yield write
        write(None)


def _write_media(pixels: Pixels, stem: Path) -> Path:
    if len(pixels) == 1:
        write_picture(pixels, stem.with_suffix(".png"))
        return stem.with_suffix(".png")
    for number, frame in enumerate(pixels):
        write_picture(frame.unsqueeze(0), stem / f"{number:05d}.png")
    return stem
