"""How much better a sample is than the others of its prompt: what a policy gradient is weighted with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

LEAST_SPREAD = 1e-6
"""A group whose scores differ by less (standard deviation) has none to learn from."""


class Advantages(NamedTuple):
    """values [P, G]; zero_std_groups: how many of the P groups had none, and so teach nothing."""

    values: Float[Tensor, "P G"]
    zero_std_groups: int


def advantages(scores: Float[Tensor, "P G"], spread: str = "prompt") -> Advantages:
    """(score - mean of the prompt) / standard deviation, of the prompt's G scores or ("global") of all P * G.

    Source: GRPO (2402.03300); Flow-GRPO (2505.05470) has both spreads. A group without spread
    gets 0 under either.
    """
    away = scores - scores.mean(1, keepdim=True)
    own = scores.std(1, correction=0, keepdim=True)
    scale = scores.std(correction=0) if spread == "global" else own
    flat = own < LEAST_SPREAD
    values = torch.where(flat, torch.zeros_like(away), away / scale.clamp_min(LEAST_SPREAD))
    return Advantages(values, int(flat.sum()))


def combine(of_rewards: Sequence[Advantages], weights: Sequence[float]) -> Advantages:
    """The weighted mean of several rewards' advantages, each normalised by itself, so that none starves another.

    A group counts as without spread where no reward has any.
    """
    total = sum(weights)
    values = sum(one.values * (weight / total) for one, weight in zip(of_rewards, weights, strict=True))
    assert isinstance(values, Tensor)
    flat = torch.stack([(one.values == 0).all(1) for one in of_rewards]).all(0)
    return Advantages(values, int(flat.sum()))
