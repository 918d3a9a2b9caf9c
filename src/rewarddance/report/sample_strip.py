"""Samples from during an alignment, side by side in the page itself: when did they break?"""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from rewarddance.data.media import as_images, read_video
from rewarddance.data.picture_grid import LABEL
from rewarddance.report.run_folder import find_grids

MOST_GRIDS, MOST_FRAMES = 6, 8
"""What a page holds of a run: the first grid, the last, and some between; of a video so many frames."""
_FRAME_MILLISECONDS = 160
_LOSSLESS_PIXELS = 2**17
"""Pixels up to which a picture is kept without loss; what compresses photographs smears drawings."""


class SampleStrip(NamedTuple):
    prompts: str  # data URI of the column of prompts
    grids: dict[int, str]  # data URIs of the pictures, by step
    left_out: int  # grids of the run that are not shown


def sample_strip(folder: Path) -> SampleStrip | None:
    """Up to MOST_GRIDS of a run's grids of samples, from the base to the end; None where it has none.

    Raises InputError naming a grid that cannot be read.
    """
    grids = find_grids(folder)
    if not grids:
        return None
    steps = [*grids]
    chosen = [steps[i] for i in sorted({round(at) for at in np.linspace(0, len(steps) - 1, MOST_GRIDS).tolist()})]
    pixels = {step: read_video(grids[step], MOST_FRAMES) for step in chosen}
    prompts = _data_uri(pixels[chosen[0]][:1, :, :, :LABEL])
    return SampleStrip(
        prompts, {step: _data_uri(grid[..., LABEL:]) for step, grid in pixels.items()}, len(steps) - len(chosen)
    )


def _data_uri(pixels: Tensor) -> str:
    """Pictures or a video as WebP, small pictures without loss."""
    first, *others = as_images(pixels)
    moving = {"save_all": True, "append_images": others, "duration": _FRAME_MILLISECONDS, "loop": 0} if others else {}
    buffer = BytesIO()
    first.save(buffer, "WEBP", quality=80, lossless=pixels[:, 0].numel() <= _LOSSLESS_PIXELS, **moving)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
