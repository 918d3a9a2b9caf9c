"""Public preference sets into our files: rows and media checked, split by prompt, the broken ones put into quarantine.

Pictures and videos stay where they are and are named by paths; those that a file holds as bytes are written beside the
output, each once. Memory does not grow with the set, and a run that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from rewarddance.data.fields import Fault, short
from rewarddance.data.journal import RowFile, beside
from rewarddance.data.media import inspect_media
from rewarddance.data.preferences import SCHEMA
from rewarddance.data.records import read_records
from rewarddance.data.sources import find_source
from rewarddance.data.sources.drafts import Draft, Medium, Source
from rewarddance.data.splits import part_of
from rewarddance.data.tables import Row
from rewarddance.errors import InputError
from rewarddance.runtime.checkpoint import writable_folder, write_text_atomically
from rewarddance.runtime.config import Recipe
from rewarddance.runtime.tracking import console

_BATCH, _BATCH_BYTES = 512, 1 << 26
"""Rows that are checked and written together, and how many bytes of media in them end a batch before."""
_REMEMBERED = 4096
"""Files whose check is remembered: sets show a picture in several rows that stand close together."""
_HOPELESS = 1000
"""So many rows, and none that can be used: a wrong name or a wrong media root, and no broken rows."""
_EVERY = 10.0
"""Seconds between two lines that say how far it is."""


class ImportRecipe(Recipe):
    """Which set from which files is written where.

    name: of the source. files: in this order. output: the .jsonl or .parquet file; with a split, its name gets the
    part's. media_root: what paths of media are relative to, the file's own folder if None. split: names and shares.
    criterion: keep the rows of this one only. decode: look at all media to their end, not only whether they are there.
    """

    name: str
    files: tuple[Path, ...]
    output: Path
    media_root: Path | None = None
    split: dict[str, float] | None = None
    criterion: str | None = None
    decode: bool = True


class Ready(NamedTuple):
    """A row as it will be written. part: of the split."""

    part: str
    row: dict[str, Any]


class Found(NamedTuple):
    """A draft or a fault with where it comes from. left_out: it is of another criterion than the wanted."""

    path: Path
    number: int
    found: Draft | Fault
    left_out: bool


Key = tuple[Path, str]
"""What a medium is remembered by: its root and name, or the digest of its bytes."""
Streams = dict[Path, Iterator[Row]]


def import_preferences(recipe: ImportRecipe) -> dict[str, Any]:
    """Import all records of the files; returns how many rows each output got, and how many are in quarantine.

    Rows that cannot be used are in `<output>.quarantine.jsonl`, each with file, row, field and reason. What was asked
    and what came of it is in `<output>.import.json`; the same recipe again changes nothing, or finishes a run that was
    stopped. Raises InputError for what is wrong with all rows: the name, the files, the output.
    """
    source = find_source(recipe.name)
    if recipe.output.suffix not in (".jsonl", ".parquet"):
        raise InputError(f"the output {recipe.output} is no table.", "Let its name end in .jsonl or .parquet.")
    paths = outputs(recipe)
    streams = {path: read_records(path, source.array) for path in recipe.files}  # opened before anything is written
    record = beside(recipe.output, "import.json")
    asked = recipe.model_dump(mode="json") | {"sizes": [path.stat().st_size for path in recipe.files]}
    before = _recorded(record, asked, paths)
    if "rows" in before:
        return before["rows"]
    writable_folder(recipe.output.parent)
    write_text_atomically(record, json.dumps({"asked": asked}, indent=2) + "\n")
    schema = SCHEMA if recipe.output.suffix == ".parquet" else None
    files = {part: RowFile(path, schema) for part, path in paths.items()}
    quarantine = RowFile(beside(recipe.output, "quarantine.jsonl"))
    every = (*files.values(), quarantine)
    try:
        left_out = _fill(recipe, source, streams, files, quarantine)
    except InputError:
        if not any(file.progress.written for file in files.values()):
            _forget([record, quarantine.path], every)
        raise
    for file in every:
        file.finish()
    result: dict[str, Any] = {
        "source": source.name,
        "rows": {str(file.path): file.progress.written for file in files.values()},
        "quarantined": quarantine.progress.written,
    }
    if recipe.criterion is not None:
        result["left_out"] = left_out
    if result["quarantined"]:
        result["quarantine"] = str(quarantine.path)
    if source.evaluation_only:
        result["evaluation_only"] = source.evaluation_only
    if not any(result["rows"].values()):
        _forget([record, *paths.values()], every)
        return result
    for path in paths.values():
        path.touch()  # a part of the split that nothing fell into
    write_text_atomically(record, json.dumps({"asked": asked, "rows": result}, indent=2) + "\n")
    _forget([], every)
    return result


def _forget(paths: Sequence[Path], files: Sequence[RowFile]) -> None:
    """Remove these, and how far the files are: an import that wrote nothing binds nobody to what was asked."""
    for path in [*paths, *(beside(file.path, "progress.json") for file in files)]:
        path.unlink(missing_ok=True)


def outputs(recipe: ImportRecipe) -> dict[str, Path]:
    """The file of each part of the split; of the one part "" where there is none."""
    stem, suffix = recipe.output.stem, recipe.output.suffix
    if recipe.split is None:
        return {"": recipe.output}
    return {part: recipe.output.with_name(f"{stem}.{part}{suffix}") for part in recipe.split}


def quarantined(result: dict[str, Any], shown: int = 3) -> list[str]:
    """What to say aloud of an import's quarantine: how many rows, where they are, and the first reasons."""
    total = result["quarantined"] + sum(result["rows"].values())
    said = [f"{result['quarantined']} of {total} rows are in quarantine; {result['quarantine']} says why:"]
    with Path(result["quarantine"]).open(encoding="utf-8") as file:
        for line in islice(file, shown):
            row = json.loads(line)
            said.append(f"  row {row['row']} of {row['file']}: {row['reason']}")
    return [*said, "  ..."] if result["quarantined"] > shown else said


def _recorded(record: Path, asked: dict[str, Any], paths: dict[str, Path]) -> dict[str, Any]:
    """What `<output>.import.json` says of an earlier run; {} where there was none.

    Raises InputError where it was another one, or where an output is there that no import wrote.
    """
    if not record.exists():
        if there := [path for path in paths.values() if path.exists()]:
            raise InputError(
                f"the output {there[0]} exists, and no import wrote it.", "Choose another, or move it away."
            )
        return {}
    try:
        before = json.loads(record.read_text(encoding="utf-8"))
        changed = [key for key in asked if before["asked"].get(key) != asked[key]]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{record} cannot be read: {error!r}.", "Choose another output, or remove it.") from error
    if changed:
        key = changed[0]
        raise InputError(
            f"{record} is of an import with {key} = {short(before['asked'].get(key))}, not {short(asked[key])}.",
            "Choose another output, or remove that file and its outputs.",
        )
    return before if all(path.exists() for path in paths.values()) else {}


def _fill(
    recipe: ImportRecipe, source: Source, streams: Streams, files: dict[str, RowFile], quarantine: RowFile
) -> int:
    """Convert, check and write in batches, which end at the same rows however often the run is stopped.

    Returns how many rows of other criteria were left out.
    """
    shelf, drafts, left_out = MediaStore(recipe, source), found_in(recipe, source, streams), Counter[str]()
    done = min(file.progress.read for file in (*files.values(), quarantine))
    place, first, told, began = 0, "", time.monotonic(), time.monotonic()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for batch in batches(drafts):
            place += len(batch)
            left_out.update(each.found.criterion for each in batch if each.left_out and isinstance(each.found, Draft))
            if place <= done:
                continue
            rows, broken = shelf.ready(batch, pool)
            first = first or (broken[0]["reason"] if broken else "")
            for part, file in files.items():
                if file.progress.read < place:
                    file.commit([row for name, row in rows if name == part], [], len(batch))
            if quarantine.progress.read < place:
                quarantine.commit(broken, [], len(batch))
            if quarantine.progress.written == place >= _HOPELESS:
                raise InputError(
                    f"none of the first {place} rows can be used; the first: {first}",
                    f"{recipe.name} is {source.about}. Correct the name, or give --media-root.",
                )
            if time.monotonic() - told > _EVERY:
                told = time.monotonic()
                rate = (place - done) / (told - began)
                console.print(f"{place} rows, {rate:.0f} a second, {quarantine.progress.written} in quarantine")
    if not place:
        raise InputError(f"{', '.join(map(str, recipe.files))}: no records.", f"{recipe.name} is {source.about}.")
    if left_out.total() == place:
        known = ", ".join(repr(name) for name, _ in left_out.most_common(8))
        raise InputError(f"no row is about the criterion {recipe.criterion!r}.", f"They are about {known}.")
    return left_out.total()


def found_in(recipe: ImportRecipe, source: Source, streams: Streams) -> Iterator[Found]:
    """The drafts and faults of all files in order."""
    wanted = recipe.criterion and recipe.criterion.casefold()
    for path, rows in streams.items():
        for number, found in source.convert(rows):
            other = wanted is not None and isinstance(found, Draft) and found.criterion.casefold() != wanted
            yield Found(path, number, found, other)


def batches(drafts: Iterator[Found]) -> Iterator[list[Found]]:
    """The same, some together."""
    batch: list[Found] = []
    held = 0
    for each in drafts:
        batch.append(each)
        held += sum(len(medium.given) for medium in _media_of(each) if isinstance(medium.given, bytes))
        if len(batch) == _BATCH or held > _BATCH_BYTES:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


class MediaStore:
    """Where media lie, and whether they can be shown; those that come as bytes are put beside the output."""

    def __init__(self, recipe: ImportRecipe, source: Source) -> None:
        self.recipe, self.source = recipe, source
        self.folder = recipe.output.parent.resolve()
        self.media = self.folder / f"{recipe.output.stem}_media"
        self.known: OrderedDict[Key, str | InputError] = OrderedDict()

    def ready(self, batch: Sequence[Found], pool: ThreadPoolExecutor) -> tuple[list[Ready], list[dict[str, Any]]]:
        """The rows of a batch with their parts of the split, and those for the quarantine, in order."""
        unseen: dict[Key, Medium] = {}
        for each in batch:
            for medium in _media_of(each):
                if (key := self._key(each.path, medium)) not in self.known:
                    unseen[key] = medium
        for key, found in zip(unseen, pool.map(self._look, unseen, unseen.values()), strict=True):
            self.known[key] = found
        rows, broken = [], []
        for path, number, found, left_out in batch:
            try:
                if isinstance(found, Fault):
                    raise found
                rows += [] if left_out else [self._row(path, found)]
            except Fault as fault:
                told = {"file": str(path), "row": number, "field": fault.field}
                broken.append(told | {"reason": fault.what, "remedy": fault.remedy})
        while len(self.known) > _REMEMBERED:
            self.known.popitem(last=False)
        return rows, broken

    def _row(self, path: Path, draft: Draft) -> Ready:
        media, value, fps = draft.media, draft.value, draft.fps
        if self.source.first_wins and _sides_change(draft):
            media, value, fps = media[::-1], 1 - value, fps[::-1]
        keys = ("media_a", "media_b") if len(media) == 2 else ("media",)
        row: dict[str, Any] = {"prompt": draft.prompt}
        row |= {key: self._path(path, medium) for key, medium in zip(keys, media, strict=True)}
        row["share" if len(media) == 2 else "score"] = value
        row["source"] = f"{self.source.name}/{draft.part}" if draft.part else self.source.name
        if draft.image is not None:
            row["image"] = self._path(path, draft.image)
        row |= {key: text for key in ("criterion", "annotator") if (text := getattr(draft, key))}
        rates = zip(("fps_a", "fps_b") if len(media) == 2 else ("fps",), fps, strict=True)
        row |= {key: rate for key, rate in rates if rate is not None}
        return Ready(part_of(draft.prompt, self.recipe.split) if self.recipe.split else "", row)

    def _path(self, path: Path, medium: Medium) -> str:
        """Where the medium is, from the output's folder. Raises Fault where it cannot be shown."""
        found = self.known[self._key(path, medium)]
        if isinstance(found, InputError):
            raise Fault(medium.field, f"cannot be shown: {found.what.removesuffix('.')}", found.remedy)
        return found

    def _key(self, path: Path, medium: Medium) -> Key:
        if isinstance(medium.given, bytes):
            return self.media, blake2b(medium.given, digest_size=16).hexdigest()
        return self.recipe.media_root or path.parent, medium.given

    def _look(self, key: Key, medium: Medium) -> str | InputError:
        try:
            if isinstance(medium.given, bytes):
                suffix = inspect_media(medium.given, "the file in the row")
                found = _put(medium.given, self.media / f"{key[1]}{suffix}")
            else:
                found = self._find(*key)
                if self.recipe.decode:
                    inspect_media(found)
            return Path(os.path.relpath(found, self.folder)).as_posix()
        except InputError as error:
            if "PyAV is not installed" in error.what:  # no fault of the row's
                raise
            return error

    def _find(self, root: Path, name: str) -> Path:
        for folder in self.source.folders:
            try:
                if (path := root / folder / name).exists():
                    return path.resolve()
            except OSError:  # a name that no file can have
                break
        raise InputError(f"{name} is not in {root}.", "Fetch it, or give --media-root.")


def _media_of(each: Found) -> list[Medium]:
    if each.left_out or not isinstance(each.found, Draft):
        return []
    return [*each.found.media, each.found.image] if each.found.image else [*each.found.media]


def _sides_change(draft: Draft) -> bool:
    told = repr((draft.prompt, [medium.given for medium in draft.media]))
    return bool(blake2b(told.encode(), digest_size=1).digest()[0] & 1)


def _put(data: bytes, path: Path) -> Path:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = beside(path, "partial")
        scratch.write_bytes(data)
        os.replace(scratch, path)
    return path
