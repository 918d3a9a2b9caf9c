"""Flow-GRPO's formulas (2505.05470), each a pure function of tensors.

A denoising step becomes a Gaussian, so that it has a log-probability. Latents are x_t = alpha x_0 + sigma eps; a step
goes from `now` to `after`, towards less noise.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from rewarddance.types import Scales


class Step(NamedTuple):
    """The distribution of the next latent: mean [B, ...] and one standard deviation for all its values."""

    mean: Float[Tensor, "B ..."]
    deviation: float


def flow_step(
    x_t: Float[Tensor, "B ..."], x_0_hat: Float[Tensor, "B ..."], now: Scales, after: Scales, noise_level: float
) -> Step:
    """x_t + [v + s^2 / 2t (x_t + (1 - t) v)] dt + s sqrt(|dt|) z with s = a sqrt(t / (1 - t)) (2505.05470).

    Written with eps = x_t + (1 - t) v and x_0 = x_t - t v: alpha' x_0 + (sigma' - d^2 / 2 sigma) eps + d z, where
    d = s sqrt(|dt|). For a flow (alpha = 1 - sigma = 1 - t). noise_level: a. At t = 1 the rate is taken at the next
    level, as the authors' code does.
    """
    eps = (x_t - now.alpha * x_0_hat) / now.sigma
    rate = now.sigma / (1 - (now.sigma if now.sigma < 1 else after.sigma))
    deviation = noise_level * math.sqrt(rate * (now.sigma - after.sigma))
    return Step(after.alpha * x_0_hat + (after.sigma - deviation**2 / (2 * now.sigma)) * eps, deviation)


def ddim_step(
    x_t: Float[Tensor, "B ..."], x_0_hat: Float[Tensor, "B ..."], now: Scales, after: Scales, noise_level: float
) -> Step:
    """alpha' x_0 + sqrt(sigma'^2 - d^2) eps + d z, with d = eta sigma'/sigma sqrt(sigma^2 - (alpha sigma'/alpha')^2).

    DDIM with eta (2010.02502), as DDPO (2305.13301) samples; on a flow the same keeps the amount
    of noise at every level right (2509.05952). For any alpha and sigma. noise_level: eta; 1 is ancestral sampling.
    """
    eps = (x_t - now.alpha * x_0_hat) / now.sigma
    left = now.sigma**2 - (now.alpha * after.sigma / after.alpha) ** 2
    deviation = noise_level * after.sigma / now.sigma * math.sqrt(max(left, 0.0))
    return Step(after.alpha * x_0_hat + math.sqrt(max(after.sigma**2 - deviation**2, 0.0)) * eps, deviation)


STEPS = {"flow": flow_step, "ddim": ddim_step}


def log_prob(x: Float[Tensor, "B ..."], step: Step) -> Float[Tensor, " B"]:
    """log N(x; mean, deviation^2), the mean over a sample's values (as the authors' code has it, not the sum)."""
    each = -((x - step.mean) ** 2) / (2 * step.deviation**2) - math.log(step.deviation * math.sqrt(2 * math.pi))
    return each.flatten(1).mean(1)


def surrogate(
    new: Float[Tensor, " B"], old: Float[Tensor, " B"], advantage: Float[Tensor, " B"], clip_range: float
) -> Float[Tensor, ""]:
    """- mean min(ratio A, clip(ratio, 1 - c, 1 + c) A) with ratio = exp(new - old) (2505.05470)."""
    ratio = torch.exp(new - old)
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip_range, 1 + clip_range) * advantage).mean()


def kl_to_base(step: Step, base: Step) -> Float[Tensor, ""]:
    """|| mean - mean_base ||^2 / 2 d^2, per value: KL of two Gaussians of one deviation (2505.05470)."""
    return ((step.mean - base.mean) ** 2).mean() / (2 * step.deviation**2)
