"""A training step holds the graph of one part at a time, and its gradient is the whole batch's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from judges import saved_at_once
from several import in_processes
from tiny import colour_preferences, judge_folder
from torch import Tensor

from rewarddance.reward.batches import MicroBatches, split_by_tokens
from rewarddance.reward.judge import Judge, RewardConfig
from rewarddance.reward.loading import build_reward
from rewarddance.reward.parallel import ForwardDispatch, replicate
from rewarddance.reward.train import accumulate_gradient
from rewarddance.runtime import process_group

PAIRS = [
    replace(pair, share=(i % 5) / 4, reason="it is red " * (i % 3), reason_swapped="it is not " * (i % 2))
    for i, pair in enumerate(colour_preferences(7))
]
KINDS: dict[str, dict[str, Any]] = {
    "pairwise": {},
    "pairwise, with reasons": {"reasoning": "after"},
    "pointwise": {"kind": "pointwise"},
    "pointwise, with reasons": {"kind": "pointwise", "reasoning": "before"},
    "regressive": {"kind": "regressive"},
}


def test_parts_of_a_batch_keep_the_order_and_the_budget():
    lengths = [10, 10, 30, 10, 90, *(10, 20, 10, 10, 10)]
    parts = split_by_tokens(PAIRS[:5], lengths, 80)
    assert [len(part) for part in parts] == [2, 1, 1, 1]  # of 20, 30, 10 and 90 tokens at most; the last is too long
    assert [pair for part in parts for pair in part] == PAIRS[:5]
    assert [len(part) for part in split_by_tokens(PAIRS[:5], lengths, 900)] == [5]


def judge(at_once: int, keys: dict[str, Any]) -> Judge:
    """A judge that reads so many tokens at once, its layers in float64, whose rounding hides no difference."""
    reward = build_reward(str(judge_folder()), RewardConfig(instruction="t2i-brief", **keys))
    reward.vlm.max_batch_tokens = at_once  # type: ignore[attr-defined]
    reward.model.double()
    for name, weight in reward.own_weights().items():  # a new regressive head is zero, and used in float32
        torch.nn.init.constant_(weight, 0.1)
        reward.model.get_submodule(name.rpartition(".")[0]).float()
    return reward


def step(at_once: int, keys: dict[str, Any], rank: int = 0, count: int = 1) -> tuple[list[Tensor], float, int]:
    return step_of(judge(at_once, keys), rank, count)


def step_of(reward: Judge, rank: int = 0, count: int = 1) -> tuple[list[Tensor], float, int]:
    """The gradients of a step on all pairs, its loss, and in how many parts it was taken."""
    model = replicate(ForwardDispatch(reward).train())
    micro_batches = MicroBatches(PAIRS, len(PAIRS), 1, 1, rank=rank, count=count)[0]
    assert isinstance(micro_batches, list)
    losses = accumulate_gradient(model, reward, micro_batches)
    found = [weight.grad for weight in reward.model.parameters() if weight.grad is not None]
    return found, float(sum(losses)), len(losses)


def assert_equal(ours: list[Tensor], whole: list[Tensor]) -> None:
    """To 1e-6 of the whole gradient's norm."""
    flat, other = (torch.cat([one.double().flatten() for one in each]) for each in (ours, whole))
    assert other.norm() > 1e-2 and (flat - other).norm() <= 1e-6 * other.norm()


@pytest.mark.parametrize("keys", KINDS.values(), ids=KINDS)
def test_the_gradient_in_parts_is_the_whole_batchs(keys: dict[str, Any]):
    whole, loss, _ = step(2**20, keys)
    ours, summed, parts = step(250, keys)
    assert parts >= 3 and summed == pytest.approx(loss, rel=1e-6)
    assert_equal(ours, whole)


def _in_one_of_two(keys: dict[str, Any]) -> tuple[list[Tensor], int]:
    gradients, _, parts = step(250, keys, process_group.rank(), 2)
    return gradients, parts


@pytest.mark.parametrize("name", ["pairwise, with reasons", "regressive"])
def test_two_processes_in_parts_have_the_whole_batchs_gradient(name: str):
    whole, _, _ = step(2**20, KINDS[name])
    for ours, parts in in_processes(2, _in_one_of_two, KINDS[name]):
        assert parts >= 2
        assert_equal(ours, whole)


def test_only_one_parts_graph_is_held():
    def held(at_once: int) -> float:
        reward = judge(at_once, {})
        return saved_at_once(reward.model, lambda: step_of(reward))

    assert 0 < held(250) < 0.4 * held(2**20)
