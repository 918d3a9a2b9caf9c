"""`rewarddance score`: a judge's verdicts on pictures and videos of any number, from a table of rows into another.

A row holds a prompt and one candidate, or several in `candidates`. What is asked of it:

| row | pairwise judge | any other judge |
|---|---|---|
| candidate, reference | is it better than the reference? | how much better is it than the reference? |
| candidate | cannot be answered | how good is it by itself? |
| candidates, reference | each against the reference | each against the reference |
| candidates | all pairs in both orders: a tournament | each by itself |
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
from pydantic import Field

from rewarddance.data.journal import RowFile, beside
from rewarddance.data.media import MAX_FRAMES, as_pixels, read_rate
from rewarddance.data.tables import FolderTable, Row, Table, open_table
from rewarddance.errors import InputError, RewardDanceError
from rewarddance.jobs.score_answers import KEYS, REASON, Answer, Explain, Task, answer_of, ask, blank
from rewarddance.protocols import RewardModel
from rewarddance.reward.instructions import load_instruction
from rewarddance.reward.loading import load_reward
from rewarddance.runtime.checkpoint import find_checkpoint, writable_folder
from rewarddance.runtime.config import Recipe, keep_recipe
from rewarddance.runtime.devices import digest_of, find_device
from rewarddance.runtime.tracking import progress_bar
from rewarddance.types import OtherPixels, Pixels, Prompt, Question

T = TypeVar("T")
PIXEL_VALUES = 2**28
"""A batch is closed when its pictures hold so many numbers (1 GiB), however few its rows are."""
_READ = frozenset({"prompt", "candidate", "candidates", "image", "video", "reference", "instruction"})


class ScoreRun(Recipe):
    """`rewarddance score`: which judge answers what is asked in `input`, and where the answers go.

    input: a folder of pictures and videos, or a .jsonl or .parquet file; output: .jsonl or .parquet. kind, orders,
    instruction: of the judge, where they are not its own. prompt, reference: of the rows that have none. batch_size:
    rows that are read, asked and written together. max_frames: of a longer video. device: cpu, cuda, or None for cuda
    where there is one. explain: with the judge's reasons.
    """

    input: Path
    output: Path
    judge: str
    kind: str | None = None
    orders: str | None = None
    instruction: str | None = None
    prompt: str | None = None
    reference: Path | None = None
    batch_size: int = Field(default=32, ge=1)
    max_frames: int = Field(default=MAX_FRAMES, ge=1)
    device: str | None = None
    explain: bool = False

    @property
    def answers(self) -> frozenset[str]:
        """The keys of an answer."""
        return KEYS | {REASON} if self.explain else KEYS


class RecordedRun(ScoreRun):
    """A ScoreRun with what its files held when it began, so that it is not gone on with when they have changed."""

    input_digest: str
    judge_digest: str
    reference_digest: str
    instruction_digest: str = ""


def score(run: ScoreRun, strict: bool = False) -> dict[str, Any]:
    """Score every row; returns where the scores are, and how many rows were scored and failed.

    An interrupted run goes on where it stopped. A row that cannot be scored goes with its reason to
    `<output>.failed.jsonl`; with `strict` it ends the run. Raises InputError for what is wrong with all rows: the
    files, the judge, an output that holds another run.
    """
    kinds = (".jsonl", ".parquet")
    if run.output.suffix not in kinds:
        raise InputError(f"the output {run.output} is no table.", f"Let its name end in {' or '.join(kinds)}.")
    if run.output.resolve() == run.input.resolve():
        raise InputError(f"the output {run.output} is the input.", "Choose another output.")
    table = open_table(run.input)
    run = run.model_copy(update={"device": find_device(run.device)})
    recorded, record = _recorded(run, table), beside(run.output, "config.yaml")
    writable_folder(run.output.parent)
    begun = beside(run.output, "progress.json").exists()
    if (begun or run.output.exists()) and not record.exists():
        raise InputError(f"the output {run.output} exists and is not of a run that can be continued.", "Move it away.")
    if begun:
        keep_recipe(recorded, record)
    results = RowFile(run.output, _schema(table, run) if run.output.suffix == ".parquet" else None)
    if not results.progress.finished:
        if run.instruction is not None:
            load_instruction(run.instruction)
        judge, kind, explain = _judge(run)
        knows_rate = getattr(getattr(judge, "config", None), "fps", None) is not None
        reader = RowReader(run, kind, table, knows_rate)
        if not begun:  # nothing was written under it yet, so it binds nobody
            record.unlink(missing_ok=True)
        keep_recipe(recorded, record)
        _fill(results, table, reader, judge, explain, strict)
        results.finish()
    done = results.progress
    found = {"scores": str(run.output), "rows": done.read, "scored": done.written, "failed": done.failed}
    return found | ({"failures": str(results.failures)} if done.failed else {})


def _fill(
    results: RowFile, table: Table, reader: RowReader, judge: RewardModel, explain: Explain | None, strict: bool
) -> None:
    """Read, ask and write the rows that are left, batch by batch.

    A batch ends at the same rows whether the run was interrupted or not, so that the answers are the same to the bit.
    """
    read = results.progress.read
    started = time.monotonic()
    with progress_bar("scoring", len(table), read) as bar:
        for batch in ahead(batches(reader, table.rows(read), results)):
            asked = [(number, task) for number, task in batch if isinstance(task, Task)]
            found = ask(judge, [task for _, task in asked], explain)
            answers = dict(zip([number for number, _ in asked], found, strict=True))
            rows, failures = [], []
            for number, task in batch:
                answer = task if isinstance(task, RewardDanceError) else answers[number]
                if isinstance(task, Task) and isinstance(answer, Answer):
                    rows.append(task.row | answer_of(task, answer))
                    continue
                assert isinstance(answer, RewardDanceError)
                if strict:
                    raise InputError(f"line {number} of {table.path}: {answer.what}", answer.remedy)
                failures.append({"line": number, "reason": answer.what, "remedy": answer.remedy})
            results.commit(rows, failures, len(batch))
            bar.advance(len(batch))
            bar.show(**{"rows/s": (results.progress.read - read) / (time.monotonic() - started)})


class RowReader:
    """Rows to tasks. Within a batch, pictures of one source are one tensor, so that a judge encodes them once.

    timed: the rates of videos are read too, for a judge that knows one.
    """

    def __init__(self, run: ScoreRun, kind: str, table: Table, timed: bool = False) -> None:
        """Raises InputError where no row of the table could be answered, and for a reference that cannot be read."""
        self.run, self.kind, self.folder = run, kind, table.folder
        self.seen: dict[Path | bytes, Pixels] = {}
        self.timed, self.rates = timed, dict[int, float | None]()
        if isinstance(table, FolderTable):
            if run.prompt is None and not table.has_prompts:
                raise InputError(
                    f"the pictures in {table.path} have no prompts.", "Give --prompt, or a .txt beside each picture."
                )
            if kind == "pairwise" and run.reference is None:
                raise InputError(
                    "a pairwise judge cannot score one picture by itself.", "Give --reference, or --kind pointwise."
                )
        self.reference = None if run.reference is None else as_pixels(run.reference, max_frames=run.max_frames)

    def task(self, content: dict[str, Any]) -> Task:
        """What is asked for a row. Raises InputError saying what it lacks, or naming a file that cannot be read."""
        named = "candidate" in content or "candidates" in content  # then `image` is the prompt's
        places = ("candidate", "candidates") if named else ("image", "video")
        given = [key for key in places if content.get(key) is not None]
        if len(given) != 1:
            has = "no candidate" if not given else f"both {' and '.join(given)}"
            raise InputError(f"the row has {has}.", "Give it one of candidate, candidates, image and video.")
        row = carried(content)
        if taken := sorted(self.run.answers & set(row)):
            raise InputError(f"the row has a key {taken[0]!r}, where its score goes.", "Give the key another name.")
        row |= {"prompt": self._text(content, "prompt", self.run.prompt)}
        value = content[given[0]]
        group = value if given[0] == "candidates" else [value]
        if not isinstance(group, list) or not group:
            raise InputError("the row's candidates are no list of pictures.", "Give a list of at least one path.")
        names, candidates = zip(*(self._media(each, "candidate") for each in group), strict=True)
        row |= {"candidates": list(names)} if given[0] == "candidates" else {"candidate": names[0]}
        reference, image = self.reference, None
        if self.run.reference is not None:
            row["reference"] = str(self.run.reference)
        if content.get("reference") is not None:
            row["reference"], reference = self._media(content["reference"], "reference")
        if named and content.get("image") is not None:
            row["image"], image = self._media(content["image"], "image")
        instruction = None
        if content.get("instruction") is not None:
            instruction = row["instruction"] = self._text(content, "instruction", None)
        n, prompt = len(candidates), Prompt(row["prompt"], image=image)
        if reference is None and self.kind == "pairwise":
            if n < 2:
                raise InputError(
                    "a pairwise judge cannot score one candidate by itself.",
                    "Give the row a reference or further candidates, or give --reference or --kind pointwise.",
                )
            pairs = itertools.permutations(candidates, 2)
            asked = [Question(prompt, c, r, instruction, self._rates(c, r)) for c, r in pairs]
            return Task(row, asked, "pairs", n)
        asked = [Question(prompt, each, reference, instruction, self._rates(each, reference)) for each in candidates]
        return Task(row, asked, "each" if given[0] == "candidates" else "one", n)

    def _text(self, content: dict[str, Any], key: str, default: str | None) -> str:
        text = default if content.get(key) is None else content[key]
        if not isinstance(text, str) or not text.strip():
            said = f"no {key}" if text is None else f"the {key} {_short(text)}"
            raise InputError(f"the row has {said}.", "Give it a text, or --prompt for rows that have none.")
        return text

    def _rates(self, candidate: Pixels, reference: OtherPixels | None) -> tuple[float | None, float | None]:
        return self.rates.get(id(candidate)), self.rates.get(id(reference))

    def _media(self, value: Any, key: str) -> tuple[str | None, Pixels]:
        """A path or bytes, or datasets' {"bytes", "path"}, as its name and its pixels."""
        name, held = (value.get("path"), value.get("bytes")) if isinstance(value, dict) else (value, value)
        if not isinstance(name, str) or not name:
            name = None
        source = held if isinstance(held, bytes) and held else None if name is None else self.folder / name
        if source is None:
            raise InputError(f"the row's {key} is {_short(value)}, which is no picture.", "Give a path, or bytes.")
        if source not in self.seen:
            self.seen[source] = as_pixels(source, f"the row's {key}", self.run.max_frames)
            if self.timed:
                self.rates[id(self.seen[source])] = read_rate(source, f"the row's {key}")
        return name, self.seen[source]


def batches(
    reader: RowReader, rows: Iterator[Row], results: RowFile
) -> Iterator[list[tuple[int, Task | RewardDanceError]]]:
    """Rows as tasks, or as the errors that say why they are none, with their numbers; the run's batch size together."""
    run = reader.run
    batch: list[tuple[int, Task | RewardDanceError]] = []
    for number, content in rows:
        try:
            if isinstance(content, InputError):
                raise content
            task = reader.task(content)
            # Before the judge has worked for it: can the file hold the row?
            results.encode([task.row | answer_of(task, blank(task, run.explain))])
            batch.append((number, task))
        except InputError as error:
            batch.append((number, error))
        if len(batch) == run.batch_size or sum(pixels.numel() for pixels in reader.seen.values()) > PIXEL_VALUES:
            yield batch
            batch, reader.seen = [], {}
    if batch:
        yield batch


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, the next one made in a thread while the last is used: pictures are read while the judge works."""
    with ThreadPoolExecutor(max_workers=1) as worker:
        coming = worker.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = worker.submit(next, items, None)
            yield item


def carried(content: dict[str, T]) -> dict[str, T]:
    """The keys of a row that are passed on unread."""
    own = {"video"} if "candidate" in content or "candidates" in content else set()
    return {key: value for key, value in content.items() if key not in _READ - own}


def _schema(table: Table, run: ScoreRun) -> pa.Schema:
    """The columns of a Parquet output. Raises InputError where the rows' answers do not go into the same columns."""
    columns = table.columns(_READ)
    kept = carried(columns)
    if taken := sorted(run.answers & set(kept)):
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
    kept |= dict.fromkeys(("reference", "image", "instruction"), pa.string())
    kept |= {"probability": number, "margin": number} | ({"order": pa.list_(pa.int32())} if grouped else {})
    kept |= {REASON: names} if run.explain else {}
    return pa.schema(kept)


def _judge(run: ScoreRun) -> tuple[RewardModel, str, Explain | None]:
    """The judge, its kind, and how it gives reasons; raises InputError where they are wanted and it gives none."""
    changes = {name: getattr(run, name) for name in ("kind", "orders", "instruction")}
    judge = load_reward(run.judge, run.device or "cpu", **{k: v for k, v in changes.items() if v is not None})
    if run.explain:
        judge.explain([])
    return judge, judge.config.kind, judge.explain if run.explain else None


def _recorded(run: ScoreRun, table: Table) -> RecordedRun:
    folder, reference = find_checkpoint(run.judge), run.reference
    template = Path((run.instruction or "").partition("#")[0])  # a file, where it is no name of ours
    paths: dict[str, Any] = {"input": run.input.resolve(), "output": run.output.name, "judge": str(folder.resolve())}
    paths["reference"] = reference and reference.resolve()
    seen = {
        "input_digest": table.digest,
        "judge_digest": digest_of(folder.rglob("*")),
        "reference_digest": digest_of([reference, *reference.rglob("*")]) if reference else "",
        "instruction_digest": digest_of([template]) if template.is_file() else "",
    }
    return RecordedRun.model_validate(run.model_dump() | paths | seen)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
