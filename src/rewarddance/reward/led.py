"""One process leads and the others answer with it: a command that runs in one, and a judge in pieces over all.

Scoring and searches are written for one process. Where a judge is larger than a device, the first process runs them as
they are; what it asks is shared by all processes, which hold the judge together (`ShardedJudge`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import distributed as dist

from rewarddance.errors import InputError, RewardDanceError
from rewarddance.reward.parallel import by_picture
from rewarddance.reward.sharded import load_sharded
from rewarddance.runtime import process_group
from rewarddance.types import Question, Verdict

T = TypeVar("T")
Load = Callable[..., Any]
"""As `load_reward`: (name, device, dtype, **changes)."""


class _LoadRequest(NamedTuple):
    """What the first process sends: load this judge."""

    arguments: tuple[Any, ...]
    changes: dict[str, Any]


class _AnswerRequest(NamedTuple):
    """What the first process sends: answer your share of these questions to a judge, by its number."""

    judge: int
    shares: list[list[Question]]


def led(work: Callable[[Load], T]) -> T | None:
    """What `work` returns in the first process; None in the others, which answer what it asks until it is done.

    work: is given what loads a judge in pieces over all processes. Raises InputError where there is one process only.
    """
    if process_group.world_size() == 1:
        raise InputError(
            "a sharded judge needs several processes.",
            "Start the command with torchrun --nproc-per-node N -m rewarddance, or leave judge_sharded out.",
        )
    judges: list[Any] = []
    if not process_group.is_main_process():
        while (request := _broadcast(None)) is not None:
            if isinstance(request, _LoadRequest):
                judges.append(load_sharded(*request.arguments, **request.changes))
            else:
                _answer(judges[request.judge], request.shares)
        return None
    in_step = True

    def load(*arguments: Any, **changes: Any) -> LedJudge:
        nonlocal in_step
        _broadcast(_LoadRequest(arguments, changes))
        in_step = False  # the others wait in the middle of it
        judges.append(load_sharded(*arguments, **changes))
        in_step = True
        return LedJudge(judges[-1], len(judges) - 1)

    try:
        return work(load)
    except process_group.ProcessStopped:
        in_step = False
        raise
    finally:
        if in_step:
            _broadcast(None)


class LedJudge:
    """A RewardModel in the first process, whose questions all processes answer. It gives no gradient.

    config: the judge's own.
    """

    differentiable = False

    def __init__(self, judge: Any, number: int) -> None:
        self.judge, self.number, self.config = judge, number, judge.config

    def __repr__(self) -> str:
        return repr(self.judge)

    @property
    def needs_reference(self) -> bool:
        return self.judge.needs_reference

    def faults(self, questions: Iterable[Question]) -> Iterator[RewardDanceError | None]:
        """As `Judge.faults`, by the first process alone."""
        return self.judge.faults(questions)

    def __call__(self, questions: Sequence[Question]) -> Verdict:
        """Margins [B]. Raises what the judge does; of several processes, what the first of them did."""
        if not questions:
            return Verdict(torch.zeros(0))
        order, n = by_picture(questions), process_group.world_size()
        parts = [order[share * len(order) // n : (share + 1) * len(order) // n] for share in range(n)]
        shares = [[questions[i] for i in part] for part in parts]
        _broadcast(_AnswerRequest(self.number, shares))
        margin = torch.zeros(len(questions))
        for part, answer in zip(parts, _answer(self.judge, shares), strict=True):
            if isinstance(answer, RewardDanceError):
                raise answer
            margin[part] = answer
        return Verdict(margin)


def _broadcast(request: Any) -> Any:
    """What the first process sends, in all of them."""
    received = [request]
    with process_group.waiting():
        dist.broadcast_object_list(received, src=0)
    return received[0]


@torch.no_grad()
def _answer(judge: Any, shares: list[list[Question]]) -> list[Any]:
    """The margins of all processes' shares, or why there are none, in each of them."""
    own_share = shares[process_group.rank()]
    with judge.together():
        try:
            answer: Any = judge(own_share).margin.float().cpu() if own_share else torch.zeros(0)
        except process_group.ProcessStopped:
            raise
        except RewardDanceError as error:
            answer = error
    return process_group.gather_objects(answer)
