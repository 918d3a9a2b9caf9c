"""ReFL's objectives, each a pure function of tensors (paper, section 3; cap and regulariser after 2508.21066)."""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def linear_loss(margin: Float[Tensor, " B"], cap: float = 1.0) -> Float[Tensor, ""]:
    """- mean P(yes). The cap is not used: this is the loss that a generator hacks."""
    return -margin.sigmoid().mean()


def hinge_loss(margin: Float[Tensor, " B"], cap: float) -> Float[Tensor, ""]:
    """mean max(0, cap - P(yes)): a sample that the judge already prefers with probability cap teaches nothing more."""
    return F.relu(cap - margin.sigmoid()).mean()


def log_loss(margin: Float[Tensor, " B"], cap: float) -> Float[Tensor, ""]:
    """mean max(0, log cap - log P(yes)): steep where the judge is sure of no, where the hinge is flat."""
    return F.relu(math.log(cap) - F.logsigmoid(margin)).mean()


def margin_loss(margin: Float[Tensor, " B"], cap: float) -> Float[Tensor, ""]:
    """mean max(0, logit(cap) - margin): equal slope for all samples below the cap."""
    return F.relu(math.log(cap / (1 - cap)) - margin).mean()


LOSSES = {"linear": linear_loss, "hinge": hinge_loss, "log": log_loss, "margin": margin_loss}


def velocity_mse(v: Float[Tensor, "B ..."], v_base: Float[Tensor, "B ..."]) -> Float[Tensor, ""]:
    """mean || v - v_base ||^2 per element: how far the velocity went from the base's at the same x_t."""
    return F.mse_loss(v, v_base)


def denoising_mse(x_0_hat: Float[Tensor, "B ..."], x_0: Float[Tensor, "B ..."], sigma: float) -> Float[Tensor, ""]:
    """mean || (x_0_hat - x_0) / sigma ||^2 per element: a flow's velocity loss, and v-prediction's, at noise sigma.

    For a network that predicts eps it is eps' error by alpha^2, which near pure noise weighs a hundredfold.

    On the references it is the pre-training term of ImageReward's ReFL (2304.05977, algorithm 1), whose pictures come
    from a data set; that ours are the judge's own winners is our choice.
    """
    return F.mse_loss(x_0_hat / sigma, x_0 / sigma)
