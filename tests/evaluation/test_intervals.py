"""A reported interval covers what it says it does; a mean of nothing is an error."""

from __future__ import annotations

import numpy as np
import pytest

from rewarddance.evaluation.compositional import by_category
from rewarddance.evaluation.statistics import Interval, interval


@pytest.mark.parametrize(
    ("draw", "truth"),
    [
        (lambda rng: rng.normal(0.3, 2.0, 60), 0.3),
        (lambda rng: (rng.random(60) < 0.7).astype(float), 0.7),
        (lambda rng: rng.choice([0.0, 0.25, 1.0], 60), 5 / 12),
    ],
    ids=["normal", "yes or no", "three values"],
)
def test_the_interval_holds_the_truth_about_95_times_in_100(draw, truth):
    rng, trials = np.random.default_rng(0), 400
    held = sum(
        found.low <= truth <= found.high for found in (interval(draw(rng), resamples=500) for _ in range(trials))
    )
    assert 0.90 < held / trials < 0.99


def test_the_interval_is_as_wide_as_the_normal_one_for_a_normal_sample():
    values = np.random.default_rng(1).normal(0, 1, 400)
    found = interval(values)
    half = 1.96 * values.std() / 20
    assert found.mean == pytest.approx(values.mean())
    assert (found.high - found.mean, found.mean - found.low) == pytest.approx((half, half), rel=0.12)


def test_values_that_do_not_differ_have_an_interval_of_no_width():
    assert interval([0.25] * 7) == Interval(0.25, 0.25, 0.25, 7)
    assert interval([3.0]) == Interval(3.0, 3.0, 3.0, 1)


def test_the_interval_depends_on_the_values_alone():
    values = list(np.random.default_rng(2).random(30))
    assert interval(values) == interval(np.asarray(values))
    assert interval(values) != interval(values, seed=1)


@pytest.mark.parametrize("values", [[], np.zeros((2, 3)), np.zeros((0, 3))])
def test_a_mean_of_nothing_is_an_error(values):
    with pytest.raises(ValueError, match="an interval needs a flat list of values"):
        interval(values)


def test_categories_are_averaged_apart_in_the_order_they_come():
    found = by_category([1.0, 0.0, 0.5, 0.0], ["position", "colors", "position", "colors"])
    assert list(found) == ["position", "colors"]
    assert found["position"] == interval([1.0, 0.5])
    assert found["colors"] == Interval(0.0, 0.0, 0.0, 2)
