"""The reward's losses against their closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rewarddance.reward.objectives import answer_cross_entropy, both_orders_cross_entropy

margins = st.floats(-20, 20, width=32)
shares = st.floats(0, 1, width=32)


def of(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_a_judge_that_cannot_tell_loses_log_two_whatever_the_votes(share):
    assert answer_cross_entropy(of(0.0), of(share)).item() == pytest.approx(math.log(2))
    assert both_orders_cross_entropy(of(0.0), of(0.0), of(share)).item() == pytest.approx(math.log(2))


@given(margins, shares)
def test_the_loss_is_the_cross_entropy_of_the_answer(margin, share):
    said = torch.log_softmax(torch.tensor([margin, 0.0], dtype=torch.float64), 0)
    expected = -(share * said[0] + (1 - share) * said[1])
    assert answer_cross_entropy(of(margin), of(share)).item() == pytest.approx(expected.item(), abs=1e-5)


@given(margins, margins, shares)
def test_flipping_order_and_label_changes_nothing(forward, backward, share):
    here = both_orders_cross_entropy(of(forward), of(backward), of(share))
    there = both_orders_cross_entropy(of(backward), of(forward), of(1 - share))
    assert here.item() == pytest.approx(there.item(), rel=1e-5, abs=1e-6)


@given(margins, shares)
def test_one_order_is_half_of_both(margin, share):
    both = both_orders_cross_entropy(of(margin), of(-margin), of(share))
    assert both.item() == pytest.approx(answer_cross_entropy(of(margin), of(share)).item(), rel=1e-4, abs=1e-5)


def test_the_gradient_is_the_probability_minus_the_share():
    margin = torch.tensor([-3.0, 0.0, 0.5, 4.0], requires_grad=True)
    share = of(1.0, 0.5, 0.0, 0.8)
    answer_cross_entropy(margin, share).backward()
    torch.testing.assert_close(margin.grad, (margin.detach().sigmoid() - share) / 4)


def test_a_step_down_the_loss_raises_what_was_voted_for_in_both_orders():
    forward, backward = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    both_orders_cross_entropy(forward, backward, of(1.0, 0.0)).backward()
    assert (-forward.grad).sign().tolist() == [1, -1]
    assert (-backward.grad).sign().tolist() == [-1, 1]


def test_a_divided_vote_is_best_met_by_its_own_odds():
    share = 0.8
    at = {margin: answer_cross_entropy(of(margin), of(share)).item() for margin in (0.0, math.log(0.8 / 0.2), 3.0)}
    assert min(at, key=at.__getitem__) == math.log(0.8 / 0.2)
