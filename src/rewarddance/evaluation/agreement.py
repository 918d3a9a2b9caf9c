"""How often a judge agrees with an order of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rewarddance.errors import InputError
from rewarddance.evaluation.statistics import Interval, interval, numbered
from rewarddance.protocols import RewardModel, checked_verdict
from rewarddance.types import Preference, Question


def both_orders(judge: RewardModel, pairs: Sequence[Preference]) -> tuple[np.ndarray, np.ndarray]:
    """The margins [n] with the second picture of each pair as the candidate, and with the first."""
    questions = [Question(p.prompt, p.second, p.first, fps=(p.fps[1], p.fps[0])) for p in pairs]
    questions += [Question(p.prompt, p.first, p.second, fps=p.fps) for p in pairs]
    margin = checked_verdict(judge(questions), questions).margin
    forward, backward = margin.double().cpu().numpy().reshape(2, len(pairs))
    return forward, backward


def agrees(margin: np.ndarray, share: np.ndarray) -> np.ndarray:
    """1 where the margin has the sign of most votes, 0 where the other, 0.5 where it is 0; [n]. Pairs with an order."""
    return np.where(margin == 0, 0.5, np.sign(margin) == np.sign(share - 0.5)).astype(np.float64)


def agreement(judge: RewardModel, pairs: Sequence[Preference]) -> np.ndarray:
    """1 where the judge prefers the picture that most votes prefer, 0 where the other, 0.5 where its margin is 0; [n].

    Both orders are asked and their margins subtracted. Pairs with share 0.5 (ties) have no order and are left out, so
    n may be smaller than len(pairs).
    """
    ordered = [pair for pair in pairs if pair.share != 0.5]
    forward, backward = both_orders(judge, ordered)
    return agrees(forward - backward, np.array([pair.share for pair in ordered]))


def accuracy(judge: RewardModel, pairs: Sequence[Preference]) -> Interval:
    """Mean agreement with its 95 % interval over prompts (`interval`); n counts the pairs.

    Raises InputError where all pairs are ties.
    """
    right = agreement(judge, pairs)
    if not len(right):
        raise InputError(f"none of the {len(pairs)} pairs has an order.", "Give pairs whose share is not 0.5.")
    return interval(right, units=numbered([pair.prompt.text for pair in pairs if pair.share != 0.5]), share=True)


class WithTies(NamedTuple):
    right: np.ndarray  # [n]: 1 where the judge answers as most votes do, a tie among the answers; else 0
    threshold: float  # |margin| below which it answers a tie: the mean of the two halves' thresholds


def agreement_with_ties(margin: np.ndarray, share: np.ndarray, half: np.ndarray) -> WithTies:
    """Agreement [n] where "they are equal" is an answer too: the judge's where |margin| <= threshold.

    half [n], of bool: the threshold that is best on one half is used on the other, and the other way round. Source:
    tie calibration (Deutsch et al., 2305.14324), there without the halves.
    """
    right, thresholds = np.zeros(len(margin)), []
    for tested in (half, ~half):
        thresholds.append(tie_threshold(margin[~tested], share[~tested]))
        answer = np.where(np.abs(margin[tested]) <= thresholds[-1], 0, np.sign(margin[tested]))
        right[tested] = answer == np.sign(share[tested] - 0.5)
    return WithTies(right, float(np.mean(thresholds)))


def tie_threshold(margin: np.ndarray, share: np.ndarray) -> float:
    """The threshold on |margin| under which most of these pairs [n] are answered right; 0 where none should be a tie.

    It stands in the middle between two margins.
    """
    order = np.argsort(np.abs(margin), kind="stable")
    size, vote, answer = np.abs(margin)[order], np.sign(share - 0.5)[order], np.sign(margin)[order]
    tied, right = vote == 0, (vote == answer) & (vote != 0)
    gained = np.concatenate([[0], np.cumsum(tied.astype(int) - right)])  # at k: the k smallest margins are called ties
    within = np.concatenate([[False], size[:-1] == size[1:], [False]])[: len(gained)]  # no threshold parts equal ones
    best = int(np.where(within, -1, gained).argmax())
    return float(size[best - 1 : best + 1].mean()) if best else 0.0
