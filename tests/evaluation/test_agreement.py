"""Agreement is counted on pairs that have an order, in both orders of asking."""

from __future__ import annotations

import pytest
import torch
from tiny import BrightnessJudge

from rewarddance.errors import InputError
from rewarddance.evaluation.agreement import accuracy, agreement
from rewarddance.types import Preference


def pair(first: float, second: float, share: float) -> Preference:
    return Preference("p", *(torch.full((1, 3, 2, 2), value) for value in (first, second)), share)


PAIRS = [pair(0.1, 0.9, 1.0), pair(0.9, 0.1, 0.0), pair(0.1, 0.9, 0.2), pair(0.4, 0.4, 1.0), pair(0.2, 0.3, 0.6)]


@pytest.mark.parametrize("bias", [0.0, 30.0, -30.0])
def test_agreement_is_one_for_the_majoritys_picture_and_zero_for_the_other_whatever_the_bias(bias):
    assert agreement(BrightnessJudge(bias), PAIRS).tolist() == [1, 1, 0, 0.5, 1]


def test_a_tie_has_no_order_and_is_left_out():
    found = agreement(BrightnessJudge(), [pair(0.1, 0.9, 0.5), *PAIRS, pair(0.9, 0.1, 0.5)])
    assert found.tolist() == agreement(BrightnessJudge(), PAIRS).tolist()


def test_accuracy_is_the_mean_agreement_with_its_interval():
    found = accuracy(BrightnessJudge(), PAIRS)
    assert found.mean == pytest.approx(0.7) and found.n == 5
    assert 0 <= found.low < 0.7 < found.high <= 1


def test_a_judge_of_the_opposite_taste_has_the_opposite_accuracy():
    turned = [Preference(p.prompt, p.second, p.first, p.share) for p in PAIRS]
    assert accuracy(BrightnessJudge(), turned).mean == pytest.approx(1 - accuracy(BrightnessJudge(), PAIRS).mean)


def test_accuracy_on_ties_alone_is_an_error():
    with pytest.raises(InputError, match="none of the 2 pairs has an order"):
        accuracy(BrightnessJudge(), [pair(0.1, 0.9, 0.5)] * 2)
