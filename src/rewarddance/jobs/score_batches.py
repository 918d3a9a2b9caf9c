"""The rows of `rewarddance score` in batches: which go together, and their answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

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
