"""Rankings from pairwise verdicts: the all-pairs tournament that picks the paper's references (section 3)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rewarddance.protocols import RewardModel
from rewarddance.types import Pixels, Question


class Ranking(NamedTuple):
    """Candidates by number of wins. order: best first; margins: row is the candidate, column the reference.

    reasons: why each of the N stands where it does, where that was asked for.
    """

    order: Int[Tensor, " N"]
    wins: Float[Tensor, " N"]
    margins: Float[Tensor, "N N"]
    reasons: tuple[str, ...] | None = None


def tournament(
    judge: RewardModel,
    prompts: Sequence[str],
    groups: Sequence[Sequence[Pixels]],
    conditions: Sequence[Pixels | None] | None = None,
) -> list[Ranking]:
    """Ask every ordered pair of every group; a pair is won by the sign of its two margins' difference.

    Asking both orders cancels a judge's bias to either place. Ties in wins are broken by the summed margin, then by
    the lower index. Groups are asked together, so that batches stay full. conditions: what each group was made from.
    """
    given = conditions or [None] * len(groups)
    pairs = [(g, c, r) for g, group in enumerate(groups) for c, r in itertools.permutations(range(len(group)), 2)]
    asked = [Question(prompts[g], groups[g][c], groups[g][r], condition=given[g]) for g, c, r in pairs]
    margin = judge(asked).margin.float().cpu()
    rankings, start = [], 0
    for group in groups:
        count = len(group) * (len(group) - 1)
        rankings.append(ranked(len(group), margin[start : start + count]))
        start += count
    return rankings


def ranked(n: int, margin: Float[Tensor, " pairs"]) -> Ranking:
    """The ranking of N candidates from the margins [N * (N - 1)] of all their ordered pairs, row by row."""
    margins = torch.zeros(n, n)
    margins[~torch.eye(n, dtype=torch.bool)] = margin
    debiased = (margins - margins.T) / 2
    wins = (debiased > 0).float().sum(1) + 0.5 * ((debiased == 0).float().sum(1) - 1)
    order = sorted(range(n), key=lambda i: (-float(wins[i]), -float(debiased[i].sum()), i))
    return Ranking(torch.tensor(order), wins, margins)
