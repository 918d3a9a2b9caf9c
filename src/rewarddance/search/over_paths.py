"""Search over paths: noise partly finished pictures again, denoise the copies, keep the best (paper, section 3).

The method is that of Ma et al. (2501.09732). A level of noise is the share sigma / (alpha + sigma) of a latent, which
for flow matching is sigma itself; each level is taken at the generator's nearest step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor

from rewarddance.errors import InputError
from rewarddance.runtime.config import Recipe
from rewarddance.search.batch import Batch
from rewarddance.search.budget import Cost
from rewarddance.types import Scales


class Paths(Recipe):
    """paths: N, followed at once. copies: M of each path, noised anew each round.

    sigma: the level where the search begins; df: how far up the copies go; db: how far down they come back (Ma et al.'s
    0.11, 0.78 and 0.81). N and M are not published; defaults are ours.
    """

    paths: int = Field(default=2, ge=1)
    copies: int = Field(default=4, ge=1)
    sigma: float = Field(default=0.11, gt=0, lt=1)
    df: float = Field(default=0.78, gt=0, lt=1)
    db: float = Field(default=0.81, gt=0, le=1)

    @model_validator(mode="after")
    def _comes_down(self) -> Paths:
        if self.db <= self.df:
            raise ValueError(f"db {self.db} is no more than df {self.df}, so that the search would never end")
        if self.sigma + self.df > 1:
            raise ValueError(f"sigma {self.sigma} and df {self.df} are more than 1, the level of pure noise")
        return self


def renoised(x: Tensor, eps: Tensor, here: Scales, there: Scales) -> Tensor:
    """x_t of q(x_t | x_s), t noisier than s: a x_s + sqrt(sigma_t^2 - a^2 sigma_s^2) eps with a = alpha_t / alpha_s.

    Exact for every process x_t = alpha x_0 + sigma eps: what had the marginal of level s then has that of level t.
    """
    a = there.alpha / here.alpha
    return a * x + math.sqrt(max(0.0, there.sigma**2 - (a * here.sigma) ** 2)) * eps


def level(scales: Scales) -> float:
    """The share of noise in a latent, 0 to 1."""
    return scales.sigma / (scales.alpha + scales.sigma)


class Plan(NamedTuple):
    """The steps of a search: where it begins, and for each round from where to where the copies are denoised."""

    start: int
    rounds: list[tuple[int, int]]


def planned(recipe: Paths, levels: Sequence[float]) -> Plan:
    """The rounds of a search on a generator whose latents have these levels before steps 0 .. S.

    Raises InputError where the steps are too coarse for the levels.
    """

    def nearest(wanted: float) -> int:
        return min(range(len(levels)), key=lambda step: abs(levels[step] - wanted))

    net = recipe.db - recipe.df
    count = math.ceil(recipe.sigma / net - 1e-6)
    start = here = nearest(recipe.sigma)
    rounds = []
    for number in range(count):
        now = recipe.sigma - number * net
        up, down = nearest(now + recipe.df), nearest(max(0.0, now - net))
        if up >= here or down <= up:
            raise InputError(
                f"a generator of {len(levels) - 1} steps has none between the noise levels {now:.3g} and "
                f"{now + recipe.df:.3g} of this search over paths.",
                "Give more num_inference_steps, or a larger df.",
            )
        rounds.append((up, down))
        here = down
    return Plan(start, rounds)


def search_over_paths(batch: Batch, recipe: Paths) -> None:
    """Denoise N noises to sigma, let M copies of each go up by df and down by db, keep the best N by predicted x_0.

    Repeated until the level is 0, and again from new noises as long as a whole search can be afforded; what is left of
    the budget goes into plain samples. Raises InputError where a single path costs more than the budget.
    """
    scales = [batch.generator.scales(step) for step in range(batch.steps + 1)]
    plan = planned(recipe, [level(one) for one in scales])
    at_once = batch.width // recipe.copies
    if not at_once:
        raise InputError(
            f"{recipe.copies} copies of a path are more than the {batch.width} pictures of a prompt made together.",
            "Give a larger batch_size, fewer prompts_at_once, or fewer copies.",
        )

    def cost(count: int) -> Cost:
        copies, seen = count * recipe.copies, batch.judging.seen
        evaluations, questions = count * plan.start, 0
        for up, down in plan.rounds:
            last = down == batch.steps
            evaluations += copies * (down - up + (not last))
            questions += batch.judging.asks(copies, seen if last else 0)
            seen += copies if last else 0
        return Cost(evaluations, questions)

    limit = batch.meter.evaluations
    if limit is not None and cost(1).evaluations > limit:
        raise InputError(
            f"a search over one path with {recipe.copies} copies takes {cost(1).evaluations} evaluations, "
            f"the budget has {limit}.",
            "Give a larger budget, or fewer copies.",
        )
    while True:
        if count := batch.max_affordable(cost, min(recipe.paths, at_once), least=0):
            _follow(batch, recipe, plan, scales, count)
            batch.rounds += 1
        elif count := batch.max_affordable(batch.plain):
            batch.offer(batch.sample(count))
        else:
            return


def _follow(batch: Batch, recipe: Paths, plan: Plan, scales: Sequence[Scales], count: int) -> None:
    """One whole search over `count` paths a prompt."""
    seeds = batch.seeds(count)
    x = batch.denoised(batch.init_noise(seeds), 0, plan.start)
    origins = [[{"noise": seed, "renoised": []} for seed in own] for own in seeds]
    here, copies = plan.start, count * recipe.copies
    for up, down in plan.rounds:
        seeds = batch.seeds(copies)
        eps = torch.stack([_normal(x[0], seed) for own in seeds for seed in own])
        x = renoised(x.repeat_interleave(recipe.copies, 0), eps, scales[here], scales[up])
        x = batch.denoised(x, up, down)
        origins = [
            [
                old | {"renoised": [*old["renoised"], seed]}
                for old, seed in zip(_each(own, recipe.copies), mine, strict=True)
            ]
            for own, mine in zip(origins, seeds, strict=True)
        ]
        if down == batch.steps:
            new = batch.candidates(x, origins)
            merged = batch.offer(new)
            chosen = [
                [own.index(one) for one in best if one in own][:count]
                for own, best in zip(map(list, new), merged, strict=True)
            ]
        else:
            prediction = batch.generator.predict(x, down, batch.condition(batch.repeated(copies)))
            chosen = batch.best(batch.candidates(batch.generator.predict_x0(x, prediction, down), origins), count)
        x = x[batch.rows(chosen, copies).to(x.device)]
        origins = [[own[i] for i in numbers] for own, numbers in zip(origins, chosen, strict=True)]
        here = down


def _normal(like: Tensor, seed: int) -> Tensor:
    eps = torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))
    return eps.to(like)


def _each(items: list, times: int) -> list:
    return [item for item in items for _ in range(times)]
