"""DiffusionNFT (2509.16117): rewarded samples are learned on the forward process, without likelihoods.

First its formulas, pure functions of tensors that need clean samples and rewards alone, then the update.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from rewarddance.alignment.failed_groups import drawn_apart
from rewarddance.alignment.policy import (
    PolicyRecipe,
    add_share,
    reward_figures,
    sample_step,
    score_rollouts,
    with_stand_ins,
)
from rewarddance.alignment.safeguards import Ema, velocity_mse
from rewarddance.alignment.train import Alignment, Figures, Trainable
from rewarddance.generators.sampling import encoded, merged_lora, sample_with_latents
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
    levels: noise levels at which each sample is learned, drawn anew each step.
    velocity_mse: weight of the distance to the base's velocity.
    """

    ema_decay: float = Field(default=0.5, ge=0, lt=1)
    spread: Literal["prompt", "global"] = "global"
    beta: float = Field(default=1.0, gt=0)
    levels: int = Field(default=2, ge=1)
    velocity_mse: float = Field(default=1e-2, ge=0)


class Noised(NamedTuple):
    """Clean latents of this process's samples, brought to the noise level before `step`."""

    step: int
    x_t: Tensor


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
        return sample_with_latents(generator, texts, seeds, recipe.generator_batch or len(texts))

    with ema.applied():
        (pixels, x_0), prompts, unread = drawn_apart(
            generator, prompts, draw, spare=as_prompts(run.prompts), check_first=recipe.sharded
        )
    scored = score_rollouts(run, pixels, draws, step, unread)
    if scored.failed:
        prompts = with_stand_ins(run, draws, scored, prompts)
        x_0[scored.failed_rows(recipe).to(x_0.device)] = 0  # whatever it was, it may not be finite
    r = optimality(scored.advantages.values.flatten(), recipe.advantage_clip)
    r = local_shard(r, recipe.updates).to(x_0.device)
    for batch in recipe.learned(scored.failed):
        n, means = batch.size * recipe.levels, Figures()
        levels = draws.rng.integers(generator.num_steps, size=recipe.levels).tolist()
        noised = [_noise(generator, x_0, level, draws.noise_rng, recipe.updates) for level in levels]  # for all parts
        with recipe.learning(generator):
            for rows, count in batch.parts:
                condition, share = encoded(generator, prompts, rows), count / n
                with torch.no_grad(), ema.applied(), merged_lora(generator):
                    old = [_predict_x0(generator, latents.x_t[rows], latents.step, condition)[1] for latents in noised]
                for latents, x_0_old in zip(noised, old, strict=True):
                    x_t = latents.x_t[rows]
                    with generator.as_before_training(), torch.no_grad():
                        v_base = generator.predict(x_t, latents.step, condition)
                    v, x_0_hat = _predict_x0(generator, x_t, latents.step, condition)
                    distance = velocity_mse(v, v_base)
                    loss = nft_loss(x_0_hat, x_0_old, x_0[rows], r[rows], recipe.beta) + recipe.velocity_mse * distance
                    (share * loss).backward()
                    add_share(means, {"loss": loss.item(), "velocity_mse": distance.item()}, share)
        yield {**reward_figures(scored), **means}


def _predict_x0(generator: Trainable, x_t: Tensor, step: int, condition: object) -> tuple[Tensor, Tensor]:
    """The network's prediction, and the x_0 that it implies."""
    prediction = generator.predict(x_t, step, condition)
    return prediction, generator.predict_x0(x_t, prediction, step)


def _noise(generator: Trainable, x_0: Tensor, step: int, noise_rng: torch.Generator, updates: int) -> Noised:
    """x_t = alpha x_0 + sigma eps; eps is drawn for the samples of all processes."""
    alpha, sigma = generator.scales(step)
    eps = torch.randn((len(x_0) * world_size(), *x_0.shape[1:]), generator=noise_rng)
    return Noised(step, alpha * x_0 + sigma * local_shard(eps, updates).to(x_0))
