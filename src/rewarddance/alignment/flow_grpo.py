"""Flow-GRPO (2505.05470): a policy gradient over denoising steps. The judge needs no gradient: people can be one.

First its formulas, each a pure function of tensors (the random steps' own are in `random_steps`), then the rollouts
with some random steps, and the update.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from rewarddance.alignment.failed_groups import drawn_apart
from rewarddance.alignment.policy import (
    PolicyRecipe,
    add_share,
    early_answers,
    reward_figures,
    sample_step,
    score_rollouts,
    with_stand_ins,
)
from rewarddance.alignment.random_steps import RandomWindow, Step, log_prob
from rewarddance.alignment.safeguards import Ema, relative_norm, velocity_mse
from rewarddance.alignment.train import Alignment, Figures, Trainable, read_together
from rewarddance.errors import InputError
from rewarddance.generators.sampling import encoded
from rewarddance.protocols import Generator, RewardModel
from rewarddance.runtime.config import changed
from rewarddance.runtime.devices import on_device
from rewarddance.runtime.memory import memory_for
from rewarddance.runtime.process_group import local_shard, world_size
from rewarddance.types import PixelBatch, Prompt, Scales, as_prompts

GRAPH = "the generator, whose window's graph is kept", "Set grpo.keep_graph to false."
"""What is said where a rollout runs out of memory because of it."""


# -- formulas --------------------------------------------------------------------------------------------------------


def surrogate(
    new: Float[Tensor, " B"], old: Float[Tensor, " B"], advantage: Float[Tensor, " B"], clip_range: float
) -> Float[Tensor, ""]:
    """- mean min(ratio A, clip(ratio, 1 - c, 1 + c) A) with ratio = exp(new - old) (2505.05470)."""
    ratio = torch.exp(new - old)
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip_range, 1 + clip_range) * advantage).mean()


def guarded(
    log_ratio: Float[Tensor, " B"],
    mean: Float[Tensor, "B ..."],
    old_mean: Float[Tensor, "B ..."],
    deviation: float,
) -> Float[Tensor, " B"]:
    """d (log ratio + || mean - old mean ||^2 / 2 d^2): centred on 0, and without the plain ratio's 1 / d.

    GRPO-Guard's ratio (2510.22319, equation 8), per value. Its spread still falls with |dt|; the loss is divided by
    that, the clip is not.
    """
    away = (mean - old_mean).square().flatten(1).mean(1)
    return deviation * (log_ratio + away / (2 * deviation**2))


def kl_to_base(step: Step, base: Step) -> Float[Tensor, ""]:
    """|| mean - mean_base ||^2 / 2 d^2, per value: KL of two Gaussians of one deviation (2505.05470)."""
    return ((step.mean - base.mean) ** 2).mean() / (2 * step.deviation**2)


# -- the recipe ------------------------------------------------------------------------------------------------------


class GrpoRecipe(PolicyRecipe):
    """How Flow-GRPO runs (and `PolicyRecipe`). Defaults are ours where they are not the authors'.

    kind: the random step (`random_steps`): "flow" is the authors', "precise" the same solved exactly, "dance"
        DanceGRPO's, "cps" keeps the coefficients, and "ddim" is for every generator.
    noise_level: its a, n, e, n or eta.
    guard: GRPO-Guard's ratio and weights (`guarded`) in place of the plain ones; for flow and dance.
    window: how many steps of a rollout are random and trained.
    window_range: where the window may begin, as shares of the schedule (0 pure noise).
    shared_prefix: a group's samples begin from one noise and part ways at the window.
    clip_range: of the ratio (of per-value log-probabilities, hence so small); with one update a step the ratio is 1.
    kl: weight of the distance to the base.
    keep_graph: the window's graph is kept from the rollout until the judge has answered, so that the update need not
        compute it again: the same gradient in less time, for the memory of the whole window at once.
    """

    kind: Literal["flow", "dance", "ddim", "cps", "precise"] = "flow"
    noise_level: float = Field(default=0.7, gt=0)
    guard: bool = False
    window: int = Field(default=2, ge=1)
    window_range: tuple[float, float] = (0.0, 0.5)
    shared_prefix: bool = True
    clip_range: float = Field(default=1e-4, gt=0)
    kl: float = Field(default=0.01, ge=0)
    keep_graph: bool = False

    @model_validator(mode="after")
    def _window_range_is_a_range(self) -> GrpoRecipe:
        if not 0 <= self.window_range[0] <= self.window_range[1] <= 1:
            raise ValueError("window_range must be two shares between 0 and 1, the first no larger")
        return self

    @model_validator(mode="after")
    def _the_step_fits(self) -> GrpoRecipe:
        if self.kind in ("cps", "ddim") and self.noise_level > 1:
            raise ValueError(f"noise_level is {self.noise_level}, and a {self.kind} step has no more noise than at 1")
        if self.guard and self.kind not in ("flow", "dance"):
            raise ValueError(f"guard is for the kinds flow and dance, and kind is {self.kind}")
        return self

    @model_validator(mode="after")
    def _the_graph_is_of_these_weights(self) -> GrpoRecipe:
        for name in ("generator_batch", "checkpointing", "sharded"):
            if self.keep_graph and getattr(self, name):
                raise ValueError(f"keep_graph keeps what {name} would save the memory of: leave one of them out")
        if self.keep_graph and self.updates > 1:
            raise ValueError(f"keep_graph is for one update a step, and updates is {self.updates}")
        return self

    @model_validator(mode="after")
    def _the_ratio_can_leave_1(self) -> GrpoRecipe:
        if self.updates == 1 and changed(self, "clip_range"):
            raise ValueError("clip_range says nothing with one update a step, whose ratios are all 1: leave it out")
        return self

    def check(self, generator: Generator, judge: RewardModel) -> None:
        """Raises InputError where the window does not fit the schedule, or the generator is of another kind."""
        super().check(generator, judge)
        if self.window > generator.num_steps - 1:
            raise InputError(
                f"window is {self.window}, and {generator.num_steps} steps have {generator.num_steps - 1} that can be "
                "random (the last cannot).",
                "Lower window or raise num_inference_steps.",
            )
        first, last = round(self.window_range[0] * (generator.num_steps - 1)), generator.num_steps - 1 - self.window
        if first > last:
            raise InputError(
                f"window_range begins at step {first} of {generator.num_steps}, where no window of {self.window} fits.",
                f"Lower its first share to {last / (generator.num_steps - 1):.2f} or less, or window.",
            )
        middle: Scales = generator.scales(generator.num_steps // 2)
        if self.kind != "ddim" and abs(middle.alpha + middle.sigma - 1) > 1e-4:
            raise InputError("the generator is no flow, so Flow-GRPO's steps do not fit it.", "Set kind to ddim.")

    def window_at(self, num_steps: int, rng: np.random.Generator) -> RandomWindow:
        """A window of a schedule, which begins at random within window_range and ends before the last step."""
        low, high = (round(share * (num_steps - 1)) for share in self.window_range)
        last = num_steps - 1 - self.window
        start = int(rng.integers(low, min(high, last) + 1))
        return RandomWindow(self.kind, self.noise_level, start, self.window)


# -- rollouts --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Rollouts:
    """B = P * G samples, in parts that go through the generator together.

    window: W random steps.
    parts: rows of the samples, in order; conditions: the conditioning of each part.
    x: the latents before each random step and after the last [W + 1, B, ...].
    log_prob: of each random step [W, B].
    means: of each random step [W, B, ...], where the loss needs them (`GrpoRecipe.guard`), else none.
    pixels: the finished pictures [B, T, C, H, W].
    graph: each random step's distribution of each part [W][parts], where its graph was kept.
    """

    window: RandomWindow
    parts: Sequence[Tensor]
    conditions: Sequence[Any]
    x: Tensor
    log_prob: Tensor
    means: Tensor
    pixels: PixelBatch
    graph: list[list[Step]]

    def without(self, failed: Tensor, parts: Sequence[Tensor], conditions: Sequence[Any]) -> Rollouts:
        """In other parts, and without what was sampled where `failed` [B] says so: it may not be finite."""
        kept = {name: getattr(self, name).clone() for name in ("x", "log_prob", "means")}
        for tensor in kept.values():
            if len(tensor):
                tensor[:, failed.to(tensor.device)] = 0
        return replace(self, parts=parts, conditions=conditions, graph=[[] for _ in self.graph], **kept)


@torch.no_grad()
def random_rollouts(
    generator: Generator,
    prompts: Sequence[Prompt],
    seeds: Sequence[Sequence[int]],
    window: RandomWindow,
    parts: Sequence[Tensor],
    *,
    noise_rng: torch.Generator,
    recipe: GrpoRecipe,
    drawn: Callable[[PixelBatch], object] = lambda pictures: None,
) -> Rollouts:
    """Sample G pictures for each of P prompts; the steps of the window are random, the others the sampler's own.

    prompts, seeds [P][G]: this process's share of the step; with a shared prefix each prompt's first seed is used.
    parts: rows that go through the generator together, in the rollout as in the update, so that both compute the same.
    One part is drawn after the other; `drawn` is given the pictures of each.
    """
    group_size, at_once, before = len(seeds[0]), max(map(len, parts)), range(window.start)
    of_samples = [prompt for prompt in prompts for _ in range(group_size)]
    conditions = [encoded(generator, of_samples, rows) for rows in parts]
    if recipe.shared_prefix:
        start = generator.init_noise([of_prompt[0] for of_prompt in seeds])
        few = torch.arange(len(prompts)).split(at_once)
        noise_of = [start[on_device(rows, start.device)] for rows in few]
        ahead = [
            _sample_steps(generator, noise, encoded(generator, prompts, rows), before)
            for noise, rows in zip(noise_of, few, strict=True)
        ]
        start = torch.cat(ahead).repeat_interleave(group_size, 0)
    else:
        start = generator.init_noise([seed for of_prompt in seeds for seed in of_prompt])
    noises = []
    for _ in window.steps:
        noise = torch.randn((len(start) * world_size(), *start.shape[1:]), generator=noise_rng)
        noises.append(on_device(local_shard(noise, recipe.updates), start.device).to(start.dtype))
    walked = list[tuple[_Walk, PixelBatch]]()
    for rows, condition in zip(parts, conditions, strict=True):
        rows = on_device(rows, start.device)
        x_t = start[rows] if recipe.shared_prefix else _sample_steps(generator, start[rows], condition, before)
        walk, x_t = _random_steps(generator, x_t, window, condition, [noise[rows] for noise in noises], recipe)
        x_t = _sample_steps(generator, x_t, condition, range(window.steps.stop, generator.num_steps))
        walked.append((walk, generator.decode(x_t)))
        drawn(walked[-1][1])
    pixels = torch.cat([pictures for _, pictures in walked])
    x, log_probs, means = (torch.cat(of_parts, 1) for of_parts in zip(*(walk[:3] for walk, _ in walked), strict=True))
    graph = [[step for walk, _ in walked for step in walk.graph[k : k + 1]] for k in range(window.length)]
    return Rollouts(window, parts, conditions, x, log_probs, means if recipe.guard else torch.empty(0), pixels, graph)


class _Walk(NamedTuple):
    """A part's way through the window, as in `Rollouts`: x [W + 1, b, ...], log_prob [W, b], means [W, b, ...] or none,
    and each step's distribution where its graph is kept."""

    x: Tensor
    log_prob: Tensor
    means: Tensor
    graph: list[Step]


def _random_steps(
    generator: Generator,
    x_t: Tensor,
    window: RandomWindow,
    condition: Any,
    noises: Sequence[Tensor],
    recipe: GrpoRecipe,
) -> tuple[_Walk, Tensor]:
    """Through the window with these noises; and the latents after it."""
    latents, log_probs, means, graph = [x_t], [], [], []
    for step, noise in zip(window.steps, noises, strict=True):
        with torch.set_grad_enabled(recipe.keep_graph):
            following = window.distribution(generator, x_t, step, condition)
        x_t = (following.mean + following.deviation * noise).to(x_t).detach()
        latents.append(x_t)
        log_probs.append(log_prob(x_t, following).detach())
        means += [following.mean.detach()] if recipe.guard else []
        graph += [following] if recipe.keep_graph else []
    kept_means = torch.stack(means) if means else torch.empty(len(log_probs), 0)
    return _Walk(torch.stack(latents), torch.stack(log_probs), kept_means, graph), x_t


def _sample_steps(generator: Generator, x_t: Tensor, condition: Any, steps: Sequence[int]) -> Tensor:
    """The sampler's own steps."""
    for step in steps:
        x_t = generator.advance(x_t, generator.predict(x_t, step, condition), step)
    return x_t


# -- the update ------------------------------------------------------------------------------------------------------


def grpo_updates(run: Alignment, step: int, ema: Ema | None = None) -> Iterator[Figures]:
    """One iteration: sample, ask, and for each of its updates leave the gradient on the weights and yield figures.

    Of several processes each takes its share of every update's prompts. The average is not used.
    """
    recipe, generator = run.recipe, run.generator
    assert isinstance(recipe, GrpoRecipe)
    draws = sample_step(step, len(run.prompts), recipe, run.seed)
    if recipe.shared_prefix:  # then a group has one noise, which none of its references may have
        draws = draws._replace(seeds=[of_prompt[:1] * recipe.group_size for of_prompt in draws.seeds])
    window = recipe.window_at(generator.num_steps, draws.rng)
    prompts = as_prompts(run.prompts[i] for i in local_shard(draws.chosen, recipe.updates))
    seeds = local_shard(draws.seeds, recipe.updates)
    batches = recipe.batches(len(prompts))
    parts = [rows for batch in batches for rows in batch]

    with early_answers(run, draws) as early:

        def draw(texts: list[Prompt]) -> Rollouts:
            early.begin()
            return random_rollouts(
                generator, texts, seeds, window, parts,
                noise_rng=draws.noise_rng, recipe=recipe, drawn=early.drawn,
            )  # fmt: skip

        with memory_for(*GRAPH) if recipe.keep_graph else nullcontext():
            rollouts, prompts, unread = drawn_apart(
                generator, prompts, draw, spare=as_prompts(run.prompts), check_first=recipe.sharded
            )
        unread = {k * recipe.group_size: fault for k, fault in unread.items()}
        scored = score_rollouts(run, rollouts.pixels, draws, step, early, unread)
    advantage = on_device(local_shard(scored.advantages.values.flatten(), recipe.updates), rollouts.x.device)
    learned, part_numbers = recipe.learned(scored.failed), itertools.count()
    if scored.failed:
        parts = [part.rows for batch in learned for part in batch.parts]
        of_samples = [prompt for prompt in prompts for _ in range(recipe.group_size)]
        of_samples = with_stand_ins(run, draws, scored, of_samples)
        conditions = [encoded(generator, of_samples, rows) for rows in parts]
        rollouts = rollouts.without(scored.failed_rows(recipe), parts, conditions)
    for batch in learned:
        n, means = batch.size * window.length, dict[str, Tensor]()
        with recipe.learning(generator):
            for rows, count in batch.parts:
                part, share = next(part_numbers), count / n
                for k in range(window.length):
                    part_advantage = advantage[on_device(rows, advantage.device)]
                    loss, figures = part_loss(generator, rollouts, part, k, part_advantage, recipe)
                    (share * loss).backward()
                    add_share(means, figures, share)
        yield {**reward_figures(scored), **read_together(means), "window_start": window.start}


def part_loss(
    generator: Trainable, rollouts: Rollouts, part: int, k: int, advantage: Float[Tensor, " b"], recipe: GrpoRecipe
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """The surrogate, and `kl` times the distance to the base, of a part of the samples at the window's k-th step.

    And what is logged of it, without graph and not read yet: a GPU would be waited for.
    """
    rows, condition = on_device(rollouts.parts[part], rollouts.x.device), rollouts.conditions[part]
    step = rollouts.window.start + k
    x_t, x_next = rollouts.x[k][rows], rollouts.x[k + 1][rows]
    window = rollouts.window
    kept = rollouts.graph[k]
    now = kept[part] if kept else window.distribution(generator, x_t, step, condition)
    log_ratio, weight = log_prob(x_next, now) - rollouts.log_prob[k][rows], 1.0
    if recipe.guard:
        log_ratio = guarded(log_ratio, now.mean, rollouts.means[k][rows], now.deviation)
        weight = 1 / (generator.scales(step).sigma - generator.scales(step + 1).sigma)
    loss = weight * surrogate(log_ratio, torch.zeros_like(log_ratio), advantage, recipe.clip_range)
    kl, figures = torch.zeros_like(loss), dict[str, Tensor]()
    if recipe.kl:
        with generator.as_before_training(), torch.no_grad():
            base = window.distribution(generator, x_t, step, condition)
        distance = kl_to_base(now, base)
        loss, kl = loss + recipe.kl * distance, distance.detach()
        assert now.v is not None and base.v is not None
        figures["velocity_mse"] = velocity_mse(now.v.detach(), base.v)
        figures["velocity_norm"] = relative_norm(now.v.detach(), base.v).mean()
    away = (torch.exp(log_ratio.detach()) - 1).abs()
    clipped = (away > recipe.clip_range).float().mean()
    return loss, {"loss": loss.detach(), "kl": kl, **figures, "ratio_away": away.mean(), "clipped": clipped}
