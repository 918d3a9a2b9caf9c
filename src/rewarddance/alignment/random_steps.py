"""Denoising steps made random, so that each has a log-probability: the kinds of the field, each a Gaussian.

Latents are x_t = alpha x_0 + sigma eps; a step goes from `now` to `after`, towards less noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from rewarddance.protocols import Generator
from rewarddance.types import Scales


class Step(NamedTuple):
    """The distribution of the next latent: mean [B, ...] and one standard deviation for all its values.

    likelihood: the deviation with which its log-probability is taken, where that is not its own.
    v: the network's prediction that it was made of.
    """

    mean: Float[Tensor, "B ..."]
    deviation: float
    likelihood: float | None = None
    v: Tensor | None = None


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


def dance_step(
    x_t: Float[Tensor, "B ..."], x_0_hat: Float[Tensor, "B ..."], now: Scales, after: Scales, noise_level: float
) -> Step:
    """x_t + [v - e^2 / 2 score] dt + e sqrt(|dt|) z with one e at all levels, score = -(x_t - alpha x_0) / sigma^2.

    DanceGRPO (2505.07818), for a flow. With eps: alpha' x_0 + (sigma' - d^2 / 2 sigma) eps + d z, d = e sqrt(|dt|).
    noise_level: e.
    """
    eps = (x_t - now.alpha * x_0_hat) / now.sigma
    deviation = noise_level * math.sqrt(now.sigma - after.sigma)
    return Step(after.alpha * x_0_hat + (after.sigma - deviation**2 / (2 * now.sigma)) * eps, deviation)


def cps_step(
    x_t: Float[Tensor, "B ..."], x_0_hat: Float[Tensor, "B ..."], now: Scales, after: Scales, noise_level: float
) -> Step:
    """alpha' x_0 + sigma' cos(n pi / 2) eps + sigma' sin(n pi / 2) z: the share of noise is right at every level.

    Coefficients-preserving sampling (2509.05952). Its log-probability is - ||x - mean||^2, without the deviation, as
    the authors take it. noise_level: n, up to 1.
    """
    eps = (x_t - now.alpha * x_0_hat) / now.sigma
    mean = after.alpha * x_0_hat + after.sigma * math.cos(noise_level * math.pi / 2) * eps
    return Step(mean, after.sigma * math.sin(noise_level * math.pi / 2), likelihood=math.sqrt(0.5))


def precise_step(
    x_t: Float[Tensor, "B ..."], x_0_hat: Float[Tensor, "B ..."], now: Scales, after: Scales, noise_level: float
) -> Step:
    """alpha' x_0 + sigma' rho eps + sigma' sqrt(1 - rho^2) z with rho = (sigma' alpha / sigma alpha')^(n^2 / 2).

    Precise (2605.23522): the stochastic equation of `flow_step`, solved exactly for an x_0 that stays as it is within
    the step, so that a large step adds no more noise than many small ones. For a flow. noise_level: n.
    """
    eps = (x_t - now.alpha * x_0_hat) / now.sigma
    rho = (after.sigma * now.alpha / (now.sigma * after.alpha)) ** (noise_level**2 / 2)
    return Step(after.alpha * x_0_hat + after.sigma * rho * eps, after.sigma * math.sqrt(max(1 - rho**2, 0.0)))


STEPS = {"flow": flow_step, "dance": dance_step, "ddim": ddim_step, "cps": cps_step, "precise": precise_step}


def log_prob(x: Float[Tensor, "B ..."], step: Step) -> Float[Tensor, " B"]:
    """log N(x; mean, deviation^2), the mean over a sample's values (as the authors' code has it, not the sum)."""
    deviation = step.likelihood or step.deviation
    each = -((x - step.mean) ** 2) / (2 * deviation**2) - math.log(deviation * math.sqrt(2 * math.pi))
    return each.flatten(1).mean(1)


@dataclass(frozen=True)
class RandomWindow:
    """Which steps of a rollout are random, and how: `kind` of STEPS at noise_level, from `start`, `length` long."""

    kind: str
    noise_level: float
    start: int
    length: int

    @property
    def steps(self) -> range:
        return range(self.start, self.start + self.length)

    def distribution(self, generator: Generator, x_t: Tensor, step: int, condition: Any) -> Step:
        """The distribution of the latent after `step`, in float32."""
        v = generator.predict(x_t, step, condition)
        x_0_hat = generator.predict_x0(x_t, v, step).float()
        now, after = generator.scales(step), generator.scales(step + 1)
        return STEPS[self.kind](x_t.float(), x_0_hat, now, after, self.noise_level)._replace(v=v)
