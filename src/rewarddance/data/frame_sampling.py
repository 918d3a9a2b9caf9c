"""Which frames of a video are read or judged."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from torch import Tensor

from rewarddance.errors import InputError
from rewarddance.types import Pixels

_UNEVEN = 1.5
"""Frames come unevenly where one lasts so many times as long as another; less is rounding."""


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
        count = "1 frame" if len(pixels) == 1 else f"{len(pixels)} frames"
        raise InputError(
            f"{name} has {count}, and this judge reads {wanted} of a video.",
            "Give a longer video (of a file 16 frames are read at most), or a judge that was trained on fewer frames.",
        )
    return pixels if len(pixels) == wanted else pixels[spread(len(pixels), wanted)]


def evenly_spaced(total: int, wanted: int) -> list[int]:
    """The middles of `wanted` equal stretches of `total` frames, or all frames where there are no more."""
    return [(2 * i + 1) * total // (2 * wanted) for i in range(wanted)] if total > wanted else list(range(total))


def evenly_timed(times: Sequence[float | None], wanted: int) -> list[int]:
    """As `evenly_spaced`, of frames that begin at these times, where known.

    Of frames that come unevenly, those at evenly spaced moments, one that stands long more than once.
    """
    begins = [time for time in times if time is not None]
    gaps = [after - before for before, after in itertools.pairwise(begins)]
    if len(begins) < len(times) or not gaps or min(gaps) <= 0 or max(gaps) <= _UNEVEN * min(gaps):
        return evenly_spaced(len(times), wanted)
    n, long = min(wanted, len(times)), begins[-1] - begins[0] + sorted(gaps)[len(gaps) // 2]
    moments = [begins[0] + (2 * i + 1) * long / (2 * n) for i in range(n)]
    return [bisect_right(begins, moment) - 1 for moment in moments]
