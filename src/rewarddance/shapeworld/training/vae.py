"""How the VAEs of the small generators are made, of pictures and of videos."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from rewarddance.shapeworld.training.loop import TrainingLoop, cosine


def train_vae(
    vae: Any,
    draw: Callable[[int], Tensor],
    steps: int,
    *,
    learning_rate: float,
    log: Callable[[str], None],
    l1_warm_up: int = 1,
) -> None:
    """Reconstruction in L1 and L2 with a light KL.

    draw: pictures [N, 3, H, W] or videos [N, 3, T, H, W] in [-1, 1] for a step. l1_warm_up: steps over which the weight
    of L1 grows to 1 (in L1 alone the median of a dark canvas is a plateau).
    """
    loop = TrainingLoop("vae", vae.parameters(), steps, rate=cosine(learning_rate, 50), weight_decay=1e-4, log=log)
    for step in loop:
        pixels = draw(step)
        posterior = vae.encode(pixels).latent_dist
        error = vae.decode(posterior.sample()).sample - pixels
        l1 = min(1.0, step / l1_warm_up) * error.abs().mean()
        loop.learn(error.square().mean() + l1 + 2e-4 * posterior.kl().mean() / 64, mse=error.square().mean())
