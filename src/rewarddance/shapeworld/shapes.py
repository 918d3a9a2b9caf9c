"""Which shape a painted piece of a picture has: the template that covers it best.

Beside ShapeWorld's own shapes stand others that a person would not call by their names: a diamond is no cross, and an
oblong is no square.
"""

from __future__ import annotations

import functools
import itertools
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from rewarddance.shapeworld.scenes import SHAPES

MIN_SIDE, MAX_SIDE = 5, 20
"""Sides of a piece in pixels. Objects are drawn with 7 to 14; a generator draws them larger and smaller."""
MARGIN = 3
"""Pixels around a piece that its templates may cover."""
_MIN_AGREEMENT = 0.72
_LEAD = 0.02
"""By so much another shape must agree better than a named one to be what the piece is."""
_SOFTNESS = (0.0, 0.6, 1.2)
"""Standard deviations in pixels of the blurs of a template's edge."""


class Fit(NamedTuple):
    """A recognised piece: its shape, its side, and the row and column of its square's corner in the window."""

    shape: str
    side: int
    top: int
    left: int


class _Bank(NamedTuple):
    """Templates [K, H * W] of pieces of one side.

    squares: their sums of squares [K].
    fits: what each stands for.
    named: whether it is one of ShapeWorld's shapes [K].
    renderable: names of those that can be rendered, as wide as high and with a sharp edge; else "" [K].
    """

    templates: np.ndarray
    squares: np.ndarray
    fits: tuple[Fit, ...]
    named: np.ndarray
    renderable: np.ndarray


def recognise(cover: np.ndarray, canvas: np.ndarray) -> tuple[Fit, float] | None:
    """The shape of a piece and how well its template agrees with it; None where no named shape does.

    cover: how much of each pixel is painted, in [0, 1], in a window [S + 2 MARGIN, S + 2 MARGIN] with the piece's
    square of side S in its middle. canvas: which of these pixels are within the picture; elsewhere a template may be
    cut off. Agreement of a cover a and a template t is a.t / (a.a + t.t - a.t), which is their intersection over their
    union where all is 0 or 1.
    """
    bank = _bank(len(cover) - 2 * MARGIN)
    painted, within = cover.astype(np.float32).ravel(), canvas.astype(np.float32).ravel()
    common = bank.templates @ (painted * within)
    squares = bank.squares
    if not canvas.all():
        squares = np.square(bank.templates) @ within
        common = np.where(squares >= 0.6 * bank.squares, common, 0)  # what is cut off by more is not told from others
    agreement = common / (np.square(painted * within).sum() + squares - common)
    best = int(np.where(bank.named, agreement, 0).argmax())
    if agreement[best] < _MIN_AGREEMENT or agreement.max() > agreement[best] + _LEAD:
        return None
    shape = bank.fits[best].shape
    return bank.fits[int(np.where(bank.renderable == shape, agreement, 0).argmax())], float(agreement[best])


@functools.cache
def _bank(side: int) -> _Bank:
    """All templates for a piece of a side: a pixel larger or smaller, off by a pixel, and with soft edges."""
    window = side + 2 * MARGIN
    templates, fits, renderable = [], [], []
    for shape, mask in _masks(side):
        height, width = mask.shape
        middle = [(window - length) // 2 for length in (height, width)]
        for down, right in itertools.product((-1, 0, 1), repeat=2):
            top, left = middle[0] + down, middle[1] + right
            sharp = np.zeros((window, window), np.float32)
            sharp[top : top + height, left : left + width] = mask
            for softness in _SOFTNESS:
                templates.append(ndimage.gaussian_filter(sharp, softness) if softness else sharp)
                fits.append(Fit(shape, max(height, width), top, left))
                renderable.append("" if softness or height != width else shape)
    named = np.array([fit.shape in SHAPES for fit in fits])
    flat = np.stack(templates).reshape(len(templates), -1)
    return _Bank(flat, np.square(flat).sum(1), tuple(fits), named, np.array(renderable))


def _masks(side: int) -> list[tuple[str, np.ndarray]]:
    """The named shapes of about this side, a fifth of it higher or wider at most, and the others."""
    sides = range(max(MIN_SIDE, side - 2), side + 2)
    masks = [
        (shape, drawn(shape, height, width))
        for shape in SHAPES
        for height, width in itertools.product(sides, repeat=2)
        if max(height, width) > side - 2 and abs(height - width) <= max(1, 0.2 * side)
    ]
    masks += [("diamond", drawn("diamond", length, length)) for length in range(side - 1, side + 2)]
    for share in (0.78, 0.65, 0.5):
        oblong = np.ones((round(share * side), side), bool)
        masks += [("oblong", oblong), ("oblong", oblong.T)]
    for share, turns in itertools.product((0.35, 0.45, 0.55), range(4)):
        corner = np.ones((side, side), bool)
        corner[: round(share * side), side - round(share * side) :] = False
        masks.append(("L", np.rot90(corner, turns)))
    masks.append(("heart", drawn("heart", side, side)))
    return masks


def drawn(shape: str, height: int, width: int) -> np.ndarray:
    """Boolean mask [height, width] of a shape that fills it; of equal sides a named one is as it is rendered."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    down, across = y - (height - 1) / 2, x - (width - 1) / 2
    if shape == "square":
        return np.ones((height, width), bool)
    if shape == "circle":
        return (2 * across / width) ** 2 + (2 * down / height) ** 2 <= 1.01
    if shape == "triangle":
        return np.abs(across) <= (y + 1) / 2 * width / height
    if shape == "cross":
        return (np.abs(across) <= max(1.0, width / 6)) | (np.abs(down) <= max(1.0, height / 6))
    if shape == "diamond":
        return np.abs(across) / width + np.abs(down) / height <= 0.5
    lobes = (np.abs(across) - width / 4) ** 2 + (y + 0.5 - height * 0.28) ** 2 <= (width * 0.27) ** 2
    point = (
        (np.abs(across) <= (height - y) * width / height * 0.72) & (y >= height * 0.28) & (np.abs(across) <= width / 2)
    )
    return lobes | point
