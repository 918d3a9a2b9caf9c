"""The middle of ReFL's backward pass: from a gradient in pixels to one in latents, a few pictures at a time.

The judge's graph is gone before the decoder's begins (`reward/gradient.py`), and the decoder's before the generator's
is walked, so that the peak of memory is the largest of the three and not their sum.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from rewarddance.types import PixelBatch

T = TypeVar("T")


def through_decoder(
    decode: Callable[[Tensor], PixelBatch], x_0: Tensor, ask: Callable[[PixelBatch], T], at_once: int
) -> tuple[T, Tensor]:
    """What `ask` says of the decoded latents x_0 [B, ...], and d loss / d x_0 [B, ...] of the loss it backpropagates.

    All pictures are decoded without graph and handed to `ask` as a leaf; then they are decoded again with one,
    `at_once` at a time, to send the gradient that it left on them further. Exact: samples do not meet in a decoder.
    """
    parts = torch.arange(len(x_0)).split(at_once)
    with torch.no_grad():
        pixels = torch.cat([decode(x_0[rows]) for rows in parts])
    pixels.requires_grad_()
    with torch.enable_grad():
        said = ask(pixels)
        assert pixels.grad is not None, "no loss was sent back through the pictures"
        gradients = []
        for rows in parts:
            latents = x_0[rows].detach().requires_grad_()
            gradients += torch.autograd.grad(decode(latents), latents, pixels.grad[rows])
    return said, torch.cat(gradients)
