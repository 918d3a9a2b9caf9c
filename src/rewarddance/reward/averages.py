"""Averages of verdicts, each a pure function of margins."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def mean_margin(margins: Float[Tensor, "K B"], weights: Float[Tensor, " K"]) -> Float[Tensor, " B"]:
    """sum_k w_k m_k / sum_k w_k: the log of the geometric mean of the odds. weights [K] > 0."""
    return weights / weights.sum() @ margins


def mean_probability(margins: Float[Tensor, "K B"], weights: Float[Tensor, " K"]) -> Float[Tensor, " B"]:
    """logit( sum_k w_k sigma(m_k) / sum_k w_k ): the margin of the mean probability, exact where P is near 0 or 1.

    margins [K, B]: K verdicts on each of B questions. weights [K] > 0.
    """
    share = (weights / weights.sum()).log()[:, None]
    return (share + F.logsigmoid(margins)).logsumexp(0) - (share + F.logsigmoid(-margins)).logsumexp(0)
