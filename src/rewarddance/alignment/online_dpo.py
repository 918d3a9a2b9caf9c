"""Diffusion-DPO (2311.12908) of a flow, online: the better one of two samples is learned against the worse one."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from rewarddance.alignment.forward_process import ForwardRecipe, Learned
from rewarddance.runtime.config import changed


def dpo_loss(
    fall: Float[Tensor, " n"], advantage: Float[Tensor, " n"], group: Int[Tensor, " n"], beta: float
) -> Float[Tensor, ""]:
    """mean over pairs of - log sigmoid(beta / 2 (fall_w - fall_l)), then over groups; w has the larger advantage.

    fall: || v_base - (eps - x_0) ||^2 - || v - (eps - x_0) ||^2, the mean over a sample's values (2311.12908, equation
    14, with a flow's velocities). A group without an order counts as 0.
    """
    pairs = (group[:, None] == group) & (advantage[:, None] > advantage)
    losses = -F.logsigmoid(beta / 2 * (fall[:, None] - fall)) * pairs
    numbers, place = group.unique(return_inverse=True)
    total, count = fall.new_zeros(2, len(numbers)).unbind()
    total = total.index_add(0, place, losses.sum(1))
    count = count.index_add(0, place, pairs.sum(1).to(fall))
    return (total / count.clamp_min(1)).mean()


class OnlineDpoRecipe(ForwardRecipe):
    """How online DPO runs (and `ForwardRecipe`). Defaults are ours where they are not the authors'.

    The judge's scores order a group's samples, which are learned at the same levels with the same noises. Only their
    order counts, so advantages are not clipped; spread says how several rewards are added.

    pairs: a group's best sample against its worst, or all of its pairs that differ (all).
    beta: how sharply a pair stops teaching once it is told apart better than the base does.
    """

    pairs: Literal["extremes", "all"] = "extremes"
    beta: float = Field(default=2000.0, gt=0)

    @model_validator(mode="after")
    def _only_the_order_counts(self) -> OnlineDpoRecipe:
        if changed(self, "advantage_clip"):
            raise ValueError("advantage_clip says nothing in online_dpo, where only the order counts: leave it out")
        return self

    @property
    def clips_advantages(self) -> bool:
        return False

    @property
    def by_group(self) -> bool:
        return True

    @property
    def shared_eps(self) -> bool:
        return True

    @property
    def asks_old(self) -> bool:
        return False

    @property
    def base_in_loss(self) -> bool:
        return True

    @property
    def learned_per_group(self) -> int:
        return 2 if self.pairs == "extremes" else self.group_size

    def chosen(self, advantage: Float[Tensor, "P G"]) -> Bool[Tensor, "P G"]:
        if self.pairs == "all":
            return super().chosen(advantage)
        order = torch.sort(advantage, dim=1, stable=True).indices
        return torch.zeros_like(advantage, dtype=torch.bool).scatter(1, order[:, [0, -1]], True)

    def loss(self, learned: Learned) -> Float[Tensor, ""]:
        assert learned.x_0_base is not None
        error, base = learned.errors(learned.x_0_hat), learned.errors(learned.x_0_base)
        return dpo_loss(base - error, learned.advantage, learned.group, self.beta)
