"""The rows of `rewarddance score` in batches: which go together, and their answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from rewarddance.data.faults import FaultyRow
from rewarddance.data.journal import RowFile
from rewarddance.data.tables import Row
from rewarddance.errors import InputError, RewardDanceError
from rewarddance.jobs.score_answers import Explain, answer_of, ask
from rewarddance.jobs.score_rows import RowReader, Task
from rewarddance.protocols import RewardModel

PIXEL_VALUES = 2**28
"""A batch is closed when its pictures hold so many numbers (1 GiB), however few its rows are."""
Answered = tuple[int, dict[str, Any] | RewardDanceError]
"""A row's number, and its output row or why there is none."""


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
            batch.append((number, checked_task(reader, content, results)))
        except InputError as error:
            batch.append((number, error))
        if read % run.batch_size == 0 or sum(pixels.numel() for pixels, _ in reader.seen.values()) > PIXEL_VALUES:
            yield batch
            batch, reader.seen = [], {}
    if batch:
        yield batch


def row_faults(
    reader: RowReader, rows: Iterable[Row], judge: RewardModel, results: RowFile
) -> Iterator[FaultyRow | None]:
    """Of each row why it cannot be scored or its answer not be written, or None; of media only headers are read."""
    reader.sizes_only = True
    for number, content in rows:
        try:
            task = checked_task(reader, content, results)
            for fault in getattr(judge, "faults", lambda asked: ())(task.questions):
                if fault is not None:
                    raise fault
            yield None
        except RewardDanceError as error:
            yield FaultyRow(reader.where(number), error.what, error.remedy)
        reader.seen.clear()
    reader.sizes_only = False


def checked_task(reader: RowReader, content: dict[str, Any] | InputError, results: RowFile) -> Task:
    """What is asked for a row. Raises InputError where it cannot be asked, or the file of results cannot hold it."""
    if isinstance(content, InputError):
        raise content
    task = reader.task(content)
    blank = torch.zeros(len(task.questions))
    results.encode([task.row | answer_of(task, blank, ("",) * task.n if reader.run.explain else None)])
    return task


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
