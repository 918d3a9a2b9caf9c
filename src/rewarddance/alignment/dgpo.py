"""DGPO, direct group preference optimisation (2510.08425): a group's better samples against its worse ones, at once."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from rewarddance.alignment.forward_process import ClippedRatioRecipe, Learned, group_mean


def dgpo_loss(
    error: Float[Tensor, " n"],
    base_error: Float[Tensor, " n"],
    advantage: Float[Tensor, " n"],
    group: Int[Tensor, " n"],
    beta: float,
) -> Float[Tensor, ""]:
    """mean of w A error with w = sigmoid(mean over the group of beta A (error - base error)), without a gradient.

    Its gradient is that of - log sigmoid(- the same mean) / beta: Bradley-Terry's loss of a group's better samples
    against its worse ones, each weighted by |A| (2510.08425). error, base_error: the squared errors of what the
    network and the base predict.
    """
    with torch.no_grad():
        weight = group_mean(beta * advantage * (error - base_error), group).sigmoid()
    return (weight * advantage * error).mean()


def clipped(
    error: Float[Tensor, " n"], old_error: Float[Tensor, " n"], advantage: Float[Tensor, " n"], clip_range: float
) -> Float[Tensor, " n"]:
    """The errors, without a gradient where exp(old error - error) went beyond 1 +- clip_range the way A wants it to."""
    ratio = torch.exp(old_error - error.detach())
    beyond = torch.where(advantage > 0, ratio > 1 + clip_range, ratio < 1 - clip_range)
    return torch.where(beyond, error.detach(), error)


class DgpoRecipe(ClippedRatioRecipe):
    """How DGPO runs (and `ForwardRecipe`). Defaults are ours where they are not the authors'.

    A group's samples are learned at the same levels.

    ema_decay, decay_rise: of the policy that samples and that errors are clipped against.
    beta: how sharply a group's weight falls once its better samples are told from its worse ones.
    shared_noise: a group's samples have the same noises, too.
    clip_range: of the ratio of the errors' exponentials; the authors' without guidance, with it theirs is 1e-2.
    """

    ema_decay: float = Field(default=0.3, ge=0, lt=1)
    decay_rise: float | None = Field(default=1e-3, gt=0)
    beta: float = Field(default=100.0, gt=0)
    shared_noise: bool = True
    clip_range: float = Field(default=1e-3, gt=0)

    @property
    def by_group(self) -> bool:
        return True

    @property
    def shared_eps(self) -> bool:
        return self.shared_noise

    @property
    def base_in_loss(self) -> bool:
        return True

    def loss(self, learned: Learned) -> Float[Tensor, ""]:
        assert learned.x_0_base is not None
        error, base = learned.errors(learned.x_0_hat), learned.errors(learned.x_0_base)
        if learned.x_0_old is not None:
            error = clipped(error, learned.errors(learned.x_0_old), learned.advantage, self.clip_range)
        return dgpo_loss(error, base, learned.advantage, learned.group, self.beta)
