"""Flow pipelines whose latents are packed two by two into tokens, and whose network may be told its guidance."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rewarddance.errors import InputError
from rewarddance.generators.adapter import GeneratorOptions
from rewarddance.generators.steps import FlowGenerator


class PackedGenerator(FlowGenerator):
    """What FLUX.1 and Qwen-Image share. guidance_scale is told to a guidance-distilled network; true_cfg_scale is
    guidance by two branches."""

    uses = frozenset({"true_cfg_scale", "negative_prompt", "max_sequence_length"})

    def __init__(self, pipeline: Any, options: GeneratorOptions) -> None:
        super().__init__(pipeline, options)
        takes_guidance = self.network.config.guidance_embeds
        if options.guidance_scale is not None and not takes_guidance:
            raise InputError(
                f"the network of this {self.kind} is not told a guidance_scale.",
                "Leave it out; true_cfg_scale and negative_prompt turn guidance by two branches on.",
            )
        self._told: float | None = self._option("guidance_scale") if takes_guidance else None
        if takes_guidance and self._told is None:
            raise InputError(f"the network of this {self.kind} must be told a guidance_scale.", "Give one.")

    def _branch_scale(self) -> float | None:
        scale = self.options.true_cfg_scale
        if scale is None or scale <= 1:
            return None
        if self.options.negative_prompt is None:
            raise InputError("true_cfg_scale needs a negative_prompt.", "Give one; a blank (' ') will do.")
        return scale

    def _noise_shape(self) -> tuple[int, ...]:
        channels, height, width = super()._noise_shape()
        return channels // 4, height, width

    def _pack(self, noise: Tensor) -> Tensor:
        return self.pipeline._pack_latents(noise, *noise.shape)

    def _unpack(self, x_0: Tensor) -> Tensor:
        return self.pipeline._unpack_latents(x_0, self.height, self.width, self.pipeline.vae_scale_factor)

    def _tell(self, x_t: Tensor) -> Tensor | None:
        return None if self._told is None else torch.full((len(x_t),), self._told, device=x_t.device)
