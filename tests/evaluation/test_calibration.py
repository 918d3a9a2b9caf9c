"""P(yes) against the votes: closed forms, and judges whose calibration is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from rewarddance.evaluation.calibration import (
    COLDEST,
    HOTTEST,
    calibration_error,
    entropy,
    fit_temperature,
    nll,
    reliability,
)


def honest(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Margins, and votes of 0 or 1 that are cast with just the probability that each margin says."""
    rng = np.random.default_rng(seed)
    margin = 2 * rng.standard_normal(n)
    return margin, (rng.random(n) < expit(margin)).astype(np.float64)


def test_the_loss_is_the_cross_entropy_of_the_votes():
    margin, share = np.array([np.log(3), np.log(3), 0.0]), np.array([1.0, 0.5, 0.2])
    expected = [-np.log(0.75), -(np.log(0.75) + np.log(0.25)) / 2, np.log(2)]
    assert nll(margin, share).tolist() == pytest.approx(expected)


def test_no_margin_has_less_loss_than_the_entropy_of_the_votes():
    share = np.array([0.1, 0.5, 0.8])
    best = np.log(share / (1 - share))
    assert nll(best, share).tolist() == pytest.approx(entropy(share).tolist())
    assert (nll(best + 0.1, share) > entropy(share)).all() and (nll(best - 0.1, share) > entropy(share)).all()
    assert entropy(np.array([0.0, 1.0])).tolist() == [0.0, 0.0]


def test_the_calibration_error_of_a_judge_that_says_too_much_is_by_how_much():
    margin = np.full(10, np.log(9))  # it says 0.9
    assert calibration_error(margin, np.full(10, 0.7)) == pytest.approx(0.2)
    assert calibration_error(margin, np.array([1.0] * 9 + [0.0])) == pytest.approx(0.0)


def test_bins_are_weighed_by_their_questions_and_do_not_cancel():
    margin = np.array([np.log(9), np.log(9), np.log(9), -np.log(9)])
    share = np.array([0.8, 0.8, 0.8, 0.2])  # too bold on both sides by 0.1
    assert calibration_error(margin, share) == pytest.approx(0.1)


def test_an_honest_judge_is_calibrated_and_needs_no_temperature():
    margin, votes = honest(20_000)
    assert calibration_error(margin, votes) < 0.015
    assert fit_temperature(margin, votes) == pytest.approx(1, abs=0.05)
    for part in reliability(margin, votes, np.arange(len(margin))):
        assert part.low <= part.p_yes <= part.high
        assert part.votes.low - 0.02 <= part.p_yes <= part.votes.high + 0.02


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_a_judge_that_is_so_many_times_too_bold_gets_that_temperature(factor):
    margin, votes = honest(20_000, seed=1)
    assert fit_temperature(factor * margin, votes) == pytest.approx(factor, rel=0.06)


def test_shares_of_votes_give_the_temperature_that_their_logits_have():
    share = np.array([0.2, 0.4, 0.7, 0.9])
    assert fit_temperature(1.7 * np.log(share / (1 - share)), share) == pytest.approx(1.7, rel=1e-6)


def test_a_temperature_that_no_data_bounds_stops_at_the_ends():
    margin, right = np.array([-1.0, 2.0, 3.0]), np.array([0.0, 1.0, 1.0])
    assert fit_temperature(margin, right) == COLDEST
    assert fit_temperature(margin, 1 - right) == HOTTEST


def test_every_question_is_in_one_bin_and_empty_bins_are_left_out():
    margin = np.array([-50.0, -50.0, 0.0, 0.3, 50.0])
    parts = reliability(margin, np.array([0.0, 1.0, 0.5, 0.5, 1.0]), np.arange(5), bins=4)
    figures = [(part.low, part.high, part.votes.n, part.votes.mean) for part in parts]
    assert figures == [(0.0, 0.25, 2, 0.5), (0.5, 0.75, 2, 0.5), (0.75, 1.0, 1, 1.0)]
