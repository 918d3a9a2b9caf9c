"""`rewarddance score` on many machines: parts of the table are asked by workers of Ray, and come back in order."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from rewarddance.data.journal import RowFile
from rewarddance.data.tables import Table, open_table
from rewarddance.jobs.fleet import Fleet, absolute
from rewarddance.jobs.recipes import ScoreRun
from rewarddance.jobs.score_answers import explainer
from rewarddance.jobs.score_batches import Answered, answered, batches, row_faults
from rewarddance.jobs.score_rows import RowReader, refuse
from rewarddance.reward.loading import load_reward


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
            return [*row_faults(self.reader, rows, self.judge, self.results)]
        parts = batches(self.reader, rows, self.results, begin)
        return [*itertools.chain.from_iterable(answered(self.judge, batch, self.explain) for batch in parts)]


def answers_of_fleet(
    run: ScoreRun, table: Table, results: RowFile, fleet: Fleet, begun: bool
) -> Iterator[list[Answered]]:
    """The answers to the rows that are left, from the workers of a fleet, which look at all rows first."""
    run = _everywhere(run)
    size, begin = run.batch_size, results.progress.read

    def parts(first: int, check: bool) -> Iterator[list[Any]]:
        work = functools.partial(ScoreWorker, run, results.schema, check)
        for part, outcomes in enumerate(fleet.in_order(work, range(first, -(-len(table) // size))), start=first):
            yield outcomes[max(0, begin - part * size) :]
            if len(outcomes) < min(size, len(table) - part * size):  # the file is broken from here on
                return

    if not begun and not run.skip_faulty:
        refuse(itertools.chain.from_iterable(parts(0, check=True)), table)
    return parts(begin // size, check=False)


def _everywhere(run: ScoreRun) -> ScoreRun:
    """The run with paths that hold wherever a worker stands."""
    changes = {name: absolute(getattr(run, name)) for name in ("judge", "instruction", "criteria")}
    files = {name: getattr(run, name) for name in ("input", "output", "reference")}
    return run.model_copy(update=changes | {name: file and file.resolve() for name, file in files.items()})
