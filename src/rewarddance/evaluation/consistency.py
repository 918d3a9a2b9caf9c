"""Does a judge contradict itself? Between the two orders of a pair, and around three pictures of one prompt."""

from __future__ import annotations

from math import comb

import numpy as np
from jaxtyping import Float
from torch import Tensor

CHANCE = 0.25
"""The share of cyclic triples of a judge that tosses a coin for every pair: of a triple's eight outcomes two are."""


def same_in_both_orders(forward: np.ndarray, backward: np.ndarray) -> np.ndarray:
    """1 where a pair's two orders [n] prefer the same picture, else 0: one is answered yes and the other no."""
    return (forward * backward < 0).astype(np.float64)


def same_answer_twice(forward: np.ndarray, backward: np.ndarray, sign: int) -> np.ndarray:
    """1 where both orders [n] are answered yes (sign 1) or no (sign -1): it is for a position, not a picture."""
    return ((sign * forward > 0) & (sign * backward > 0)).astype(np.float64)


def cyclic_triples(margins: Float[Tensor, "N N"]) -> tuple[int, int]:
    """How many triples of N pictures are cyclic (a over b, b over c, c over a), and how many triples there are.

    margins: row is the candidate, column the reference, as in `Ranking`; a pair is won by the difference of its two
    orders' margins, and one where that is 0 closes no cycle. A cycle is a closed walk of three wins, which the trace of
    the cubed matrix of wins counts once from each of its pictures.
    """
    wins = (margins > margins.T).double()
    return round(float((wins @ wins @ wins).trace())) // 3, comb(len(wins), 3)
