"""Statistics of pictures whatever they show: what moves when a reward is hacked, and what judges are partial to."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from rewarddance.runtime.devices import on_device
from rewarddance.types import PixelBatch, Pixels

MEASURED = ("brightness", "saturation", "sharpness", "contrast", "high_frequencies", "motion")
_LUMA = (0.2126, 0.7152, 0.0722)
_SIDE = 64
"""Distances between pictures are taken on pictures of at most this many pixels a side."""
_ALIKE = 0.25
"""Two independent pictures are about 1.4 times their own contrast apart; below this share of it they are one."""


def luma(pixels: Pixels) -> Float[Tensor, "T 1 H W"]:
    """Rec. 709's weighted mean of the three channels."""
    return (pixels * pixels.new_tensor(_LUMA).view(3, 1, 1)).sum(1, keepdim=True)


def blurred(pixels: Float[Tensor, "T C H W"]) -> Float[Tensor, "T C H W"]:
    """A 3x3 binomial blur; the border is repeated."""
    row = pixels.new_tensor([0.25, 0.5, 0.25])
    kernel = torch.outer(row, row).expand(pixels.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), kernel, groups=pixels.shape[1])


def image_statistics(pixels: PixelBatch) -> dict[str, Float[Tensor, " B"]]:
    """Statistics of each sample, of a video the mean over its frames.

    brightness: mean luma. saturation: mean of the largest minus the smallest channel. sharpness: root mean square of
    luma minus its 3x3 blur. contrast: standard deviation of luma. high_frequencies: the share of luma's variance that
    is gone at half the size. motion: mean distance of neighbouring frames; videos only.
    """
    B, T = pixels.shape[:2]
    frames = pixels.flatten(0, 1).float()
    light = luma(frames)
    of_frames = {
        "brightness": light.mean((1, 2, 3)),
        "saturation": (frames.amax(1) - frames.amin(1)).mean((1, 2)),
        "sharpness": (light - blurred(light)).square().mean((1, 2, 3)).sqrt(),
        "contrast": light.flatten(1).std(1, correction=0),
        "high_frequencies": _lost_by_halving(light),
    }
    of_samples = {name: values.view(B, T).mean(1) for name, values in of_frames.items()}
    if T > 1:
        of_samples["motion"] = pixels.float().diff(dim=1).abs().mean((1, 2, 3, 4))
    return of_samples


def _lost_by_halving(light: Float[Tensor, "n 1 H W"]) -> Float[Tensor, " n"]:
    even = light[..., : light.shape[-2] // 2 * 2, : light.shape[-1] // 2 * 2]
    if not even.numel():
        return light.new_zeros(len(light))
    fine = even - F.avg_pool2d(even, 2).repeat_interleave(2, -2).repeat_interleave(2, -1)
    return fine.square().mean((1, 2, 3)) / even.flatten(1).var(1, correction=0).clamp_min(1e-6)


def step_image_stats(
    pixels: PixelBatch,
    groups: int,
    all_gather: Callable[[Tensor], Tensor] = lambda rows: rows,
    sources: Sequence[Tensor | None] = (),
) -> dict[str, float]:
    """What a training step logs of its pictures [B, T, C, H, W], which are `groups` groups of equal size in order.

    Each of `image_statistics` as its median over the pictures and, under <name>_deviation, their robust standard
    deviation (1.48 times the median distance from the median).
    diversity_within, diversity_across: root-mean-square pixel distance between two pictures of a group (mean over
    pairs) and between the first pictures of two groups.
    collapsed: the share of groups whose pictures are one picture.
    source_distance: of edits, the mean of `source_distances`.
    What needs two pictures, or two groups, is left out where there is one.

    all_gather: joins the rows of all processes, where each has some of the pictures; groups counts all of theirs.
    sources: the picture [1, C, h, w] that each is an edit of, if any; of any size.
    """
    with torch.no_grad():
        pixels = pixels.detach()
        rows = {}
        for name, values in ((name, all_gather(values)) for name, values in image_statistics(pixels).items()):
            middle = values.median()
            rows |= {name: middle, f"{name}_deviation": 1.4826 * (values - middle).abs().median()}
        small = all_gather(_small(pixels)).unflatten(0, (groups, -1))
        n = small.shape[1]
        if n > 1:
            apart = distances(small).mean(1)
            contrast = small.flatten(2).std(2, correction=0).mean(1)
            rows |= {"diversity_within": apart.mean(), "collapsed": (apart < _ALIKE * contrast + 1e-4).float().mean()}
        if groups > 1:
            rows["diversity_across"] = distances(small[None, :, 0]).mean()
        if sources and pixels.shape[1] == 1:
            rows["source_distance"] = all_gather(source_distances(pixels, sources)).nanmean()
        figures = dict(zip(rows, torch.stack([value.float() for value in rows.values()]).tolist(), strict=True))
        if math.isnan(figures.get("source_distance", 0.0)):  # no prompt of any process has a picture
            del figures["source_distance"]
        return figures


def distances(groups: Tensor) -> Float[Tensor, "P pairs"]:
    """Root-mean-square distance of each two of a group's pictures [P, G, ...]; [P, G (G - 1) / 2]."""
    flat = groups.flatten(2)
    first, second = torch.triu_indices(flat.shape[1], flat.shape[1], offset=1)
    pairs = zip(first.tolist(), second.tolist(), strict=True)
    return torch.stack([(flat[:, i] - flat[:, j]).square().mean(1).sqrt() for i, j in pairs], 1)


def source_distances(pixels: PixelBatch, sources: Sequence[Tensor | None]) -> Float[Tensor, " B"]:
    """Root-mean-square pixel distance of each edit [B, 1, C, H, W] from its source [1, C, h, w]; NaN where it has none.

    A source of another size is brought to the edit's.
    """
    edits = _small(pixels)
    size = (edits.shape[-2], edits.shape[-1])
    small = {
        id(source): F.adaptive_avg_pool2d(on_device(source, edits.device).to(edits.dtype), size)
        for source in sources
        if source is not None
    }
    return torch.stack(
        [
            edit.new_full((), math.nan) if source is None else (edit - small[id(source)]).square().mean().sqrt()
            for edit, source in zip(edits, sources, strict=True)
        ]
    )


def _small(pixels: PixelBatch) -> Tensor:
    """[B, T, C, h, w] of at most _SIDE a side, by means over areas."""
    height, width = pixels.shape[-2:]
    share = _SIDE / max(height, width)
    if share >= 1:
        return pixels.float()
    size = (max(1, round(height * share)), max(1, round(width * share)))
    return F.adaptive_avg_pool2d(pixels.flatten(0, 1).float(), size).unflatten(0, pixels.shape[:2])
