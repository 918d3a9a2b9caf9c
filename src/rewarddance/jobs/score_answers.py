"""The answers of `rewarddance score`: tasks asked together, and each answer as keys of its row."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from rewarddance.errors import InputError, RewardDanceError, WrongScoreCount
from rewarddance.jobs.score_rows import Task
from rewarddance.protocols import RewardModel, checked_verdict, needs_reference
from rewarddance.reward.ranking import ranked, rivals
from rewarddance.types import Pixels, Prompt, Question, Verdict

Explain = Callable[[Sequence[Question]], Verdict]
"""Verdicts with their reasons."""


def explainer(judge: RewardModel) -> Explain:
    """How a judge gives reasons. Raises InputError where it gives none."""
    explain: Explain | None = getattr(judge, "explain", None)
    if explain is None:
        raise InputError(f"the reward {judge!r} gives no reasons.", "Leave explain out.")
    explain([])
    return explain


def ask(
    judge: RewardModel, tasks: Sequence[Task], explain: Explain | None = None
) -> list[dict[str, Any] | RewardDanceError]:
    """Each task's answer as keys of its row, all asked together; or, for a task that cannot be answered, the error.

    explain: the judge's reasons, if they are wanted. Tasks are asked again by halves until one is alone: it must not
    take the others with it. Raises WrongScoreCount of a reward that is wrong whatever it is asked.
    """
    if not tasks:
        return []
    try:
        if explain is not None:
            answers = [*_explained(judge, tasks, explain)]
        else:
            answers = [answer_of(task, margin) for task, margin in zip(tasks, _margins(judge, tasks), strict=True)]
        return [answer | asked_in(judge, task) for task, answer in zip(tasks, answers, strict=True)]
    except WrongScoreCount:
        raise
    except RewardDanceError as error:
        if len(tasks) == 1:
            return [error]
        half = len(tasks) // 2
        return ask(judge, tasks[:half], explain) + ask(judge, tasks[half:], explain)


def asked_in(judge: RewardModel, task: Task) -> dict[str, str]:
    """The key `orders` of a row that a judge of pairs answered: in one order its leaning to a place counts, too."""
    orders = getattr(getattr(judge, "config", None), "orders", None)
    return {"orders": orders} if orders and task.form != "pairs" and needs_reference(judge) else {}


def _margins(judge: RewardModel, tasks: Sequence[Task]) -> tuple[Float[Tensor, " Q"], ...]:
    """The margins of each task's questions."""
    if not tasks:
        return ()
    questions = [question for task in tasks for question in task.questions]
    margin = checked_verdict(judge(questions), questions).margin.float().cpu()
    return margin.split([len(task.questions) for task in tasks])


def _explained(judge: RewardModel, tasks: Sequence[Task], explain: Explain) -> Iterator[dict[str, Any]]:
    """Answers with reasons; in a tournament each candidate's is for its verdict against the best of the others."""
    tournaments = iter(_margins(judge, [task for task in tasks if task.form == "pairs"]))
    margins = [next(tournaments) if task.form == "pairs" else None for task in tasks]
    questions = [
        task.questions if margin is None else _against_best(task, margin)
        for task, margin in zip(tasks, margins, strict=True)
    ]
    asked = list(itertools.chain(*questions))
    verdict = checked_verdict(explain(asked), asked)
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


def score_media(
    judge: RewardModel,
    candidates: Sequence[Pixels],
    prompts: Sequence[Prompt],
    references: Sequence[Pixels | None],
    batch_size: int,
    explain: bool = False,
) -> list[dict[str, Any]]:
    """Rows of N candidates, each for its prompt and against its reference if it has one, in memory.

    batch_size: how many are asked about together. Raises InputError or RewardError naming the first that cannot be
    scored.
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
    give_reasons, rows = explainer(judge) if explain else None, []
    for start in range(0, len(tasks), batch_size):
        batch = tasks[start : start + batch_size]
        for task, answer in zip(batch, ask(judge, batch, give_reasons), strict=True):
            if isinstance(answer, RewardDanceError):
                raise answer
            rows.append(task.row | answer)
    return rows
