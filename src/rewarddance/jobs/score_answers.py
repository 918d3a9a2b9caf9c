"""What is asked of a judge for one row of a table, and its answer as keys of the row that goes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from rewarddance.errors import RewardDanceError
from rewarddance.protocols import RewardModel
from rewarddance.reward.ranking import ranked, rivals
from rewarddance.types import Question, Verdict

KEYS = frozenset({"probability", "margin", "order"})
REASON = "reason"
"""The key of the reasons, where they are asked for."""
Explain = Callable[[Sequence[Question]], Verdict]
"""Verdicts with their reasons."""


class Task(NamedTuple):
    """What is asked for one row. row: what its output row holds besides the answer. form: how the answer is made of
    the margins: of `one` question, of one for `each` candidate, or of all ordered `pairs` of n candidates."""

    row: dict[str, Any]
    questions: list[Question]
    form: Literal["one", "each", "pairs"]
    n: int


class Answer(NamedTuple):
    """The margins of a task's questions, and a reason for each of its n candidates where they were asked for."""

    margin: Float[Tensor, " Q"]
    reasons: tuple[str, ...] | None = None


def ask(judge: RewardModel, tasks: Sequence[Task], explain: Explain | None = None) -> list[Answer | RewardDanceError]:
    """Each task's answer, all asked together; or, for a task that cannot be answered, the error.

    explain: the judge's reasons, if they are wanted. Tasks are asked again by halves until one is alone: it must not
    take the others with it.
    """
    if not tasks:
        return []
    try:
        if explain is not None:
            return [*_explained(judge, tasks, explain)]
        margin = judge([question for task in tasks for question in task.questions]).margin.float().cpu()
        return [Answer(own) for own in margin.split([len(task.questions) for task in tasks])]
    except RewardDanceError as error:
        if len(tasks) == 1:
            return [error]
        half = len(tasks) // 2
        return ask(judge, tasks[:half], explain) + ask(judge, tasks[half:], explain)


def _explained(judge: RewardModel, tasks: Sequence[Task], explain: Explain) -> list[Answer]:
    """Answers with reasons; in a tournament each candidate's is for its verdict against the best of the others."""
    asked = [question for task in tasks if task.form == "pairs" for question in task.questions]
    cups = judge(asked).margin.float().cpu() if asked else torch.zeros(0)
    margins: list[Tensor | None] = []
    wanted: list[list[Question]] = []
    for task in tasks:
        own = cups[: len(task.questions)] if task.form == "pairs" else None
        cups = cups if own is None else cups[len(own) :]
        margins.append(own)
        wanted.append(task.questions if own is None else _against_best(task, own))
    verdict = explain([question for questions in wanted for question in questions])
    found, start = [], 0
    for margin, questions in zip(margins, wanted, strict=True):
        part = slice(start, start + len(questions))
        direct = verdict.margin[part].float().cpu()
        found.append(Answer(direct if margin is None else margin, (verdict.reasons or ())[part]))
        start += len(questions)
    return found


def _against_best(task: Task, margin: Float[Tensor, " Q"]) -> list[Question]:
    """Of a tournament's questions, those of each candidate against the best of the others."""
    best = rivals(ranked(task.n, margin).order.tolist())
    return [task.questions[c * (task.n - 1) + r - (r > c)] for c, r in enumerate(best)]


def answer_of(task: Task, answer: Answer) -> dict[str, Any]:
    """The answer as keys of the output row.

    Of pairs, a candidate's margin is its mean margin against each of the others in both orders; the order is by wins.
    Otherwise the order is by margin. In both, ties are broken by the lower index.
    """
    margin, reasons = answer
    if task.form == "one":
        found = {"probability": Verdict(margin).probability.item(), "margin": margin.item()}
        return found | ({REASON: reasons[0]} if reasons else {})
    order = margin.argsort(descending=True, stable=True)
    if task.form == "pairs":
        ranking = ranked(task.n, margin)
        order, margin = ranking.order, (ranking.margins - ranking.margins.T).sum(1) / (2 * (task.n - 1))
    probability = Verdict(margin).probability
    found = {"probability": probability.tolist(), "margin": margin.tolist(), "order": order.tolist()}
    return found | ({REASON: [*reasons]} if reasons else {})


def blank(task: Task, explained: bool) -> Answer:
    """An answer of the same shape as the true one."""
    return Answer(torch.zeros(len(task.questions)), ("",) * task.n if explained else None)
