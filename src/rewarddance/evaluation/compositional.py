"""GenEval-style figures: by category, and over all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rewarddance.evaluation.statistics import Interval, interval


def by_category(values: Sequence[float] | np.ndarray, categories: Sequence[str]) -> dict[str, Interval]:
    """Mean and interval of `values` [n] within each category, in the order of first appearance."""
    array = np.asarray(values, dtype=np.float64)
    names = np.asarray(categories)
    return {name: interval(array[names == name]) for name in dict.fromkeys(categories)}
