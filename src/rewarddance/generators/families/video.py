"""What the families that draw videos share: frames, latents with a time axis, and how a first frame is given."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from rewarddance.errors import InputError
from rewarddance.generators.families.conditioned import ImageConditioned
from rewarddance.generators.steps import FlowGenerator
from rewarddance.types import PixelBatch


class VideoGenerator(FlowGenerator):
    """A flow pipeline whose VAE makes one latent frame of the first picture and one of every further few."""

    def _ratios(self) -> tuple[int, int]:
        """Frames a latent frame, and pixels a latent pixel, of the VAE."""
        return self.pipeline.vae_scale_factor_temporal, self.pipeline.vae_scale_factor_spatial

    def _default_size(self) -> tuple[int, int]:
        return self._option("height"), self._option("width")

    def _channels(self) -> int:
        """Of a latent."""
        return self.network.config.in_channels

    def _noise_shape(self) -> tuple[int, ...]:
        frames, (every, scale) = self.num_frames, self._ratios()
        if frames % every != 1 % every:
            low = (frames - 1) // every * every + 1
            raise InputError(
                f"a {self.kind} draws no video of {frames} frames.",
                f"num_frames is one more than a multiple of {every}, such as {low} or {low + every}.",
            )
        size = (frames - 1) // every + 1, self.height // scale, self.width // scale
        return self._channels(), *size

    def _frames(self, pictures: Tensor) -> PixelBatch:
        return pictures.transpose(1, 2)

    def decode_frames(self, x_0: Tensor, numbers: Sequence[int]) -> PixelBatch:
        """Some frames [B, len(numbers), C, H, W] of what `decode` gives, exactly."""
        return self.decode(x_0)[:, list(numbers)]


class ImageToVideoGenerator(ImageConditioned, VideoGenerator):
    """A video generator that is given the first frame, which it resizes."""

    def _pixels(self, image: Image.Image) -> Tensor:
        """[1, 3, H, W] of the video's size in [-1, 1], resized as the pipeline does it."""
        return self.pipeline.video_processor.preprocess(image, height=self.height, width=self.width).to(self.device)


def given_first_frame(x_t: Tensor, mean: Tensor, std: Tensor | float, sigma: float) -> tuple[Tensor, Tensor]:
    """The clean first frame x_0 = mean + std eps of x_t = (1 - sigma) x_0 + sigma eps, and its velocity eps - x_0.

    The pipelines put a first frame into the latent at the start, or at the end, and leave it alone in between. Here
    it is noised like all else and its velocity is the true one, which comes to the same, exactly: every step lands on
    the same line to x_0, the network sees x_0, and a latent may be noised again. std: of the VAE's posterior where
    the pipeline draws from it (LTX), with the first frame's own noise eps; 0 where it does not.
    """
    eps = (x_t - (1 - sigma) * mean) / ((1 - sigma) * std + sigma)
    clean = mean + std * eps
    return clean, eps - clean
