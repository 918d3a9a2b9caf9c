"""CogView4."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers.pipelines.cogview4.pipeline_cogview4 import calculate_shift
from torch import Tensor

from rewarddance.generators.steps import FlowGenerator
from rewarddance.types import Prompt, as_prompts


class Condition(NamedTuple):
    """Text embeddings [B, L, D] of the prompts, and of the negative prompts where guidance is on."""

    text: Tensor
    negative: Tensor | None


class CogView4Generator(FlowGenerator):
    """A CogView4 pipeline. Its texts are padded without a mask, so branches of two lengths need two forwards."""

    uses = frozenset({"negative_prompt", "max_sequence_length"})
    encodes_alone = False
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")

    def _default_size(self) -> tuple[int, int]:
        side = self.network.config.sample_size * self.pipeline.vae_scale_factor
        return side, side

    def _multiple(self) -> int:
        return 16

    def _spacing(self) -> dict[str, Any]:
        config = self._scheduler.config
        timesteps = np.linspace(config.num_train_timesteps, 1.0, self.options.num_inference_steps)
        timesteps = timesteps.astype(np.int64).astype(np.float32)
        tokens = self._latent_shape[1] * self._latent_shape[2] // self.network.config.patch_size**2
        shift = calculate_shift(tokens, config.base_image_seq_len, config.base_shift, config.max_shift)
        return {"timesteps": timesteps, "sigmas": timesteps / config.num_train_timesteps, "mu": shift}

    @torch.no_grad()
    def encode(self, prompts: Sequence[str | Prompt]) -> Condition:
        prompts = as_prompts(prompts)
        self.check_prompts(prompts)
        text = self._encoded([prompt.text for prompt in prompts])
        return Condition(text, None if self.branch_scale is None else self._encoded(self._negatives(prompts)))

    def _text(self, texts: list[str]) -> Tensor:
        length = self._option("max_sequence_length")
        return self.pipeline.encode_prompt(texts, do_classifier_free_guidance=False, max_sequence_length=length)[0]

    def predict(self, x_t: Tensor, step: int, condition: Condition) -> Tensor:
        text, negative = condition
        if negative is None:
            return self._network(x_t, step, text).float()
        if negative.shape == text.shape:
            return super().predict(x_t, step, torch.cat([text, negative]))
        toward, away = (self._network(x_t, step, branch).float() for branch in (text, negative))
        return self._guided(toward, away, self.branch_scale or 1.0)

    def _network(self, x_t: Tensor, step: int, condition: Tensor) -> Tensor:
        size = condition.new_tensor([[self.height, self.width]]).expand(len(x_t), 2)
        return self._forward(
            hidden_states=x_t.to(self.dtype),
            encoder_hidden_states=condition,
            timestep=self._time(x_t, step),
            original_size=size,
            target_size=size,
            crop_coords=torch.zeros_like(size),
        )
