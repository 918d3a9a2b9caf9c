"""`rewarddance score`: a reward model's verdicts on pictures and videos of any number, one table of rows to another.

A row holds a prompt and one candidate, or several in `candidates`. What is asked of it:

| row | judge that needs a reference | any other judge |
|---|---|---|
| candidate, reference | is it better than the reference? | how much better is it than the reference? |
| candidate | cannot be answered | how good is it by itself? |
| candidates, reference | each against the reference | each against the reference |
| candidates | all pairs in both orders: a tournament | each by itself |
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from rewarddance.data.faults import FaultyRow, FaultyRows
from rewarddance.data.fields import short
from rewarddance.data.journal import RowFile, beside
from rewarddance.data.media import as_pixels, media_size, read_rate
from rewarddance.data.tables import FolderTable, Row, Table, open_table
from rewarddance.errors import InputError, RewardDanceError
from rewarddance.jobs.fleet import Fleet, absolute
from rewarddance.jobs.preflight import blank
from rewarddance.jobs.recipes import ScoreRun
from rewarddance.protocols import RewardModel, needs_reference
from rewarddance.reward.function_reward import is_factory
from rewarddance.reward.instructions import load_instruction
from rewarddance.reward.led import Load, led
from rewarddance.reward.loading import load_reward
from rewarddance.reward.ranking import ranked, rivals
from rewarddance.reward.remote.addresses import is_address
from rewarddance.runtime import process_group
from rewarddance.runtime.checkpoint import find_checkpoint, locked, writable_folder
from rewarddance.runtime.config import keep_recipe
from rewarddance.runtime.devices import digest_of, find_device
from rewarddance.runtime.tracking import progress_bar
from rewarddance.types import Pixels, Prompt, Question, Verdict

T = TypeVar("T")
Explain = Callable[[Sequence[Question]], Verdict]
"""Verdicts with their reasons."""
PIXEL_VALUES = 2**28
"""A batch is closed when its pictures hold so many numbers (1 GiB), however few its rows are."""
_READ = frozenset({"prompt", "candidate", "candidates", "image", "video", "reference", "instruction"})


class RecordedRun(ScoreRun):
    """A ScoreRun with what its files held when it began: it does not go on when they have changed."""

    input_digest: str
    judge_digest: str
    reference_digest: str
    instruction_digest: str = ""


def run_scoring(run: ScoreRun, judge: RewardModel | None = None) -> dict[str, Any] | None:
    """Score every row; returns where the scores are, and how many rows were scored and failed.

    With `judge_sharded` all processes call this alike; the first one reads and writes, and all others return None.

    judge: in the place of the one that the run names. An interrupted run goes on where it stopped. A row that cannot be
    scored goes with its reason to `<output>.failed.jsonl`; with `strict` it ends the run. With `ray`, workers on other
    machines ask the judge, and rows, order and answers are those of one process; a run may go on with it or without.
    Raises InputError for what is wrong with all rows: the files, the judge, an output that holds another run.
    """
    if run.judge_sharded:
        if judge is not None:
            raise InputError(f"{judge!r} cannot be split over processes.", "Give the judge's name.")
        with process_group.init_process_group():
            return led(functools.partial(_scored, run, None))
    return _scored(run, judge, load_reward)


def _scored(run: ScoreRun, judge: RewardModel | None, load: Load) -> dict[str, Any]:
    """`run_scoring` in one process, or in the first of several. load: what loads the judge."""
    if run.output.suffix not in (".jsonl", ".parquet"):
        raise InputError(f"the output {run.output} is no table.", "Let its name end in .jsonl or .parquet.")
    table = open_table(run.input)
    if run.output.resolve() == run.input.resolve():
        raise InputError(f"the output {run.output} is the input.", "Choose another output.")
    fleet = None
    if run.ray is not None:
        if judge is not None:
            raise InputError(f"{judge!r} cannot be handed to workers of Ray.", "Give the judge's name.")
        fleet = Fleet.join(run.ray, run.workers, run.device)
    run = run.model_copy(update={"device": fleet.device if fleet else find_device(run.device)})
    recorded, record = _recorded(run, table, named=judge is None), beside(run.output, "config.yaml")
    writable_folder(run.output.parent)
    with locked(run.output.parent, f".{run.output.name}.lock"):
        begun = beside(run.output, "progress.json").exists()
        if (begun or run.output.exists()) and not record.exists():
            raise InputError(
                f"the output {run.output} exists and is not of a run that can be continued.", "Move it away."
            )
        if begun:
            keep_recipe(recorded, record)
        results = RowFile(run.output, _schema(table, run) if run.output.suffix == ".parquet" else None)
        if not results.progress.finished:
            if run.instruction is not None:
                load_instruction(run.instruction)
            answers = _of_fleet(run, table, results, fleet, begun) if fleet else None
            if answers is None:
                asked: RewardModel = judge or load(run.judge, run.device or "cpu", run.dtype, **run.changes)
                explain = explainer(asked) if run.explain else None
                reader = RowReader(run, asked, table)
                if not begun and not run.skip_faulty:
                    refuse(row_faults(reader, table.rows(), asked), table)
                answers = _of_process(reader, table, results, asked, explain)
            if not begun:  # nothing was written under it yet, so it binds nobody
                record.unlink(missing_ok=True)
            keep_recipe(recorded, record)
            _fill(results, table, answers, strict=run.strict)
            results.finish()
    done = results.progress
    result = {"scores": str(run.output), "rows": done.read, "scored": done.written, "failed": done.failed}
    if isinstance(table, FolderTable) and table.left_out:
        result["left_out"] = table.left_out
    return result | ({"failures": str(results.failures)} if done.failed else {})


def row_faults(reader: RowReader, rows: Iterable[Row], judge: RewardModel) -> Iterator[FaultyRow | None]:
    """Of each row why it cannot be scored, or None; of media only the headers are read."""
    reader.sizes_only = True
    for number, content in rows:
        try:
            if isinstance(content, InputError):
                raise content
            questions = reader.task(content).questions
            for fault in getattr(judge, "faults", lambda asked: ())(questions):
                if fault is not None:
                    raise fault
            yield None
        except RewardDanceError as error:
            yield FaultyRow(f"line {number} of {reader.source}", error.what, error.remedy)
        reader.seen.clear()
    reader.sizes_only = False


def refuse(faults: Iterable[FaultyRow | None], table: Table) -> None:
    """Raises FaultyRows naming all rows that cannot be scored, if there are any."""
    found = [fault for fault in faults if fault is not None]
    if found:
        raise FaultyRows(found, can_skip=len(found) < len(table))


def explainer(judge: RewardModel) -> Explain:
    """How a judge gives reasons. Raises InputError where it gives none."""
    explain: Explain | None = getattr(judge, "explain", None)
    if explain is None:
        raise InputError(f"the reward {judge!r} gives no reasons.", "Leave explain out.")
    explain([])
    return explain


def _recorded(run: ScoreRun, table: Table, named: bool) -> RecordedRun:
    """The run with its files' digests. named: the judge is the one of that name, and no object."""
    from_code, reference = not named or is_factory(run.judge) or is_address(run.judge), run.reference
    judge = Path(run.judge.rpartition(":")[0]) if from_code else find_checkpoint(run.judge).resolve()
    template = Path((run.instruction or "").partition("#")[0])  # a file, where it is no name of ours
    fields = run.model_dump() | {
        "input": run.input.resolve(),
        "output": run.output.name,
        "judge": run.judge if from_code else str(judge),
        "reference": reference and reference.resolve(),
        "input_digest": table.digest,
        "judge_digest": digest_of([judge, *judge.rglob("*")]),
        "reference_digest": digest_of([reference, *reference.rglob("*")]) if reference else "",
        "instruction_digest": digest_of([template]) if template.is_file() else "",
    }
    return RecordedRun.model_validate(fields)


Answered = tuple[int, dict[str, Any] | RewardDanceError]
"""A row's number, and its output row or why there is none."""


def _of_process(
    reader: RowReader, table: Table, results: RowFile, judge: RewardModel, explain: Explain | None
) -> Iterator[list[Answered]]:
    """The answers to the rows that are left, batch by batch, in this process."""
    begin = results.progress.read
    for batch in ahead(batches(reader, table.rows(begin), results, begin)):
        yield answered(judge, batch, explain)


def answered(
    judge: RewardModel, batch: Sequence[tuple[int, Task | RewardDanceError]], explain: Explain | None
) -> list[Answered]:
    """A batch asked together, each row with its answer."""
    answers = iter(ask(judge, [task for _, task in batch if isinstance(task, Task)], explain))
    found: list[Answered] = []
    for number, task in batch:
        answer = next(answers) if isinstance(task, Task) else task
        found.append((number, task.row | answer if isinstance(task, Task) and isinstance(answer, dict) else answer))
    return found


def _fill(results: RowFile, table: Table, answers: Iterable[Sequence[Answered]], *, strict: bool) -> None:
    """Write the answers as they come, batch by batch.

    A batch ends at the same rows whether the run was interrupted or not, and in whichever process it is asked, so that
    the answers are the same to the bit.
    """
    begin, started = results.progress.read, time.monotonic()
    with progress_bar("scoring", len(table), begin) as bar:
        for batch in answers:
            rows, failures = [], []
            for number, answer in batch:
                if isinstance(answer, dict):
                    rows.append(answer)
                    continue
                if strict:
                    raise InputError(f"line {number} of {table.path}: {answer.what}", answer.remedy)
                failures.append({"line": number, "reason": answer.what, "remedy": answer.remedy})
            results.commit(rows, failures, len(batch))
            bar.advance(len(batch))
            bar.show(**{"rows/s": (results.progress.read - begin) / (time.monotonic() - started)})


# -- on many machines --------------------------------------------------------------------------------------------------


class ScoreWorker:
    """In a worker of a fleet: a judge, and the answers to the rows of one part of the table.

    A part is `batch_size` rows. check: give the rows' faults (`row_faults`) in place of their answers.
    """

    def __init__(self, run: ScoreRun, schema: pa.Schema | None, check: bool) -> None:
        self.run, self.check, self.table = run, check, open_table(run.input)
        self.judge = load_reward(run.judge, run.device or "cpu", run.dtype, **run.changes)
        self.explain = explainer(self.judge) if run.explain else None
        self.reader, self.results = RowReader(run, self.judge, self.table), RowFile(run.output, schema)

    def __call__(self, part: int) -> list[Any]:
        begin = part * self.run.batch_size
        rows = itertools.islice(self.table.rows(begin), self.run.batch_size)
        if self.check:
            return [*row_faults(self.reader, rows, self.judge)]
        parts = batches(self.reader, rows, self.results, begin)
        return [*itertools.chain.from_iterable(answered(self.judge, batch, self.explain) for batch in parts)]


def _of_fleet(run: ScoreRun, table: Table, results: RowFile, fleet: Fleet, begun: bool) -> Iterator[list[Answered]]:
    """The answers to the rows that are left, from the workers of a fleet, which look at all rows first."""
    run = _everywhere(run)
    size, begin = run.batch_size, results.progress.read

    def parts(first: int, check: bool) -> Iterator[list[Any]]:
        work = functools.partial(ScoreWorker, run, results.schema, check)
        for part, found in enumerate(fleet.in_order(work, range(first, -(-len(table) // size))), start=first):
            yield found[max(0, begin - part * size) :]
            if len(found) < min(size, len(table) - part * size):  # the file is broken from here on
                return

    if not begun and not run.skip_faulty:
        refuse(itertools.chain.from_iterable(parts(0, check=True)), table)
    return parts(begin // size, check=False)


def _everywhere(run: ScoreRun) -> ScoreRun:
    """The run with paths that hold wherever a worker stands."""
    changes = {name: absolute(getattr(run, name)) for name in ("judge", "instruction", "criteria")}
    files = {name: getattr(run, name) for name in ("input", "output", "reference")}
    return run.model_copy(update=changes | {name: file and file.resolve() for name, file in files.items()})


# -- rows in -----------------------------------------------------------------------------------------------------------


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
        self.run, self.source, self.folder, self.compares = run, table.path, table.folder, needs_reference(judge)
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
            self.reference = Medium(str(run.reference), as_pixels(run.reference, max_frames=run.max_frames))

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
            instruction = row["instruction"] = self._text(content, "instruction", None)
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


def batches(
    reader: RowReader, rows: Iterable[Row], results: RowFile, begin: int
) -> Iterator[list[tuple[int, Task | RewardDanceError]]]:
    """Rows as tasks, or as the errors that say why they are none, with their numbers; the run's batch size together.

    begin: how many rows of the table stand before these. A batch never goes on beyond a multiple of the batch size,
    even after one that was closed early, so batches do not depend on where the reading began.
    """
    run = reader.run
    batch: list[tuple[int, Task | RewardDanceError]] = []
    for read, (number, content) in enumerate(rows, start=begin + 1):
        try:
            if isinstance(content, InputError):
                raise content
            task = reader.task(content)
            # Before the judge has worked for it: can the file hold the row?
            blank = torch.zeros(len(task.questions))
            results.encode([task.row | answer_of(task, blank, ("",) * task.n if run.explain else None)])
            batch.append((number, task))
        except InputError as error:
            batch.append((number, error))
        if read % run.batch_size == 0 or sum(pixels.numel() for pixels, _ in reader.seen.values()) > PIXEL_VALUES:
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
    unread = {"video"} if "candidate" in content or "candidates" in content else set()
    return {key: value for key, value in content.items() if key not in _READ - unread}


def score_media(
    judge: RewardModel,
    candidates: Sequence[Pixels],
    prompts: Sequence[Prompt],
    references: Sequence[Pixels | None],
    explain: bool = False,
) -> list[dict[str, Any]]:
    """Rows of N candidates, each for its prompt and against its reference if it has one, in memory.

    Raises InputError or RewardError naming the first that cannot be scored.
    """
    if needs_reference(judge) and any(reference is None for reference in references):
        raise InputError(
            "a pairwise judge cannot score one picture by itself.",
            "Give a reference, or load it with kind='pointwise'.",
        )
    questions = [
        Question(prompt, candidate, reference)
        for prompt, candidate, reference in zip(prompts, candidates, references, strict=True)
    ]
    tasks = [Task({"prompt": question.prompt.text}, [question], "one", 1) for question in questions]
    rows = []
    for task, answer in zip(tasks, ask(judge, tasks, explainer(judge) if explain else None), strict=True):
        if isinstance(answer, RewardDanceError):
            raise answer
        rows.append(task.row | answer)
    return rows


# -- answers out -------------------------------------------------------------------------------------------------------


def ask(
    judge: RewardModel, tasks: Sequence[Task], explain: Explain | None = None
) -> list[dict[str, Any] | RewardDanceError]:
    """Each task's answer as keys of its row, all asked together; or, for a task that cannot be answered, the error.

    explain: the judge's reasons, if they are wanted. Tasks are asked again by halves until one is alone: it must not
    take the others with it.
    """
    if not tasks:
        return []
    try:
        if explain is not None:
            return [*_explained(judge, tasks, explain)]
        return [answer_of(task, margin) for task, margin in zip(tasks, _margins(judge, tasks), strict=True)]
    except RewardDanceError as error:
        if len(tasks) == 1:
            return [error]
        half = len(tasks) // 2
        return ask(judge, tasks[:half], explain) + ask(judge, tasks[half:], explain)


def _margins(judge: RewardModel, tasks: Sequence[Task]) -> tuple[Float[Tensor, " Q"], ...]:
    """The margins of each task's questions."""
    if not tasks:
        return ()
    margin = judge([question for task in tasks for question in task.questions]).margin.float().cpu()
    return margin.split([len(task.questions) for task in tasks])


def _explained(judge: RewardModel, tasks: Sequence[Task], explain: Explain) -> Iterator[dict[str, Any]]:
    """Answers with reasons; in a tournament each candidate's is for its verdict against the best of the others."""
    tournaments = iter(_margins(judge, [task for task in tasks if task.form == "pairs"]))
    margins = [next(tournaments) if task.form == "pairs" else None for task in tasks]
    questions = [
        task.questions if margin is None else _against_best(task, margin)
        for task, margin in zip(tasks, margins, strict=True)
    ]
    verdict = explain(list(itertools.chain(*questions)))
    parts = verdict.margin.float().cpu().split([len(part) for part in questions])
    reasons = iter(verdict.reasons or ())
    for task, margin, part in zip(tasks, margins, parts, strict=True):
        yield answer_of(task, part if margin is None else margin, tuple(itertools.islice(reasons, len(part))))


def _against_best(task: Task, margin: Float[Tensor, " Q"]) -> list[Question]:
    """Of a tournament's questions, those of each candidate against the best of the others."""
    best = rivals(ranked(task.n, margin).order.tolist())
    return [task.questions[c * (task.n - 1) + r - (r > c)] for c, r in enumerate(best)]


def answer_of(task: Task, margin: Float[Tensor, " Q"], reasons: tuple[str, ...] | None = None) -> dict[str, Any]:
    """The answer as keys of the output row, from the margins of the task's questions.

    Of pairs, a candidate's margin is its mean margin against each of the others in both orders; the order is by wins.
    Otherwise the order is by margin. In both, ties are broken by the lower index.
    """
    if task.form == "one":
        answer = {"probability": Verdict(margin).probability.item(), "margin": margin.item()}
        return answer | ({"reason": reasons[0]} if reasons else {})
    order = margin.argsort(descending=True, stable=True)
    if task.form == "pairs":
        ranking = ranked(task.n, margin)
        order, margin = ranking.order, (ranking.margins - ranking.margins.T).sum(1) / (2 * (task.n - 1))
    probability = Verdict(margin).probability
    answer = {"probability": probability.tolist(), "margin": margin.tolist(), "order": order.tolist()}
    return answer | ({"reason": [*reasons]} if reasons else {})


def _schema(table: Table, run: ScoreRun) -> pa.Schema:
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
    return pa.schema(kept | ({"reason": names} if run.explain else {}))
