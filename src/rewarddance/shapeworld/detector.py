"""The oracle as a detector: `rewarddance bench geneval ... --detector rewarddance.shapeworld.detector:detect`."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from rewarddance.errors import InputError
from rewarddance.evaluation.object_scores import Detection
from rewarddance.shapeworld.oracle import read
from rewarddance.shapeworld.scenes import CANVAS


def detect(picture: Float[Tensor, "3 H W"], names: Sequence[str]) -> list[Detection]:
    """The shapes of these names that the oracle reads in a picture, each sure and with its colour.

    Raises InputError where the picture is not ShapeWorld's size.
    """
    if picture.shape[-2:] != (CANVAS, CANVAS):
        raise InputError(
            f"the oracle was given a picture of {picture.shape[-1]} x {picture.shape[-2]} pixels.",
            f"It reads pictures of {CANVAS} x {CANVAS}.",
        )
    things = read(picture.detach().float().cpu().permute(1, 2, 0).numpy()).things
    return [
        Detection(one.shape, (one.x, one.y, one.x + one.side, one.y + one.side), 1.0, colour=one.colour)
        for one in things
        if one.shape in names
    ]
