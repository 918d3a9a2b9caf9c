"""Pictures to the values that a vision tower reads, in torch, as Pillow-based image processors do it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import PIL
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from rewarddance.types import Pixels

LANCZOS, BILINEAR, BICUBIC = 1, 2, 3
"""Pillow's numbers, which image processors write under `resample`."""
_CHOOSES = int(PIL.__version__.partition(".")[0]) >= 13
"""Whether this Pillow chooses which edge is resized first; before, it was always the width."""


def resized(
    pixels: Float[Tensor, "T C H W"], height: int, width: int, resample: int = BICUBIC
) -> Float[Tensor, "T C h w"]:
    """With antialiasing, one edge after the other, as Pillow does it (within 1.5/255); float32.

    It clips what a filter overshoots after each of the two, so that their order matters at sharp edges: its version 13
    begins with the height where that shrinks by more than twice as many pixels as the width.
    """
    high, wide = pixels.shape[-2:]
    if (high, wide) == (height, width):
        return pixels
    height_first = _CHOOSES and high - height > max(0, 2 * (wide - width))
    for size in ((height, wide) if height_first else (high, width), (height, width)):
        pixels = _in_one_go(pixels, size, resample).clamp(0, 1)
    return pixels


def _in_one_go(pixels: Float[Tensor, "T C H W"], size: tuple[int, int], resample: int) -> Float[Tensor, "T C h w"]:
    if resample == LANCZOS:
        rows, columns = (_lanczos(old, new).to(pixels) for old, new in zip(pixels.shape[-2:], size, strict=True))
        return rows @ pixels @ columns.T
    mode = {BILINEAR: "bilinear", BICUBIC: "bicubic"}[resample]
    return F.interpolate(pixels, size=size, mode=mode, antialias=True)


def _lanczos(length: int, target: int) -> Float[Tensor, "target length"]:
    """Weights of each old place in each new one: sinc(x) sinc(x / 3) for |x| < 3, widened where it gets smaller."""
    centres = (torch.arange(target, dtype=torch.float64) + 0.5) * length / target
    offsets = (torch.arange(length, dtype=torch.float64) + 0.5 - centres[:, None]) / max(length / target, 1)
    weights = torch.where(offsets.abs() < 3, torch.sinc(offsets) * torch.sinc(offsets / 3), 0)
    return weights / weights.sum(1, keepdim=True)


def normalised(
    pixels: Float[Tensor, "T C H W"], mean: Sequence[float], deviation: Sequence[float]
) -> Float[Tensor, "T C H W"]:
    """(pixels - mean) / deviation, by channel."""
    means, deviations = (_by_channel(tuple(values), pixels.device) for values in (mean, deviation))
    return (pixels - means) / deviations


@functools.lru_cache(maxsize=256)
def _by_channel(values: tuple[float, ...], device: torch.device) -> Float[Tensor, "C 1 1"]:
    """They are on the device once and for all: to bring them there with every picture would make the host wait."""
    return torch.tensor(values, device=device)[:, None, None]


class Preparation(NamedTuple):
    """How an image processor makes one frame of fixed size of any picture.

    shortest, longest: the edge that is first resized to so many pixels, shape kept; None where none is. side: height
    and width that follow, by cutting out the middle if `crop`, else by resizing.
    """

    shortest: int | None
    longest: int | None
    side: tuple[int, int]
    crop: bool
    resample: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def __call__(self, pixels: Pixels) -> Float[Tensor, "T C h w"]:
        """Resize, cut and normalise, in the graph."""
        first = self.first(*pixels.shape[-2:])
        pixels = pixels if first is None else resized(pixels, *first, self.resample)
        high, wide = self.side
        if self.crop:
            top, left = (pixels.shape[-2] - high) // 2, (pixels.shape[-1] - wide) // 2
            pixels = pixels[..., top : top + high, left : left + wide]
        else:
            pixels = resized(pixels, high, wide, self.resample)
        return normalised(pixels, self.mean, self.deviation)

    def first(self, height: int, width: int) -> tuple[int, int] | None:
        """Height and width of the picture resized with its shape kept, as the processors round them."""
        if self.shortest is not None:
            longer = int(self.shortest * max(height, width) / min(height, width))
            return (self.shortest, longer) if height <= width else (longer, self.shortest)
        if self.longest is not None:
            shorter = int(self.longest / (max(height, width) / min(height, width)))
            shorter = max(shorter + shorter % 2, 1)
            return (shorter, self.longest) if height <= width else (self.longest, shorter)
        return None


def preparation_of(image: dict[str, Any]) -> Preparation | None:
    """What an image processor's config seems to say, to be checked against the processor; None if nothing we can do."""
    size = image.get("size") or {}
    shortest, longest, crop = size.get("shortest_edge"), size.get("longest_edge"), bool(image.get("do_center_crop"))
    place = image.get("crop_size") if crop else image.get("max_image_size") if longest else size
    place = place or {}
    edge = place.get("longest_edge") if longest else None
    high, wide = place.get("height") or edge, place.get("width") or edge
    resample = image.get("resample", BICUBIC)
    if not (high and wide) or (shortest and (longest or not crop)) or resample not in (LANCZOS, BILINEAR, BICUBIC):
        return None
    normal = image.get("do_normalize", True)
    mean, deviation = (tuple(image[key]) if normal else empty for key, empty in _NORMAL)
    return Preparation(shortest, longest, (high, wide), crop, int(resample), mean, deviation)


_NORMAL = (("image_mean", (0.0, 0.0, 0.0)), ("image_std", (1.0, 1.0, 1.0)))
