"""Does P("yes") mean what it says? Of the questions answered with 0.8, four fifths of the votes should say yes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rewarddance.evaluation.statistics import Interval, interval

COLDEST, HOTTEST = 1e-2, 1e2
"""Between these temperatures one is looked for: where the best is one of them, the fit says nothing."""


class Bin(NamedTuple):
    """Answers between two probabilities: their mean, and the share of votes for yes with its interval; n questions."""

    low: float
    high: float
    said: float
    votes: Interval


def probability(margin: np.ndarray) -> np.ndarray:
    """sigma(margin), without overflow."""
    return np.exp(-np.logaddexp(0, -margin))


def nll(margin: np.ndarray, share: np.ndarray) -> np.ndarray:
    """- s log P(yes) - (1 - s) log P(no) of each question [n], in nats; share [n]: of the votes that say yes."""
    return np.logaddexp(0, margin) - share * margin


def entropy(share: np.ndarray) -> np.ndarray:
    """- s log s - (1 - s) log(1 - s) [n], in nats: the least `nll` that any judge could have."""
    both = np.stack([share, 1 - share])
    return -(both * np.log(np.where(both > 0, both, 1))).sum(0)


def reliability(margin: np.ndarray, share: np.ndarray, units: np.ndarray, bins: int = 10) -> list[Bin]:
    """Questions in `bins` equally wide bins of P(yes); empty ones are left out. units [n]: prompts, for intervals."""
    said = probability(margin)
    place = np.minimum((said * bins).astype(int), bins - 1)
    found = []
    for number in np.unique(place):
        own = place == number
        votes = interval(share[own], units=units[own])
        found.append(Bin(number / bins, (number + 1) / bins, float(said[own].mean()), votes))
    return found


def calibration_error(margin: np.ndarray, share: np.ndarray, bins: int = 10) -> float:
    """ECE: the sum over bins of n_bin / n * |mean P(yes) - share of votes for yes|; 0 is calibrated.

    Source: Naeini et al. (2015), Guo et al. (1706.04599); with shares in place of labels.
    """
    said = probability(margin)
    place = np.minimum((said * bins).astype(int), bins - 1)
    return float(np.abs(np.bincount(place, said - share, minlength=bins)).sum() / len(said))


def fit_temperature(margin: np.ndarray, share: np.ndarray) -> float:
    """The T > 0 that makes the mean `nll` of margin / T least, within COLDEST and HOTTEST.

    The loss is convex in 1 / T, so the interval can be halved until it is a point. Source: Guo et al. (1706.04599).
    """

    def slope(sharpness: float) -> float:
        return float(np.mean((probability(sharpness * margin) - share) * margin))

    low, high = 1 / HOTTEST, 1 / COLDEST
    if slope(low) >= 0:
        return HOTTEST
    if slope(high) <= 0:
        return COLDEST
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return float(1 / (low * high) ** 0.5)
