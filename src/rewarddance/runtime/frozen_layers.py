"""Frozen layers that keep less for the backward pass: no weight of theirs wants a gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input, conv3d_input


@contextmanager
def keeping_less(network: nn.Module) -> Iterator[None]:
    """Within the block a frozen network of convolutions keeps one tensor a layer for its backward pass, not three.

    A convolution's input is needed for its weights' gradient alone, and a SiLU behind a group norm is computed again
    from the norm's input, which costs little beside a convolution. The gradient is the same. A backward pass
    that computes layers again belongs into the block, too.
    """
    changed: list[tuple[nn.Module, str]] = []

    def change(module: nn.Module, name: str, method: Callable[..., Tensor]) -> None:
        if name not in vars(module):  # else a block around this one did
            setattr(module, name, partial(method, module, getattr(module, name)))
            changed.append((module, name))

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            if module.padding_mode == "zeros" and not isinstance(module.padding, str):
                change(module, "_conv_forward", _convolved)
        elif type(module) is nn.GroupNorm:
            change(module, "forward", _normed)
        elif type(module) is nn.SiLU:
            change(module, "forward", _activated)
    try:
        yield
    finally:
        for module, name in changed:
            delattr(module, name)


def _convolved(layer: Any, convolve: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if not x.requires_grad or weight.requires_grad:
        return convolve(x, weight, bias)
    return _Convolution.apply(x, layer, convolve)  # type: ignore[return-value]


def _normed(layer: nn.GroupNorm, norm: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    normed = norm(x)
    if x.requires_grad and not any(weight.requires_grad for weight in layer.parameters()):
        normed.normed_from = x, norm  # type: ignore[attr-defined]
    return normed


def _activated(layer: nn.SiLU, activate: Callable[[Tensor], Tensor], normed: Tensor) -> Tensor:
    normed_from = getattr(normed, "normed_from", None)
    if normed_from is None:
        return activate(normed)
    return _NormedSiLU.apply(normed_from[0], normed.detach(), normed_from[1])  # type: ignore[return-value]


class _Convolution(torch.autograd.Function):
    """A convolution whose input is not kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Any, convolve: Callable[..., Tensor]) -> Tensor:
        ctx.layer, ctx.shape = layer, x.shape
        return convolve(x, layer.weight, layer.bias)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        layer, input_gradient = ctx.layer, conv2d_input if upstream[0].ndim == 4 else conv3d_input
        how = layer.stride, layer.padding, layer.dilation, layer.groups
        return input_gradient(ctx.shape, layer.weight, upstream[0], *how), None, None


class _NormedSiLU(torch.autograd.Function):
    """silu(norm(x)), of which x is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, normed: Tensor, norm: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(x)
        ctx.norm = norm
        return F.silu(normed)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        with torch.enable_grad():
            x = ctx.saved_tensors[0].detach().requires_grad_()
            activated = F.silu(ctx.norm(x))
        return *torch.autograd.grad(activated, x, upstream[0]), None, None
