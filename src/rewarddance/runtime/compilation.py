"""Layers that are compiled: one after the other, as a region, and not the model as a whole."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

CODES = 64
"""Forms of one layer's code that are kept: with and without a gradient, one row or several, with and without a LoRA."""


def compile_layers(layers: Iterable[nn.Module]) -> None:
    """From now on each layer's forward is compiled by torch when it first runs, for tensors of any length.

    Layers of a class share their code, so that the time it takes does not grow with their number. What is put on them
    later, such as a LoRA, is compiled with them. A copy of such a layer would run the original's weights.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, CODES)
    for layer in layers:
        layer.forward = torch.compile(layer.forward, dynamic=True)  # type: ignore[method-assign]
