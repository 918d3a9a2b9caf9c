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
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rewarddance.data.journal import RowFile, beside
from rewarddance.data.tables import FolderTable, Table, open_table
from rewarddance.errors import InputError
from rewarddance.jobs.fleet import Fleet
from rewarddance.jobs.recipes import ScoreRun
from rewarddance.jobs.score_answers import Explain, explainer
from rewarddance.jobs.score_batches import Answered, answered, batches, row_faults
from rewarddance.jobs.score_fleet import answers_of_fleet
from rewarddance.jobs.score_rows import RowReader, instruction_beside, parquet_schema, refuse
from rewarddance.protocols import RewardModel
from rewarddance.reward.function_reward import is_factory
from rewarddance.reward.identity import reward_digest
from rewarddance.reward.instructions import load_instruction, template_file
from rewarddance.reward.led import Load, led
from rewarddance.reward.loading import load_reward
from rewarddance.reward.remote.addresses import is_address
from rewarddance.runtime import process_group
from rewarddance.runtime.ahead import ahead
from rewarddance.runtime.checkpoint import find_checkpoint, writable_folder
from rewarddance.runtime.config import keep_recipe
from rewarddance.runtime.devices import digest_of, find_device
from rewarddance.runtime.lock import locked
from rewarddance.runtime.tracking import progress_bar


class RecordedRun(ScoreRun):
    """A ScoreRun with what its files held when it began: it does not go on when they have changed."""

    input_digest: str
    judge_digest: str
    reference_digest: str
    instruction_digest: str = ""
    criteria_digest: str = ""


_MAY_CHANGE = ("batch_size", "input")
"""Keys with which a run may go on otherwise than it began: of memory, and a path whose content is compared."""


def run_scoring(run: ScoreRun, judge: RewardModel | None = None, named: bool = True) -> dict[str, Any] | None:
    """Score every row; returns where the scores are, and how many rows were scored and failed.

    With `judge_sharded` all processes call this alike; the first one reads and writes, and all others return None.

    judge: in the place of the one that the run names; named: it is that one, loaded already. An interrupted run goes on
    where it stopped. A row that cannot be scored goes with its reason to `<output>.failed.jsonl`; with `strict` it ends
    the run. With `ray`, workers on other machines ask the judge, and rows, order and answers are those of one process;
    a run may go on with it or without.
    Raises InputError for what is wrong with all rows: the files, the judge, an output that holds another run.
    """
    if run.judge_sharded:
        if judge is not None:
            raise InputError(f"{judge!r} cannot be split over processes.", "Give the judge's name.")
        with process_group.init_process_group():
            return led(functools.partial(_scored, run, None, True))
    return _scored(run, judge, named, load_reward)


def _scored(run: ScoreRun, judge: RewardModel | None, named: bool, load: Load) -> dict[str, Any]:
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
    recorded, record = _recorded(run, table, None if named else judge), beside(run.output, "config.yaml")
    writable_folder(run.output.parent)
    with locked(run.output):
        begun = beside(run.output, "progress.json").exists()
        if (begun or run.output.exists()) and not record.exists():
            raise InputError(
                f"the output {run.output} exists and is not of a run that can be continued.", "Move it away."
            )
        if begun:
            keep_recipe(recorded, record, free=_MAY_CHANGE)
        results = RowFile(run.output, parquet_schema(table, run) if run.output.suffix == ".parquet" else None)
        if not results.progress.finished:
            if run.instruction is not None:
                load_instruction(run.instruction)
            answers = answers_of_fleet(run, table, results, fleet, begun) if fleet else None
            if answers is None:
                asked: RewardModel = judge or load(run.judge, run.device or "cpu", run.dtype, **run.changes)
                explain = explainer(asked) if run.explain else None
                reader = RowReader(run, asked, table)
                if not begun and not run.skip_faulty:
                    refuse(row_faults(reader, table.rows(), asked, results), table)
                answers = _of_process(reader, table, results, asked, explain)
            keep_recipe(recorded, record, binding=begun, free=_MAY_CHANGE)  # of nothing written yet it binds nobody
            _fill(results, table, answers, strict=run.strict)
            results.finish()
    done = results.progress
    result = {"scores": str(run.output), "rows": done.read, "scored": done.written, "failed": done.failed}
    if isinstance(table, FolderTable) and table.left_out:
        result["left_out"] = table.left_out
    return result | ({"failures": str(results.failures)} if done.failed else {})


def _recorded(run: ScoreRun, table: Table, given: RewardModel | None) -> RecordedRun:
    """The run with its files' digests. given: the judge, where it is an object and none of a name."""
    reference, judge = run.reference, run.judge
    if given is None and not is_factory(judge) and not is_address(judge):
        folder = find_checkpoint(judge).resolve()
        judge, digest = str(folder), digest_of(folder.rglob("*"))
    else:
        digest = reward_digest(judge, given, **run.changes)
    instructions = {instruction_beside(name, table.folder) for name in table.texts("instruction")}
    templates = {"instruction": instructions | {run.instruction or ""}, "criteria": {run.criteria or ""}}
    files = {key: [*map(template_file, names)] for key, names in templates.items()}
    fields = run.model_dump() | {
        "input": run.input.resolve(),
        "output": run.output.name,
        "judge": judge,
        "reference": reference and reference.resolve(),
        "input_digest": table.digest,
        "judge_digest": digest,
        "reference_digest": digest_of([reference, *reference.rglob("*")]) if reference else "",
    }
    fields |= {
        f"{key}_digest": digest_of(found) if any(map(Path.is_file, found)) else "" for key, found in files.items()
    }
    return RecordedRun.model_validate(fields)


def _of_process(
    reader: RowReader, table: Table, results: RowFile, judge: RewardModel, explain: Explain | None
) -> Iterator[list[Answered]]:
    """The answers to the rows that are left, batch by batch, in this process."""
    begin = results.progress.read
    for batch in ahead(batches(reader, table.rows(begin), results, begin)):
        yield answered(judge, batch, explain)


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
                    raise InputError(f"{table.where(number)}: {answer.what}", answer.remedy)
                named = {"candidate": table.names[number - 1]} if isinstance(table, FolderTable) else {}
                failures.append({"line": number, **named, "reason": answer.what, "remedy": answer.remedy})
            results.commit(rows, failures, len(batch))
            bar.advance(len(batch))
            bar.show(**{"rows/s": (results.progress.read - begin) / (time.monotonic() - started)})
