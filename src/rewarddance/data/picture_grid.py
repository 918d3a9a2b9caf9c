"""Labelled grids of pictures, a prompt a row, for people who follow the training of a generator."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from rewarddance.data.media import as_images, as_pixels, write_picture
from rewarddance.types import Pixels

LABEL = 160
"""Width in pixels of the column that the prompts stand in; the pictures begin after it."""
_SMALLEST, _LARGEST = 96, 256
"""Longer sides of the pictures in a grid: smaller ones are enlarged without blur, larger ones are reduced."""
_GAP, _TEXT, _LINE = 4, 12, 15


def grid(labels: Sequence[str], rows: Sequence[Sequence[Tensor]]) -> Pixels:
    """One picture [T, 3, H, W] of P rows of K pictures, pixels of any size, each row with its label before it.

    Videos play beside one another: T is the longest one's, and the others rest on their last frame.
    """
    cells = [[[_fitted(frame) for frame in as_images(pixels)] for pixels in row] for row in rows]
    videos = [frames for row in cells for frames in row]
    wide, high = max(frames[0].width for frames in videos), max(frames[0].height for frames in videos)
    size = LABEL + max(map(len, cells)) * (wide + _GAP), len(cells) * (high + _GAP) + _GAP
    sheets = []
    for t in range(max(map(len, videos))):
        sheet = Image.new("RGB", size, "white")
        for y, (label, row) in enumerate(zip(labels, cells, strict=True)):
            top = _GAP + y * (high + _GAP)
            ImageDraw.Draw(sheet).text((6, top), _wrapped(label, high), "black", _font(), spacing=_LINE - _TEXT)
            for x, frames in enumerate(row):
                sheet.paste(frames[min(t, len(frames) - 1)], (LABEL + x * (wide + _GAP), top))
        sheets.append(as_pixels(sheet))
    return torch.cat(sheets)


def write_grid(pixels: Pixels, path: Path) -> None:
    """Write a grid, as `write_picture` does, so that a reader or a kill never sees half of it."""
    scratch = path.with_name(f".{path.name}")
    write_picture(pixels, scratch)
    scratch.replace(path)


def _fitted(frame: Image.Image) -> Image.Image:
    side = max(frame.size)
    if side > _LARGEST:
        scale = _LARGEST / side
        smaller = max(1, round(scale * frame.width)), max(1, round(scale * frame.height))
        return frame.resize(smaller, Image.Resampling.BOX)
    times = -(-_SMALLEST // side)
    return frame.resize((times * frame.width, times * frame.height), Image.Resampling.NEAREST)


def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(_TEXT)


def _wrapped(label: str, high: int) -> str:
    """The label in lines that fit beside a picture of this height; what does not fit ends in three dots."""
    font = _font()
    widths = range(LABEL // 5, 3, -1)  # characters a line: as many as the widest line allows
    wrapped = (textwrap.wrap(label, width, max_lines=max(1, high // _LINE), placeholder="...") for width in widths)
    return "\n".join(next(lines for lines in wrapped if all(font.getlength(line) <= LABEL - 16 for line in lines)))
