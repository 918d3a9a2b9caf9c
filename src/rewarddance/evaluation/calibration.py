"""Does P("yes") mean what it says? Of the questions answered with 0.8, four fifths of the votes should say yes."""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel
from scipy.optimize import brentq
from scipy.special import entr, expit

from rewarddance.evaluation.statistics import Figure, interval

COLDEST, HOTTEST = 1e-2, 1e2
"""Between these temperatures the best is searched: where it is one of them, the fit says nothing."""


class Bin(BaseModel):
    """Questions whose P(yes) is between two probabilities."""

    low: float
    high: float
    p_yes: float  # their mean P(yes)
    votes: Figure  # the share of votes for yes; n counts questions


def nll(margin: np.ndarray, share: np.ndarray) -> np.ndarray:
    """- s log P(yes) - (1 - s) log P(no) of each question [n], in nats; share [n]: of the votes that say yes."""
    return np.logaddexp(0, margin) - share * margin


def entropy(share: np.ndarray) -> np.ndarray:
    """- s log s - (1 - s) log(1 - s) [n], in nats: the least `nll` that any judge could have."""
    return entr(share) + entr(1 - share)


def _bin_of(p_yes: np.ndarray, bins: int) -> np.ndarray:
    return np.minimum((p_yes * bins).astype(int), bins - 1)


def reliability(margin: np.ndarray, share: np.ndarray, units: np.ndarray, bins: int = 10) -> list[Bin]:
    """Questions in `bins` equally wide bins of P(yes); empty ones are left out. units [n]: prompts, for intervals."""
    p_yes = expit(margin)
    index = _bin_of(p_yes, bins)
    return [
        Bin(
            low=i / bins,
            high=(i + 1) / bins,
            p_yes=p_yes[index == i].mean(),
            votes=interval(share[index == i], units=units[index == i], share=True),
        )
        for i in np.unique(index)
    ]


def calibration_error(margin: np.ndarray, share: np.ndarray, bins: int = 10) -> float:
    """ECE: the sum over bins of n_bin / n * |mean P(yes) - share of votes for yes|; 0 is calibrated.

    Source: Naeini et al. (2015), Guo et al. (1706.04599); with shares in place of labels.
    """
    p_yes = expit(margin)
    return float(np.abs(np.bincount(_bin_of(p_yes, bins), p_yes - share)).sum() / len(p_yes))


def fit_temperature(margin: np.ndarray, share: np.ndarray) -> float:
    """The T > 0 that makes the mean `nll` of margin / T least, within COLDEST and HOTTEST.

    The loss is convex in 1 / T, so its slope has one root. Source: Guo et al. (1706.04599).
    """

    def slope(log_temperature: float) -> float:
        return float(np.mean((expit(margin * np.exp(-log_temperature)) - share) * margin))

    coldest, hottest = np.log(COLDEST), np.log(HOTTEST)
    if slope(hottest) >= 0:
        return HOTTEST
    if slope(coldest) <= 0:
        return COLDEST
    return float(np.exp(brentq(slope, coldest, hottest, xtol=1e-14)))  # type: ignore[arg-type]
