"""A confidence sequence: intervals that hold at every moment at once, so that one may look and stop at any.

Of a mean of values in [-1, 1], by the normal mixture (Robbins, 1970; Howard, Ramdas, McAuliffe and Sekhon, 2021,
"Time-uniform, nonparametric, nonasymptotic confidence sequences", equation 14). An ordinary 95 % interval that is
looked at after each vote excludes the truth, sooner or later, nearly always; this one in 5 % of all tests.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Moment(NamedTuple):
    """Where a test stands after n values: their mean, and the interval that holds the truth."""

    n: int
    mean: float
    low: float
    high: float

    @property
    def decided(self) -> bool:
        return self.low > 0 or self.high < 0


def half_width(n: Float[np.ndarray, " t"], error: float, tightest: int) -> Float[np.ndarray, " t"]:
    """Half the width of the interval after n values: sqrt((n + r) log((n + r) / (error^2 r))) / n.

    error: the chance that the truth is ever outside. tightest: the n at which the intervals are made narrowest, which
    sets r = n / (1 - 2 log(error) + log(1 - 2 log(error))), nearly the best.
    """
    wide = 1 - 2 * math.log(error)
    r = tightest / (wide + math.log(wide))
    return np.sqrt((n + r) * np.log((n + r) / (error**2 * r))) / n


def confidence_sequence(values: Float[np.ndarray, " t"], error: float = 0.05, tightest: int = 200) -> list[Moment]:
    """Where a test stands after each of t values in [-1, 1], in the order in which they came.

    Each interval lies within those before it: what was excluded once stays so.
    """
    n = np.arange(1, len(values) + 1, dtype=np.float64)
    mean = np.cumsum(values) / n
    half = half_width(n, error, tightest)
    low = np.maximum.accumulate(np.maximum(mean - half, -1.0))
    high = np.minimum.accumulate(np.minimum(mean + half, 1.0))
    return [Moment(k + 1, float(mean[k]), float(low[k]), float(high[k])) for k in range(len(values))]


def first_decision(moments: list[Moment]) -> Moment | None:
    """The first moment at which 0 is excluded, or None."""
    return next((moment for moment in moments if moment.decided), None)
