"""What keeps a generator honest while a judge's gradient pulls at it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from rewarddance.runtime.devices import random_on
from rewarddance.runtime.process_group import local_shard, world_size
from rewarddance.runtime.sharding import to_local
from rewarddance.types import PixelBatch

_ROUNDING = 1e-3
"""By what share norms of the same velocity may differ: of half precision, or of batches of another size."""


class Ema:
    """An exponential moving average of the trained weights: a <- decay a + (1 - decay) w. Delivered at the end."""

    def __init__(self, weights: Sequence[nn.Parameter], decay: float) -> None:
        self.weights, self.decay = list(weights), decay
        self.average = [weight.detach().clone() for weight in weights]

    @torch.no_grad()
    def update(self, decay: float | None = None) -> None:
        """decay: of this update, by default the average's own."""
        weights = [to_local(weight.detach()) for weight in self.weights]
        share = 1 - (self.decay if decay is None else decay)
        torch._foreach_lerp_([to_local(value) for value in self.average], weights, share)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the weights hold the average."""
        current = [to_local(weight.detach()).clone() for weight in self.weights]
        self._copy(self.average)
        try:
            yield
        finally:
            self._copy(current)

    @torch.no_grad()
    def _copy(self, values: Sequence[Tensor]) -> None:
        for weight, value in zip(self.weights, values, strict=True):
            to_local(weight).copy_(to_local(value))

    def deliver(self) -> None:
        """Put the average into the weights for good."""
        self._copy(self.average)


def velocity_mse(v: Float[Tensor, "B ..."], v_base: Float[Tensor, "B ..."]) -> Float[Tensor, ""]:
    """mean || v - v_base ||^2 per element: how far the velocity went from the base's at the same x_t."""
    return F.mse_loss(v, v_base)


def relative_norm(v: Float[Tensor, "B ..."], v_base: Float[Tensor, "B ..."]) -> Float[Tensor, " B"]:
    """|| v || / || v_base || of each sample: reinforcement inflates it by 5 to 15 % (NormGuard, 2606.27771)."""
    return v.flatten(1).norm(dim=1) / v_base.flatten(1).norm(dim=1).clamp_min(torch.finfo(v_base.dtype).tiny)


def norm_excess(norm: Float[Tensor, " B"]) -> Float[Tensor, ""]:
    """mean of max(0, norm - 1), of relative norms: NormGuard's hinge, which nothing below the base's norm feels.

    Nor does what exceeds it by no more than rounding may (`_ROUNDING`), as at the first step, when both are the same.

    That it acts on || v || above || v_base || and is added to any loss on the velocity is the paper's (2606.27771);
    that it is linear, and relative to the base's norm so that its weight has no unit, is our choice.
    """
    return torch.where(norm > 1 + _ROUNDING, norm - 1, 0 * norm).mean()


def disagreeing(margin: Float[Tensor, " B"], held_out: Float[Tensor, " B"]) -> Bool[Tensor, " B"]:
    """Samples that the judge already prefers to their reference and the held-out judge does not.

    To push these further is to follow what the judge alone likes (after GARDO, 2512.24138). A sample that neither
    prefers still has something to learn, and one that the held-out judge prefers does no harm.
    """
    return (margin > 0) & (held_out < 0)


def jittered(pixels: PixelBatch, rng: torch.Generator, shift: int, noise: float) -> PixelBatch:
    """Each sample moved by up to `shift` pixels either way (edges repeated) and noised with deviation `noise`.

    A gradient that only works at one exact registration of pixels is an adversarial one: it does not survive this.
    pixels: this process's share; moves and seeds are drawn for those of all processes, so that each keeps its own. The
    noise itself is drawn where the pixels are: of the same seeds it is another one on another kind of device.
    """
    n = len(pixels) * world_size()
    if shift:
        height, width = pixels.shape[-2:]
        padded = F.pad(pixels.flatten(0, 1), (shift,) * 4, mode="replicate").unflatten(0, pixels.shape[:2])
        moves = local_shard(torch.randint(0, 2 * shift + 1, (n, 2), generator=rng)).tolist()
        windows = zip(padded, moves, strict=True)
        pixels = torch.stack([sample[..., y : y + height, x : x + width] for sample, (y, x) in windows])
    if noise:
        seeds = local_shard(torch.randint(2**62, (n,), generator=rng)).tolist()
        rngs = [random_on(pixels.device, seed) for seed in seeds]
        eps = torch.stack(
            [torch.randn(pixels.shape[1:], generator=sample_rng, device=sample_rng.device) for sample_rng in rngs]
        )
        pixels = pixels + noise * eps.to(pixels.device)
    return pixels.clamp(0, 1)
