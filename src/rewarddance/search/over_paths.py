"""Search over paths: noise partly denoised latents again, denoise the copies, keep the best (paper, section 3).

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
from rewarddance.runtime.config import Recipe, changed
from rewarddance.runtime.devices import on_device
from rewarddance.search.batch import Batch, indices_in
from rewarddance.search.budget import Cost
from rewarddance.types import Scales


class Paths(Recipe):
    """paths: N, how many are followed at once. copies: M of each path, noised anew in each round.

    sigma: the noise level where the search begins; df: by how much the copies' level rises; db: by how much it then
    falls (0.11, 0.78 and 0.81 by Ma et al.). N and M are not published; their defaults are ours.
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


def renoised(x_s: Tensor, eps: Tensor, s: Scales, t: Scales) -> Tensor:
    """x_t of q(x_t | x_s), t noisier than s: a x_s + sqrt(sigma_t^2 - a^2 sigma_s^2) eps with a = alpha_t / alpha_s.

    Exact for every process x_t = alpha x_0 + sigma eps: where x_s has the marginal of step s, x_t has that of step t.
    """
    a = t.alpha / s.alpha
    return a * x_s + math.sqrt(max(0.0, t.sigma**2 - (a * s.sigma) ** 2)) * eps


def noise_level(scales: Scales) -> float:
    """The share of noise in a latent, 0 to 1."""
    return scales.sigma / (scales.alpha + scales.sigma)


class Plan(NamedTuple):
    """The steps of a search: where it begins, and for each round the two between which copies are denoised."""

    start: int
    rounds: list[tuple[int, int]]


def plan_rounds(recipe: Paths, levels: Sequence[float]) -> Plan:
    """The rounds of a search on a generator whose latents have these noise levels before steps 0 .. S.

    Raises InputError where the steps are too coarse for the levels.
    """

    def nearest(level: float) -> int:
        return min(range(len(levels)), key=lambda step: abs(levels[step] - level))

    net = recipe.db - recipe.df
    count = math.ceil(recipe.sigma / net - 1e-6)
    start = current = nearest(recipe.sigma)
    rounds = []
    for number in range(count):
        level = recipe.sigma - number * net
        up, down = nearest(level + recipe.df), nearest(max(0.0, level - net))
        if up >= current or down <= up:
            raise InputError(
                f"a generator of {len(levels) - 1} steps has none between the noise levels {level:.3g} and "
                f"{level + recipe.df:.3g} of this search over paths.",
                "Give more num_inference_steps, or a larger df.",
            )
        rounds.append((up, down))
        current = down
    return Plan(start, rounds)


def search_over_paths(batch: Batch, recipe: Paths) -> None:
    """Denoise N noises to level sigma, noise M copies of each by df, denoise them by db, keep the N best predicted x_0.

    This is repeated until the level is 0, and then from new noises while a whole search can be afforded; what is left
    of the budget goes into plain samples. Raises InputError where a single path costs more than the budget.
    """
    scales = [batch.generator.scales(step) for step in range(batch.steps + 1)]
    plan = plan_rounds(recipe, [noise_level(at_step) for at_step in scales])
    at_once = batch.width // recipe.copies
    if not at_once:
        raise InputError(
            f"{recipe.copies} copies of a path are more than the {batch.width} pictures of a prompt made together.",
            "Give a larger batch_size, fewer prompts_at_once, or fewer copies.",
        )
    if recipe.paths > at_once and changed(recipe, "paths"):
        raise InputError(
            f"{recipe.paths} paths of {recipe.copies} copies are more than the {batch.width} pictures of a prompt made "
            "together.",
            f"Give a larger batch_size or fewer prompts_at_once; or leave paths out, and {at_once} are followed.",
        )

    def cost(count: int) -> Cost:
        copies, seen = count * recipe.copies, batch.judging.seen
        evaluations, questions = count * plan.start, 0
        for up, down in plan.rounds:
            last = down == batch.steps
            evaluations += copies * (down - up + (not last))
            questions += batch.judging.question_count(copies, seen if last else 0)
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
        elif count := batch.max_affordable(batch.plain_cost):
            batch.add(batch.sample(count))
        else:
            return


def _follow(batch: Batch, recipe: Paths, plan: Plan, scales: Sequence[Scales], count: int) -> None:
    """One whole search over `count` paths a prompt."""
    seeds = batch.next_seeds(count)
    x = batch.denoise(batch.init_noise(seeds), 0, plan.start)
    origins = [[{"noise": seed, "renoised": []} for seed in seeds_of_prompt] for seeds_of_prompt in seeds]
    current, copies = plan.start, count * recipe.copies
    for up, down in plan.rounds:
        seeds = batch.next_seeds(copies)
        eps = torch.stack([_normal(x[0], seed) for seeds_of_prompt in seeds for seed in seeds_of_prompt])
        x = renoised(x.repeat_interleave(recipe.copies, 0), eps, scales[current], scales[up])
        x = batch.denoise(x, up, down)
        origins = [_copies(group, s, recipe.copies) for group, s in zip(origins, seeds, strict=True)]
        if down == batch.steps:
            new = batch.candidates(x, origins)
            rankings = batch.add(new)
            chosen = [indices_in(group, ranking)[:count] for group, ranking in zip(new, rankings, strict=True)]
        else:
            prediction = batch.predict(x, down)
            predicted = batch.candidates(batch.generator.predict_x0(x, prediction, down), origins)
            chosen = batch.best_indices(predicted, count)
        x = x[on_device(batch.rows(chosen, copies), x.device)]
        origins = [[group[i] for i in indices] for group, indices in zip(origins, chosen, strict=True)]
        current = down


def _normal(like: Tensor, seed: int) -> Tensor:
    eps = torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))
    return on_device(eps, like.device).to(like.dtype)


def _copies(origins: list[dict], seeds: Sequence[int], copies: int) -> list[dict]:
    """The origins of M copies of each of a prompt's N paths, [N * M], from the seeds that those were noised with."""
    paths = [origin for origin in origins for _ in range(copies)]
    return [path | {"renoised": [*path["renoised"], seed]} for path, seed in zip(paths, seeds, strict=True)]
