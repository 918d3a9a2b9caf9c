"""LTX-Video, text to video and image to video."""

from __future__ import annotations

from math import lcm
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from rewarddance.generators.families.conditioned import Conditioned
from rewarddance.generators.families.video import ImageToVideoGenerator, VideoGenerator, given_first_frame
from rewarddance.types import PixelBatch


class LTXGenerator(VideoGenerator):
    """An LTX-Video pipeline: latents are packed into tokens, and the network is told the frame rate."""

    uses = frozenset({"negative_prompt", "max_sequence_length", "num_frames", "frame_rate"})
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")

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
            max_sequence_length=self._option("max_sequence_length"),
        )
        return {"encoder_hidden_states": text, "encoder_attention_mask": mask}

    def _network(self, x_t: Tensor, step: int, condition: dict[str, Any]) -> Tensor:
        (_, frames, rows, columns), (every, scale) = self._latent_shape, self._ratios()
        return self._forward(
            hidden_states=x_t.to(self.dtype),
            timestep=self._times(x_t, step),
            num_frames=frames,
            height=rows,
            width=columns,
            rope_interpolation_scale=(every / self._option("frame_rate"), scale, scale),
            **condition,
        )

    def _times(self, x_t: Tensor, step: int) -> Tensor:
        """What the network is told: the step's time, [B] or of each token [B, L]."""
        return self._time(x_t, step)

    def _unscaled(self, x_0: Tensor) -> Tensor:
        vae = self.pipeline.vae
        latents = self.pipeline._unpack_latents(x_0, *self._latent_shape[1:], *self._patch())
        return self.pipeline._denormalize_latents(latents, vae.latents_mean, vae.latents_std, vae.config.scaling_factor)

    def decode(self, x_0: Tensor) -> PixelBatch:
        vae = self.pipeline.vae
        if not vae.config.timestep_conditioning:
            return super().decode(x_0)
        with self.decoding():
            picture = vae.decode(self._unscaled(x_0).to(vae.dtype), x_0.new_zeros(len(x_0)), return_dict=False)[0]
        return self._frames((picture.float() / 2 + 0.5).clamp(0, 1))


class LTXImageToVideoGenerator(LTXGenerator, ImageToVideoGenerator):
    """An LTX-Video pipeline that is given the first frame: its tokens are clean, and the network is told so.

    The pipeline draws them from the VAE's posterior with the seed's first numbers, which here are their noise.
    """

    def _noise(self, rng: torch.Generator) -> Tensor:
        channels, _, rows, columns = self._latent_shape
        first = torch.randn(channels, 1, rows, columns, generator=rng)
        return torch.cat([first, super()._noise(rng)[:, 1:]], 1)

    def _picture(self, image: Image.Image) -> dict[str, Tensor]:
        vae = self.pipeline.vae
        distribution = vae.encode(self._pixels(image).to(vae.dtype).unsqueeze(2)).latent_dist
        mean = self.pipeline._normalize_latents(distribution.mean.float(), vae.latents_mean, vae.latents_std)
        std = distribution.std.float() / vae.latents_std.view(1, -1, 1, 1, 1).to(distribution.std.device)
        return {"mean": self._pack(mean), "std": self._pack(std)}

    def _first(self, x_t: Tensor, step: int, picture: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        mean, std = (picture[name][: len(x_t)] for name in ("mean", "std"))
        return given_first_frame(x_t[:, : mean.shape[1]], mean, std, self.sigmas[step])

    def _times(self, x_t: Tensor, step: int) -> Tensor:
        is_free = torch.ones_like(x_t[:, :, 0])
        is_free[:, : x_t.shape[1] // self._latent_shape[1]] = 0
        return is_free * self._time(x_t, step).unsqueeze(1)

    def _network(self, x_t: Tensor, step: int, condition: Conditioned) -> Tensor:
        first, _ = self._first(x_t, step, condition.picture)
        return super()._network(torch.cat([first, x_t[:, first.shape[1] :]], 1), step, condition.text)

    def predict(self, x_t: Tensor, step: int, condition: Conditioned) -> Tensor:
        _, first = self._first(x_t, step, condition.picture)
        return torch.cat([first, super().predict(x_t, step, condition)[:, first.shape[1] :]], 1)
