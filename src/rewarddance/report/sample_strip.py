"""Pictures along the way of an alignment, side by side, in the page itself: when did they break?"""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path

import numpy as np
from torch import Tensor

from rewarddance.data.media import as_images, read_video
from rewarddance.data.picture_grid import LABEL
from rewarddance.report.formatting import absent
from rewarddance.report.run_folder import find_grids

MOST_GRIDS, MOST_FRAMES = 6, 8
"""What a page holds of a run: the first grid, the last, and some between; of a video so many frames."""
_MILLISECONDS = 160
_SMALL = 2**17
"""Pixels up to which a picture is kept without loss; what compresses photographs smears drawings."""


def along(folder: Path) -> str:
    """The grids of a run's samples by step, from the base to the end, with their prompts once.

    Raises InputError naming a grid that cannot be read.
    """
    grids = find_grids(folder)
    if not grids:
        return absent("This run drew no pictures along the way.")
    every = [*grids]
    chosen = [every[i] for i in sorted({round(at) for at in np.linspace(0, len(every) - 1, MOST_GRIDS).tolist()})]
    shown = ""
    for step in chosen:
        pixels = read_video(grids[step], MOST_FRAMES)
        if not shown:
            shown = f'<img class="prompts" src="{_data(pixels[:1, :, :, :LABEL])}" alt="The prompts of the rows">\n'
        shown += f'<figure><img src="{_data(pixels[..., LABEL:])}" alt="Samples at step {step}">'
        shown += f"<figcaption>Step {step}</figcaption></figure>\n"
    left = len(every) - len(chosen)
    more = absent(f"{left} more {'is' if left == 1 else 'are'} in the run's folder samples.") if left else ""
    return f'<div class="strip">\n{shown}</div>\n{more}'


def _data(pixels: Tensor) -> str:
    """Pictures or a video as a data URI: WebP, of small pictures without loss."""
    first, *others = as_images(pixels)
    moving = {"save_all": True, "append_images": others, "duration": _MILLISECONDS, "loop": 0} if others else {}
    buffer = BytesIO()
    first.save(buffer, "WEBP", quality=80, lossless=pixels[:, 0].numel() <= _SMALL, **moving)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
