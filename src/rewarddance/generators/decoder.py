"""A generator's autoencoder by itself: pixels to its latents and back, differentiable on the way back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rewarddance.errors import InputError, first_line
from rewarddance.runtime.checkpoint import find_checkpoint
from rewarddance.runtime.files import parse_json, read_text
from rewarddance.runtime.weights import load_module, variant_of
from rewarddance.types import Pixels

_OF_PICTURES = ("AutoencoderKL", "AutoencoderKLFlux2")
_OF_VIDEOS = ("AutoencoderKLQwenImage", "AutoencoderKLWan")
_FILES = ["config.json", "diffusion_pytorch_model*.safetensors", "vae/*.json", "vae/*.safetensors"]
_REMEDY = "Give a diffusers folder that has a vae, or the vae's own folder."


class Decoder:
    """An autoencoder of diffusers, frozen, in float32: latents in its own scale, pixels in [0, 1].

    name: how the caller named it. multiple: what height and width are multiples of. stride: the number of frames is 1
    more than a multiple of it; None for a decoder of pictures, which takes the frames of a video one by one.
    """

    def __init__(self, vae: Any, name: str) -> None:
        self.vae, self.name = vae.requires_grad_(False).eval(), name
        config = vae.config
        if type(vae).__name__ in _OF_VIDEOS:
            self.multiple = 2 ** len(config.temperal_downsample) * (config.get("patch_size") or 1)
            self.stride: int | None = 2 ** sum(config.temperal_downsample)
        else:
            self.multiple, self.stride = 2 ** (len(config.block_out_channels) - 1), None

    @torch.no_grad()
    def encode(self, pixels: Pixels) -> Tensor:
        """The latent of a picture or video: the mode of what the encoder says of it; [T, c, h, w], or [1, c, t, h, w].

        Raises InputError for a size that it does not draw.
        """
        self.check(len(pixels), *pixels.shape[-2:])
        centred = 2 * pixels.to(self.vae.device, torch.float32) - 1
        if self.stride is not None:
            centred = centred.transpose(0, 1)[None]
        return self.vae.encode(centred, return_dict=False)[0].mode()

    def decode(self, latent: Tensor) -> Pixels:
        """The pixels of a latent as `encode` gives it, in the autograd graph."""
        drawn = self.vae.decode(latent, return_dict=False)[0]
        if self.stride is not None:
            drawn = drawn[0].transpose(0, 1)
        return (drawn / 2 + 0.5).clamp(0, 1)

    def check(self, frames: int, height: int, width: int) -> None:
        """Raises InputError where it draws no pictures of this size, or no videos of this length."""
        if height % self.multiple or width % self.multiple:
            raise InputError(
                f"the decoder {self.name!r} draws no picture of {height}×{width}.",
                f"Give pictures whose sides are multiples of {self.multiple}, as its generator's are; or no decoder.",
            )
        if self.stride is not None and (frames - 1) % self.stride:
            raise InputError(
                f"the decoder {self.name!r} draws no video of {frames} frames.",
                f"Give videos of 1 and a multiple of {self.stride} frames, as its generator's are; or no decoder.",
            )


def load_decoder(name: str | Path, device: str = "cpu") -> Decoder:
    """The autoencoder of a generator (its folder, a bundled name or an id of the hub), or one's own folder.

    Raises InputError where there is none, or one of another class than AutoencoderKL, AutoencoderKLFlux2,
    AutoencoderKLQwenImage and AutoencoderKLWan.
    """
    import diffusers  # takes seconds to load, and most who ask a judge need none

    name = str(name)
    folder = find_checkpoint(name, _download)
    place = folder / "vae" if (folder / "vae").is_dir() else folder
    what = f"the decoder {name!r}"
    try:
        kind = dict(parse_json(read_text(place / "config.json"))).get("_class_name")
    except (OSError, TypeError, ValueError) as error:
        raise InputError(f"{what} cannot be loaded: {first_line(error)}.", _REMEDY) from error
    if kind not in _OF_PICTURES + _OF_VIDEOS:
        raise InputError(f"{what} is a {kind}.", f"Known are {', '.join(_OF_PICTURES + _OF_VIDEOS)}.")
    variant = variant_of(place)
    options = {} if variant is None else {"variant": variant}
    vae = load_module(getattr(diffusers, kind), place, what, _REMEDY, dtype=torch.float32, **options)
    return Decoder(vae.to(device), name)


def _download(name: str) -> str:
    from huggingface_hub import snapshot_download  # heavy, and seldom needed

    return snapshot_download(name, allow_patterns=_FILES)
