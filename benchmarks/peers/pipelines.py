"""The tiny random pipelines that peers and ours run on, their prompts, and a reward that costs nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, SD3Transformer2DModel, UNet2DConditionModel
from tiny_pipelines import DDIM, plain_copy
from torch import Tensor, nn
from torch.nn import functional as F

from rewarddance.types import Question, Verdict

PROMPTS = ["a red circle", "two small blue crosses", "a green square above a white circle", "three red squares"]
LORA_RANK, LORA_ALPHA = 32, 64
TARGETS = ["add_k_proj", "add_q_proj", "add_v_proj", "to_add_out", "to_k", "to_out.0", "to_q", "to_v"]
"""Where flow_grpo and DiffusionNFT put their LoRA, and so do we."""


def _with_parts(pipeline: Any, **parts: nn.Module) -> Any:
    changed = type(pipeline)(**{**pipeline.components, **parts})
    changed.set_progress_bar_config(disable=True)
    for part in changed.components.values():
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(False)
    return changed


def sd3(layers: int = 2, width: int = 96, side: int = 16) -> Any:
    """Stable Diffusion 3's classes: an MMDiT on latents of side x side x 16 in patches of 2, and a VAE of factor 2."""
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=side, patch_size=2, in_channels=16, out_channels=16, num_layers=layers,
        attention_head_dim=width // 4, num_attention_heads=4, joint_attention_dim=32, caption_projection_dim=width,
        pooled_projection_dim=32, pos_embed_max_size=24, qk_norm="rms_norm",
    )  # fmt: skip
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16), layers_per_block=1, latent_channels=16, norm_num_groups=4, sample_size=32,
        scaling_factor=1.5305, shift_factor=0.0609,
    )  # fmt: skip
    with torch.no_grad():
        for weight in transformer.parameters():
            if weight.ndim > 1:
                weight.mul_(1.5)  # predictions of order 1
    return _with_parts(plain_copy("sd3"), transformer=transformer, vae=vae)


def sd15(side: int = 8) -> Any:
    """Stable Diffusion 1.5's classes: a UNet of 64 to 192 channels and a VAE of factor 8; pictures of 8 side."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 64, 96, 96), layers_per_block=2, latent_channels=4, norm_num_groups=16,
        sample_size=8 * side,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=side, down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"), block_out_channels=(64, 128, 192),
        layers_per_block=2, norm_num_groups=16, attention_head_dim=8, cross_attention_dim=16,
    )  # fmt: skip
    with torch.no_grad():  # no value at the edge of [0, 1], where rounding decides whether it has a gradient
        vae.decoder.conv_out.weight.mul_(0.3)
    return _with_parts(plain_copy("sd15-ddim"), vae=vae, unet=unet, scheduler=DDIMScheduler(**DDIM))


class RandomViT(nn.Module):
    """A reward that has a gradient: a ViT of 4 layers of 256 on 64x64 pixels, untrained; [B, 3, H, W] to [B]."""

    def __init__(self, width: int = 256, layers: int = 4) -> None:
        super().__init__()
        torch.manual_seed(11)
        layer = nn.TransformerEncoderLayer(
            width, 8, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.places = nn.Parameter(torch.randn(64, width) * 0.02)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 1)
        self.eval().requires_grad_(False)

    def forward(self, image: Tensor) -> Tensor:
        small = F.interpolate(image, (64, 64), mode="bilinear", antialias=True, align_corners=False)
        x = self.patches(2 * small - 1).flatten(2).transpose(1, 2) + self.places
        return self.head(self.layers(x).mean(1))[:, 0]


def brightness(questions: Sequence[Question]) -> Verdict:
    return Verdict(torch.stack([question.candidate.mean() for question in questions]))


brightness.needs_reference = False  # type: ignore[attr-defined]


def brightness_of(images: Any, prompts: Any, metadata: Any, only_strict: bool = True) -> tuple[dict, dict]:
    """The same for flow_grpo and DiffusionNFT."""
    return {"avg": images.float().mean((1, 2, 3)).numpy()}, {}


def stirred(network: nn.Module) -> None:
    """Give a new LoRA values: its second factor begins as zero, and then half of its gradients are."""
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.02)


def by_layer(weights: Iterable[tuple[str, Tensor]], adapter: str = "default") -> dict[str, Tensor]:
    """A LoRA's tensors by the names that diffusers' adapters give them."""
    named = {name.removeprefix("base_model.model."): weight for name, weight in weights if f".{adapter}." in name}
    return {name.replace(f".{adapter}.", ".default."): weight for name, weight in named.items() if "lora_" in name}


def copy_lora(theirs: nn.Module, ours: nn.Module, adapter: str = "default") -> None:
    given = by_layer(theirs.named_parameters(), adapter)
    with torch.no_grad():
        for name, weight in by_layer(ours.named_parameters()).items():
            weight.copy_(given[name])


def gradients_of(network: nn.Module) -> dict[str, Tensor]:
    """The gradients of all weights that have one, by name."""
    return {name: weight.grad.clone() for name, weight in network.named_parameters() if weight.grad is not None}


def away(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """The largest difference of two gradients by the largest entry."""
    if ours.keys() != theirs.keys():
        raise ValueError(f"gradients of other weights: {sorted(ours.keys() ^ theirs.keys())[:3]}")
    largest = max(float(gradient.abs().max()) for gradient in theirs.values())
    return max(float((ours[name] - theirs[name]).abs().max()) for name in theirs) / largest
