"""A frozen judge in pieces over two processes: the margins and pixel gradients of the whole one, and half the bytes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pytest
import torch
from several import in_processes
from tiny import clip_folder, deep_judge_folder, family_folder, judge_folder, pictures
from torch import Tensor

from rewarddance.alignment.failed_groups import each_apart
from rewarddance.alignment.refl_losses import LOSSES
from rewarddance.errors import InputError
from rewarddance.protocols import judging
from rewarddance.reward.loading import load_reward
from rewarddance.reward.pixel_gradient import checkpointing, pixel_gradient
from rewarddance.reward.sharded import ShardedJudge, load_sharded
from rewarddance.runtime.process_group import rank
from rewarddance.types import Question

PROMPTS = ("two crosses", "a red square above a blue circle", "one large green triangle")


def asked(count: int, compares: bool = True) -> list[Question]:
    """Questions whose candidates want a gradient; they differ in length."""
    references = pictures(2, seed=9)
    candidates = [picture.requires_grad_() for picture in pictures(count)]
    return [
        Question(PROMPTS[i % 3], candidate, references[i % 2] if compares else None)
        for i, candidate in enumerate(candidates)
    ]


def judged(judge, count: int) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Margins without and with a graph, and the gradient of the sum of their squares."""
    questions = asked(count, judge.needs_reference)
    with torch.no_grad():
        plain = judge(questions).margin
    margin = judge(questions).margin
    gradients = torch.autograd.grad((margin**2).sum(), [q.candidate for q in questions]) if count else ()
    return plain, margin.detach(), list(gradients)


def assert_close(ours: Sequence[Tensor], theirs: Sequence[Tensor], within: float = 1e-6) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=within, rtol=within)


KINDS = {
    "pairwise": {"kind": "pairwise"},
    "both orders": {"kind": "pairwise", "orders": "both"},
    "pointwise": {"kind": "pointwise"},
    "criteria": {"kind": "pairwise", "criteria": "t2i"},
}


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("family", ["internvl", "qwen3_vl"])
def test_two_halves_answer_as_the_whole_judge_does(family, changes):
    folder, counts = str(deep_judge_folder() if family == "internvl" else family_folder(family)), (5, 2)

    def work():
        judge = load_sharded(folder, "cpu", **changes)
        held = sum(weight.to_local().nbytes for weight in judge.model.parameters())
        return held, judged(judge, counts[rank()])

    whole = load_reward(folder, **changes)
    halves = in_processes(2, work)
    total = sum(weight.nbytes for weight in whole.model.parameters())
    assert sum(held for held, _ in halves) == total
    assert all(held == pytest.approx(total / 2, rel=0.01) for held, _ in halves)
    for count, (_, (plain, margin, gradients)) in zip(counts, halves, strict=True):
        expected_plain, expected, expected_gradients = judged(whole, count)
        # In both orders the halves share no prefix with a gradient, so that sums are rounded in another order.
        within = 3e-6 if "orders" in changes else 1e-6
        assert_close([plain, margin, *gradients], [expected_plain, expected, *expected_gradients], within)


@pytest.mark.parametrize("max_batch_tokens", [100, 300])
def test_processes_that_need_unequal_numbers_of_forwards_stay_in_step(max_batch_tokens):
    folder, counts = str(judge_folder()), (7, 2)

    def work():
        judge = load_sharded(folder, "cpu")
        judge.vlm.max_batch_tokens = max_batch_tokens
        with checkpointing(judge):
            return judged(judge, counts[rank()])

    for count, found in zip(counts, in_processes(2, work), strict=True):
        plain, margin, gradients = judged(load_reward(folder), count)
        assert_close([*found[:2], *found[2]], [plain, margin, *gradients])


def test_a_process_without_questions_only_goes_along():
    def work():
        return judged(load_sharded(str(judge_folder()), "cpu"), 0 if rank() else 3)

    (plain, margin, gradients), (nothing, _, _) = in_processes(2, work)
    expected = judged(load_reward(str(judge_folder())), 3)
    assert_close([plain, margin, *gradients], [*expected[:2], *expected[2]])
    assert len(nothing) == 0


def test_within_a_block_a_process_asks_as_often_as_it_likes():
    def work():
        judge, losses = load_sharded(str(judge_folder()), "cpu"), []
        with judging(judge):
            for at_once in [1, 2][: 2 - rank()]:
                found = pixel_gradient(judge, asked(3), partial(LOSSES["margin"], cap=0.9), at_once)
                losses.append((found.verdict.margin, *found.gradients))
        with judging(judge):  # and after it they are in step again
            return losses, judge(asked(rank() + 1)).margin.detach()

    whole = load_reward(str(judge_folder()))
    expected = pixel_gradient(whole, asked(3), partial(LOSSES["margin"], cap=0.9))
    for number, (losses, after) in enumerate(in_processes(2, work)):
        assert len(losses) == 2 - number
        for found in losses:
            assert_close(found, (expected.verdict.margin, *expected.gradients))
        assert_close([after], [whole(asked(number + 1)).margin.detach()])


def test_a_question_that_cannot_be_asked_costs_itself_alone():
    def work():
        judge = load_sharded(str(judge_folder()), "cpu")
        questions = asked(3)
        if rank():
            questions[1] = Question("a <IMG_CONTEXT>", questions[1].candidate, questions[1].reference)

        def ask(numbers: list[int]) -> Tensor:
            return judge([questions[i] for i in numbers]).margin.detach()

        with judging(judge):
            answers, faults = each_apart(ask, range(3))
        return {i: margin for numbers, of in answers for i, margin in zip(numbers, of, strict=True)}, list(faults)

    whole = load_reward(str(judge_folder()))(asked(3)).margin.detach()
    (first, no_faults), (second, faults) = in_processes(2, work)
    assert (no_faults, faults) == ([], [1])
    assert_close([first[i] for i in range(3)], list(whole))
    assert_close([second[i] for i in (0, 2)], [whole[0], whole[2]])


@pytest.mark.parametrize("changes", [{}, {"criteria": "t2i"}], ids=["plain", "criteria"])
def test_a_process_looks_for_faulty_questions_by_itself(changes):
    def work():
        judge = load_sharded(str(judge_folder()), "cpu", **changes)
        questions = [*asked(1), Question("a <IMG_CONTEXT>", pictures(1)[0], pictures(1)[0])]
        return [fault is None for fault in judge.faults(questions)] if rank() else None

    assert in_processes(2, work) == [None, [True, False]]


def test_what_cannot_be_split_is_refused_or_whole():
    with pytest.raises(InputError, match="'tests:factory' has no weights here"):
        load_sharded("tests:factory", "cpu")

    with pytest.raises(InputError, match="cannot be split over processes"):
        ShardedJudge(load_reward(str(clip_folder()), kind="clip"), mesh=None)

    def work():
        return load_sharded(str(clip_folder()), "cpu", kind="clip", or_whole=True)(asked(2)).margin

    whole = load_reward(str(clip_folder()), kind="clip")(asked(2)).margin.detach()
    for margin in in_processes(2, work):
        assert_close([margin.detach()], [whole])


def test_a_split_judge_is_neither_trained_nor_saved_nor_explained(tmp_path):
    def work():
        judge = load_sharded(str(judge_folder()), "cpu")
        for refused in (partial(judge.loss, []), partial(judge.save, tmp_path), partial(judge.explain, asked(1))):
            with pytest.raises(InputError, match=r"a judge (in pieces|that was split)"):
                refused()
        return repr(judge)

    assert all("in pieces over 2 processes" in said for said in in_processes(2, work))
