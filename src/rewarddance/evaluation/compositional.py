"""GenEval-style figures: by category, and over all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rewarddance.evaluation.statistics import Interval, interval


def by_category(
    values: Sequence[float] | np.ndarray, categories: Sequence[str], units: np.ndarray | None = None
) -> dict[str, Interval]:
    """Mean and interval of `values` [n] within each category, in the order of first appearance; units: `interval`'s."""
    array = np.asarray(values, dtype=np.float64)
    names = np.asarray(categories)
    chosen = {name: names == name for name in dict.fromkeys(categories)}
    return {name: interval(array[own], units=None if units is None else units[own]) for name, own in chosen.items()}
