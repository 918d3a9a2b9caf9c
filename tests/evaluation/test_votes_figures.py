"""Figures on people's votes: agreement, rankings, and intervals that may be looked at any time."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from rewarddance.evaluation.bradley_terry import gains, ranking, strengths
from rewarddance.evaluation.krippendorff import alpha
from rewarddance.evaluation.sequential import confidence_sequence, first_decision, half_width


def published() -> tuple[list[int], list[float]]:
    """Krippendorff (2011): four observers, twelve units; None is missing."""
    rows = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
        [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
    ]
    cells = [(unit, float(value)) for row in rows for unit, value in enumerate(row) if value is not None]
    return [unit for unit, _ in cells], [value for _, value in cells]


@pytest.mark.parametrize(("level", "value"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_is_that_of_krippendorffs_example(level, value):
    found = alpha(*published(), level)
    assert found.alpha.mean == pytest.approx(value, abs=5e-4)
    assert (found.units, found.votes) == (11, 40)


def test_alpha_of_two_observers_is_that_of_krippendorffs_example():
    votes = [[0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]]
    found = alpha([*range(10), *range(10)], votes[0] + votes[1], "nominal")
    assert found.alpha.mean == pytest.approx(0.095, abs=5e-4)


def test_alpha_is_one_where_all_agree_and_about_zero_of_coins():
    rng = np.random.default_rng(0)
    units = np.repeat(np.arange(400), 3)
    agreed = alpha(units, np.repeat(rng.integers(0, 2, 400), 3))
    coins = alpha(units, rng.integers(0, 2, 1200))
    assert agreed.alpha.mean == 1.0
    assert coins.alpha.low < 0 < coins.alpha.high and abs(coins.alpha.mean) < 0.1


def test_there_is_no_alpha_where_nobody_could_agree():
    assert alpha([0, 1, 2], [0, 1, 0]).alpha is None
    assert alpha([0, 0, 1, 1], [1, 1, 1, 1]).alpha is None


def test_two_models_have_the_odds_of_their_wins():
    wins = np.array([[0.0, 30.0], [10.0, 0.0]])
    found = strengths(wins, prior=1e4)
    assert found[0] - found[1] == pytest.approx(np.log(3.0), abs=1e-6)
    assert found.sum() == pytest.approx(0.0, abs=1e-9)


def test_a_model_that_never_lost_stays_finite_and_ahead():
    found = strengths(np.array([[0.0, 5.0, 5.0], [0.0, 0.0, 3.0], [0.0, 2.0, 0.0]]))
    assert np.isfinite(found).all() and found.argmax() == 0


def test_a_ranking_finds_the_order_and_its_intervals_hold_it():
    rng, truth = np.random.default_rng(1), np.array([1.0, 0.3, -0.4, -0.9])
    i = rng.integers(0, 4, 3000)
    j = (i + rng.integers(1, 4, 3000)) % 4
    share = (rng.random(3000) < expit(truth[j] - truth[i])).astype(float)
    ranks = ranking(["w", "x", "y", "z"], i, j, share, np.arange(3000) // 3)
    assert [rank.model for rank in ranks] == ["w", "x", "y", "z"]
    assert all(rank.strength.low < value < rank.strength.high for rank, value in zip(ranks, truth, strict=True))


def test_the_vote_that_tells_most_is_on_models_seldom_compared():
    wins = np.array([[0.0, 20.0, 1.0], [20.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    found = gains(wins, np.zeros((3, 3)))
    assert found[0, 2] > found[0, 1] and found[1, 2] > found[0, 1]
    asked = np.zeros((3, 3))
    asked[0, 2] = asked[2, 0] = 30.0
    assert gains(wins, asked)[0, 2] < gains(wins, asked)[1, 2]  # others are being asked about 0 and 2


def test_an_interval_looked_at_after_each_vote_holds_the_truth():
    rng, missed = np.random.default_rng(2), 0
    for _ in range(400):
        moments = confidence_sequence(rng.choice([-1.0, 0.0, 1.0], 400))
        missed += first_decision(moments) is not None
    assert missed <= 0.05 * 400


def test_a_clear_winner_is_found_long_before_the_end():
    rng = np.random.default_rng(3)
    moments = confidence_sequence(rng.choice([-1.0, 1.0], 200, p=[0.2, 0.8]))
    decided = first_decision(moments)
    assert decided is not None and decided.n < 100 and decided.low > 0
    assert all(later.low >= decided.low for later in moments[decided.n :])


def test_an_interval_is_narrowest_near_where_it_was_asked_to_be():
    n = np.array([200.0])
    widths = {tightest: float(half_width(n, 0.05, tightest)[0]) for tightest in (20, 200, 2000)}
    assert widths[200] == min(widths.values()) and 0.2 < widths[200] < 0.23
