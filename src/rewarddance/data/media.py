"""Pictures in and out: files to pixels [T, C, H, W] in [0, 1], and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from rewarddance.errors import InputError
from rewarddance.types import Pixels

_SLACK = 1e-3
"""How far resampling and rounding may leave [0, 1]."""

Media = Tensor | np.ndarray | Image.Image | str | Path | Sequence["Media"]
"""A picture or video as people have it at hand; see `as_pixels`."""


def as_pixels(media: Media, name: str = "the picture") -> Pixels:
    """Any picture or video as pixels [T, 3, H, W] in [0, 1].

    media: a tensor [3, H, W] or [T, 3, H, W]; an array [H, W, 3] or [T, H, W, 3]; a PIL picture; a path; or a sequence
    of these, one a frame, all of one size. Floats lie in [0, 1], 8-bit integers in 0 to 255. A float tensor keeps its
    graph. Raises InputError beginning with `name` where it is none of these.
    """
    if isinstance(media, str | Path):
        return read_picture(Path(media))
    if isinstance(media, Image.Image):
        try:
            return _from_image(media)
        except Exception as error:  # a lazily opened file is decoded only now
            raise InputError(f"{name} cannot be decoded: {error}.", "Replace or remove it.") from error
    if isinstance(media, np.ndarray):
        if media.ndim not in (3, 4) or media.shape[-1] != 3:
            raise InputError(f"{name} is an array {list(media.shape)}.", "Give [H, W, 3] or [T, H, W, 3].")
        media = torch.from_numpy(np.ascontiguousarray(np.moveaxis(media, -1, -3)))
    if isinstance(media, Tensor):
        return _from_tensor(media, name)
    if not isinstance(media, Sequence) or not media:
        raise InputError(f"{name} is a {type(media).__name__}, which is no picture.", "Give pixels or a path.")
    frames = [as_pixels(frame, f"frame {number} of {name}") for number, frame in enumerate(media)]
    sizes = {tuple(frame.shape[1:]) for frame in frames}
    if len(sizes) > 1:
        raise InputError(f"{name} has frames of different sizes: {sorted(sizes)}.", "Give all frames one size.")
    return torch.cat(frames)


def _from_tensor(media: Tensor, name: str) -> Pixels:
    pixels = media.unsqueeze(0) if media.ndim == 3 else media
    if pixels.ndim != 4 or pixels.shape[1] != 3 or 0 in pixels.shape:
        raise InputError(f"{name} has the shape {list(media.shape)}.", "Give [3, H, W] or [T, 3, H, W].")
    if pixels.dtype == torch.uint8:
        return pixels.float() / 255
    if not pixels.is_floating_point():
        raise InputError(f"{name} holds {pixels.dtype}.", "Give floats in [0, 1] or 8-bit integers.")
    low, high = pixels.detach().min().item(), pixels.detach().max().item()
    if not (low >= -_SLACK and high <= 1 + _SLACK):  # written so that NaN does not pass
        raise InputError(f"{name} has values from {low:.3g} to {high:.3g}.", "Give floats in [0, 1].")
    return pixels if pixels.dtype == torch.float32 else pixels.float()


def read_picture(path: Path) -> Pixels:
    """One picture as float32 [1, 3, H, W] in [0, 1]; EXIF rotation applied, alpha laid on white.

    Raises InputError naming the file where it is missing or no picture.
    """
    try:
        with Image.open(path) as opened:
            return _from_image(opened)
    except Exception as error:  # Pillow's decoders raise nearly anything on a broken file, SyntaxError too
        raise InputError(f"the picture {path} cannot be read: {error}.", "Replace or remove it.") from error


def _from_image(opened: Image.Image) -> Pixels:
    picture = ImageOps.exif_transpose(opened)
    if picture.mode.startswith("I;16"):  # Pillow's own conversion clips it to white
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    array = np.asarray(picture.convert("RGB"), dtype=np.float32) / 255
    return torch.from_numpy(array).permute(2, 0, 1).unsqueeze(0).contiguous()


def write_picture(pixels: Pixels, path: Path) -> None:
    """Write the first frame of `pixels` as PNG, rounded to 8 bits."""
    array = (pixels[0].detach().float().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
