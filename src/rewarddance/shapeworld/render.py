"""From scenes to pixels, and the controlled defects that preferences can be about.

Pictures here are float32 numpy arrays [H, W, 3] in [0, 1]; `to_pixels` gives the [T, C, H, W] tensors of the seams.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from rewarddance.errors import InputError
from rewarddance.shapeworld.scenes import BACKGROUND, CANVAS, COLOURS, SHAPES, Scene

DEFECTS = ("blur", "noise", "smear", "clutter")
STYLES = ("flat", "sketch")


@functools.cache
def shape_mask(shape: str, side: int) -> np.ndarray:
    """Boolean [side, side] mask of a shape that fills its bounding square."""
    centre = (side - 1) / 2
    y, x = np.mgrid[:side, :side].astype(np.float64)
    if shape == "square":
        return np.ones((side, side), dtype=bool)
    if shape == "circle":
        return (x - centre) ** 2 + (y - centre) ** 2 <= (side / 2) ** 2 * 1.01
    if shape == "triangle":
        return np.abs(x - centre) <= (y + 1) / 2
    if shape == "cross":
        arm = max(1.0, side / 6)
        return (np.abs(x - centre) <= arm) | (np.abs(y - centre) <= arm)
    raise InputError(f"no shape is named {shape!r}.", f"ShapeWorld draws {', '.join(SHAPES)}.")


def render(scene: Scene, style: str = "flat", rng: np.random.Generator | None = None) -> np.ndarray:
    """Draw a scene, [H, W, 3] in [0, 1].

    `flat` is the clean style of the training pictures. `sketch` has soft edges, uneven paint and a shade that runs over
    the canvas, and needs `rng`; it serves as the out-of-domain source.
    """
    if style == "flat":
        picture = np.empty((CANVAS, CANVAS, 3), dtype=np.float32)
        picture[:] = BACKGROUND
        for thing in scene:
            mask = shape_mask(thing.shape, thing.side)
            picture[thing.y : thing.y + thing.side, thing.x : thing.x + thing.side][mask] = COLOURS[thing.colour]
        return picture
    if style != "sketch" or rng is None:
        raise InputError(f"cannot draw in style {style!r}.", f"Styles are {', '.join(STYLES)}; 'sketch' needs an rng.")
    flat = render(scene)
    background = np.asarray(BACKGROUND, dtype=np.float32)
    start, end = rng.uniform(0.72, 1.0, size=2)
    shade = np.linspace(start, end, CANVAS, dtype=np.float32)
    shade = shade[:, None, None] if rng.random() < 0.5 else shade[None, :, None]
    paint = 1 - 0.12 * ndimage.gaussian_filter(rng.random((CANVAS, CANVAS, 1)), (1, 1, 0)).astype(np.float32)
    soft = ndimage.gaussian_filter(flat, (0.45, 0.45, 0))
    return np.clip(background + (soft - background) * shade * paint, 0, 1).astype(np.float32)


def spoil(picture: np.ndarray, defect: str, level: float, rng: np.random.Generator) -> np.ndarray:
    """The picture with one defect at `level` in [0, 1]; level 0 changes nothing.

    One seed gives the same defect at every level: the same noise pattern, the same axis of a smear, the first pieces
    of the same clutter. So levels can be compared picture by picture.
    """
    if defect not in DEFECTS or not 0 <= level <= 1:
        raise InputError(f"no defect {defect!r} at level {level}.", f"Defects are {', '.join(DEFECTS)}, from 0 to 1.")
    if level == 0:
        return picture.copy()
    if defect == "blur":
        spoiled = ndimage.gaussian_filter(picture, (2.5 * level, 2.5 * level, 0), mode="nearest")
    elif defect == "noise":
        spoiled = picture + 0.35 * level * rng.standard_normal(picture.shape)
    elif defect == "smear":
        # A box that grows by fractions of a pixel, alike on both sides: an even length would shift the picture.
        reach = 4.5 * level
        distances = np.abs(np.arange(-math.ceil(reach), math.ceil(reach) + 1))
        kernel = np.minimum(1, reach + 1 - distances) / (2 * reach + 1)
        spoiled = ndimage.convolve1d(picture, kernel, axis=int(rng.integers(2)), mode="nearest")
    else:
        spoiled = picture.copy()
        for _ in range(round(24 * level)):
            x, y = rng.integers(0, CANVAS - 2, size=2)
            width, height = ((1, 3), (3, 1), (2, 1), (2, 2))[int(rng.integers(4))]
            colour = list(COLOURS.values())[int(rng.integers(len(COLOURS)))]
            spoiled[y : y + height, x : x + width] = colour
    return np.clip(spoiled, 0, 1).astype(np.float32)


def to_pixels(pictures: list[np.ndarray] | np.ndarray) -> Tensor:
    """Arrays [N, H, W, 3] to pixels [N, 1, 3, H, W], float32 in [0, 1]."""
    return torch.from_numpy(np.stack(list(pictures))).permute(0, 3, 1, 2).unsqueeze(1).contiguous()
