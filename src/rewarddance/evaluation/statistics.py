"""Means with intervals. Every figure that is reported goes through here.

Of many units it is the percentile bootstrap. Of fewer than `FEW` that is too narrow (of ten it holds the truth 89 times
in 100), so there it is Student's t of the jackknife's standard error. Of a single one nothing is known of the others:
the interval has no ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import BeforeValidator, PlainSerializer
from scipy.special import stdtrit

RESAMPLES = 2000
FEW = 30
"""Units from which on the bootstrap is taken."""


class Interval(NamedTuple):
    """A mean, or another figure, of n values with its 95 % interval; where nothing bounds it, its ends are infinite."""

    mean: float
    low: float
    high: float
    n: int

    def cut(self, least: float, most: float) -> Interval:
        """Its ends within what the figure can be."""
        return self._replace(low=max(self.low, least), high=min(self.high, most))

    def as_json(self) -> dict[str, Any]:
        """By name; an end that there is not is None, for JSON holds nothing infinite."""
        return {name: value if np.isfinite(value) else None for name, value in self._asdict().items()}


def _with_ends(value: Any) -> Any:
    """What `as_json` wrote, with its infinite ends."""
    if not isinstance(value, dict):
        return value
    ends = {"low": -np.inf, "high": np.inf}
    return {name: ends[name] if one is None and name in ends else one for name, one in value.items()}


Figure = Annotated[Interval, BeforeValidator(_with_ends), PlainSerializer(Interval.as_json)]
"""An interval as a field of a pydantic record: in JSON a mapping (`Interval.as_json`)."""


def interval(
    values: Sequence[float] | np.ndarray,
    seed: int = 0,
    resamples: int = RESAMPLES,
    units: Sequence[int] | np.ndarray | None = None,
    share: bool = False,
) -> Interval:
    """The mean of `values` [n] with its interval. share: it is one of a whole, and so ends at 0 and 1.

    A share of values that are right or wrong (0 and 1, or half) has Wilson's interval at least, as if they were
    independent: that ten of ten are right does not say that all are.

    units [n]: the number of the unit that each value belongs to, such as its prompt; whole units are drawn, for two
    pairs of one prompt say less than two of different ones. None: each value is a unit. Of a single unit its values
    are drawn; the interval of a single value has no ends. Raises ValueError for no values: a mean of nothing is not 0.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) == 0:
        raise ValueError(f"an interval needs a flat list of values, got shape {array.shape}")
    parts = np.stack([array, np.ones_like(array)], 1)
    units = np.arange(len(array)) if units is None else units
    result = interval_of_sums(parts, lambda sums: sums[:, 0] / sums[:, 1], units, seed, resamples)
    if share and np.isin(array, (0.0, 0.5, 1.0)).all():
        result = with_wilson(result, result.n)
    return result.cut(0.0, 1.0) if share else result


def with_wilson(figure: Interval, n: int) -> Interval:
    """A share's interval, and at least Wilson's of n draws."""
    z = 1.96
    middle = (figure.mean + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (max(figure.mean * (1 - figure.mean), 0.0) / n + z * z / (4 * n * n)) ** 0.5
    return figure._replace(low=min(figure.low, middle - half), high=max(figure.high, middle + half))


def interval_of_sums(
    parts: np.ndarray,
    figure: Callable[[np.ndarray], np.ndarray],
    units: Sequence[int] | np.ndarray,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval:
    """The interval over units of a figure that is a function of the sums of `parts` [n, k].

    figure: sums [m, k] to figures [m]; a mean, a ratio and a correlation are such. units: as in `interval`; where
    all values are of one unit, the values themselves are drawn.
    """
    index = numbered(units)
    if index.max() == 0:
        index = np.arange(len(parts))
    sums = np.stack([np.bincount(index, part) for part in parts.T], 1)
    n, rng = len(sums), np.random.default_rng(seed)
    total = sums.sum(0, keepdims=True)
    value = float(figure(total)[0])
    if n < FEW:
        if n == 1:
            return Interval(value, -np.inf, np.inf, len(parts))
        return _jackknifed(value, figure(total - sums), len(parts))  # each unit left out in turn
    drawn, at_once = [], max(1, 1_000_000 // n)
    for start in range(0, resamples, at_once):
        m = min(at_once, resamples - start)
        chosen = rng.integers(n, size=(m, n)) + n * np.arange(m)[:, None]
        drawn.append(np.bincount(chosen.ravel(), minlength=m * n).reshape(m, n) @ sums)
    low, high = np.quantile(figure(np.concatenate(drawn)), [0.025, 0.975])
    return Interval(value, float(low), float(high), len(parts))


def interval_of_rows(n: int, figure: Callable[[np.ndarray], np.ndarray], seed: int = 0) -> Interval:
    """The interval over n units of any figure of some of them. figure: rows [m, k] of units to figures [m]."""
    rng, everything = np.random.default_rng(seed), np.arange(n)
    value = float(figure(everything[None])[0])
    if n < FEW:
        if n < 3:
            return Interval(value, -np.inf, np.inf, n)
        return _jackknifed(value, figure(np.stack([np.delete(everything, k) for k in range(n)])), n)
    at_once = max(1, 1_000_000 // n)
    sizes = [min(at_once, RESAMPLES - start) for start in range(0, RESAMPLES, at_once)]
    drawn = np.concatenate([figure(rng.integers(n, size=(m, n))) for m in sizes])
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(value, float(low), float(high), n)


def _jackknifed(value: float, without: np.ndarray, n: int) -> Interval:
    """Student's t of the jackknife's standard error. without: the figure without each of the units in turn."""
    units = len(without)
    deviation = np.sqrt((units - 1) / units * np.square(without - without.mean()).sum())
    half = float(deviation * stdtrit(units - 1, 0.975))
    return Interval(value, value - half, value + half, n)


def numbered(units: Sequence[int] | np.ndarray | Sequence[str]) -> np.ndarray:
    """Units [n] of any names as numbers from 0 with none left out."""
    if isinstance(units, np.ndarray):
        return np.unique(units, return_inverse=True)[1]
    numbers = {unit: number for number, unit in enumerate(sorted(set(units)))}  # an array of texts is as wide as one
    return np.array([numbers[unit] for unit in units], dtype=np.int64)


def by_category(
    values: Sequence[float] | np.ndarray,
    categories: Sequence[str],
    units: np.ndarray | None = None,
    share: bool = False,
) -> dict[str, Interval]:
    """Mean and interval of `values` [n] within each category, in the order of first appearance.

    units, share: see `interval`.
    """
    array = np.asarray(values, dtype=np.float64)
    rows: dict[str, list[int]] = {}
    for place, name in enumerate(categories):
        rows.setdefault(name, []).append(place)
    return {
        name: interval(array[at], units=None if units is None else units[at], share=share) for name, at in rows.items()
    }
