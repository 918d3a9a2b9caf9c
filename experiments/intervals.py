"""Means over runs that differ in their seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

from rewarddance.evaluation.statistics import FEW, Interval, interval


def interval_over_seeds(values: Sequence[np.ndarray]) -> Interval:
    """The mean of the means of S runs with its 95 % t interval over them; `values` [S][n] are each run's units.

    Runs that differ in all that is random are independent draws, with S - 1 degrees of freedom. Runs on the same
    prompts say how they would do on these, and nothing of others. A few runs may agree by luck, so the interval is
    never narrower than all units would leave it if no two runs shared any (1.96 standard errors). With one run it is
    the bootstrap over its units. n: all units. Raises ValueError where a run has no values.
    """
    if not values or any(len(run) == 0 for run in values):
        raise ValueError("an interval over seeds needs the values of each seed")
    if len(values) == 1:
        return interval(values[0])
    within = np.mean([run.var(ddof=1) / len(run) if len(run) > 1 else 0.0 for run in values])
    return _over([run.mean() for run in values], float(within), sum(map(len, values)))


def intervals_over_seeds(figures: Sequence[Interval]) -> Interval:
    """The same from each run's mean and interval, where its values are not at hand.

    Half an interval is taken as 1.96 standard errors, or as many as `interval` takes of fewer units than FEW. With one
    run it is that run's. Raises ValueError where there is none.
    """
    if not figures:
        raise ValueError("an interval over seeds needs the figure of each seed")
    if len(figures) == 1:
        return figures[0]
    within = np.mean([((run.high - run.low) / 2 / _errors_in_half(run.n)) ** 2 for run in figures])
    return _over([run.mean for run in figures], float(within), sum(run.n for run in figures))


def _errors_in_half(n: int) -> float:
    """How many standard errors half an interval of n units is."""
    return 1.96 if n >= FEW else float(stdtrit(max(n - 1, 1), 0.975))


def _over(means: Sequence[float], within: float, n: int) -> Interval:
    """within: the mean squared standard error of a run."""
    deviation = max(stdtrit(len(means) - 1, 0.975) * np.std(means, ddof=1), 1.96 * within**0.5)
    mean, half = float(np.mean(means)), float(deviation / len(means) ** 0.5)
    return Interval(mean, mean - half, mean + half, n)
