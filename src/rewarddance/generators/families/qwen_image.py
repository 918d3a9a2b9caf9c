"""Qwen-Image."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rewarddance.generators.families.packed import PackedGenerator
from rewarddance.types import PixelBatch


class QwenImageGenerator(PackedGenerator):
    """A Qwen-Image pipeline: a video VAE of one frame, its latents normalised by channel; texts have a mask."""

    encodes_alone = False
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")

    def _guided(self, toward: Tensor, away: Tensor, scale: float) -> Tensor:
        """Guidance that leaves each token's length as it was."""
        guided = super()._guided(toward, away, scale)
        return guided * (toward.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))

    def _kept_tokens(self, length: int) -> int:
        """The pipeline drops what its template begins with, and cuts off what is left."""
        if "max_sequence_length" not in self.uses:
            return length
        return min(length, self._option("max_sequence_length") + self.pipeline.prompt_template_encode_start_idx)

    def _text(self, texts: list[str]) -> dict[str, Any]:
        text, mask = self.pipeline.encode_prompt(
            texts, device=self.device, max_sequence_length=self._option("max_sequence_length")
        )
        return {"encoder_hidden_states": text, "encoder_hidden_states_mask": mask}

    def _network(self, x_t: Tensor, step: int, condition: dict[str, Any]) -> Tensor:
        return self._forward(
            hidden_states=x_t.to(self.dtype),
            timestep=self._time(x_t, step) / 1000,
            guidance=self._tell(x_t),
            img_shapes=[self._shapes()] * len(x_t),
            **condition,
        )

    def _shapes(self) -> list[tuple[int, int, int]]:
        """Frames, rows and columns of each picture's tokens."""
        return [(1, self._latent_shape[1] // 2, self._latent_shape[2] // 2)]

    def _unscaled(self, x_0: Tensor) -> Tensor:
        config = self.pipeline.vae.config
        mean, std = (x_0.new_tensor(v).view(1, -1, 1, 1, 1) for v in (config.latents_mean, config.latents_std))
        return self._unpack(x_0) * std + mean

    def _frames(self, pictures: Tensor) -> PixelBatch:
        return pictures.transpose(1, 2)
