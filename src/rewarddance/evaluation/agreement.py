"""How often a judge agrees with an order of pairs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rewarddance.errors import InputError
from rewarddance.evaluation.statistics import Interval, interval
from rewarddance.protocols import RewardModel
from rewarddance.types import Preference, Question


def agreement(judge: RewardModel, pairs: Sequence[Preference]) -> np.ndarray:
    """1 where the judge prefers the picture that most votes prefer, 0 where the other, 0.5 where it cannot tell; [n].

    Both orders are asked and their margins subtracted. Pairs with share 0.5 (ties) have no order and are left out, so
    n may be smaller than len(pairs).
    """
    ordered = [pair for pair in pairs if pair.share != 0.5]
    forward = judge([Question(p.prompt, p.second, p.first, condition=p.condition) for p in ordered]).margin
    backward = judge([Question(p.prompt, p.first, p.second, condition=p.condition) for p in ordered]).margin
    margin = (forward - backward).double().cpu().numpy()
    said = np.sign(margin)
    meant = np.sign([pair.share - 0.5 for pair in ordered])
    return np.where(said == 0, 0.5, said == meant).astype(np.float64)


def accuracy(judge: RewardModel, pairs: Sequence[Preference]) -> Interval:
    """Mean agreement with its 95 % bootstrap interval over pairs. Raises InputError where all pairs are ties."""
    found = agreement(judge, pairs)
    if not len(found):
        raise InputError(f"none of the {len(pairs)} pairs has an order.", "Give pairs whose share is not 0.5.")
    return interval(found)
