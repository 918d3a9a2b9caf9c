"""Krippendorff's alpha: how far people agree beyond what chance would give, with any number of votes a unit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from rewarddance.evaluation.statistics import Interval, interval_of_sums, numbered

Level = Literal["nominal", "ordinal", "interval"]


class Alpha(NamedTuple):
    """alpha: 1 where all agree, 0 what chance gives, with its 95 % interval over units; None where nobody could agree:
    no unit has two votes, or all votes are the same. units: with two votes or more. votes: on these."""

    alpha: Interval | None
    units: int
    votes: int


def alpha(units: Sequence[int] | np.ndarray, values: Sequence[float] | np.ndarray, level: Level = "ordinal") -> Alpha:
    """alpha = 1 - D_o / D_e of n votes (Krippendorff, 2011, Computing Krippendorff's Alpha-Reliability).

    units [n]: what each vote is on. values [n]: the votes. level: how far two values are from each other: "nominal",
    all equally; "ordinal", by the votes that lie between; "interval", by their squared difference. Units with one vote
    do not count. The interval is over units, which are resampled whole.
    """
    index, names = numbered(units), np.unique(values)
    code = np.searchsorted(names, values)
    table = np.zeros((index.max() + 1, len(names)))  # [units, values]: how many gave which
    np.add.at(table, (index, code), 1.0)
    table = table[table.sum(1) > 1]
    counted = int(table.sum())
    if not len(table) or len(names[table.sum(0) > 0]) < 2:
        return Alpha(None, len(table), counted)
    k = len(names)
    pairs = table[:, :, None] * table[:, None, :] - np.eye(k) * table[:, :, None]
    coincidences = pairs / (table.sum(1) - 1)[:, None, None]

    def figure(sums: np.ndarray) -> np.ndarray:
        return _alpha(sums.reshape(-1, k, k), names, level)

    with_interval = interval_of_sums(coincidences.reshape(len(table), k * k), figure, np.arange(len(table)))
    return Alpha(with_interval.cut(-1.0, 1.0), len(table), counted)


def _alpha(coincidences: np.ndarray, names: np.ndarray, level: Level) -> np.ndarray:
    """alpha [r] of coincidence matrices [r, k, k]; 1 where all votes of a resample are the same."""
    count = coincidences.sum(-1)
    total = count.sum(-1)
    distance = _distances(count, names, level)
    observed = (coincidences * distance).sum((-1, -2)) / total
    expected = (count[:, :, None] * count[:, None, :] * distance).sum((-1, -2)) / (total * (total - 1))
    return np.where(expected > 0, 1 - observed / np.where(expected > 0, expected, 1.0), 1.0)


def _distances(count: np.ndarray, names: np.ndarray, level: Level) -> np.ndarray:
    """Squared distances [r, k, k] of the values."""
    k = len(names)
    if level == "nominal":
        return np.broadcast_to(1 - np.eye(k), (len(count), k, k))
    if level == "interval":
        return np.broadcast_to(np.square(names[:, None] - names[None, :]), (len(count), k, k))
    middle = np.cumsum(count, -1) - count / 2  # the ends' own votes count half
    return np.square(middle[:, :, None] - middle[:, None, :])
