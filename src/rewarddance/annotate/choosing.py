"""How much a vote on each pair would tell a judge, by what judges say of it now."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float
from scipy.special import expit, xlog1py, xlogy

from rewarddance.evaluation.agreement import both_orders
from rewarddance.protocols import RewardModel
from rewarddance.types import Preference


def least_sure(margins: Float[np.ndarray, "k n"]) -> Float[np.ndarray, " n"]:
    """- |P - 0.5|, of the mean P("b is better") of k judges: uncertainty sampling (Lewis and Gale, 1994)."""
    return -np.abs(expit(margins).mean(0) - 0.5)


def disagreement(margins: Float[np.ndarray, "k n"]) -> Float[np.ndarray, " n"]:
    """H(mean of P) - mean of H(P), over k judges, in nats: what a vote tells of which judge is right, as opposed to
    what nobody can know (Houlsby et al., 2011, arXiv 1112.5745). Of one judge it is 0."""
    probability = expit(margins)
    return _entropy(probability.mean(0)) - _entropy(probability).mean(0)


def _entropy(p: np.ndarray) -> np.ndarray:
    return -(xlogy(p, p) + xlog1py(1 - p, -p))


SCORES: dict[str, Callable[[np.ndarray], np.ndarray]] = {"least_sure": least_sure, "disagreement": disagreement}
"""By policy. The pair with the highest score is asked next."""


def margins_of(judges: Sequence[RewardModel], pairs: Sequence[Preference], at_once: int = 64) -> np.ndarray:
    """The margin [k, n] of each judge that b is better, both orders asked; `at_once` pairs are in memory."""
    parts = []
    for start in range(0, len(pairs), at_once):
        batch = [pairs[n] for n in range(start, min(start + at_once, len(pairs)))]
        orders = [both_orders(judge, batch) for judge in judges]
        parts.append(np.stack([(forward - backward) / 2 for forward, backward in orders]))
    return np.concatenate(parts, axis=1) if parts else np.zeros((len(judges), 0))
