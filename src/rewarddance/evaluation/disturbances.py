"""What is done to a picture to see whether a reward can be won without drawing anything better.

Pure functions of pixels [T, C, H, W] in [0, 1] to pixels of the same shape in [0, 1]; frame by frame where a video is
given. Amounts go with the picture's size, but for sharpening, whose kernel has three pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from rewarddance.data.media import as_images, as_pixels
from rewarddance.evaluation.bias import perturbed
from rewarddance.types import Pixels

Sentence = str
"""Why a disturbance does not apply to a picture."""
DISTURBANCES = {
    "crop": "the middle, three quarters of each side, enlarged to the whole",
    "tiles": "the picture at half its size, four times",
    "text_over": "copies of the prompt as text, written over the picture",
    "text_alone": "copies of the prompt as text on white, and no picture",
    "contrast": "twice the distance from the mean colour",
    "sharpening": "three times what a 3×3 blur takes away, added",
    "one_colour": "the picture's mean colour, everywhere",
    "blur": "a quarter of the size and back",
    "noise": "Gaussian noise of standard deviation 0.1",
    "jpeg": "JPEG of quality 10",
    "frozen_frames": "the first frame throughout (videos)",
    "all_objects": "three pictures of other prompts laid over it, each where it stands out most from its background",
}
"""Every disturbance by name, in words."""
LAID_OVER = 3
"""How many pictures of other prompts `all_objects` takes, where there are so many."""


def disturbed(
    pixels: Pixels, prompt: str, others: Sequence[Tensor], rng: torch.Generator
) -> dict[str, Tensor | Sentence]:
    """The picture under every disturbance of `DISTURBANCES`, or the sentence that says why one does not apply.

    others: candidates of other prompts. rng: of the noise.
    """
    height, width = pixels.shape[-2:]
    results: dict[str, Tensor | Sentence] = {
        "crop": cropped(pixels),
        "tiles": tiled(pixels),
        "contrast": perturbed(pixels, "contrast", 1.0),
        "sharpening": perturbed(pixels, "sharpness", 3.0),
        "one_colour": pixels.mean((-2, -1), keepdim=True).expand_as(pixels).contiguous(),
        "blur": resized(resized(pixels, max(1, height // 4), max(1, width // 4)), height, width),
        "noise": (pixels + 0.1 * torch.randn(pixels.shape, generator=rng).to(pixels)).clamp(0, 1),
        "jpeg": as_jpeg(pixels),
    }
    if can_write(prompt):
        outline, letters = (layer.to(pixels) for layer in text_layers(prompt, height, width))
        results["text_over"] = pixels * (1 - outline) * (1 - letters) + letters
        results["text_alone"] = (1 - letters).expand_as(pixels).contiguous()
    else:
        results |= dict.fromkeys(
            ("text_over", "text_alone"), "The font (DejaVu Sans) has not all letters of the prompt."
        )
    results["frozen_frames"] = (
        pixels[:1].expand_as(pixels).contiguous() if len(pixels) > 1 else "A picture has one frame."
    )
    results["all_objects"] = laid_over(pixels, others) if others else "There is no picture of another prompt."
    return {name: results[name] for name in DISTURBANCES}


def resized(pixels: Pixels, height: int, width: int) -> Float[Tensor, "T C h w"]:
    """Bilinear, with antialiasing where it shrinks."""
    floats = pixels.float()
    return F.interpolate(floats, (height, width), mode="bilinear", antialias=True).clamp(0, 1).to(pixels.dtype)


def cropped(pixels: Pixels, share: float = 0.75) -> Pixels:
    """The middle, `share` of each side, enlarged to the whole."""
    height, width = pixels.shape[-2:]
    tall, wide = max(1, round(share * height)), max(1, round(share * width))
    top, left = (height - tall) // 2, (width - wide) // 2
    return resized(pixels[..., top : top + tall, left : left + wide], height, width)


def tiled(pixels: Pixels, times: int = 2) -> Pixels:
    """The picture shrunk and set side by side, `times` × `times`; cut off where the size is no multiple of it."""
    height, width = pixels.shape[-2:]
    small = resized(pixels, -(-height // times), -(-width // times))
    return small.repeat(1, 1, times, times)[..., :height, :width].contiguous()


def as_jpeg(pixels: Pixels, quality: int = 10) -> Pixels:
    """Each frame as its JPEG file is read again."""
    frames = []
    for image in as_images(pixels):
        file = BytesIO()
        image.save(file, "JPEG", quality=quality)
        frames.append(as_pixels(file.getvalue()))
    return torch.cat(frames).to(pixels)


def laid_over(pixels: Pixels, others: Sequence[Tensor]) -> Pixels:
    """All pictures at once: at each place that one which is farthest from its own median colour there.

    Where objects stand on a plain ground, all of them are drawn; photographs show through each other. Others of another
    size are resized to this one's, and of another number of frames evenly repeated or left out.
    """
    frames, _, height, width = pixels.shape
    layers = [pixels]
    for other in others:
        chosen = torch.linspace(0, len(other) - 1, frames).round().long()
        layers.append(resized(other.to(pixels)[chosen.to(other.device)], height, width))
    stack = torch.stack(layers)  # [n, T, C, H, W]
    ground = stack.flatten(-2).median(-1).values[..., None, None]
    farthest = (stack - ground).square().sum(2, keepdim=True).argmax(0, keepdim=True)  # [1, T, 1, H, W]
    return stack.gather(0, farthest.expand_as(stack[:1]))[0]


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib: Latin, Greek and Cyrillic."""
    import matplotlib  # for its files alone

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size)


def can_write(text: str) -> bool:
    """Has the font every letter of the text? What it has not, it draws as one and the same box."""
    letters = set("".join(text.split()))
    return bool(letters) and all(_drawn(letter) != _drawn("\uffff") for letter in letters)


@functools.cache
def _drawn(letter: str) -> bytes:
    image = Image.new("L", (32, 32))
    ImageDraw.Draw(image).text((4, 4), letter, fill=255, font=_font(16))
    return image.tobytes()


def text_layers(text: str, height: int, width: int) -> tuple[Float[Tensor, "1 1 H W"], Float[Tensor, "1 1 H W"]]:
    """Copies of a text that fill a picture, line by line: the letters with an outline, and the letters; 1 is ink.

    Letters are a tenth of the height tall, and no less than eight pixels.
    """
    size = max(8, height // 10)
    font = _font(size)
    copies, lines = " ".join(text.split()) + "  ", []
    start = 0
    for _ in range(-(-height // size)):
        end = start + 1
        while font.getlength(_stretch(copies, start, end + 1)) <= width and end - start < width:
            end += 1
        lines.append(_stretch(copies, start, end))
        start = end
    image = Image.new("L", (width, height), 0)
    ImageDraw.Draw(image).multiline_text((0, -size // 6), "\n".join(lines), fill=255, font=font, spacing=0)
    letters, stroke = as_pixels(image.convert("RGB"))[:, :1], max(1, size // 12)
    return F.max_pool2d(letters, 2 * stroke + 1, 1, stroke), letters


def _stretch(copies: str, start: int, end: int) -> str:
    """Letters start to end of an endless row of copies."""
    return "".join(copies[i % len(copies)] for i in range(start, end))
