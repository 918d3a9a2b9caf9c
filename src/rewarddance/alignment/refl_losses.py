"""The losses of ReFL, each a pure function of margins; the paper leaves open which it is."""

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
