"""Prefixes that are kept for later questions: the same margins, read once, within a limit, never of other weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from tiny import FAMILIES, family_folder, pictures

from rewarddance.reward.instructions import Picture
from rewarddance.reward.judge import RewardConfig
from rewarddance.reward.loading import build_reward
from rewarddance.reward.prefill import JudgeInput
from rewarddance.reward.prefix_cache import PrefixStore
from rewarddance.types import Question

PROMPTS = ("a red circle", "two small blue crosses left of a square")


@pytest.fixture(params=FAMILIES)
def judge(request):
    return build_reward(str(family_folder(request.param)), RewardConfig(instruction="t2i-brief"))


def shown(n: int, seed: int, size: int = 48) -> list[torch.Tensor]:
    return [*pictures(n, seed, size)]


REFERENCES = shown(3, 99)


def questions(seed: int = 0) -> list[Question]:
    """Six, of two prompts, whose prefixes differ in length, and three references."""
    return [Question(PROMPTS[n % 2], c, REFERENCES[n % 3]) for n, c in enumerate(shown(6, seed))]


@contextmanager
def encoded(judge) -> Iterator[list[int]]:
    """How many pictures each call of the vision tower has encoded."""
    counts: list[int] = []
    encode = judge.vlm.family.encode

    def counted(pixels):
        counts.append(len(pixels))
        return encode(pixels)

    judge.vlm.family.encode = counted
    try:
        yield counts
    finally:
        del judge.vlm.family.encode


@torch.no_grad()
def test_margins_are_the_same_and_only_candidates_are_read_again(judge):
    first, second, mixed = questions(seed=1), questions(seed=2), questions(seed=3)[:3]
    mixed.append(Question("a prompt that is new", shown(1, 4)[0], REFERENCES[0]))
    expected = [judge(asked).margin for asked in (first, second, mixed)]
    judge.vlm.prefix_store = PrefixStore(10**9)
    with encoded(judge) as counts:
        found = [judge(asked).margin for asked in (first, second, mixed)]
    for mine, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, plain, atol=2e-5, rtol=1e-4)
    assert counts == [9, 6, 5]  # all; candidates alone; four candidates and the reference of a new prompt
    store = judge.vlm.prefix_store
    assert (store.misses, store.hits) == (7, 9)


@torch.no_grad()
def test_one_question_after_the_other_has_the_same_margins(judge):
    asked = questions(seed=1) + questions(seed=2)
    expected = judge(asked).margin
    judge.vlm.prefix_store = PrefixStore(10**9)
    found = torch.cat([judge([question]).margin for question in asked])
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    assert judge.vlm.prefix_store.hits == 6


@torch.no_grad()
def test_the_least_used_are_dropped_beyond_the_limit(judge):
    store = judge.vlm.prefix_store = PrefixStore(10**9)
    judge(questions()[:1])
    one = store.bytes
    assert one > 0
    judge.vlm.prefix_store = store = PrefixStore(int(2.9 * one))
    for seed in range(3):
        judge(questions(seed=seed))
        assert 0 < store.bytes <= store.max_bytes
    judge.vlm.prefix_store = PrefixStore(one // 2)
    judge(questions())
    assert judge.vlm.prefix_store.bytes == 0


@torch.no_grad()
def test_weights_that_change_make_old_prefixes_void(judge):
    asked = questions()
    judge.vlm.prefix_store = PrefixStore(10**9)
    judge(asked)
    weight = judge.vlm.model.get_decoder().layers[0].self_attn.v_proj.weight
    weight.mul_(-1)
    found, judge.vlm.prefix_store = judge(asked).margin, None
    torch.testing.assert_close(found, judge(asked).margin, atol=2e-5, rtol=1e-4)
    weight.mul_(-1)


def test_gradients_are_those_of_a_judge_that_keeps_nothing(judge):
    def gradient() -> torch.Tensor:
        leaf = shown(1, 5)[0].requires_grad_()
        asked = [Question(PROMPTS[0], leaf, REFERENCES[0]), *questions()]
        (found,) = torch.autograd.grad(judge(asked).margin.sum(), leaf)
        return found

    expected = gradient()
    judge.vlm.prefix_store = PrefixStore(10**9)
    with torch.no_grad():
        judge(questions())
    torch.testing.assert_close(gradient(), expected, atol=1e-6, rtol=1e-4)


@torch.no_grad()
def test_several_questions_about_one_candidate_share_it_as_before(judge):
    candidate = shown(1, 6)[0]
    asked = [JudgeInput(("Picture:", Picture("candidate"), f"Is it {word}?"), (candidate,)) for word in "abcd"]
    expected = judge.vlm.last_states(asked)
    store = judge.vlm.prefix_store = PrefixStore(10**9)
    torch.testing.assert_close(judge.vlm.last_states(asked), expected)
    assert store.bytes == 0


@torch.no_grad()
def test_memory_that_runs_out_costs_the_prefixes_and_no_answer(judge, monkeypatch):
    asked, forward = questions(), type(judge.vlm)._language_model_forward
    expected = judge(asked).margin
    store = judge.vlm.prefix_store = PrefixStore(10**9)
    judge(asked[:3])
    failed: list[bool] = []

    def short_of_memory(self, sequences, spans, *rest):
        if not failed:
            failed.append(True)
            raise torch.OutOfMemoryError("out of memory")
        return forward(self, sequences, spans, *rest)

    monkeypatch.setattr(type(judge.vlm), "_language_model_forward", short_of_memory)
    torch.testing.assert_close(judge(asked).margin, expected, atol=2e-5, rtol=1e-4)
    assert failed and store.bytes > 0
