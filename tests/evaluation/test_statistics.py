"""A reported interval covers what it says it does; a mean of nothing is an error."""

from __future__ import annotations

import numpy as np
import pytest

from rewarddance.evaluation.statistics import (
    Interval,
    by_category,
    interval,
    interval_of_rows,
    interval_of_sums,
    numbered,
)


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


@pytest.mark.parametrize("n", [4, 10, 25])
def test_of_few_values_it_holds_the_truth_as_often(n: int):
    rng, trials = np.random.default_rng(n), 1500
    held = sum(found.low <= 0.3 <= found.high for found in (interval(rng.normal(0.3, 1, n)) for _ in range(trials)))
    assert 0.935 < held / trials < 0.965


def test_of_few_shares_it_ends_at_none_and_all():
    found = interval([1.0, 1.0, 0.9, 1.0, 0.5], share=True)
    assert 0 < found.low < 0.88 and found.high == 1.0
    assert interval([0.02, 0.01, 0.9]).low < -0.4, "a margin is no share, wherever its values lie"


@pytest.mark.parametrize(("p", "n"), [(0.95, 20), (0.98, 50), (0.99, 80)])
def test_of_right_and_wrong_it_holds_the_truth_near_all_right(p: float, n: int):
    rng, trials = np.random.default_rng(n), 300
    drawn = ((rng.random(n) < p).astype(float) for _ in range(trials))
    held = sum(found.low <= p <= found.high for found in (interval(values, share=True) for values in drawn))
    assert held / trials > 0.9


@pytest.mark.parametrize("n", [12, 60])
def test_units_may_be_drawn_for_any_figure_of_them(n: int):
    values = np.random.default_rng(3).normal(size=n)
    found, plain = interval_of_rows(n, lambda rows: values[rows].mean(-1)), interval(values)
    assert tuple(found) == pytest.approx(tuple(plain), abs=0.05)


def test_units_are_numbered_by_their_names_and_a_long_one_costs_nothing():
    assert numbered(["b", "a", "b" * 60000, "a"]).tolist() == [1, 0, 2, 0]
    assert numbered(np.array([7, 3, 7])).tolist() == [1, 0, 1]


def test_the_interval_is_as_wide_as_the_normal_one_for_a_normal_sample():
    values = np.random.default_rng(1).normal(0, 1, 400)
    found = interval(values)
    half = 1.96 * values.std() / 20
    assert found.mean == pytest.approx(values.mean())
    assert (found.high - found.mean, found.mean - found.low) == pytest.approx((half, half), rel=0.12)


def test_values_that_do_not_differ_have_an_interval_of_no_width():
    assert interval([0.25] * 7) == Interval(0.25, 0.25, 0.25, 7)


def test_a_single_value_bounds_nothing_but_a_share_within_its_ends():
    assert interval([3.0]) == Interval(3.0, -np.inf, np.inf, 1)
    assert interval([0.3], share=True) == Interval(0.3, 0.0, 1.0, 1)
    assert interval_of_rows(2, lambda rows: rows.mean(-1)) == Interval(0.5, -np.inf, np.inf, 2)
    assert interval([3.0]).as_json() == {"mean": 3.0, "low": None, "high": None, "n": 1}


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


def test_pairs_of_one_prompt_count_as_one():
    rng = np.random.default_rng(4)
    prompts = rng.normal(0, 1, 50)
    alike = np.repeat(prompts, 8)  # eight pairs of a prompt that all say the same
    by_prompt = interval(alike, units=np.repeat(np.arange(50), 8))
    once = interval(prompts)
    assert by_prompt.n == 400 and by_prompt.mean == pytest.approx(once.mean)
    assert by_prompt.high - by_prompt.low == pytest.approx(once.high - once.low, rel=0.1)
    assert interval(alike).high - interval(alike).low < 0.5 * (once.high - once.low)


def test_the_interval_over_prompts_holds_the_truth_about_95_times_in_100():
    rng, trials, held = np.random.default_rng(5), 300, 0
    for _ in range(trials):
        sizes = rng.integers(1, 9, 40)
        units = np.repeat(np.arange(40), sizes)
        found = interval(rng.normal(0, 1, 40)[units] + rng.normal(0, 0.3, len(units)), units=units, resamples=300)
        held += found.low <= 0 <= found.high
    assert 0.90 < held / trials < 0.99


def test_units_that_hold_one_value_each_are_no_units():
    values = np.random.default_rng(6).random(30)
    assert tuple(interval(values, units=np.arange(30))) == pytest.approx(tuple(interval(values)))


def test_within_a_single_unit_its_values_are_resampled():
    values = np.random.default_rng(7).random(30)
    assert tuple(interval(values, units=np.zeros(30, int))) == pytest.approx(tuple(interval(values)))


def test_a_ratio_of_sums_has_an_interval_too():
    found = interval_of_sums(np.array([[1.0, 2.0]] * 9), lambda sums: sums[:, 0] / sums[:, 1], np.arange(9) // 3)
    assert found == Interval(0.5, 0.5, 0.5, 9)


def test_units_are_numbered_from_nothing_left_out():
    assert numbered(["b", "a", "b", "c"]).tolist() == [1, 0, 1, 2]
    assert numbered([7, 7, 3]).tolist() == [1, 1, 0]
