"""The reward's losses against their closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rewarddance.reward.objectives import (
    answer_cross_entropy,
    both_orders_cross_entropy,
    bradley_terry,
    pairwise_cross_entropy,
    win_tie_bradley_terry,
)

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


# -- Bradley-Terry, plain and win-tie ----------------------------------------------------------------------------------


@given(margins)
def test_bradley_terry_is_minus_log_sigma_of_the_winners_lead(margin):
    expected = math.log1p(math.exp(-margin))
    assert bradley_terry(of(margin), of(1.0)).item() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert bradley_terry(of(-margin), of(0.0)).item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def rao_kupper(margin: float, threshold: float) -> tuple[float, float, float]:
    """P(win), P(tie), P(loss) as Rao and Kupper write them, of strengths exp(margin) and 1."""
    ours, theta = math.exp(margin), math.exp(threshold)
    win, loss = ours / (ours + theta), 1 / (1 + theta * ours)
    return win, (theta**2 - 1) * ours / ((ours + theta) * (1 + theta * ours)), loss


@given(st.floats(-10, 10, width=32), st.floats(0.125, 3, width=32))
def test_win_tie_is_rao_and_kuppers_model_and_its_three_outcomes_sum_to_one(margin, threshold):
    found = [win_tie_bradley_terry(of(margin), of(share), threshold).item() for share in (1.0, 0.5, 0.0)]
    assert sum(math.exp(-loss) for loss in found) == pytest.approx(1, abs=1e-4)
    for loss, expected in zip(found, rao_kupper(margin, threshold), strict=True):
        assert loss == pytest.approx(-math.log(expected), rel=1e-4, abs=1e-4)


@given(margins, shares)
def test_changing_the_pictures_and_the_votes_over_changes_no_bradley_terry_loss(margin, share):
    for loss in (bradley_terry, lambda m, s: win_tie_bradley_terry(m, s, 1.6)):
        here, there = loss(of(margin), of(share)), loss(of(-margin), of(1 - share))
        assert here.item() == pytest.approx(there.item(), rel=1e-4, abs=1e-5)


def test_as_the_threshold_goes_to_nothing_a_clear_vote_is_plain_bradley_terry():
    margin, share = of(-2.0, 0.0, 1.0, 3.0), of(1.0, 0.0, 1.0, 0.0)
    torch.testing.assert_close(win_tie_bradley_terry(margin, share, 1e-6), bradley_terry(margin, share))


def test_a_tie_is_best_met_by_equal_rewards_and_a_clear_vote_by_ever_more():
    grid = torch.linspace(-4, 4, 81)
    for share, best in ((0.5, 0.0), (1.0, 4.0), (0.0, -4.0)):
        losses = torch.stack([win_tie_bradley_terry(margin.view(1), of(share), 1.0) for margin in grid])
        assert grid[losses.argmin()].item() == pytest.approx(best, abs=1e-6)


def test_a_divided_vote_is_part_win_and_part_tie():
    win, tie = (win_tie_bradley_terry(of(0.7), of(share), 1.0).item() for share in (1.0, 0.5))
    assert win_tie_bradley_terry(of(0.7), of(0.8), 1.0).item() == pytest.approx(0.6 * win + 0.4 * tie, rel=1e-5)


def test_the_gradients_of_both_are_their_slopes():
    margin = torch.tensor([-1.5, 0.2, 2.0], dtype=torch.float64, requires_grad=True)
    share = torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda m: bradley_terry(m, share), margin)
    assert torch.autograd.gradcheck(lambda m: win_tie_bradley_terry(m, share, 0.8), margin)


def test_no_margin_is_too_large_for_a_finite_loss():
    far = of(-500.0, 500.0)
    for share in (0.0, 0.5, 1.0):
        assert torch.isfinite(bradley_terry(far, of(share, share)))
        assert torch.isfinite(win_tie_bradley_terry(far, of(share, share), 1.6))


@given(margins, margins, shares, st.floats(0, 1))
def test_the_pairwise_loss_lies_between_the_answers_and_their_difference(forward, backward, share, weight):
    f, b, s = of(forward), of(backward), of(share)
    answers, difference = both_orders_cross_entropy(f, b, s).item(), answer_cross_entropy((f - b) / 2, s).item()
    found = pairwise_cross_entropy(f, b, s, weight).item()
    assert found == pytest.approx((1 - weight) * answers + weight * difference, rel=1e-4, abs=1e-5)


def test_the_difference_does_not_see_what_is_said_to_both_orders_alike():
    forward, backward, share = of(1.0, -2.0), of(0.5, 1.0), of(1.0, 0.0)
    plain = pairwise_cross_entropy(forward, backward, share, 1.0)
    moved = pairwise_cross_entropy(forward - 5, backward - 5, share, 1.0)
    torch.testing.assert_close(plain, moved)


@pytest.mark.parametrize("weight", [0.0, 0.5, 0.9])
def test_answers_and_difference_have_one_optimum(weight):
    share = of(0.2)
    forward, backward = (of(sign * math.log(0.2 / 0.8)).requires_grad_() for sign in (1, -1))
    pairwise_cross_entropy(forward, backward, share, weight).backward()
    torch.testing.assert_close(torch.cat([forward.grad, backward.grad]), torch.zeros(2), atol=1e-6, rtol=0)
