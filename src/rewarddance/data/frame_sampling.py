"""Which frames of a video are read."""

from __future__ import annotations

import itertools

import numpy as np
from jaxtyping import Float
from torch import Tensor

from rewarddance.errors import InputError
from rewarddance.types import Pixels


def spread(total: int, wanted: int) -> list[int]:
    """The numbers of `wanted` of `total` frames, evenly from the first to the last; of one wanted, the middle one."""
    if wanted == 1:
        return [total // 2]
    return [round(i * (total - 1) / (wanted - 1)) for i in range(wanted)]


def one_of_each(total: int, wanted: int, draw: np.random.Generator) -> list[int]:
    """A random frame out of each of `wanted` equal stretches of `total` frames, in order.

    Raises InputError where there are fewer.
    """
    if wanted > total:
        raise InputError(f"{wanted} frames of a video are wanted, and the videos have {total}.", "Ask for fewer.")
    ends = [i * total // wanted for i in range(wanted + 1)]
    return [int(draw.integers(low, high)) for low, high in itertools.pairwise(ends)]


def frames_read(pixels: Pixels, wanted: int, name: str) -> Float[Tensor, "K C H W"]:
    """The frames [wanted, C, H, W] that stand for a video [T, C, H, W], in the graph.

    Raises InputError naming a video that has fewer.
    """
    if len(pixels) < wanted:
        there = "1 frame" if len(pixels) == 1 else f"{len(pixels)} frames"
        raise InputError(
            f"{name} has {there}, and this judge reads {wanted} of a video.",
            "Give a longer video, or a judge that was trained on fewer frames.",
        )
    return pixels if len(pixels) == wanted else pixels[spread(len(pixels), wanted)]
