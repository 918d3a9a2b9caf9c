"""The rows of `rewarddance score` as they are read: what is asked of each, and which cannot be asked.

A row holds a prompt and one candidate, or several in `candidates`; which question that is, `score` says.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import pyarrow as pa

from rewarddance.data.faults import FaultyRow, FaultyRows
from rewarddance.data.fields import short
from rewarddance.data.media import as_pixels, media_size, read_rate
from rewarddance.data.tables import FolderTable, Table
from rewarddance.errors import InputError, shown
from rewarddance.jobs.preflight import blank
from rewarddance.jobs.recipes import ScoreRun
from rewarddance.protocols import RewardModel, needs_reference
from rewarddance.reward.instructions import is_ours
from rewarddance.types import Pixels, Prompt, Question

T = TypeVar("T")
_READ = frozenset({"prompt", "candidate", "candidates", "image", "video", "reference", "instruction"})


class Task(NamedTuple):
    """What is asked for one row.

    row: what its output row holds besides the answer.
    questions: what the judge is asked.
    form: of `one` candidate, of `each` candidate by itself, or of all ordered `pairs` of them.
    n: how many candidates there are.
    """

    row: dict[str, Any]
    questions: list[Question]
    form: Literal["one", "each", "pairs"]
    n: int


class Medium(NamedTuple):
    """A picture or video of a row. name: its path, None of bytes without one. rate: frames a second, where known."""

    name: str | None
    pixels: Pixels
    rate: float | None = None


class RowReader:
    """Rows to tasks. Within a batch, pictures of one source are one tensor, so that a judge encodes them once."""

    def __init__(self, run: ScoreRun, judge: RewardModel, table: Table) -> None:
        """Raises InputError where no row of the table could be answered, and for a reference that cannot be read."""
        self.run, self.where, self.folder, self.compares = run, table.where, table.folder, needs_reference(judge)
        self.knows_rate = getattr(getattr(judge, "config", None), "fps", None) is not None
        self.sizes_only = False  # media are blank, of the sizes that their headers say
        self.seen: dict[Path | bytes, tuple[Pixels, float | None]] = {}
        if isinstance(table, FolderTable):
            if run.prompt is None and not table.has_prompts:
                raise InputError(
                    f"the pictures in {table.path} have no prompts.", "Give --prompt, or a .txt beside each picture."
                )
            if self.compares and run.reference is None:
                raise InputError(
                    "a pairwise judge cannot score one picture by itself.", "Give --reference, or --kind pointwise."
                )
        self.reference = None
        if run.reference is not None:
            rate = read_rate(run.reference) if self.knows_rate else None
            self.reference = Medium(str(run.reference), as_pixels(run.reference, max_frames=run.max_frames), rate)

    def task(self, content: dict[str, Any]) -> Task:
        """What is asked for a row. Raises InputError saying what it lacks, or naming a file that cannot be read."""
        named = "candidate" in content or "candidates" in content  # then `image` is the prompt's
        possible = ("candidate", "candidates") if named else ("image", "video")
        keys = [key for key in possible if content.get(key) is not None]
        if len(keys) != 1:
            has = "no candidate" if not keys else f"both {' and '.join(keys)}"
            raise InputError(f"the row has {has}.", "Give it one of candidate, candidates, image and video.")
        others = carried(content)
        if taken := sorted(self.run.answer_keys & set(others)):
            raise InputError(f"the row has a key {taken[0]!r}, where its score goes.", "Give the key another name.")
        text = self._text(content, "prompt", self.run.prompt)
        grouped = keys[0] == "candidates"
        values = content[keys[0]] if grouped else [content[keys[0]]]
        if not isinstance(values, list) or not values:
            raise InputError("the row's candidates are no list of pictures.", "Give a list of at least one path.")
        candidates = [self._medium(value, "candidate") for value in values]
        names = [medium.name for medium in candidates]
        row = others | {"prompt": text} | ({"candidates": names} if grouped else {"candidate": names[0]})
        reference, image, instruction = self.reference, None, None
        if content.get("reference") is not None:
            reference = self._medium(content["reference"], "reference")
        if reference is not None:
            row["reference"] = reference.name
        if named and content.get("image") is not None:
            row["image"], image, _ = self._medium(content["image"], "image")
        if content.get("instruction") is not None:
            row["instruction"] = self._text(content, "instruction", None)
            instruction = instruction_beside(row["instruction"], self.folder)
        prompt = Prompt(text, metadata=others, image=image)

        def question(candidate: Medium, other: Medium | None) -> Question:
            pixels, rate = (None, None) if other is None else (other.pixels, other.rate)
            return Question(prompt, candidate.pixels, pixels, instruction, fps=(candidate.rate, rate))

        n = len(candidates)
        if reference is not None or not self.compares:
            return Task(row, [question(medium, reference) for medium in candidates], "each" if grouped else "one", n)
        if n < 2:
            raise InputError(
                "a pairwise judge cannot score one candidate by itself.",
                "Give the row a reference or further candidates, or give --reference or --kind pointwise.",
            )
        return Task(row, list(itertools.starmap(question, itertools.permutations(candidates, 2))), "pairs", n)

    def _text(self, content: dict[str, Any], key: str, default: str | None) -> str:
        text = default if content.get(key) is None else content[key]
        if not isinstance(text, str) or not text.strip():
            has = f"no {key}" if text is None else f"the {key} {short(text)}"
            raise InputError(f"the row has {has}.", "Give it a text, or --prompt for rows that have none.")
        return text

    def _medium(self, value: Any, key: str) -> Medium:
        """A path or bytes, or datasets' {"bytes", "path"}."""
        name, data = (value.get("path"), value.get("bytes")) if isinstance(value, dict) else (value, value)
        if not isinstance(name, str) or not name:
            name = None
        if name is not None and (name.startswith("data:") or "://" in name):
            raise InputError(
                f"the row's {key} is the address {shown(name)}.", "Download it, or write it to a file, and name that."
            )
        source = data if isinstance(data, bytes) and data else None if name is None else self.folder / name
        if source is None:
            raise InputError(f"the row's {key} is {short(value)}, which is no picture.", "Give a path, or bytes.")
        if source not in self.seen:
            if self.sizes_only:
                self.seen[source] = blank(*media_size(source, self.run.max_frames, f"the row's {key}")), None
                return Medium(name, *self.seen[source])
            pixels = as_pixels(source, f"the row's {key}", self.run.max_frames)
            self.seen[source] = pixels, read_rate(source, f"the row's {key}") if self.knows_rate else None
        return Medium(name, *self.seen[source])


def instruction_beside(name: str, folder: Path) -> str:
    """A row's instruction: a name of ours as it is, a file's from the folder of the rows."""
    return name if is_ours(name) else str(folder / name)


def carried(content: dict[str, T]) -> dict[str, T]:
    """The keys of a row that are passed on unread."""
    unread = {"video"} if "candidate" in content or "candidates" in content else set()
    return {key: value for key, value in content.items() if key not in _READ - unread}


def refuse(faults: Iterable[FaultyRow | None], table: Table) -> None:
    """Raises FaultyRows naming all rows that cannot be scored, if there are any."""
    faulty = [fault for fault in faults if fault is not None]
    if faulty:
        raise FaultyRows(faulty, can_skip=len(faulty) < len(table))


def parquet_schema(table: Table, run: ScoreRun) -> pa.Schema:
    """The columns of a Parquet output. Raises InputError where the rows' answers do not go into the same columns."""
    columns = table.columns(_READ)
    kept = carried(columns)
    if taken := sorted(run.answer_keys & set(kept)):
        raise InputError(f"{table.path} has a column {taken[0]!r}, where the scores go.", "Give it another name.")
    grouped = "candidates" in columns
    if grouped and "candidate" in columns:
        raise InputError(
            f"{table.path} has both candidate and candidates, whose scores no Parquet column can hold together.",
            "Write .jsonl, or put a single candidate into a list.",
        )
    names = pa.list_(pa.string()) if grouped else pa.string()
    number = pa.list_(pa.float32()) if grouped else pa.float32()
    kept |= {"prompt": pa.string(), "candidates" if grouped else "candidate": names}
    named = grouped or "candidate" in columns  # otherwise `image` is the candidate
    kept |= dict.fromkeys(("reference", *(["image"] if named else []), "instruction"), pa.string())
    kept |= {"probability": number, "margin": number} | ({"order": pa.list_(pa.int32())} if grouped else {})
    return pa.schema(kept | {"orders": pa.string()} | ({"reason": names} if run.explain else {}))
