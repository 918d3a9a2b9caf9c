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
from rewarddance.data.recipe import ImportRecipe
from rewarddance.data.records import read_records
from rewarddance.data.sources import find_source
from rewarddance.data.sources.drafts import Draft, Medium, Source
from rewarddance.data.splits import part_of
from rewarddance.data.tables import Row
from rewarddance.errors import InputError
from rewarddance.runtime.checkpoint import writable_folder, write_text_atomically
from rewarddance.runtime.devices import digest_of
from rewarddance.runtime.lock import locked
from rewarddance.runtime.tracking import console

_BATCH, _BATCH_BYTES = 512, 1 << 26
"""Rows that are checked and written together, and how many bytes of media in them end a batch before."""
_REMEMBERED = 4096
"""Files whose check is remembered: sets show a picture in several rows that stand close together."""
_HOPELESS = 1000
"""So many rows, and none that can be used: a wrong name or a wrong media root, and no broken rows."""
_HOPELESS_REMEDY = "Correct the name, or give --media-root."
_SECONDS = 10.0
"""Between two lines that say how far it is."""


class Candidate(NamedTuple):
    """A row to be, or a fault, with where it comes from. left_out: it is of another criterion than the wanted."""

    path: Path
    number: int
    draft: Draft | Fault
    left_out: bool

    def media(self) -> list[Medium]:
        """The pictures and videos that the row will name."""
        if self.left_out or isinstance(self.draft, Fault):
            return []
        return [*self.draft.media, self.draft.image] if self.draft.image else [*self.draft.media]


Key = tuple[Path, str]
"""What a medium is remembered by: its root and name, or the digest of its bytes."""


def import_preferences(recipe: ImportRecipe) -> dict[str, Any]:
    """Import all records of the files; returns how many rows each output got, and how many are in quarantine.

    Rows that cannot be used are in `<output>.quarantine.jsonl`, each with file, row, field and reason. The recipe and
    the result are in `<output>.import.json`; the same recipe again changes nothing, or finishes a run that was stopped.
    Raises InputError for what is wrong with all rows: the name, the files, the output.
    """
    source = find_source(recipe.name)
    if recipe.output.suffix not in (".jsonl", ".parquet"):
        raise InputError(f"the output {recipe.output} is no table.", "Let its name end in .jsonl or .parquet.")
    streams = {path: read_records(path, source.array) for path in recipe.files}  # opened before anything is written
    record = beside(recipe.output, "import.json")
    request = recipe.model_dump(mode="json") | {"files_digest": digest_of(recipe.files)}
    if earlier := _earlier_result(record, request, list(recipe.outputs.values())):
        return earlier
    writable_folder(recipe.output.parent)
    with locked(recipe.output):
        write_text_atomically(record, json.dumps({"request": request}, indent=2) + "\n")
        schema = SCHEMA if recipe.output.suffix == ".parquet" else None
        files = {part: RowFile(path, schema) for part, path in recipe.outputs.items()}
        quarantine = RowFile(beside(recipe.output, "quarantine.jsonl"))
        every = (*files.values(), quarantine)
        journals = [beside(file.path, "progress.json") for file in every]
        try:
            left_out = _fill(recipe, source, streams, files, quarantine)
        except InputError:
            if not any(file.progress.written for file in files.values()):
                _remove([record, quarantine.path, *journals])
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
        if not any(result["rows"].values()):  # an import that wrote nothing binds nobody to its recipe
            _remove([record, *recipe.outputs.values(), *journals])
            return result
        for path in recipe.outputs.values():
            path.touch()  # a part of the split that nothing fell into
        write_text_atomically(record, json.dumps({"request": request, "rows": result}, indent=2) + "\n")
        _remove(journals)
        return result


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def quarantine_lines(result: dict[str, Any], examples: int = 3) -> list[str]:
    """What to print of an import's quarantine: how many rows, where they are, and the first reasons."""
    total = result["quarantined"] + sum(result["rows"].values())
    lines = [f"{result['quarantined']} of {total} rows are in quarantine; {result['quarantine']} says why:"]
    with Path(result["quarantine"]).open(encoding="utf-8") as file:
        for row in map(json.loads, islice(file, examples)):
            lines.append(f"  row {row['row']} of {row['file']}: {row['reason']}")
    lines += ["  ..."] if result["quarantined"] > examples else []
    record = result["quarantine"].replace("quarantine.jsonl", "import.json")
    return [*lines, f"  To try again with what was mended, remove {record} and the outputs."]


def _earlier_result(record: Path, request: dict[str, Any], outputs: list[Path]) -> dict[str, Any] | None:
    """What `<output>.import.json` says of a finished run whose outputs are there.

    Raises InputError where it was another import, or where an output is there that no import wrote.
    """
    if not record.exists():
        if existing := [path for path in outputs if path.exists()]:
            raise InputError(
                f"the output {existing[0]} exists, and no import wrote it.", "Choose another, or move it away."
            )
        return None
    try:
        before = json.loads(record.read_text(encoding="utf-8"))
        changed = [key for key in request if before["request"].get(key) != request[key]]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{record} cannot be read: {error!r}.", "Choose another output, or remove it.") from error
    if changed == ["files_digest"]:
        raise InputError(
            f"{record} is of an import of files that have changed since.",
            "Choose another output, or remove that file and its outputs.",
        )
    if changed:
        key = changed[0]
        raise InputError(
            f"{record} is of an import with {key} = {short(before['request'].get(key))}, not {short(request[key])}.",
            "Choose another output, or remove that file and its outputs.",
        )
    return before.get("rows") if all(path.exists() for path in outputs) else None


def _fill(
    recipe: ImportRecipe,
    source: Source,
    streams: dict[Path, Iterator[Row]],
    files: dict[str, RowFile],
    quarantine: RowFile,
) -> int:
    """Convert, check and write in batches, which end at the same rows however often the run is stopped.

    Returns how many rows of other criteria were left out.
    """
    store, left_out, remedies = MediaStore(recipe, source), Counter[str](), Counter[str]()
    done = min(file.progress.read for file in (*files.values(), quarantine))
    read, first_fault, began = 0, "", time.monotonic()
    printed = began
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for batch in batches(candidates(recipe, source, streams)):
            read += len(batch)
            left_out.update(item.draft.criterion for item in batch if item.left_out and isinstance(item.draft, Draft))
            if read <= done:
                continue
            rows, broken = store.rows(batch, pool)
            first_fault = first_fault or (broken[0]["reason"] if broken else "")
            remedies.update(row["remedy"] for row in broken)
            for part, file in files.items():
                if file.progress.read < read:
                    file.commit([row for name, row in rows if name == part], [], len(batch))
            if quarantine.progress.read < read:
                quarantine.commit(broken, [], len(batch))
            if quarantine.progress.written == read >= _HOPELESS:
                (common, count), *_ = remedies.most_common(1)
                remedy = common if count == read and common != Fault("", "").remedy else _HOPELESS_REMEDY
                raise InputError(
                    f"none of the first {read} rows can be used; the first: {first_fault}",
                    f"{recipe.name} is {source.about}. {remedy}",
                )
            if time.monotonic() - printed > _SECONDS:
                printed = time.monotonic()
                rate = (read - done) / (printed - began)
                console.print(f"{read} rows, {rate:.0f} a second, {quarantine.progress.written} in quarantine")
    if not read:
        raise InputError(f"{', '.join(map(str, recipe.files))}: no records.", f"{recipe.name} is {source.about}.")
    if left_out.total() == read:
        known = ", ".join(repr(name) for name, _ in left_out.most_common(8))
        raise InputError(f"no row is about the criterion {recipe.criterion!r}.", f"They are about {known}.")
    return left_out.total()


def candidates(recipe: ImportRecipe, source: Source, streams: dict[Path, Iterator[Row]]) -> Iterator[Candidate]:
    """The drafts and faults of all files in order."""
    wanted = recipe.criterion and recipe.criterion.casefold()
    for path, rows in streams.items():
        for number, draft in source.convert(rows):
            other = wanted is not None and isinstance(draft, Draft) and draft.criterion.casefold() != wanted
            yield Candidate(path, number, draft, other)


def batches(items: Iterator[Candidate]) -> Iterator[list[Candidate]]:
    """The same, some together."""
    batch: list[Candidate] = []
    size = 0
    for item in items:
        batch.append(item)
        size += sum(len(medium.given) for medium in item.media() if isinstance(medium.given, bytes))
        if len(batch) == _BATCH or size > _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class MediaStore:
    """Where media lie, and whether they can be decoded; those that come as bytes are put beside the output."""

    def __init__(self, recipe: ImportRecipe, source: Source) -> None:
        self.recipe, self.source = recipe, source
        self.folder = recipe.output.parent.resolve()
        self.media = self.folder / f"{recipe.output.stem}_media"
        self.known: OrderedDict[Key, str | InputError] = OrderedDict()

    def rows(
        self, batch: Sequence[Candidate], pool: ThreadPoolExecutor
    ) -> tuple[list[tuple[str, dict[str, Any]]], list[dict[str, Any]]]:
        """The rows of a batch, each behind its part of the split, and those for the quarantine, in order."""
        unseen: dict[Key, Medium] = {}
        for item in batch:
            for medium in item.media():
                if (key := self._key(item.path, medium)) not in self.known:
                    unseen[key] = medium
        self.known.update(zip(unseen, pool.map(self._check, unseen, unseen.values()), strict=True))
        rows, broken = [], []
        for path, number, draft, left_out in batch:
            try:
                if isinstance(draft, Fault):
                    raise draft
                if not left_out:
                    part = part_of(draft.prompt, self.recipe.split) if self.recipe.split else ""
                    rows.append((part, self._row(path, draft)))
            except Fault as fault:
                row = {"file": str(path), "row": number, "field": fault.field}
                broken.append(row | {"reason": fault.what, "remedy": fault.remedy})
        while len(self.known) > _REMEMBERED:
            self.known.popitem(last=False)
        return rows, broken

    def _row(self, path: Path, draft: Draft) -> dict[str, Any]:
        media, value, fps = draft.media, draft.value, draft.fps
        swapped = self.source.first_wins and _swapped(draft)
        if swapped:
            media, value, fps = media[::-1], 1 - value, fps[::-1]
        pair = len(media) == 2
        row: dict[str, Any] = {"prompt": draft.prompt}
        for key, medium in zip(("media_a", "media_b") if pair else ("media",), media, strict=True):
            row[key] = self._path(path, medium)
        row["share" if pair else "score"] = value
        row["source"] = f"{self.source.name}/{draft.part}" if draft.part else self.source.name
        if draft.image is not None:
            row["image"] = self._path(path, draft.image)
        row |= {key: text for key in ("criterion", "annotator", "date") if (text := getattr(draft, key))}
        if draft.rationale:  # it may speak of the first and the second
            row["rationale_swapped" if swapped else "rationale"] = draft.rationale
        rates = zip(("fps_a", "fps_b") if pair else ("fps",), fps, strict=True)
        return row | {key: rate for key, rate in rates if rate is not None}

    def _path(self, path: Path, medium: Medium) -> str:
        """Where the medium is, from the output's folder. Raises Fault where it cannot be decoded."""
        place = self.known[self._key(path, medium)]
        if isinstance(place, InputError):
            raise Fault(medium.field, f"cannot be shown: {place.what.removesuffix('.')}", place.remedy)
        return place

    def _key(self, path: Path, medium: Medium) -> Key:
        if isinstance(medium.given, bytes):
            return self.media, blake2b(medium.given, digest_size=16).hexdigest()
        return self.recipe.media_root or path.parent, medium.given

    def _check(self, key: Key, medium: Medium) -> str | InputError:
        """Where a medium is, from the output's folder, or why it cannot be used."""
        try:
            if isinstance(medium.given, bytes):
                path = self.media / f"{key[1]}{inspect_media(medium.given, 'the file in the row')}"
                if not path.exists():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    scratch = beside(path, "partial")
                    scratch.write_bytes(medium.given)
                    os.replace(scratch, path)
            else:
                path = self._find(*key)
                if self.recipe.decode:
                    inspect_media(path)
            return Path(os.path.relpath(path, self.folder)).as_posix()
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


def _swapped(draft: Draft) -> bool:
    """Half of all drafts, by a digest, so that the preferred picture does not always stand first."""
    content = repr((draft.prompt, [medium.given for medium in draft.media]))
    return bool(blake2b(content.encode(), digest_size=1).digest()[0] & 1)
