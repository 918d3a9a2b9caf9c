"""Learning on the forward process: finished samples are noised again and regressed on, weighted by their rewards.

DiffusionNFT, AWM, DGPO, CRD and online DPO are losses of it. They need clean samples and rewards, no likelihoods, so
any sampler may draw. A recipe's `loss` says what the prediction of a sample's x_0 has to do with its reward; all else
is shared.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from rewarddance.alignment.failed_groups import drawn_apart
from rewarddance.alignment.policy import (
    Draws,
    PolicyRecipe,
    add_share,
    early_answers,
    reward_figures,
    sample_step,
    score_rollouts,
    with_stand_ins,
)
from rewarddance.alignment.safeguards import Ema, norm_excess, relative_norm, velocity_mse
from rewarddance.alignment.train import Alignment, Figures, Trainable, read_together
from rewarddance.errors import InputError
from rewarddance.generators.sampling import encoded, for_sampling, merged_lora, sample_with_latents
from rewarddance.protocols import Generator, RewardModel
from rewarddance.runtime.config import MOST, changed
from rewarddance.runtime.devices import on_device
from rewarddance.runtime.process_group import local_shard, world_size
from rewarddance.types import PixelBatch, Prompt, as_prompts


class Learned(NamedTuple):
    """n samples at one noise level, as a loss sees them.

    x_0: the samples. x_0_hat: the network's prediction of them at the level, in the graph. x_0_old, x_0_base: those of
    the policy that sampled and of the base, where the recipe asks for them, else None. advantage, group: of each
    sample, and the number of what it is compared with: its prompt's, at the same of the samples' levels. sigma: the
    level. error_scale: the generator's there.
    """

    x_0: Float[Tensor, "n ..."]
    x_0_hat: Float[Tensor, "n ..."]
    x_0_old: Float[Tensor, "n ..."] | None
    x_0_base: Float[Tensor, "n ..."] | None
    advantage: Float[Tensor, " n"]
    group: Int[Tensor, " n"]
    sigma: float
    error_scale: float

    def errors(self, x_0_hat: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
        """The mean square of the prediction's error, of each sample."""
        return prediction_error(x_0_hat, self.x_0, self.error_scale).square().flatten(1).mean(1)


def prediction_error(
    x_0_hat: Float[Tensor, "n ..."], x_0: Float[Tensor, "n ..."], error_scale: float
) -> Float[Tensor, "n ..."]:
    """What the network predicted less what it was to predict: a flow's v - (eps - x_0), and likewise of v and of eps.

    error_scale: see `Trainable.error_scale`.
    """
    return error_scale * (x_0 - x_0_hat)


def group_mean(values: Float[Tensor, " n"], group: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The mean over a sample's group, of each sample."""
    _, place, count = group.unique(return_inverse=True, return_counts=True)
    total = values.new_zeros(len(count)).index_add(0, place, values)
    return (total / count)[place]


def draw_levels(
    n: int, levels: int, level_range: tuple[float, float], num_steps: int, rng: np.random.Generator
) -> Int[np.ndarray, "n L"]:
    """Steps of the range, given as shares of the schedule: for each of n different ones, if there are so many."""
    low, high = (round(share * (num_steps - 1)) for share in level_range)
    steps = np.arange(low, high + 1)
    if levels > len(steps):
        return rng.choice(steps, size=(n, levels))
    return rng.permuted(np.tile(steps, (n, 1)), axis=1)[:, :levels]


class ForwardRecipe(PolicyRecipe):
    """What learning on the forward process has in common (and `PolicyRecipe`).

    ema_decay: of the weights' average, which is the policy that samples, and the old one in a loss.
    decay_rise, decay_from: by how much the decay rises with each optimiser step, after so many of them, from 0 up to
        ema_decay; by default it is ema_decay from the start.
    levels: noise levels at which each sample is learned, its own ones, drawn anew each step.
    level_range: the steps of the sampler whose noise levels are drawn, as shares of the schedule (0 pure noise, 1 the
        last step): what a prompt asks for is decided early.
    rollout_forwards: samples are drawn by DPM-Solver++(2M) in so many forwards (`dpm_rollout`); by default by the
        generator's own sampler.
    velocity_mse: weight of the distance to the base's velocity, at the first of each sample's levels. With 0, and
        norm_guard 0 and the alarm `distance` off, the base is not asked.
    norm_guard: weight of what the velocity's norm exceeds the base's by, at the same levels (`norm_excess`); 0 is off.
    """

    ema_decay: float = Field(default=0.5, ge=0, lt=1)
    decay_rise: float | None = Field(default=None, gt=0)
    decay_from: int = Field(default=0, ge=0)
    levels: int = Field(default=2, ge=1, le=MOST)
    level_range: tuple[float, float] = (0.0, 1.0)
    rollout_forwards: int | None = Field(default=None, ge=1)
    velocity_mse: float = Field(default=1e-2, ge=0)
    norm_guard: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _levels_are_a_range(self) -> ForwardRecipe:
        if not 0 <= self.level_range[0] <= self.level_range[1] <= 1:
            raise ValueError("level_range must be two shares between 0 and 1, the lower one first")
        return self

    @model_validator(mode="after")
    def _the_decay_rises(self) -> ForwardRecipe:
        if self.decay_from and self.decay_rise is None:
            raise ValueError("decay_from is used with a decay_rise only")
        if not self.ema_decay and self.decay_rise is not None and changed(self, "decay_rise"):
            raise ValueError("decay_rise is how ema_decay is reached, and that is 0: leave one of them out")
        return self

    @model_validator(mode="after")
    def _groups_are_learned_whole(self) -> ForwardRecipe:
        if self.by_group and self.generator_batch and self.generator_batch % self.group_size:
            raise ValueError(
                f"generator_batch is {self.generator_batch}, and groups of {self.group_size} are learned whole: "
                "give a multiple of group_size"
            )
        return self

    @property
    def by_group(self) -> bool:
        """Does the loss compare a group's samples, which then have the same levels and go together?"""
        return False

    @property
    def shared_eps(self) -> bool:
        """Is a group's noise one, too?"""
        return False

    @property
    def asks_old(self) -> bool:
        """Does the loss compare with the policy that sampled?"""
        return True

    @property
    def asks_base(self) -> bool:
        """Is the distance from the base wanted, for the loss or for the alarm?"""
        return self.velocity_mse > 0 or self.norm_guard > 0 or "distance" not in self.alarms.off

    @property
    def clips_ratio(self) -> bool:
        """Does the loss cut off what is a little off the policy that sampled? That is predicted in the same precision
        then, or rounding would be cut off."""
        return False

    @property
    def base_in_loss(self) -> bool:
        """Does the loss compare with the base?"""
        return False

    @property
    def learned_per_group(self) -> int:
        """How many of a group's samples are learned."""
        return self.group_size

    def chosen(self, advantage: Float[Tensor, "P G"]) -> Bool[Tensor, "P G"]:
        """Which samples are learned, `learned_per_group` of each group."""
        return torch.ones_like(advantage, dtype=torch.bool)

    @abstractmethod
    def loss(self, learned: Learned) -> Float[Tensor, ""]:
        """The mean over the samples."""

    def decay_at(self, step: int) -> float:
        if self.decay_rise is None:
            return self.ema_decay
        return min(self.ema_decay, max(0, (step + 1) * self.updates - self.decay_from) * self.decay_rise)

    def check(self, generator: Generator, judge: RewardModel) -> None:
        """Raises InputError where a rollout has more forwards than the sampler has steps."""
        super().check(generator, judge)
        if (self.rollout_forwards or 0) > generator.num_steps:
            raise InputError(
                f"rollout_forwards is {self.rollout_forwards}, and the generator takes {generator.num_steps} steps.",
                "Lower it.",
            )

    def draw_levels(self, n: int, num_steps: int, rng: np.random.Generator) -> Int[np.ndarray, "n L"]:
        """The steps at whose noise levels each of n samples is learned: different ones, if there are so many."""
        return draw_levels(n, self.levels, self.level_range, num_steps, rng)


class ClippedRatioRecipe(ForwardRecipe):
    """`ForwardRecipe` of a loss that clips the ratio of the policy that learns to the one that sampled.

    clip_range: how far the ratio may be from 1. Where the weights that sample are those that learn, it is 1.
    """

    clip_range: float = Field(default=1e-4, gt=0)

    @model_validator(mode="after")
    def _the_ratio_can_leave_1(self) -> ClippedRatioRecipe:
        if not self.asks_old and changed(self, "clip_range"):
            raise ValueError("clip_range says nothing with one update a step by the weights that sampled (ema_decay 0)")
        return self

    @property
    def asks_old(self) -> bool:
        return self.ema_decay > 0 or self.updates > 1  # else the weights that sample are those that learn

    @property
    def clips_ratio(self) -> bool:
        return True


class Noised(NamedTuple):
    """Samples of this process that are learned at the noise level before `step`.

    rows: their numbers. x_t: their latents there. levels: which of its levels it is of each, from 0. weight: 0 of a
    sample that only keeps a process in step with others, else 1.
    """

    step: int
    rows: Tensor
    x_t: Tensor
    levels: Tensor
    weight: float = 1.0

    @property
    def first(self) -> Tensor:
        """Those of the samples, by place, that have no level before it."""
        return (self.levels == 0).nonzero()[:, 0]


def forward_updates(run: Alignment, step: int, ema: Ema) -> Iterator[Figures]:
    """One iteration: sample from the average, ask, and for each of its updates leave the gradient on the weights.

    Of several processes each takes its share of every update's prompts.
    """
    recipe, generator = run.recipe, run.generator
    assert isinstance(recipe, ForwardRecipe)
    draws = sample_step(step, len(run.prompts), recipe, run.seed)
    prompt_numbers = local_shard(draws.chosen, recipe.updates)
    prompts = as_prompts(run.prompts[i] for i in prompt_numbers for _ in range(recipe.group_size))
    seeds = [seed for of_prompt in local_shard(draws.seeds, recipe.updates) for seed in of_prompt]

    with early_answers(run, draws) as early:

        def draw(texts: list[Prompt]) -> tuple[PixelBatch, Tensor]:
            early.begin()
            at_once = recipe.generator_batch or len(texts)
            return sample_with_latents(generator, texts, seeds, at_once, early.drawn, recipe.rollout_forwards)

        with ema.applied():
            (pixels, x_0), prompts, unread = drawn_apart(
                generator, prompts, draw, spare=as_prompts(run.prompts), check_first=recipe.sharded
            )
        scored = score_rollouts(run, pixels, draws, step, early, unread)
    if scored.failed:
        prompts = with_stand_ins(run, draws, scored, prompts)
        x_0[scored.failed_rows(recipe).to(x_0.device)] = 0  # whatever it was, it may not be finite
    advantage = local_shard(scored.advantages.values.flatten(), recipe.updates)
    chosen = recipe.chosen(advantage.unflatten(0, (-1, recipe.group_size))).flatten()
    advantage = on_device(advantage, x_0.device)
    group = torch.arange(len(x_0), device=x_0.device) // recipe.group_size
    for batch in recipe.learned(scored.failed):
        n, means = batch.size * recipe.learned_per_group / recipe.group_size, dict[str, Tensor]()
        noise = _noise_drawer(generator, x_0, recipe, draws)
        # What is fitted to samples is the network's own prediction: a guided one is no mean of what may be there
        with recipe.learning(generator), generator.without_guidance():
            for rows, count in batch.parts:
                rows = rows[chosen[rows]] if count else rows
                noised = noise(rows)
                conditions = [encoded(generator, prompts, part.rows) for part in noised]
                old: list[Tensor | None] = [None] * len(noised)
                if recipe.asks_old:
                    cheaper = merged_lora(generator) if recipe.clips_ratio else for_sampling(generator)
                    with torch.no_grad(), ema.applied(), cheaper:
                        old = [
                            _predict_x0(generator, part.x_t, part.step, condition)[1]
                            for part, condition in zip(noised, conditions, strict=True)
                        ]
                for part, x_0_old, condition in zip(noised, old, conditions, strict=True):
                    v, x_0_hat = _predict_x0(generator, part.x_t, part.step, condition)
                    asked = part.first if len(part.first) else torch.tensor([0])
                    v_base, x_0_base = _of_base(generator, recipe, part, asked, prompts, condition)
                    at = on_device(part.rows, x_0.device)
                    level = generator.scales(part.step).sigma, generator.error_scale(part.step)
                    compared = group[at] * recipe.levels + on_device(part.levels, x_0.device)
                    of_part = advantage[at], compared, *level
                    loss = recipe.loss(Learned(x_0[at], x_0_hat, x_0_old, x_0_base, *of_part))
                    weight = part.weight if count else 0.0
                    total, figures = weight * len(part.rows) / (n * recipe.levels) * loss, dict[str, Tensor]()
                    if recipe.asks_base and v_base is not None:
                        v_asked = v[on_device(asked, v.device)]
                        from_base, of_base = _from_base(v_asked, v_base, recipe, weight * len(part.first) / n)
                        total, figures = total + from_base, figures | of_base
                    total.backward()
                    add_share(means, {"loss": total.detach(), **figures}, 1.0)
        yield {**reward_figures(scored), **read_together(means)}


@torch.no_grad()
def _of_base(
    generator: Trainable,
    recipe: ForwardRecipe,
    part: Noised,
    places: Tensor,
    prompts: Sequence[Prompt],
    condition: object,
) -> tuple[Tensor | None, Tensor | None]:
    """The base's prediction at those places, and its x_0 of all of the part's samples where the loss has it."""
    at = on_device(places, part.x_t.device)
    if recipe.base_in_loss:
        with generator.as_before_training():
            v, x_0 = _predict_x0(generator, part.x_t, part.step, condition)
        return v[at], x_0
    if recipe.asks_base and (len(part.first) or recipe.sharded):
        with generator.as_before_training():
            return generator.predict(part.x_t[at], part.step, encoded(generator, prompts, part.rows[places])), None
    return None, None


def _from_base(
    v: Float[Tensor, "n ..."], v_base: Float[Tensor, "n ..."], recipe: ForwardRecipe, share: float
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """What holds the velocity to the base's, and the figures of it; share: of the samples, of all that are asked."""
    distance, norm = velocity_mse(v, v_base), relative_norm(v, v_base)
    held = recipe.velocity_mse * distance
    if recipe.norm_guard:
        held = held + recipe.norm_guard * norm_excess(norm)
    figures = {"velocity_mse": share * distance.detach(), "velocity_norm": share * norm.detach().mean()}
    return share * held, figures


def _predict_x0(generator: Trainable, x_t: Tensor, step: int, condition: object) -> tuple[Tensor, Tensor]:
    """The network's prediction, and the x_0 that it implies."""
    prediction = generator.predict(x_t, step, condition)
    return prediction, generator.predict_x0(x_t, prediction, step)


def _noise_drawer(
    generator: Trainable, x_0: Tensor, recipe: ForwardRecipe, draws: Draws
) -> Callable[[Tensor], list[Noised]]:
    """Draws an update's levels and noises, for the samples of all processes; then gives those of some rows of x_0.

    Processes that share a network go forward through it together, so each has a sample at every level.
    """
    count = len(x_0) * world_size()
    groups = count // recipe.group_size if recipe.by_group else count
    noises = count // recipe.group_size if recipe.shared_eps else count
    of_all = torch.from_numpy(recipe.draw_levels(groups, generator.num_steps, draws.rng))
    eps = torch.randn((noises, recipe.levels, *x_0.shape[1:]), generator=draws.noise_rng)
    of_all, eps = of_all.repeat_interleave(count // groups, 0), eps.repeat_interleave(count // noises, 0)
    steps, eps = local_shard(of_all, recipe.updates), local_shard(eps, recipe.updates)

    def of(rows: Tensor) -> list[Noised]:
        """By level, x_t = alpha x_0 + sigma eps."""
        levels = []
        for step in of_all.unique().tolist():
            place, level = (steps[rows] == step).nonzero(as_tuple=True)
            weight = float(len(place) > 0)
            if not weight:
                if not recipe.sharded:
                    continue
                place, level = torch.zeros(2, 1, dtype=torch.long)
            at = rows[place]
            alpha, sigma = generator.scales(step)
            level_eps, device = eps[at, level].to(x_0.dtype), x_0.device
            x_t = alpha * x_0[on_device(at, device)] + sigma * on_device(level_eps, device)
            levels.append(Noised(step, at, x_t, level, weight))
        return levels

    return of
