"""Means with intervals. Every figure that is reported goes through here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import PlainSerializer

RESAMPLES = 2000


class Interval(NamedTuple):
    """A mean, or another figure, of n values with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float
    n: int


Figure = Annotated[Interval, PlainSerializer(lambda figure: figure._asdict())]
"""An interval as a field of a pydantic record: in JSON a mapping."""


def interval(
    values: Sequence[float] | np.ndarray,
    seed: int = 0,
    resamples: int = RESAMPLES,
    units: Sequence[int] | np.ndarray | None = None,
) -> Interval:
    """Percentile bootstrap of the mean of `values` [n].

    units [n]: the number of the unit that each value belongs to, such as its prompt; whole units are resampled, for two
    pairs of one prompt say less than two of different ones. None: each value is a unit. Raises ValueError for no
    values: a mean of nothing is not 0.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) == 0:
        raise ValueError(f"an interval needs a flat list of values, got shape {array.shape}")
    if units is not None:
        parts = np.stack([array, np.ones_like(array)], 1)
        return interval_of_sums(parts, lambda sums: sums[:, 0] / sums[:, 1], units, seed, resamples)
    rng = np.random.default_rng(seed)
    n, at_once = len(array), max(1, 1_000_000 // len(array))
    sizes = [(min(at_once, resamples - start), n) for start in range(0, resamples, at_once)]
    means = np.concatenate([array[rng.integers(n, size=size)].mean(1) for size in sizes])
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(array.mean()), float(low), float(high), len(array))


def interval_of_sums(
    parts: np.ndarray,
    figure: Callable[[np.ndarray], np.ndarray],
    units: Sequence[int] | np.ndarray,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval:
    """Percentile bootstrap over units of a figure that is a function of the sums of `parts` [n, k].

    figure: sums [m, k] to figures [m]; a mean, a ratio and a correlation are such. units: as in `interval`; where
    all values are of one unit, the values themselves are resampled.
    """
    index = numbered(units)
    if index.max() == 0:
        index = np.arange(len(parts))
    sums = np.stack([np.bincount(index, part) for part in parts.T], 1)
    n, rng = len(sums), np.random.default_rng(seed)
    drawn, at_once = [], max(1, 1_000_000 // n)
    for start in range(0, resamples, at_once):
        m = min(at_once, resamples - start)
        chosen = rng.integers(n, size=(m, n)) + n * np.arange(m)[:, None]
        drawn.append(np.bincount(chosen.ravel(), minlength=m * n).reshape(m, n) @ sums)
    low, high = np.quantile(figure(np.concatenate(drawn)), [0.025, 0.975])
    return Interval(float(figure(sums.sum(0, keepdims=True))[0]), float(low), float(high), len(parts))


def numbered(units: Sequence[int] | np.ndarray | Sequence[str]) -> np.ndarray:
    """Units [n] of any names as numbers from 0 with none left out."""
    return np.unique(np.asarray(units), return_inverse=True)[1]


def by_category(
    values: Sequence[float] | np.ndarray, categories: Sequence[str], units: np.ndarray | None = None
) -> dict[str, Interval]:
    """Mean and interval of `values` [n] within each category, in the order of first appearance; units: `interval`'s."""
    array, names = np.asarray(values, dtype=np.float64), np.asarray(categories)
    members = {name: names == name for name in dict.fromkeys(categories)}
    return {name: interval(array[at], units=None if units is None else units[at]) for name, at in members.items()}
