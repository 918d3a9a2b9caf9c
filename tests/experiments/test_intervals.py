"""An interval over seeds covers what it says it does, however much of the spread is the seeds' own."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.intervals import interval_over_seeds
from rewarddance.evaluation.statistics import interval


def runs(rng: np.random.Generator, between: float, seeds: int = 3, units: int = 40) -> list[np.ndarray]:
    """Runs whose true means are N(0.6, between), each with normal units of deviation 0.3."""
    return [rng.normal(rng.normal(0.6, between), 0.3, units) for _ in range(seeds)]


@pytest.mark.parametrize("between", [0.0, 0.05, 0.5])
def test_it_holds_the_truth_95_times_in_100_whether_seeds_matter_or_not(between):
    rng, trials = np.random.default_rng(0), 1500
    held = sum(
        found.low <= 0.6 <= found.high for found in (interval_over_seeds(runs(rng, between)) for _ in range(trials))
    )
    assert held / trials > 0.935


def test_where_only_the_seeds_differ_it_is_the_t_interval_of_their_means():
    found = interval_over_seeds([np.full(5, mean) for mean in (0.5, 0.6, 0.7)])
    assert found.mean == pytest.approx(0.6) and found.n == 15
    assert found.high - found.mean == pytest.approx(4.302653 * 0.1 / 3**0.5)  # 2 degrees of freedom


def test_seeds_that_agree_by_luck_do_not_hide_how_few_units_there_were():
    units = np.array([0.0, 1.0] * 8)
    found = interval_over_seeds([units, units, units])
    assert found.high - found.mean == pytest.approx(1.96 * units.std(ddof=1) / 48**0.5)


def test_one_seed_has_the_interval_of_its_units():
    values = np.random.default_rng(1).random(30)
    assert interval_over_seeds([values]) == interval(values)


@pytest.mark.parametrize("values", [[], [np.ones(3), np.ones(0)]])
def test_a_seed_without_values_is_an_error(values):
    with pytest.raises(ValueError, match="needs the values of each seed"):
        interval_over_seeds(values)
