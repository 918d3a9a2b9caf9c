"""CogView4."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.cogview4.pipeline_cogview4 import calculate_shift
from torch import Tensor

from rewarddance.generators.steps import FlowGenerator
from rewarddance.runtime.sharding import is_sharded


class CogView4Generator(FlowGenerator):
    """A CogView4 pipeline.

    A text is padded to the next 16 tokens without a mask, and never to a longer text beside it, as the pipeline would:
    then what is drawn for a prompt does not depend on its batch. Texts of several lengths need several forwards.
    """

    uses = frozenset({"negative_prompt", "max_sequence_length"})
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

    def _text(self, texts: list[str]) -> list[Tensor]:
        length = self._option("max_sequence_length")
        encode = partial(self.pipeline.encode_prompt, do_classifier_free_guidance=False, max_sequence_length=length)
        return [encode([text])[0][0] for text in texts]

    def _network(self, x_t: Tensor, step: int, condition: list[Tensor]) -> Tensor:
        if len({len(text) for text in condition}) == 1 and not is_sharded(self.network):
            return self._at_one_length(x_t, step, torch.stack(condition))
        together = defaultdict[Any, list[int]](list)
        for row, text in enumerate(condition):  # a sharded network is called for each row, on all processes alike
            together[row if is_sharded(self.network) else len(text)].append(row)
        predictions: dict[int, Tensor] = {}
        for rows in together.values():
            latents, texts = (torch.stack([of_all[row] for row in rows]) for of_all in (x_t, condition))
            predictions |= zip(rows, self._at_one_length(latents, step, texts), strict=True)
        return torch.stack([predictions[row] for row in range(len(x_t))])

    def _at_one_length(self, x_t: Tensor, step: int, texts: Tensor) -> Tensor:
        size = texts.new_tensor([[self.height, self.width]]).expand(len(x_t), 2)
        return self._forward(
            hidden_states=x_t.to(self.dtype),
            encoder_hidden_states=texts,
            timestep=self._time(x_t, step),
            original_size=size,
            target_size=size,
            crop_coords=torch.zeros_like(size),
        )
