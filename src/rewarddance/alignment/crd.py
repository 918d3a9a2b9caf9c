"""CRD, centred reward distillation (2603.14128): the likelihood ratio that a reward calls for is regressed on."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from rewarddance.alignment.forward_process import ForwardRecipe, Learned, group_mean, prediction_error
from rewarddance.alignment.nft import optimality


def implicit_reward(
    error: Float[Tensor, "n ..."], old_error: Float[Tensor, "n ..."], adaptive: bool
) -> Float[Tensor, " n"]:
    """R = - (|| v - (eps - x_0) ||^2 - || v_old - (eps - x_0) ||^2), the mean over a sample's values.

    adaptive: each square is divided by its own mean absolute error, without a gradient (as DiffusionNFT's).
    """
    total = error.new_zeros(len(error))
    for sign, away in ((-1, error), (1, old_error)):
        size = away.detach().abs().flatten(1).mean(1).clamp_min(1e-5) if adaptive else 1.0
        total = total + sign * away.square().flatten(1).mean(1) / size
    return total


def crd_loss(
    implicit: Float[Tensor, " n"], r: Float[Tensor, " n"], group: Int[Tensor, " n"], beta: float
) -> Float[Tensor, ""]:
    """mean of (beta (R - mean R) - (r - mean r))^2, both means over the sample's group, that of R without a gradient.

    A prompt's normalising constant is the same for its samples, so that it cancels (2603.14128).
    """
    gap = beta * (implicit - group_mean(implicit.detach(), group)) - (r - group_mean(r, group))
    return gap.square().mean()


class CrdRecipe(ForwardRecipe):
    """How CRD runs (and `ForwardRecipe`). Defaults are ours where they are not the authors'.

    A group's samples are learned at the same levels. The loss is multiplied by advantage_clip / beta, as in the
    authors' code. Two of their three techniques are not here: one average is both the policy that samples and the old
    one of the ratio, where they keep two so that the ratio does not collapse, and the weight of the distance to the
    base is the same whatever the reward.

    beta: how much of the likelihood ratio a reward between 0 and 1 calls for; the larger, the less.
    adaptive: see `implicit_reward`.
    """

    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    decay_rise: float | None = Field(default=5e-3, gt=0)
    spread: Literal["prompt", "global"] = "global"
    beta: float = Field(default=1.0, gt=0)
    adaptive: bool = True
    velocity_mse: float = Field(default=0.1, ge=0)

    @property
    def by_group(self) -> bool:
        return True

    def loss(self, learned: Learned) -> Float[Tensor, ""]:
        assert learned.x_0_old is not None
        error, old = (
            prediction_error(x_0_hat, learned.x_0, learned.error_scale)
            for x_0_hat in (learned.x_0_hat, learned.x_0_old)
        )
        r = optimality(learned.advantage, self.advantage_clip)
        loss = crd_loss(implicit_reward(error, old, self.adaptive), r, learned.group, self.beta)
        return self.advantage_clip / self.beta * loss
