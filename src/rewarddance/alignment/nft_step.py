"""DiffusionNFT (2509.16117): rewarded samples are learned on the forward process, without likelihoods."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from rewarddance.alignment.nft import nft_loss, optimality
from rewarddance.alignment.policy import PolicyRecipe, judged, sample_step, summary
from rewarddance.alignment.references import References
from rewarddance.alignment.refl import velocity_mse
from rewarddance.alignment.rewards import Reward
from rewarddance.alignment.safeguards import Ema
from rewarddance.alignment.train import Figures, Trainable, train
from rewarddance.generators.sampling import encoded, sample_with_latents
from rewarddance.runtime.process_group import local_shard, world_size
from rewarddance.runtime.tracking import Metrics
from rewarddance.types import Prompt, as_prompts


class NftRecipe(PolicyRecipe):
    """How DiffusionNFT runs (and `PolicyRecipe`). Defaults are ours where they are not the authors'.

    The weights' average (ema_decay) is the policy that samples, and "old" in the loss. beta: how far the implicit
    policies reach. levels: noise levels at which each sample is learned, drawn anew each step. velocity_mse: weight of
    the distance to the base's velocity.
    """

    ema_decay: float = Field(default=0.5, ge=0, lt=1)
    spread: Literal["prompt", "global"] = "global"
    beta: float = Field(default=1.0, gt=0)
    levels: int = Field(default=2, ge=1)
    velocity_mse: float = Field(default=1e-2, ge=0)


def train_nft(
    generator: Trainable,
    rewards: Sequence[Reward],
    prompts: Sequence[str | Prompt],
    recipe: NftRecipe,
    folder: Path,
    metrics: Metrics,
    seed: int = 0,
    probe: Callable[[], Figures] = dict,
    bank: Sequence[References] | None = None,
) -> Path:
    """DiffusionNFT on `prompts`. bank: their references, where a reward is judged against them. See `train`."""

    def updates(step: int, ema: Ema) -> Iterator[Figures]:
        return nft_updates(generator, rewards, prompts, recipe, seed, step, ema, bank)

    return train(generator, updates, recipe, folder=folder, metrics=metrics, title="NFT", seed=seed, probe=probe)


def nft_updates(
    generator: Trainable,
    rewards: Sequence[Reward],
    prompts: Sequence[str | Prompt],
    recipe: NftRecipe,
    seed: int,
    step: int,
    ema: Ema,
    bank: Sequence[References] | None = None,
) -> Iterator[Figures]:
    """One iteration: sample from the average, ask, and for each of its updates leave the gradient on the weights.

    Of several processes each takes its share of every update's prompts.
    """
    prompts = as_prompts(prompts)
    draws = sample_step(step, len(prompts), recipe, seed)
    mine = local_shard(draws.chosen, recipe.updates)
    flat = [prompts[i] for i in mine for _ in range(recipe.group_size)]
    with ema.applied():
        seeds = [one for group in local_shard(draws.seeds, recipe.updates) for one in group]
        at_once = recipe.generator_batch or len(flat)
        pixels, x_0 = sample_with_latents(generator, flat, seeds, at_once)
    found = judged(rewards, prompts, pixels, draws, recipe, bank)
    r = local_shard(optimality(found.advantages.values.flatten(), recipe.advantage_clip), recipe.updates).to(x_0.device)
    for batch in recipe.batches(len(mine)):
        n = sum(len(rows) for rows in batch) * recipe.levels
        told = {"loss": 0.0, "velocity_mse": 0.0}
        steps = draws.rng.integers(generator.num_steps, size=recipe.levels).tolist()
        noised = [
            _noised(generator, x_0, at, draws.noise_rng, recipe.updates) for at in steps
        ]  # whole, so that parts draw the same noises
        with recipe.learning(generator):
            for rows in batch:
                condition = encoded(generator, flat, rows)
                share = len(rows) / n
                with torch.no_grad(), ema.applied():
                    olds = [
                        generator.predict_x0(x[rows], generator.predict(x[rows], at, condition), at)
                        for at, x in zip(steps, noised, strict=True)
                    ]
                for at, x, old in zip(steps, noised, olds, strict=True):
                    x_t = x[rows]
                    with generator.as_before_training(), torch.no_grad():
                        base = generator.predict(x_t, at, condition)
                    v = generator.predict(x_t, at, condition)
                    far = velocity_mse(v, base)
                    loss = nft_loss(generator.predict_x0(x_t, v, at), old, x_0[rows], r[rows], recipe.beta)
                    loss = loss + recipe.velocity_mse * far
                    (share * loss).backward()
                    told["loss"] += share * loss.item()
                    told["velocity_mse"] += share * far.item()
        yield {**summary(found), **told}


def _noised(generator: Trainable, x_0: Tensor, step: int, noise_rng: torch.Generator, updates: int) -> Tensor:
    """Clean latents, this process's share, brought to the noise level before `step`."""
    alpha, sigma = generator.scales(step)
    noise = torch.randn((len(x_0) * world_size(), *x_0.shape[1:]), generator=noise_rng)
    return alpha * x_0 + sigma * local_shard(noise, updates).to(x_0)
