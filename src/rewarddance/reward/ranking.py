"""Rankings from pairwise verdicts: the all-pairs tournament that picks the paper's references, and the knockout."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rewarddance.protocols import RewardModel, margins_on_host, needs_reference
from rewarddance.types import Pixels, Prompt, Question, as_prompts


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
    prompts: Sequence[str | Prompt],
    groups: Sequence[Sequence[Pixels]],
    instruction: str | None = None,
) -> list[Ranking]:
    """Ask every ordered pair of every group; a pair is won by the sign of its two margins' difference.

    Asking both orders cancels a judge's bias to either place. A judge that scores each by itself is asked
    once about each, and a margin is the difference of two scores. Ties in wins are broken by the summed margin, then by
    the lower index. Groups are asked together, so that batches stay full. instruction: where it is not the judge's own.
    Raises RewardError where the judge has no finite margin for a question.
    """
    prompts = as_prompts(prompts)
    if not needs_reference(judge):
        alone = [
            Question(prompt, candidate, None, instruction)
            for prompt, group in zip(prompts, groups, strict=True)
            for candidate in group
        ]
        scores = margins_on_host(judge, alone).split([len(group) for group in groups])
        return [
            ranked(len(values), (values[:, None] - values)[~torch.eye(len(values), dtype=torch.bool)])
            for values in scores
        ]
    pairs = [(g, c, r) for g, group in enumerate(groups) for c, r in itertools.permutations(range(len(group)), 2)]
    questions = [Question(prompts[g], groups[g][c], groups[g][r], instruction) for g, c, r in pairs]
    margin = margins_on_host(judge, questions)
    rankings, start = [], 0
    for group in groups:
        count = len(group) * (len(group) - 1)
        rankings.append(ranked(len(group), margin[start : start + count]))
        start += count
    return rankings


class Knockout(NamedTuple):
    """Candidates by how long they stayed in. order: best first; won: comparisons won by each, N - 1 in all.

    margins: row is the candidate, column the reference; NaN where two did not meet.
    """

    order: Int[Tensor, " N"]
    won: Int[Tensor, " N"]
    margins: Float[Tensor, "N N"]


def knockout(
    judge: RewardModel,
    prompts: Sequence[str | Prompt],
    groups: Sequence[Sequence[Pixels]],
    instruction: str | None = None,
) -> list[Knockout]:
    """Let neighbours meet, then the winners, until one is left: N - 1 comparisons, each asked in both orders.

    An odd one out stays in without a comparison and comes first in the next round. A draw goes to the lower index. Of
    those who left in the same round, the one who lost by less stands higher. Groups are asked together. instruction: as
    in `tournament`.
    """
    prompts = as_prompts(prompts)
    remaining = [list(range(len(group))) for group in groups]
    won = [[0] * len(group) for group in groups]
    margins = [torch.full((len(group), len(group)), torch.nan) for group in groups]
    losers: list[list[int]] = [[] for _ in groups]  # best first
    while any(len(members) > 1 for members in remaining):
        meetings = [
            (g, *sorted(members[i : i + 2]))
            for g, members in enumerate(remaining)
            for i in range(0, len(members) - 1, 2)
        ]
        orders = [(g, c, r) for g, a, b in meetings for c, r in ((a, b), (b, a))]
        questions = [Question(prompts[g], groups[g][c], groups[g][r], instruction) for g, c, r in orders]
        margin = judge(questions).margin.float().cpu().view(-1, 2)
        lead = (margin[:, 0] - margin[:, 1]).tolist()
        for (g, c, r), value in zip(orders, margin.flatten(), strict=True):
            margins[g][c, r] = value
        passed = [members[-1:] if len(members) % 2 else [] for members in remaining]
        lost: list[list[tuple[float, int]]] = [[] for _ in groups]
        for (g, a, b), difference in zip(meetings, lead, strict=True):
            winner, loser = (a, b) if difference >= 0 else (b, a)
            won[g][winner] += 1
            passed[g].append(winner)
            lost[g].append((abs(difference), loser))
        remaining = passed
        losers = [[i for _, i in sorted(lost_now)] + before for lost_now, before in zip(lost, losers, strict=True)]
    return [
        Knockout(torch.tensor(members + out), torch.tensor(wins), met)
        for members, out, wins, met in zip(remaining, losers, won, margins, strict=True)
    ]


def win_rates(margins: Float[Tensor, "P G G"]) -> Float[Tensor, "P G"]:
    """The mean probability that a sample beats another of its group, over the G - 1 others and both orders.

    margins: row is the candidate, column the reference; the diagonal is not read. A judge's leaning to either place
    falls out.
    """
    beats = (margins.sigmoid() + 1 - margins.transpose(1, 2).sigmoid()) / 2
    n = margins.shape[1]
    others = ~torch.eye(n, dtype=torch.bool, device=margins.device)
    return (beats * others).sum(2) / (n - 1)


def rivals(order: Sequence[int]) -> list[int]:
    """For each of N >= 2 candidates the best of the others. order: best first."""
    return [order[1] if i == order[0] else order[0] for i in range(len(order))]


def ranked(n: int, margin: Float[Tensor, " pairs"]) -> Ranking:
    """The ranking of N candidates from the margins [N * (N - 1)] of all their ordered pairs, row by row."""
    margins = torch.zeros(n, n)
    margins[~torch.eye(n, dtype=torch.bool)] = margin
    debiased = (margins - margins.T) / 2
    wins = (debiased > 0).float().sum(1) + 0.5 * ((debiased == 0).float().sum(1) - 1)
    order = sorted(range(n), key=lambda i: (-float(wins[i]), -float(debiased[i].sum()), i))
    return Ranking(torch.tensor(order), wins, margins)
