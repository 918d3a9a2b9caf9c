"""Flow matching in four lines: x_t = (1 - sigma) x_0 + sigma eps, and the network learns v = eps - x_0.

Source: Lipman et al. 2210.02747, Liu et al. 2209.03003, as diffusers' FlowMatchEulerDiscreteScheduler has it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor


def noised(x_0: Tensor, eps: Tensor, sigma: Tensor | float) -> Tensor:
    """x_t = (1 - sigma) x_0 + sigma eps."""
    return (1 - sigma) * x_0 + sigma * eps


def predicted_x_0(x_t: Tensor, v: Tensor, sigma: Tensor | float) -> Tensor:
    """x_0 = x_t - sigma v, the end of the straight line that v points along."""
    return x_t - sigma * v


def euler_step(x_t: Tensor, v: Tensor, sigma: Tensor | float, sigma_next: Tensor | float) -> Tensor:
    """x_{t'} = x_t + (sigma' - sigma) v."""
    return x_t + (sigma_next - sigma) * v


def linear_shift(tokens: int, config: Any) -> float:
    """mu, the shift of the time towards noise: it rises linearly with the number of tokens (2403.03206, FLUX).

    config: a flow scheduler's, with base_shift at base_image_seq_len tokens and max_shift at max_image_seq_len.
    """
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    return config.base_shift + slope * (tokens - config.base_image_seq_len)
