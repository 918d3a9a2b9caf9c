"""Best of N: make N pictures a prompt and keep the one that the judge ranks first (random search).

`best_of_n` holds a full tournament over seeds that the caller names; `search_best_of_n` goes on until a budget is
spent, with any way to judge.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from rewarddance.generators.sampling import sample
from rewarddance.protocols import Generator, RewardModel
from rewarddance.reward.ranking import tournament
from rewarddance.runtime.config import Recipe
from rewarddance.search.batch import Batch
from rewarddance.types import Prompt, as_prompts


class BestOfN(NamedTuple):
    """pictures [P, N, T, C, H, W]: all candidates. chosen [P]: each prompt's winner. wins [P, N]: of N - 1 each."""

    pictures: Float[Tensor, "P N T C H W"]
    chosen: Int[Tensor, " P"]
    wins: Float[Tensor, "P N"]


def best_of_n(
    generator: Generator,
    judge: RewardModel,
    prompts: Sequence[str | Prompt],
    seeds: Sequence[Sequence[int]],
    prompts_at_once: int = 8,
    tick: Callable[[int], None] = lambda n: None,
) -> BestOfN:
    """Sample each prompt from each of its seeds [P][N], and hold a tournament of its pictures.

    tick: called with how many prompts each part finished.
    """
    prompts = as_prompts(prompts)
    pictures, chosen, wins = [], [], []
    for start in range(0, len(prompts), prompts_at_once):
        part, part_seeds = prompts[start : start + prompts_at_once], seeds[start : start + prompts_at_once]
        n = len(part_seeds[0])
        repeated = [prompt for prompt in part for _ in range(n)]
        groups = sample(generator, repeated, [seed for row in part_seeds for seed in row], 128)
        groups = groups.unflatten(0, (len(part), n))
        rankings = tournament(judge, part, [list(group) for group in groups])
        pictures.append(groups)
        chosen += [int(ranking.order[0]) for ranking in rankings]
        wins += [ranking.wins for ranking in rankings]
        tick(len(part))
    return BestOfN(torch.cat(pictures), torch.tensor(chosen), torch.stack(wins))


class Random(Recipe):
    """n: how many pictures a prompt, at most; None: as many as the budget gives."""

    n: int | None = Field(default=None, ge=1)


def search_best_of_n(batch: Batch, recipe: Random) -> None:
    """Plain samples until the budget is spent."""
    left = recipe.n
    while (left is None or left > 0) and (count := batch.max_affordable(batch.plain_cost, left)):
        batch.add(batch.sample(count))
        batch.rounds += 1
        left = None if left is None else left - count
