"""LTX-Video, text to video."""

from __future__ import annotations

from math import lcm
from typing import Any

from torch import Tensor

from rewarddance.generators.families.video import VideoGenerator
from rewarddance.types import PixelBatch


class LTXGenerator(VideoGenerator):
    """An LTX-Video pipeline: latents are packed into tokens, and the network is told the frame rate."""

    uses = frozenset({"negative_prompt", "max_sequence_length", "num_frames", "frame_rate"})
    adapted = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")

    def _ratios(self) -> tuple[int, int]:
        return self.pipeline.vae_temporal_compression_ratio, self.pipeline.vae_spatial_compression_ratio

    def _multiple(self) -> int:
        return lcm(32, self._ratios()[1] * self.pipeline.transformer_spatial_patch_size)

    def _tokens(self) -> int:
        _, frames, rows, columns = self._latent_shape
        return frames * rows * columns

    def _pack(self, noise: Tensor) -> Tensor:
        return self.pipeline._pack_latents(noise, *self._patch())

    def _patch(self) -> tuple[int, int]:
        return self.pipeline.transformer_spatial_patch_size, self.pipeline.transformer_temporal_patch_size

    def _text(self, texts: list[str]) -> dict[str, Tensor]:
        text, mask, _, _ = self.pipeline.encode_prompt(
            texts,
            do_classifier_free_guidance=False,
            device=self.device,
            max_sequence_length=self._own("max_sequence_length"),
        )
        return {"encoder_hidden_states": text, "encoder_attention_mask": mask}

    def _network(self, x_t: Tensor, step: int, condition: dict[str, Any]) -> Tensor:
        (_, frames, rows, columns), (every, scale) = self._latent_shape, self._ratios()
        return self._forward(
            hidden_states=x_t.to(self.dtype),
            timestep=self._time(x_t, step),
            num_frames=frames,
            height=rows,
            width=columns,
            rope_interpolation_scale=(every / self._own("frame_rate"), scale, scale),
            **condition,
        )

    def _unscaled(self, x_0: Tensor) -> Tensor:
        vae = self.pipeline.vae
        latents = self.pipeline._unpack_latents(x_0, *self._latent_shape[1:], *self._patch())
        return self.pipeline._denormalize_latents(latents, vae.latents_mean, vae.latents_std, vae.config.scaling_factor)

    def decode(self, x_0: Tensor) -> PixelBatch:
        vae = self.pipeline.vae
        if not vae.config.timestep_conditioning:
            return super().decode(x_0)
        picture = vae.decode(self._unscaled(x_0).to(vae.dtype), x_0.new_zeros(len(x_0)), return_dict=False)[0]
        return self._frames((picture.float() / 2 + 0.5).clamp(0, 1))
