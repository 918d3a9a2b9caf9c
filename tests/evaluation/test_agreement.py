"""Agreement is counted on pairs that have an order, in both orders of asking."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import BrightnessJudge

from rewarddance.errors import InputError
from rewarddance.evaluation.agreement import accuracy, agreement, agreement_with_ties, tie_threshold
from rewarddance.types import Preference


def pair(first: float, second: float, share: float) -> Preference:
    return Preference("p", *(torch.full((1, 3, 2, 2), value) for value in (first, second)), share)


PAIRS = [pair(0.1, 0.9, 1.0), pair(0.9, 0.1, 0.0), pair(0.1, 0.9, 0.2), pair(0.4, 0.4, 1.0), pair(0.2, 0.3, 0.6)]


@pytest.mark.parametrize("bias", [0.0, 30.0, -30.0])
def test_agreement_is_with_the_majoritys_picture_whatever_the_bias(bias):
    assert agreement(BrightnessJudge(bias), PAIRS).tolist() == [1, 1, 0, 0.5, 1]


def test_a_tie_has_no_order_and_is_left_out():
    with_ties = [pair(0.1, 0.9, 0.5), *PAIRS, pair(0.9, 0.1, 0.5)]
    assert agreement(BrightnessJudge(), with_ties).tolist() == agreement(BrightnessJudge(), PAIRS).tolist()


def test_accuracy_is_the_mean_agreement_with_its_interval():
    found = accuracy(BrightnessJudge(), PAIRS)
    assert found.mean == pytest.approx(0.7) and found.n == 5  # of a single prompt: its pairs are resampled
    assert 0 <= found.low < 0.7 < found.high <= 1


def test_a_judge_of_the_opposite_taste_has_the_opposite_accuracy():
    turned = [Preference(p.prompt, p.second, p.first, p.share) for p in PAIRS]
    assert accuracy(BrightnessJudge(), turned).mean == pytest.approx(1 - accuracy(BrightnessJudge(), PAIRS).mean)


def test_accuracy_on_ties_alone_is_an_error():
    with pytest.raises(InputError, match="none of the 2 pairs has an order"):
        accuracy(BrightnessJudge(), [pair(0.1, 0.9, 0.5)] * 2)


def test_the_interval_of_accuracy_is_over_prompts():
    pairs = [replace(pair, prompt=f"prompt {i % 5}") for i, pair in enumerate(PAIRS * 12)]  # one prompt, one pair
    once = [replace(pair, prompt=f"prompt {i}") for i, pair in enumerate(PAIRS)]
    many, fewer = accuracy(BrightnessJudge(), pairs), accuracy(BrightnessJudge(), once)
    assert many.n == 60 and (many.low, many.high) == pytest.approx((fewer.low, fewer.high))


SHARE = np.array([1.0, 0.0, 0.5, 0.5, 1.0, 0.8])
MARGIN = np.array([2.0, -3.0, 0.1, -0.2, 0.4, -1.0])


def test_the_threshold_of_ties_stands_between_the_last_tie_and_the_first_order():
    assert tie_threshold(MARGIN, SHARE) == pytest.approx((0.2 + 0.4) / 2)


def test_where_no_answer_should_be_a_tie_the_threshold_is_0():
    assert tie_threshold(MARGIN, np.array([1.0, 0.0, 1.0, 0.0, 1.0, 0.0])) == 0
    assert tie_threshold(np.array([0.1, 2.0]), np.array([1.0, 0.5])) == 0  # calling both ties gains nothing


def test_all_ties_are_all_called_ties():
    assert tie_threshold(MARGIN, np.full(6, 0.5)) == 3.0


@pytest.mark.parametrize("turn", [1, -1])
def test_no_threshold_parts_margins_that_are_equal(turn):
    margin, share = np.ones(11), np.array([0.5] * 5 + [1.0] * 6)
    assert tie_threshold(margin[::turn], share[::turn]) == 0, "as a tie all are, and six have an order"


def test_a_threshold_is_not_measured_on_the_pairs_it_was_found_on():
    half = np.array([True] * 3 + [False] * 3)
    found = agreement_with_ties(MARGIN, SHARE, half)
    # the first half's threshold is 1.05, between its tie and its orders; the second's is (0.2 + 0.4) / 2
    assert found.threshold == pytest.approx((1.05 + 0.3) / 2)
    assert found.right.tolist() == [1, 1, 1, 1, 0, 0]
