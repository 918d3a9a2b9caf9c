"""A judge base that goes on from another: with words that it lacks, or made wider without changing what it computes
(Net2WiderNet, Chen et al., arXiv 1511.05641)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, InternVLConfig, InternVLForConditionalGeneration

from rewarddance.runtime.checkpoint import find_checkpoint
from rewarddance.shapeworld.training.judge import build_judge_base


def with_words(begin: str, words: Sequence[str], seed: int = 0) -> tuple[Any, Any]:
    """The judge base `begin` with a tokenizer that knows the words of some texts too, and that tokenizer.

    Words that both know keep their embeddings; the others begin as the mean of all, with a little noise.
    """
    model, tokenizer = build_judge_base(seed, more_words=words)
    folder = find_checkpoint(begin)
    known = AutoTokenizer.from_pretrained(folder).get_vocab()
    given = InternVLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).state_dict()
    weights = model.state_dict()
    for name, weight in given.items():
        if weight.shape == weights[name].shape and "embed_tokens" not in name and "lm_head" not in name:
            weights[name].copy_(weight)
    table = model.get_input_embeddings().weight
    given_table = next(weight for name, weight in given.items() if "embed_tokens" in name)
    with torch.no_grad():
        table.copy_(given_table.mean(0) + 0.5 * given_table.std(0) * torch.randn_like(table))
        for word, index in tokenizer.get_vocab().items():
            if word in known:
                table[index] = given_table[known[word]]
    return model, tokenizer


def wider_config(config: Any, factor: int) -> Any:
    """A configuration with `factor` times the width, the heads and the MLPs of an InternVL's, text and vision."""
    text, vision = config.text_config.to_dict(), config.vision_config.to_dict()
    for part in (text, vision):
        for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"):
            if part.get(name):
                part[name] *= factor
    return InternVLConfig.from_dict(config.to_dict() | {"text_config": text, "vision_config": vision})


@torch.no_grad()
def widened(model: Any, factor: int, *, noise: float = 0.3, seed: int = 0) -> Any:
    """An InternVL `factor` times as wide that gives the same logits, its weights still free to part.

    Every unit is there `factor` times, and what reads it takes a share of each copy. Equal shares would keep the copies
    equal for ever, so to the shares of a layer is added what cancels out while its inputs' copies are equal: noise of
    `noise` times the weights' own deviation, whose sum over the copies of each input is 0.
    """
    generator = torch.Generator().manual_seed(seed)
    wide = InternVLForConditionalGeneration(wider_config(model.config, factor))
    weights = dict(wide.named_parameters())
    patch_width = model.config.vision_config.hidden_size
    for name, weight in model.named_parameters():
        in_patches = name.startswith("model.multi_modal_projector.l") and weight.shape[-1] % patch_width == 0
        blocks = weight.shape[-1] // patch_width if in_patches and "linear_2" not in name else 1
        if weight.ndim == 2 and "embed_tokens" not in name:
            weights[name].copy_(_linear(weight, factor, blocks, noise, generator))
        elif weight.ndim == 4:  # pixels to patches: its inputs are not copied
            weights[name].copy_(weight.repeat(factor, 1, 1, 1))
        else:
            copied = _copied(weight, factor, blocks if "layer_norm" in name else 1)
            weights[name].copy_(copied / factor if name == "model.language_model.norm.weight" else copied)
    return wide


def _copied(weight: Tensor, factor: int, blocks: int) -> Tensor:
    """The last dimension, of `blocks` equal parts, with every part `factor` times."""
    parts = weight.unflatten(-1, (blocks, -1))
    return torch.cat([parts] * factor, dim=-1).flatten(-2)


def _linear(weight: Tensor, factor: int, blocks: int, noise: float, generator: torch.Generator) -> Tensor:
    """[out, in] to [factor * out, factor * in]."""
    rows = weight.repeat(factor, 1)
    parts = rows.unflatten(-1, (blocks, -1))  # [out, blocks, in of a block]
    added = noise * weight.std() / factor * torch.randn((factor, *parts.shape), generator=generator)
    added -= added.mean(0)
    return torch.cat([parts / factor + noise_of_copy for noise_of_copy in added], dim=-1).flatten(-2)
