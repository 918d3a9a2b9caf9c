"""DiffusionNFT's formulas (2509.16117), pure functions of tensors. Nothing but clean samples and rewards is needed."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


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
        away = x_0_old + sign * beta * (x_0_hat - x_0_old) - x_0
        size = away.detach().abs().flatten(1).mean(1).clamp_min(1e-5)
        total = total + share * away.square().flatten(1).mean(1) / size
    return total.mean()
