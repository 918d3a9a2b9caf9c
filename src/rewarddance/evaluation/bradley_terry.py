"""The Bradley-Terry model of who beats whom: strengths of models from votes, and which comparison would tell most.

P(i beats j) = sigmoid(s_i - s_j) (Bradley and Terry, 1952), with a Gaussian prior on each strength s that keeps a model
that never lost finite. A tie is half a win for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import expit

from rewarddance.evaluation.statistics import Interval, interval_of_sums

PRIOR = 2.0
"""Standard deviation of a strength before any vote, in logits: 95 % of all models lie within odds of 50 to 1."""
_STEPS = 30


class Rank(NamedTuple):
    """One model in a ranking.

    strength: in logits, with its 95 % interval; all models' strengths have the mean 0.
    beats_average: P(it beats a model of strength 0).
    votes: that it took part in.
    """

    model: str
    strength: Interval
    beats_average: float
    votes: int


def strengths(wins: Float[np.ndarray, "*n m m"], prior: float = PRIOR) -> Float[np.ndarray, "*n m"]:
    """The most probable strengths of m models, with the mean 0, of each of n tables.

    wins [n, m, m]: at [i, j] how often i beat j.
    """
    wins = np.asarray(wins, dtype=np.float64)
    s = np.zeros(wins.shape[:-1])
    for _ in range(_STEPS):  # Newton's steps, on a concave function, shortened far from the top
        p = expit(s[..., :, None] - s[..., None, :])
        slope = (wins * (1 - p) - wins.swapaxes(-1, -2) * p).sum(-1) - s / prior**2
        step = np.linalg.solve(information(wins, s, prior), slope[..., None])[..., 0]
        s = s + step / np.maximum(1.0, np.abs(step).max(-1, keepdims=True))
        if np.abs(step).max() < 1e-9:
            break
    return s - s.mean(-1, keepdims=True)


def information(
    wins: Float[np.ndarray, "*n m m"], s: Float[np.ndarray, "*n m"], prior: float = PRIOR
) -> Float[np.ndarray, "*n m m"]:
    """The precision of the strengths at s (Laplace's approximation): minus the second derivatives of the posterior."""
    p = expit(s[..., :, None] - s[..., None, :])
    weight = (wins + wins.swapaxes(-1, -2)) * p * (1 - p)
    m = wins.shape[-1]
    weight = weight * (1 - np.eye(m))
    return np.eye(m) * (weight.sum(-1)[..., None] + 1 / prior**2) - weight


def gains(
    wins: Float[np.ndarray, "m m"], waiting: Float[np.ndarray, "m m"], prior: float = PRIOR
) -> Float[np.ndarray, "m m"]:
    """How much one more vote on models i and j would tell of all strengths, in nats: 0.5 log(1 + p (1 - p) v_ij).

    v_ij is the variance of s_i - s_j; the gain is that of the log-determinant of the precision (D-optimal design).
    waiting [m, m], symmetric: votes that were asked for and not given yet; each counts as the vote that is expected, so
    that several people are not all asked the same.
    """
    s = strengths(wins, prior)
    covariance = np.linalg.inv(information(wins + waiting / 2, s, prior))
    spread = np.diag(covariance)
    variance = spread[:, None] + spread[None, :] - 2 * covariance
    p = expit(s[:, None] - s[None, :])
    return 0.5 * np.log1p(p * (1 - p) * np.maximum(variance, 0.0))


def ranking(
    models: Sequence[str],
    first: Sequence[int] | np.ndarray,
    second: Sequence[int] | np.ndarray,
    share: Sequence[float] | np.ndarray,
    units: Sequence[int] | np.ndarray,
) -> list[Rank]:
    """The models, best first, of n votes.

    first, second [n]: the models' places in `models`. share [n]: 1 where the second is better, 0.5 a tie. units [n]:
    the votes' prompts, which are resampled whole for the intervals.
    """
    m, n = len(models), len(share)
    i, j, b = np.asarray(first), np.asarray(second), np.asarray(share, dtype=np.float64)
    parts = np.zeros((n, m * m))
    np.add.at(parts, (np.arange(n), j * m + i), b)
    np.add.at(parts, (np.arange(n), i * m + j), 1 - b)
    took_part = np.bincount(np.concatenate([i, j]), minlength=m)
    ranks = []
    for place, model in enumerate(models):
        figure = interval_of_sums(parts, lambda sums, k=place: strengths(sums.reshape(-1, m, m))[:, k], units)
        ranks.append(Rank(model, figure, float(expit(figure.mean)), int(took_part[place])))
    return sorted(ranks, key=lambda rank: -rank.strength.mean)
