"""A judge on several processes: all weights on each of them (DDP), or sharded over them (FSDP2).

torch's own fully_shard and DistributedDataParallel, which do on a CPU with gloo what they do on GPUs with NCCL.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from rewarddance.protocols import RewardModel
from rewarddance.reward.judge import Judge
from rewarddance.runtime import process_group
from rewarddance.types import Question, Verdict

T = TypeVar("T")


class ForwardDispatch(nn.Module):
    """A judge as a torch module, whose forward calls one of the judge's methods: module(methodcaller("loss", pairs)).

    DDP and FSDP do their work where a module's forward begins and ends, and a judge's loss is a method of its own. They
    would also copy and cast every tensor among the arguments, so these come within the call.
    """

    def __init__(self, reward: Judge) -> None:
        super().__init__()
        self.reward, self.model, self.sharded = reward, reward.model, False

    def forward(self, call: Callable[[Judge], T]) -> T:
        if not (self.sharded and torch.is_grad_enabled()):
            return call(self.reward)
        # All processes must run the layers equally often: a micro-batch is one forward, whatever its size.
        vlm: Any = self.reward.vlm  # type: ignore[attr-defined]
        budget, vlm.max_batch_tokens = vlm.max_batch_tokens, sys.maxsize
        try:
            return call(self.reward)
        finally:
            vlm.max_batch_tokens = budget


def replicate(module: ForwardDispatch) -> nn.Module:
    """The module under DDP, which averages the gradients of all processes; itself if it is sharded or has one process.

    A judge leaves weights unused (the output head, in a regressive one), so DDP has to look for them.
    """
    if process_group.world_size() == 1 or module.sharded:
        return module
    device = process_group.device()
    device_ids = [device] if device.type == "cuda" else None
    return DistributedDataParallel(module, device_ids=device_ids, find_unused_parameters=True)


def shard(module: ForwardDispatch, mesh: Any, half: bool) -> None:
    """Split the weights over the mesh, in place: layer by layer, and what stands outside of the layers at the end.

    half: compute in bfloat16, while the shards and the sum of the gradients keep the weights' precision (float32, where
    they are trained). A judge's own weights are used in float32 always.
    """
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if half else MixedPrecisionPolicy()
    for layer in layers_of(module):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    for name in module.reward.own_weights():
        fully_shard(module.model.get_submodule(name.rpartition(".")[0]), mesh=mesh)
    fully_shard(module, mesh=mesh, mp_policy=policy)
    module.sharded = module.reward.vlm.fixed_budget = True  # type: ignore[attr-defined]


def layers_of(model: nn.Module) -> list[nn.Module]:
    """Where weights are sharded, these are gathered one at a time; all others are gathered for a whole step."""
    return [layer for stack in model.modules() if isinstance(stack, nn.ModuleList) for layer in stack]


@torch.no_grad()
def evaluate_together(module: ForwardDispatch, evaluate: Callable[[RewardModel], T]) -> T:
    """`evaluate` of the judge as it is now; the same figures on all processes.

    Where each process has all weights, they share the questions; where the weights are sharded, each asks all of them.
    """
    module.eval()
    if module.sharded:
        figures = module(evaluate)
        module.reshard()  # type: ignore[operator]
    else:
        figures = evaluate(module.reward if process_group.world_size() == 1 else SharedJudge(module.reward))
    module.train()
    return figures


class SharedJudge:
    """A RewardModel whose questions are shared by the processes, each of which then has all answers."""

    def __init__(self, judge: RewardModel) -> None:
        self.judge = judge

    @property
    def needs_reference(self) -> bool:
        return self.judge.needs_reference

    def __call__(self, questions: Sequence[Question]) -> Verdict:
        order, n = by_picture(questions), process_group.world_size()
        start, end = (share * len(order) // n for share in (process_group.rank(), process_group.rank() + 1))
        margin = torch.zeros(len(questions))
        margin[order[start:end]] = self.judge([questions[i] for i in order[start:end]]).margin.detach().cpu()
        return Verdict(process_group.sum_over_processes(margin))


def by_picture(questions: Sequence[Question]) -> list[int]:
    """Numbers of the questions, sorted so that those about the same picture are neighbours: few processes encode it."""
    number: dict[int, int] = {}
    keys = [
        min(number.setdefault(id(pixels), len(number)) for pixels in (q.candidate, q.reference) if pixels is not None)
        for q in questions
    ]
    return sorted(range(len(questions)), key=keys.__getitem__)
