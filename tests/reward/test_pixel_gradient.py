"""The relay of the backward pass: the same gradient as one graph through everything, and less memory."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from judges import saved
from tiny import comparing, deep_judge_folder, judge_folder, pictures
from torch import Tensor

from rewarddance.alignment.refl_losses import LOSSES
from rewarddance.errors import RewardError
from rewarddance.reward.loading import load_reward
from rewarddance.reward.pixel_gradient import pixel_gradient
from rewarddance.types import Question, Verdict


def asked(candidates: Tensor) -> list[Question]:
    references = pictures(2, seed=9)
    return [Question("two crosses", c, references[i % 2]) for i, c in enumerate(candidates)]


@pytest.mark.parametrize("loss", sorted(LOSSES))
@pytest.mark.parametrize("at_once", [1, 3, 16])
def test_the_relay_is_the_gradient_of_one_graph(loss, at_once):
    judge = load_reward(str(judge_folder()), instruction="t2i-brief")
    objective = partial(LOSSES[loss], cap=0.9)
    latents = pictures(7).requires_grad_()
    candidates = latents**2
    margin = judge(asked(candidates)).margin
    whole = objective(margin)
    (expected,) = torch.autograd.grad(whole, latents)

    candidates = latents**2
    questions = asked(candidates)
    judged = pixel_gradient(judge, questions, objective, at_once)
    torch.autograd.backward([question.candidate for question in questions], judged.gradients)
    torch.testing.assert_close(judged.verdict.margin, margin.detach(), atol=1e-5, rtol=1e-5)
    assert judged.loss == pytest.approx(whole.item(), rel=1e-5)
    torch.testing.assert_close(latents.grad, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert not judged.verdict.margin.requires_grad


def test_it_keeps_no_graph_of_the_judge_and_leaves_the_weights_alone():
    judge = load_reward(str(judge_folder()), instruction="t2i-brief")
    candidates = pictures(3).requires_grad_() ** 2
    judged = pixel_gradient(judge, asked(candidates), partial(LOSSES["margin"], cap=0.9))
    assert all(not gradient.requires_grad for gradient in judged.gradients)
    assert all(weight.grad is None for weight in judge.model.parameters())


def test_checkpointing_keeps_a_sixth_and_changes_nothing():
    judge = load_reward(str(deep_judge_folder()), instruction="t2i-brief")
    candidates = [one.requires_grad_() for one in pictures(4)]
    kept, gradients = [], []
    for judge.vlm.checkpointing in (False, True):
        questions = [Question("two crosses", c, pictures(1, seed=9)[0]) for c in candidates]
        kept.append(saved(judge.model, partial(judge, questions)))
        gradients.append(torch.autograd.grad(judge(questions).margin.sum(), candidates))
    assert kept[1] < kept[0] / 6
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed, rtol=1e-4, atol=1e-6)


def test_a_gradient_that_is_not_finite_is_named():
    @comparing
    def judge(questions: list[Question]) -> Verdict:
        return Verdict(torch.stack([(q.candidate.sum() - q.candidate.sum().detach()).abs().sqrt() for q in questions]))

    with pytest.raises(RewardError, match="question 0"):
        pixel_gradient(judge, asked(pictures(2)), lambda margin: margin.mean())
