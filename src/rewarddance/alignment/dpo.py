"""Diffusion-DPO (2311.12908) of a flow, from votes on pictures that are there: no judge, and no sampling."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from rewarddance.alignment.forward_process import draw_levels, prediction_error
from rewarddance.alignment.group_rewards import Judging
from rewarddance.alignment.safeguards import Ema, norm_excess, relative_norm, velocity_mse
from rewarddance.alignment.train import Alignment, Figures, Trainable, TrainRecipe, prompts_of_step
from rewarddance.errors import InputError
from rewarddance.protocols import Generator, RewardModel
from rewarddance.runtime.config import MOST
from rewarddance.runtime.memory import memory_for
from rewarddance.runtime.process_group import local_shard, world_size
from rewarddance.types import Preference

GENERATOR = "the generator", "Lower dpo.generator_batch."
"""What is said where a pair's update runs out of memory."""


def vote_logit(fall: Float[Tensor, "n 2"], beta: float) -> Float[Tensor, " n"]:
    """beta / 2 (fall_2 - fall_1) of pairs; fall: by how much a picture's squared error is below the base's."""
    return beta / 2 * (fall[:, 1] - fall[:, 0])


def votes_loss(logit: Float[Tensor, " n"], share: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """mean of - s log sigmoid(l) - (1 - s) log sigmoid(-l), with the share s of votes for the second picture.

    With s of 0 or 1 it is Diffusion-DPO's (2311.12908, equation 14); shares are ours. logit: see `vote_logit`.
    """
    return F.binary_cross_entropy_with_logits(logit, share)


class DpoRecipe(TrainRecipe):
    """How Diffusion-DPO runs (and `TrainRecipe`). Defaults are ours where they are not the authors'.

    preferences: a preferences file. Its pictures are scaled and cut to the generator's size.
    prompts_per_step, group_size: pairs a step, and a pair's two pictures.
    generator_batch: pictures that go through the generator together, pairs whole, by default all of the step's.
    beta: how sharply a pair stops teaching once it is told apart better than the base does.
    levels, level_range: noise levels at which each pair is learned, as in DiffusionNFT.
    norm_guard: weight of what the velocity's norm exceeds the base's by (`norm_excess`); 0 is off.
    """

    preferences: Path | None = None
    group_size: int = Field(default=2, ge=2, le=2)
    beta: float = Field(default=2000.0, gt=0)
    levels: int = Field(default=1, ge=1, le=MOST)
    level_range: tuple[float, float] = (0.0, 1.0)
    norm_guard: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _a_pair_goes_together(self) -> DpoRecipe:
        if self.generator_batch and self.generator_batch % 2:
            raise ValueError(f"generator_batch is {self.generator_batch}, and pairs go together: give an even one")
        if not 0 <= self.level_range[0] <= self.level_range[1] <= 1:
            raise ValueError("level_range must be two shares between 0 and 1, the lower one first")
        if self.sharded:
            raise ValueError("sharded is not for dpo, whose processes learn at other levels each: leave it out")
        return self

    def check_votes(self, generator: Generator, judge: RewardModel | None) -> None:
        """Raises InputError where there is no file, a judge, or a generator that cannot encode pictures."""
        if self.preferences is None:
            raise InputError("dpo learns from votes, and there are none.", "Give dpo.preferences, a preferences file.")
        if judge is not None:
            raise InputError("dpo learns from votes and asks no judge.", "Leave judge out, or take online_dpo.")
        check: Any = getattr(generator, "check_encodes", None)
        if check is None:
            raise InputError(f"{generator!r} cannot encode pictures, which dpo learns.", "Take online_dpo.")
        check()

    def check_processes(self, processes: int) -> None:
        """Raises InputError where the processes cannot share the pairs."""
        super().check_processes(processes)
        if self.prompts_per_step % processes:
            raise InputError(
                f"{processes} processes cannot share {self.prompts_per_step} pairs equally (prompts_per_step).",
                f"Set it to a multiple of {processes}.",
            )

    def judging_of(self, judge: RewardModel) -> Judging:
        raise InputError(f"dpo learns from votes and does not ask {judge!r}.", "Leave judge out, or take online_dpo.")


def dpo_updates(run: Alignment, step: int, ema: Ema) -> Iterator[Figures]:
    """One update on the step's pairs. Of several processes each takes its share of them. The average is not used."""
    del ema
    recipe, generator = run.recipe, run.generator
    assert isinstance(recipe, DpoRecipe) and run.preferences is not None
    rng = np.random.default_rng([run.seed, 2, step])
    noise_rng = torch.Generator().manual_seed(int(rng.integers(2**31)))
    chosen = prompts_of_step(len(run.preferences), recipe.prompts_per_step, run.seed, step)
    pairs = [run.preferences[i] for i in local_shard(chosen)]
    count = len(pairs) * world_size()
    levels = draw_levels(count, recipe.levels, recipe.level_range, generator.num_steps, rng)
    steps, means = torch.from_numpy(levels), Figures()
    with memory_for(*GENERATOR), generator.without_guidance():
        encode: Any = generator
        x_0 = torch.stack([encode.encode_pictures([pair.first, pair.second]) for pair in pairs])
        eps = torch.randn((count, recipe.levels, *x_0.shape[2:]), generator=noise_rng)
        steps, eps = local_shard(steps), local_shard(eps).to(x_0)
        for level in range(recipe.levels):
            for rows in torch.arange(len(pairs)).split((recipe.generator_batch or 2 * len(pairs)) // 2):
                for place in steps[rows, level].unique().tolist():
                    at = rows[steps[rows, level] == place]
                    share = len(at) / steps.numel()
                    learned = [pairs[row] for row in at.tolist()]
                    figures = learn_pairs(
                        generator, learned, x_0[at], eps[at, level], step=place, weight=share, recipe=recipe
                    )
                    for name, figure in figures.items():
                        means[name] = means.get(name, 0.0) + share * figure
    yield means


def learn_pairs(
    generator: Trainable,
    pairs: Sequence[Preference],
    x_0: Float[Tensor, "n 2 ..."],
    eps: Float[Tensor, "n ..."],
    *,
    step: int,
    weight: float,
    recipe: DpoRecipe,
) -> Figures:
    """Backward of `weight` times the loss of pairs at the noise level before `step`; a pair's pictures share eps.

    Returns the loss, the distance from the base, and margin and reward: the network's own logit, and probability, that
    a pair's picture with more votes is the better one.
    """
    alpha, sigma = generator.scales(step)
    clean = x_0.flatten(0, 1)
    x_t = alpha * clean + sigma * eps.repeat_interleave(2, 0)
    condition = generator.encode([pair.prompt for pair in pairs for _ in range(2)])

    def squared_error(v: Tensor) -> Tensor:
        error = prediction_error(generator.predict_x0(x_t, v, step), clean, generator.error_scale(step))
        return error.square().flatten(1).mean(1).unflatten(0, (-1, 2))

    with generator.as_before_training(), torch.no_grad():
        v_base = generator.predict(x_t, step, condition)
        base = squared_error(v_base)
    v = generator.predict(x_t, step, condition)
    logit = vote_logit(base - squared_error(v), recipe.beta)
    share = torch.tensor([pair.share for pair in pairs]).to(logit)
    norm = relative_norm(v, v_base)
    loss = votes_loss(logit, share) + recipe.norm_guard * norm_excess(norm)
    (weight * loss).backward()
    right = logit.detach() * (share - 0.5).sign()
    figures = {"loss": loss.item(), "velocity_mse": velocity_mse(v.detach(), v_base).item()}
    figures["velocity_norm"] = norm.mean().item()
    return figures | {"margin": right.mean().item(), "reward": right.sigmoid().mean().item()}
