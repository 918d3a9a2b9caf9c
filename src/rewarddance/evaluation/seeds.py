"""Means over runs that differ in their seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

from rewarddance.evaluation.statistics import Interval, interval


def interval_over_seeds(values: Sequence[np.ndarray]) -> Interval:
    """The mean of the means of S runs with its 95 % t interval over them; `values` [S][n] are each run's units.

    Runs that differ in all that is random, in what they are tested on too, are independent draws, so S - 1 degrees of
    freedom cover training and testing together. A few runs may agree by luck, so the interval is never narrower than
    the units alone leave it (1.96 standard errors). With one run it is the bootstrap over its units. n: all units.
    Raises ValueError where a run has no values.
    """
    if not values or any(len(own) == 0 for own in values):
        raise ValueError("an interval over seeds needs the values of each seed")
    if len(values) == 1:
        return interval(values[0])
    means = np.array([own.mean() for own in values])
    within = np.mean([own.var(ddof=1) / len(own) if len(own) > 1 else 0.0 for own in values])
    return _over(means, float(within), sum(map(len, values)))


def intervals_over_seeds(figures: Sequence[Interval]) -> Interval:
    """The same from each run's mean and interval, where its values are not at hand: half an interval is taken as 1.96
    standard errors. With one run it is that run's. Raises ValueError where there is none.
    """
    if not figures:
        raise ValueError("an interval over seeds needs the figure of each seed")
    if len(figures) == 1:
        return figures[0]
    within = np.mean([((own.high - own.low) / 3.92) ** 2 for own in figures])
    return _over(np.array([own.mean for own in figures]), float(within), sum(own.n for own in figures))


def _over(means: np.ndarray, within: float, n: int) -> Interval:
    deviation = max(stdtrit(len(means) - 1, 0.975) * means.std(ddof=1), 1.96 * within**0.5)
    mean, half = float(means.mean()), float(deviation / len(means) ** 0.5)
    return Interval(mean, mean - half, mean + half, n)
