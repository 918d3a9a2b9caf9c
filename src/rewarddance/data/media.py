"""Pictures in and out: files to pixels [T, C, H, W] in [0, 1], and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from rewarddance.errors import InputError
from rewarddance.types import Pixels


def read_picture(path: Path) -> Pixels:
    """One picture as float32 [1, 3, H, W] in [0, 1]; EXIF rotation applied, alpha laid on white.

    Raises InputError naming the file where it is missing or no picture.
    """
    try:
        with Image.open(path) as opened:
            picture = ImageOps.exif_transpose(opened)
            if picture.mode.startswith("I;16"):  # Pillow's own conversion clips it to white
                picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
            if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
                picture = picture.convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
            array = np.asarray(picture.convert("RGB"), dtype=np.float32) / 255
    except Exception as error:  # Pillow's decoders raise nearly anything on a broken file, SyntaxError too
        raise InputError(f"the picture {path} cannot be read: {error}.", "Replace or remove it.") from error
    return torch.from_numpy(array).permute(2, 0, 1).unsqueeze(0).contiguous()


def write_picture(pixels: Pixels, path: Path) -> None:
    """Write the first frame of `pixels` as PNG, rounded to 8 bits."""
    array = (pixels[0].detach().float().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
