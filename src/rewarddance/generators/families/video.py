"""What the families that draw videos share: the number of frames, and latents with a time axis."""

from __future__ import annotations

from torch import Tensor

from rewarddance.errors import InputError
from rewarddance.generators.steps import FlowGenerator
from rewarddance.types import PixelBatch


class VideoGenerator(FlowGenerator):
    """A flow pipeline whose VAE makes one latent frame of the first picture and one of every further few."""

    def _ratios(self) -> tuple[int, int]:
        """Frames a latent frame, and pixels a latent pixel, of the VAE."""
        return self.pipeline.vae_scale_factor_temporal, self.pipeline.vae_scale_factor_spatial

    def _default_size(self) -> tuple[int, int]:
        return self._own("height"), self._own("width")

    def _noise_shape(self) -> tuple[int, ...]:
        frames, (every, scale) = self._own("num_frames"), self._ratios()
        if frames % every != 1 % every:
            low = (frames - 1) // every * every + 1
            raise InputError(
                f"a {self.kind} draws no video of {frames} frames.",
                f"num_frames is one more than a multiple of {every}, such as {low} or {low + every}.",
            )
        size = (frames - 1) // every + 1, self.height // scale, self.width // scale
        return self.network.config.in_channels, *size

    def _frames(self, pictures: Tensor) -> PixelBatch:
        return pictures.transpose(1, 2)
