"""What a group's samples are worth: what a judge answers about each, and how much better it is than the others."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from rewarddance.alignment.failed_groups import Faults, each_apart
from rewarddance.errors import InputError, RewardError
from rewarddance.protocols import RewardModel, judging, needs_reference
from rewarddance.reward.ranking import win_rates
from rewarddance.types import Pixels, Prompt, Question, as_prompts

Judging = Literal["alone", "references", "group"]


LEAST_SPREAD = 1e-6
"""A group whose scores differ by less (standard deviation) has none to learn from; of scores that are all small, by
less than this share of the largest."""


LEAST_AGREEMENT = 0.1
"""Where rewards cancel each other and less than this is left of their advantages, it is not blown up further."""


class Advantages(NamedTuple):
    """values [P, G]; zero_std_groups: how many of the P groups have equal scores, and so teach nothing."""

    values: Float[Tensor, "P G"]
    zero_std_groups: int


def advantages(scores: Float[Tensor, "P G"], spread: str = "prompt") -> Advantages:
    """(score - mean of the prompt) / standard deviation, of the prompt's G scores or ("global") of all P * G.

    Source: GRPO (2402.03300); Flow-GRPO (2505.05470) has both spreads. A group without spread gets 0 under either.
    """
    centred = scores - scores.mean(1, keepdim=True)
    deviation = scores.std(1, correction=0, keepdim=True)
    scale = scores.std(correction=0) if spread == "global" else deviation
    least = LEAST_SPREAD * scores.abs().max().clamp(torch.finfo(scores.dtype).tiny / LEAST_SPREAD, 1)
    flat = deviation < least
    values = torch.where(flat, torch.zeros_like(centred), centred / scale.clamp_min(least))
    return Advantages(values, int(flat.sum()))


def combine(of_rewards: Sequence[Advantages], weights: Sequence[float]) -> Advantages:
    """s A / std(A), A = sum w_k A_k / sum w_k: rewards' advantages, each normalised by itself, and then their sum.

    s is the weighted mean of their own deviations, 1 where each prompt's scores are divided by their spread. Source:
    GDPO (2601.05242), so that neither a reward's scale nor the number of rewards decides. Deviations are over all of
    the step's values; A's is taken as LEAST_AGREEMENT of s at least. A group counts as without spread where no reward
    of a weight above 0 has any.
    """
    pulling = [(values, weight) for (values, _), weight in zip(of_rewards, weights, strict=True) if weight]
    flat = int(torch.stack([(values == 0).all(1) for values, _ in pulling]).all(0).sum())
    if len(pulling) == 1:
        return Advantages(pulling[0][0], flat)
    total = sum(weight for _, weight in pulling)
    weighted = torch.stack([values * (weight / total) for values, weight in pulling]).sum(0)
    spread = sum(values.std(correction=0).item() * weight for values, weight in pulling) / total
    if not spread:
        return Advantages(weighted, flat)
    return Advantages(spread * weighted / weighted.std(correction=0).clamp_min(LEAST_AGREEMENT * spread), flat)


class Reward(NamedTuple):
    """A judge, how it is asked ("alone", against "references", within the "group"), its weight and its name among
    several."""

    judge: RewardModel
    judging: Judging
    weight: float = 1.0
    name: str = ""


def joint_figures(rewards: Sequence[Reward], of_each: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What is logged of several rewards: each one's figures as `figure/name`, and as `figure` their weighted mean.

    Only what all have is averaged. Of one reward its own.
    """
    if len(rewards) == 1:
        return dict(of_each[0])
    total = sum(reward.weight for reward in rewards)
    shared = [key for key in of_each[0] if all(key in figures for figures in of_each)]
    pairs = list(zip(rewards, of_each, strict=True))
    means = {key: sum(reward.weight * figures[key] for reward, figures in pairs) / total for key in shared}
    return means | {f"{key}/{reward.name}": value for reward, figures in pairs for key, value in figures.items()}


class Scores(NamedTuple):
    """values [P, G]: what advantages are taken of. margins: of every question, [P, G] or in the group [P, G, G]."""

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
    """The judge's scores of G samples for each of P prompts.

    alone and references: the margin. group: the win rate over the G - 1 others, all ordered pairs asked. references
    [P][G]: one for each sample. Raises RewardError naming the prompt whose score is not finite.
    """
    if reward.judging == "references":
        assert references is not None, "samples are judged against references, and there are none"
        opponents: Sequence[Sequence[Pixels | None]] = references
    else:
        opponents = [[None] * len(group) for group in groups]
    questions = []
    for prompt, group, of_group in zip(as_prompts(prompts), groups, opponents, strict=True):
        pairs = itertools.permutations(group, 2) if reward.judging == "group" else zip(group, of_group, strict=True)
        questions += [Question(prompt, candidate, reference) for candidate, reference in pairs]
    margin = reward.judge(questions).margin.float().cpu()
    for question, value in zip(questions, margin.tolist(), strict=True):
        if not math.isfinite(value):  # a win rate would hide it
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


class Answers(NamedTuple):
    """scores: with the numbers of the groups that they are of. faults: of the groups that have none."""

    scores: list[tuple[list[int], Scores]]
    faults: Faults


def scores_apart(
    reward: Reward,
    prompts: Sequence[str | Prompt],
    groups: Mapping[int, Sequence[Pixels]],
    references: Sequence[Sequence[Pixels]] | None = None,
) -> Answers:
    """`scores` of some groups, by their numbers among the step's prompts and references, and what is wrong with those
    that have none."""

    def ask(numbers: list[int]) -> Scores:
        of = None if references is None else [references[k] for k in numbers]
        return scores(reward, [prompts[k] for k in numbers], [groups[k] for k in numbers], of)

    with judging(reward.judge):
        return Answers(*each_apart(ask, groups))


def scores_of_all(answers: Sequence[tuple[list[int], Scores]], p: int, g: int, judging: Judging) -> Scores:
    """The scores of P groups, to the bit as if all had been asked together.

    Rows of those without an answer hold NaN: no number stands in for them.
    """
    if len(answers) == 1 and len(answers[0][0]) == p:
        return answers[0][1]
    shape = (p, g, g) if judging == "group" else (p, g)
    margins = torch.full(shape, math.nan)
    for numbers, answer in answers:
        margins[numbers] = answer.margins
    return Scores(win_rates(margins) if judging == "group" else margins, margins)


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
