"""What a group's samples are worth to a judge: by themselves, against references, or against each other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from rewarddance.errors import InputError, RewardError
from rewarddance.protocols import RewardModel, needs_reference
from rewarddance.reward.ranking import win_rates
from rewarddance.types import Pixels, Prompt, Question, as_prompts

Judging = Literal["alone", "references", "group"]


class Reward(NamedTuple):
    """A judge, how it is asked ("alone", against "references", within the "group"), and its weight among several."""

    judge: RewardModel
    judging: Judging
    weight: float = 1.0


class Scores(NamedTuple):
    """values [P, G]: what advantages are taken of. margins: all that the judge was asked, [P, G] or [P, G, G]."""

    values: Float[Tensor, "P G"]
    margins: Tensor


def judging_of(judge: RewardModel, wanted: Judging | None) -> Judging:
    """How a judge is asked: as wanted, or in the group where it needs a reference and alone where it does not.

    Raises InputError where a judge that needs a reference shall judge a sample alone.
    """
    compares = needs_reference(judge)
    if compares and wanted == "alone":
        raise InputError("a pairwise judge cannot score one sample by itself.", "Set judging to group or references.")
    return wanted or ("group" if compares else "alone")


@torch.no_grad()
def scores(
    reward: Reward,
    prompts: Sequence[str | Prompt],
    groups: Sequence[Sequence[Pixels]],
    references: Sequence[Sequence[Pixels]] | None = None,
) -> Scores:
    """What the judge says of G samples for each of P prompts.

    alone and references: the margin. group: the win rate over the G - 1 others, all ordered pairs asked. references
    [P][G]: one for each sample. Raises RewardError naming the prompt whose score is not finite.
    """
    prompts = as_prompts(prompts)
    if reward.judging == "group":
        pairs = [list(itertools.permutations(range(len(group)), 2)) for group in groups]
        asked = [
            Question(prompt, group[c], group[r])
            for prompt, group, own in zip(prompts, groups, pairs, strict=True)
            for c, r in own
        ]
    else:
        given = references if reward.judging == "references" else [[None] * len(group) for group in groups]
        assert given is not None, "references are asked for, and there are none"
        asked = [
            Question(prompt, candidate, reference)
            for prompt, group, own in zip(prompts, groups, given, strict=True)
            for candidate, reference in zip(group, own, strict=True)
        ]
    margin = reward.judge(asked).margin.float().cpu()
    for question, one in zip(asked, margin.tolist(), strict=True):
        if not math.isfinite(one):  # a win rate would hide it
            raise RewardError(
                f"the judge gave {question.prompt.text!r} a score that is not finite.", "Look at its pictures."
            )
    p, g = len(groups), len(groups[0])
    if reward.judging == "group":
        margins = torch.zeros(p, g, g)
        margins[:, ~torch.eye(g, dtype=torch.bool)] = margin.view(p, g * (g - 1))
        values = win_rates(margins)
    else:
        values = margins = margin.view(p, g)
    return Scores(values, margins)


def preferred(
    reward: Reward, prompts: Sequence[str | Prompt], pairs: Sequence[Sequence[Pixels]]
) -> Float[Tensor, " P"]:
    """The probability [P] that the first of each prompt's two pictures is the better one.

    Of both orders where the judge compares; by Bradley-Terry where it scores each alone.
    """
    if reward.judging == "alone":
        margin = scores(reward, prompts, pairs).values
        return (margin[:, 0] - margin[:, 1]).sigmoid()
    return scores(reward._replace(judging="group"), prompts, pairs).values[:, 0]
