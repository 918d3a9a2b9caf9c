"""ReFL's pre-training term: the references are denoised as in training, so that what is not rewarded stays."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from rewarddance.alignment.refl_batch import ReflBatch
from rewarddance.alignment.refl_recipe import ReflRecipe
from rewarddance.alignment.train import Trainable
from rewarddance.generators.sampling import encoded
from rewarddance.runtime.devices import on_device
from rewarddance.runtime.process_group import rank, world_size

LEVELS = 4
"""Noise levels a step to which references are noised, so that one step is not all of one level."""


def denoising_mse(
    x_0_hat: Float[Tensor, "B ..."], x_0: Float[Tensor, "B ..."], error_scale: float
) -> Float[Tensor, ""]:
    """mean || c (x_0_hat - x_0) ||^2 per element: the network's own loss, of the velocity, v or eps that it predicts.

    error_scale: c, see `Trainable.error_scale`.

    On the references it is the pre-training term of ImageReward's ReFL (2304.05977, algorithm 1), whose pictures come
    from a data set; that ours are the judge's own winners is our choice.
    """
    return F.mse_loss(error_scale * x_0_hat, error_scale * x_0)


def denoise(generator: Trainable, batch: ReflBatch, recipe: ReflRecipe, like: Tensor) -> float:
    """Backward of the weighted denoising loss of the batch's references; returns the loss without the weight.

    It is the loss of the network's own prediction, as in training: a guided one is no mean of what may be there, and to
    fit it to x_0 would unlearn what guidance does. The latents are noised to LEVELS steps of the whole schedule, a part
    of the batch to each: what the reward's gradient does not reach stays as it is, too. like: a tensor of the type and
    on the device that the generator computes with.
    """
    x_0 = on_device(torch.stack([reference.latent for reference in batch.denoised]), like.device).to(like.dtype)
    prompts, losses = [reference.prompt for reference in batch.denoised], []
    for level in torch.arange(len(x_0) * world_size()).chunk(LEVELS):
        step = int(batch.rng.integers(generator.num_steps))
        alpha, sigma = generator.scales(step)
        eps = on_device(torch.randn((len(level), *x_0.shape[1:]), generator=batch.noise_rng), x_0.device).to(x_0.dtype)
        for part in _local_parts(level, len(x_0), recipe.generator_batch or len(batch.seeds)):
            clean = x_0[on_device(part.rows, x_0.device)]
            x_t = alpha * clean + sigma * eps[on_device(part.places, x_0.device)]
            prediction = generator.predict(x_t, step, encoded(generator, prompts, part.rows))
            x_0_hat = generator.predict_x0(x_t, prediction, step)
            loss = denoising_mse(x_0_hat, clean, generator.error_scale(step)) * part.share
            (recipe.reference_mse * loss).backward()
            losses.append(loss.detach())
    return torch.stack(losses).sum().item()


class LevelPart(NamedTuple):
    """Rows of this process's batch that belong to a noise level, their places in the level, and their share of the
    batch."""

    rows: Tensor
    places: Tensor
    share: float


def _local_parts(level: Tensor, batch_size: int, at_most: int) -> Iterator[LevelPart]:
    """This process's part of a level, `at_most` rows at a time.

    level: numbers of rows among those of all processes, of which each has batch_size. A process that has no rows left
    goes along with a share of 0, for weights may be sharded.
    """
    owner = level // batch_size
    local_rows = level[owner == rank()].split(at_most)
    for k in range(math.ceil(int(owner.bincount().max()) / at_most)):
        if k < len(local_rows) and len(local_rows[k]):
            yield LevelPart(
                local_rows[k] - rank() * batch_size, local_rows[k] - level[0], len(local_rows[k]) / batch_size
            )
        else:
            yield LevelPart(torch.tensor([0]), torch.tensor([0]), 0.0)
