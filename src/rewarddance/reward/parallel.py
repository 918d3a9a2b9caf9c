"""A judge on several processes: its weights on each of them (DDP), or in pieces over all of them (FSDP2).

torch's own fully_shard and DistributedDataParallel, which do on a CPU with gloo what they do on GPUs with NCCL.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.distributed import checkpoint as pieces
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from rewarddance.protocols import RewardModel
from rewarddance.reward.judge import Judge
from rewarddance.runtime import process_group
from rewarddance.types import Question, Verdict

T = TypeVar("T")


class ForwardDispatch(nn.Module):
    """A judge as a module whose forward is whatever is done with the judge.

    DDP and FSDP act where a module's forward begins and ends, and a judge is asked through methods of its own: done
    within this forward, they see it all. in_pieces: the weights are sharded.
    """

    def __init__(self, reward: Judge) -> None:
        super().__init__()
        self.reward, self.model, self.sharded = reward, reward.model, False

    def forward(self, do: Callable[[Judge], T]) -> T:
        if not (self.sharded and torch.is_grad_enabled()):
            return do(self.reward)
        with _in_one_go(self.reward):
            return do(self.reward)


@contextmanager
def _in_one_go(reward: Any) -> Iterator[None]:
    """A step's portion is one forward whatever its size: where the weights are in pieces, all must make the same."""
    budget, reward.vlm.tokens_at_once = reward.vlm.tokens_at_once, sys.maxsize
    try:
        yield
    finally:
        reward.vlm.tokens_at_once = budget


def replicated(lesson: ForwardDispatch) -> nn.Module:
    """The lesson with the gradients of all processes averaged; itself where there is one process.

    A judge leaves weights unused (the output head, in a regressive one), so DDP has to look for them.
    """
    if process_group.world_size() == 1:
        return lesson
    own = process_group.device()
    return DistributedDataParallel(
        lesson,
        device_ids=[own] if own.type == "cuda" else None,
        find_unused_parameters=True,
    )


def shard(lesson: ForwardDispatch, mesh: Any, half: bool) -> None:
    """Split the weights over the mesh, in place: layer by layer, and what stands outside of the layers at the end.

    half: computed in bfloat16, while the pieces and the sum of the gradients are what the weights were (float32, where
    they are trained). A judge's own weights are read in float32 always.
    """
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if half else MixedPrecisionPolicy()
    for layer in layers_of(lesson):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    for name in lesson.reward.own_weights():
        fully_shard(lesson.model.get_submodule(name.rpartition(".")[0]), mesh=mesh)
    fully_shard(lesson, mesh=mesh, mp_policy=policy)
    lesson.sharded = lesson.reward.vlm.steady = True  # type: ignore[attr-defined]


def layers_of(model: nn.Module) -> list[nn.Module]:
    """What is gather_full_tensors one at a time where the weights are in pieces; all else is gather_full_tensors for
    a whole step."""
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return [layer for stack in stacks for layer in stack]


def measured(lesson: ForwardDispatch, evaluate: Callable[[RewardModel], T]) -> T:
    """`evaluate` of the judge as it is now, without a graph, the same on all processes.

    Where each has all weights they share the questions; where they have pieces, all ask all.
    """
    lesson.eval()
    with torch.no_grad():
        if not lesson.sharded:
            found = evaluate(lesson.reward if process_group.world_size() == 1 else Spread(lesson.reward))
        else:
            found = lesson(evaluate)
            lesson.reshard()  # type: ignore[operator]
    lesson.train()
    return found


class Spread:
    """A RewardModel whose questions are shared by the processes, each of which has all answers afterwards."""

    def __init__(self, judge: RewardModel) -> None:
        self.judge = judge

    @property
    def needs_reference(self) -> bool:
        return self.judge.needs_reference

    def __call__(self, questions: Sequence[Question]) -> Verdict:
        order = together(questions)
        low, high = (
            at * len(order) // process_group.world_size() for at in (process_group.rank(), process_group.rank() + 1)
        )
        own = order[low:high]
        margin = torch.zeros(len(questions))
        margin[own] = self.judge([questions[i] for i in own]).margin.detach().cpu()
        return Verdict(process_group.sum_over_processes(margin))


def together(questions: Sequence[Question]) -> list[int]:
    """Numbers of the questions, those next to each other that show the same picture, so that few encode it twice."""
    seen: dict[int, int] = {}
    keys = [
        min(seen.setdefault(id(one), len(seen)) for one in (q.candidate, q.reference) if one is not None)
        for q in questions
    ]
    return sorted(range(len(questions)), key=keys.__getitem__)


def save_optimiser(lesson: ForwardDispatch, optimiser: torch.optim.Optimizer, folder: Path) -> None:
    """Each process writes its pieces; any number of processes can read them again."""
    pieces.save(get_optimizer_state_dict(lesson, optimiser), checkpoint_id=folder)


def load_optimiser(lesson: ForwardDispatch, optimiser: torch.optim.Optimizer, folder: Path) -> None:
    state = get_optimizer_state_dict(lesson, optimiser)
    pieces.load(state, checkpoint_id=folder)
    set_optimizer_state_dict(lesson, optimiser, state)
