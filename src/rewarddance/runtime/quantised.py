"""Frozen weights in 4 or 8 bits, by bitsandbytes: what a LoRA is trained on, or what only answers.

nf4 is QLoRA's normal float (2305.14314), its scales quantised once more; int8 is LLM.int8 (2208.07339). Gradients go
through the weights to what is before them, never into them.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterator
from typing import Any, Literal

import torch
from torch import nn

from rewarddance.errors import InputError
from rewarddance.runtime.sharding import outer_blocks

BasePrecision = Literal["none", "int8", "nf4"]
"""Of a frozen base's large weights. none: that of loading."""
BYTES = {"int8": 1.0, "nf4": 0.5 + 0.127 / 8}
"""Of a weight and its share of the scales: in nf4 an 8-bit one for 64 weights, and a 32-bit one for 256 of those."""


def quantise(module: nn.Module, precision: BasePrecision, dtype: torch.dtype) -> nn.Module:
    """Replace the linear layers of the module's blocks, in place, by frozen packed ones, which compute in `dtype`.

    They are packed where `to` moves them. What stands outside of the blocks (embeddings, heads) stays as it is. Raises
    InputError where bitsandbytes is not installed.
    """
    if precision == "none":
        return module
    try:
        packed = importlib.import_module("bitsandbytes.nn")  # an extra, and heavy
    except ImportError as error:
        raise InputError(
            f"base_precision is {precision}, which needs bitsandbytes.", "pip install 'rewarddance[quantised]'."
        ) from error
    for block in outer_blocks(module):
        for parent, name, layer in list(_linear_layers(block)):
            setattr(parent, name, _packed(packed, layer, precision, dtype))
    return module


def quantised_bytes(module: nn.Module, precision: BasePrecision, without: Collection[nn.Parameter] = ()) -> int:
    """Bytes of a module's weights but these once they are packed; it may be on the meta device."""
    inside = {layer.weight for block in outer_blocks(module) for _, _, layer in _linear_layers(block)}
    packed = inside.difference(without) if precision != "none" else set()
    whole = sum(weight.nbytes for weight in {*module.parameters()}.difference(packed, without))
    return whole + round(sum(weight.numel() for weight in packed) * BYTES.get(precision, 0))


def unpacked_bytes(module: nn.Module, precision: BasePrecision) -> int:
    """Bytes of the largest packed weight as it is computed with: it is unpacked for each product."""
    if precision == "none":
        return 0
    layers = [layer for block in outer_blocks(module) for _, _, layer in _linear_layers(block)]
    return max((layer.weight.nbytes for layer in layers), default=0)


def _linear_layers(block: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """Plain linear layers within a block, also those under a LoRA, with their parents; no LoRA's own."""
    for place, parent in block.named_modules():
        if "lora_" in place:
            continue
        for name, child in parent.named_children():
            if type(child) is nn.Linear and not name.startswith("lora_"):
                yield parent, name, child


def _packed(packed: Any, layer: nn.Linear, precision: BasePrecision, dtype: torch.dtype) -> nn.Linear:
    sizes, has_bias = (layer.in_features, layer.out_features), layer.bias is not None
    weight = layer.weight.detach()
    if precision == "nf4":
        made = packed.Linear4bit(*sizes, bias=has_bias, compute_dtype=dtype, quant_type="nf4", device="meta")
        made.weight = packed.Params4bit(weight, requires_grad=False, quant_type="nf4", module=made)
        made.support_avx512bf16_for_cpu = False  # a form of packing that widths such as 96 do not fit into
    else:
        made = packed.Linear8bitLt(*sizes, bias=has_bias, has_fp16_weights=False, device="meta")
        made.weight = packed.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    made.bias = layer.bias
    return made.to(weight.device).requires_grad_(False) if weight.device.type != "cpu" else made
