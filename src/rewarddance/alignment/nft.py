"""DiffusionNFT (2509.16117): rewarded samples are learned on the forward process, without likelihoods.

First its formulas, pure functions of tensors that need clean samples and rewards alone, then the update.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from rewarddance.alignment.failed_groups import drawn_apart
from rewarddance.alignment.policy import (
    Draws,
    PolicyRecipe,
    add_share,
    reward_figures,
    sample_step,
    score_rollouts,
    with_stand_ins,
)
from rewarddance.alignment.safeguards import Ema, velocity_mse
from rewarddance.alignment.train import Alignment, Figures, Trainable, read_together
from rewarddance.errors import InputError
from rewarddance.generators.sampling import encoded, for_sampling, sample_with_latents
from rewarddance.protocols import Generator, RewardModel
from rewarddance.runtime.devices import on_device
from rewarddance.runtime.process_group import local_shard, world_size
from rewarddance.types import PixelBatch, Prompt, as_prompts


def optimality(advantage: Float[Tensor, " B"], clip: float) -> Float[Tensor, " B"]:
    """r = 1/2 + 1/2 clip(A / c, -1, 1): how surely a sample is of the better ones (2509.16117)."""
    return 0.5 + 0.5 * (advantage / clip).clamp(-1, 1)


def nft_loss(
    x_0_hat: Float[Tensor, "B ..."],
    x_0_old: Float[Tensor, "B ..."],
    x_0: Float[Tensor, "B ..."],
    r: Float[Tensor, " B"],
    beta: float,
) -> Float[Tensor, ""]:
    """mean of r ||x+ - x_0||^2 + (1 - r) ||x- - x_0||^2, with x+ = (1 - b) old + b new and x- = (1 + b) old - b new.

    2509.16117, written with predictions of x_0, which are linear in velocities as in eps. Each square is
    divided by the sample's own mean |x+ - x_0| or |x- - x_0|, without a gradient (the paper's adaptive weighting).
    """
    total = x_0_hat.new_zeros(len(x_0_hat))
    for share, sign in ((r, 1.0), (1 - r, -1.0)):
        error = x_0_old + sign * beta * (x_0_hat - x_0_old) - x_0
        size = error.detach().abs().flatten(1).mean(1).clamp_min(1e-5)
        total = total + share * error.square().flatten(1).mean(1) / size
    return total.mean()


class NftRecipe(PolicyRecipe):
    """How DiffusionNFT runs (and `PolicyRecipe`). Defaults are ours where they are not the authors'.

    ema_decay: of the weights' average, which is the policy that samples, and "old" in the loss.
    beta: how far the implicit policies reach.
    levels: noise levels at which each sample is learned, its own ones, drawn anew each step.
    level_range: the steps of the sampler whose noise levels are drawn, as shares of the schedule (0 pure noise, 1 the
        last step): what a prompt asks for is decided early.
    rollout_forwards: samples are drawn by DPM-Solver++(2M) in so many forwards (`dpm_rollout`); by default by the
        generator's own sampler.
    velocity_mse: weight of the distance to the base's velocity, at the first of each sample's levels. With 0, and the
        alarm `distance` off, the base is not asked.
    """

    ema_decay: float = Field(default=0.5, ge=0, lt=1)
    spread: Literal["prompt", "global"] = "global"
    beta: float = Field(default=1.0, gt=0)
    levels: int = Field(default=2, ge=1)
    level_range: tuple[float, float] = (0.0, 1.0)
    rollout_forwards: int | None = Field(default=None, ge=1)
    velocity_mse: float = Field(default=1e-2, ge=0)

    @model_validator(mode="after")
    def _levels_are_a_range(self) -> NftRecipe:
        if not 0 <= self.level_range[0] <= self.level_range[1] <= 1:
            raise ValueError("level_range must be two shares between 0 and 1, the lower one first")
        return self

    @property
    def asks_base(self) -> bool:
        """Is the distance from the base wanted, for the loss or for the alarm?"""
        return self.velocity_mse > 0 or "distance" not in self.alarms.off

    def check(self, generator: Generator, judge: RewardModel) -> None:
        """Raises InputError where a rollout has more forwards than the sampler has steps."""
        super().check(generator, judge)
        if (self.rollout_forwards or 0) > generator.num_steps:
            raise InputError(
                f"nft.rollout_forwards is {self.rollout_forwards}, and the generator takes {generator.num_steps} "
                "steps.",
                "Lower it.",
            )

    def draw_levels(self, n: int, num_steps: int, rng: np.random.Generator) -> Int[np.ndarray, "n L"]:
        """The steps at whose noise levels each of n samples is learned: different ones, if there are so many."""
        low, high = (round(share * (num_steps - 1)) for share in self.level_range)
        steps = np.arange(low, high + 1)
        if self.levels > len(steps):
            return rng.choice(steps, size=(n, self.levels))
        return rng.permuted(np.tile(steps, (n, 1)), axis=1)[:, : self.levels]


class Noised(NamedTuple):
    """Samples of this process that are learned at the noise level before `step`.

    rows: their numbers. x_t: their latents there. first: those of them, by place, that have no level before it. weight:
    0 of a sample that only keeps a process in step with others, else 1.
    """

    step: int
    rows: Tensor
    x_t: Tensor
    first: Tensor
    weight: float = 1.0


def nft_updates(run: Alignment, step: int, ema: Ema) -> Iterator[Figures]:
    """One iteration: sample from the average, ask, and for each of its updates leave the gradient on the weights.

    Of several processes each takes its share of every update's prompts.
    """
    recipe, generator = run.recipe, run.generator
    assert isinstance(recipe, NftRecipe)
    draws = sample_step(step, len(run.prompts), recipe, run.seed)
    own = local_shard(draws.chosen, recipe.updates)
    prompts = as_prompts(run.prompts[i] for i in own for _ in range(recipe.group_size))
    seeds = [seed for of_prompt in local_shard(draws.seeds, recipe.updates) for seed in of_prompt]

    def draw(texts: list[Prompt]) -> tuple[PixelBatch, Tensor]:
        at_once = recipe.generator_batch or len(texts)
        return sample_with_latents(generator, texts, seeds, at_once, forwards=recipe.rollout_forwards)

    with ema.applied():
        (pixels, x_0), prompts, unread = drawn_apart(
            generator, prompts, draw, spare=as_prompts(run.prompts), check_first=recipe.sharded
        )
    scored = score_rollouts(run, pixels, draws, step, unread)
    if scored.failed:
        prompts = with_stand_ins(run, draws, scored, prompts)
        x_0[scored.failed_rows(recipe).to(x_0.device)] = 0  # whatever it was, it may not be finite
    r = optimality(scored.advantages.values.flatten(), recipe.advantage_clip)
    r = on_device(local_shard(r, recipe.updates), x_0.device)
    for batch in recipe.learned(scored.failed):
        n, means = batch.size, dict[str, Tensor]()
        noise = _noise_drawer(generator, x_0, recipe, draws)
        with recipe.learning(generator):
            for rows, count in batch.parts:
                noised = noise(rows)
                conditions = [encoded(generator, prompts, part.rows) for part in noised]
                with torch.no_grad(), ema.applied(), for_sampling(generator):
                    old = [
                        _predict_x0(generator, part.x_t, part.step, condition)[1]
                        for part, condition in zip(noised, conditions, strict=True)
                    ]
                for part, x_0_old, condition in zip(noised, old, conditions, strict=True):
                    v, x_0_hat = _predict_x0(generator, part.x_t, part.step, condition)
                    own = on_device(part.rows, x_0.device)
                    loss = nft_loss(x_0_hat, x_0_old, x_0[own], r[own], recipe.beta)
                    weight = part.weight if count else 0.0
                    share = weight * len(part.rows) / (n * recipe.levels)
                    total, figures = share * loss, {}
                    if recipe.asks_base and (len(part.first) or recipe.sharded):
                        asked = part.first if len(part.first) else torch.tensor([0])
                        with generator.as_before_training(), torch.no_grad():
                            condition = encoded(generator, prompts, part.rows[asked])
                            asked = on_device(asked, x_0.device)
                            v_base = generator.predict(part.x_t[asked], part.step, condition)
                        distance = weight * len(part.first) / n * velocity_mse(v[asked], v_base)
                        total = total + recipe.velocity_mse * distance
                        figures["velocity_mse"] = distance.detach()
                    total.backward()
                    add_share(means, {"loss": total.detach(), **figures}, 1.0)
        yield {**reward_figures(scored), **read_together(means)}


def _predict_x0(generator: Trainable, x_t: Tensor, step: int, condition: object) -> tuple[Tensor, Tensor]:
    """The network's prediction, and the x_0 that it implies."""
    prediction = generator.predict(x_t, step, condition)
    return prediction, generator.predict_x0(x_t, prediction, step)


def _noise_drawer(
    generator: Trainable, x_0: Tensor, recipe: NftRecipe, draws: Draws
) -> Callable[[Tensor], list[Noised]]:
    """Draws an update's levels and noises, for the samples of all processes; then gives those of some rows of x_0.

    Processes that share a network go forward through it together, so each has a sample at every level.
    """
    count = len(x_0) * world_size()
    of_all = torch.from_numpy(recipe.draw_levels(count, generator.num_steps, draws.rng))
    eps = torch.randn((count, recipe.levels, *x_0.shape[1:]), generator=draws.noise_rng)
    steps, eps = local_shard(of_all, recipe.updates), local_shard(eps, recipe.updates)

    def of(rows: Tensor) -> list[Noised]:
        """By level, x_t = alpha x_0 + sigma eps."""
        found = []
        for step in of_all.unique().tolist():
            place, level = (steps[rows] == step).nonzero(as_tuple=True)
            weight = float(len(place) > 0)
            if not weight:
                if not recipe.sharded:
                    continue
                place, level = torch.zeros(2, 1, dtype=torch.long)
            at = rows[place]
            alpha, sigma = generator.scales(step)
            own, device = eps[at, level].to(x_0.dtype), x_0.device
            x_t = alpha * x_0[on_device(at, device)] + sigma * on_device(own, device)
            found.append(Noised(step, at, x_t, (level == 0).nonzero()[:, 0], weight))
        return found

    return of
