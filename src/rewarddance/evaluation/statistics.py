"""Means with intervals. Every figure that is reported goes through here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A mean with its 95 % bootstrap interval over n units."""

    mean: float
    low: float
    high: float
    n: int


def interval(values: Sequence[float] | np.ndarray, seed: int = 0, resamples: int = 2000) -> Interval:
    """Percentile bootstrap of the mean of `values` [n]; the units (prompts, pairs) are what is resampled.

    Raises ValueError for no values: a mean of nothing is not 0.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) == 0:
        raise ValueError(f"an interval needs a flat list of values, got shape {array.shape}")
    rng = np.random.default_rng(seed)
    means = [array[rng.integers(len(array), size=len(array))].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(array.mean()), float(low), float(high), len(array))
