"""DiffusionNFT (2509.16117): rewarded samples are learned on the forward process, without likelihoods."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from rewarddance.alignment.forward_process import ForwardRecipe, Learned


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


class NftRecipe(ForwardRecipe):
    """How DiffusionNFT runs (and `ForwardRecipe`). Defaults are ours where they are not the authors'.

    Their schedules of the old policy's decay are `decay_rise: 0.001`, and `decay_rise: 0.0075` with `decay_from: 75`
    and `ema_decay: 0.999`.

    beta: how far the implicit policies reach.
    """

    spread: Literal["prompt", "global"] = "global"
    beta: float = Field(default=1.0, gt=0)

    def loss(self, learned: Learned) -> Float[Tensor, ""]:
        assert learned.x_0_old is not None
        r = optimality(learned.advantage, self.advantage_clip)
        return nft_loss(learned.x_0_hat, learned.x_0_old, learned.x_0, r, self.beta)
