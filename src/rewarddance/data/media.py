"""Pictures and videos in and out: files to pixels [T, C, H, W] in [0, 1], and back."""

from __future__ import annotations

import re
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from rewarddance.data.films import EBML, File, evenly_spaced, read_film, refuse_bomb
from rewarddance.errors import InputError
from rewarddance.types import Pixels

_SLACK = 1e-3
"""How far resampling and rounding may leave [0, 1]."""

MAX_FRAMES = 16
"""How many frames of a longer video are read, unless the caller says otherwise."""

PICTURE_SUFFIXES = frozenset(
    f".{kind}" for kind in ("apng", "avif", "bmp", "gif", "jpeg", "jpg", "png", "ppm", "tif", "tiff", "webp")
)
VIDEO_SUFFIXES = frozenset(f".{kind}" for kind in ("avi", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "webm"))
_MOVING = ("AVIF", "GIF", "PNG", "WEBP")
"""Pillow's formats whose frames follow one another in time; the pages of a TIFF and the shots of an MPO do not."""

Media = Tensor | np.ndarray | Image.Image | bytes | str | Path | Sequence["Media"]
"""A picture or video as people have it at hand; see `as_pixels`."""


def as_pixels(media: Media, name: str = "the picture", max_frames: int = MAX_FRAMES) -> Pixels:
    """Any picture or video as pixels [T, 3, H, W] in [0, 1].

    media: a tensor [3, H, W] or [T, 3, H, W]; an array [H, W, 3] or [T, H, W, 3]; a PIL picture; a path or the bytes of
    a file, as `read_video` takes them, with its `max_frames`; or a sequence of these, one a frame, all of one size.
    Floats lie in [0, 1], 8-bit integers in 0 to 255. A float tensor keeps its graph. Raises InputError that names the
    file, or begins with `name`, where it is none of these.
    """
    if isinstance(media, str | Path):
        return read_video(Path(media), max_frames)
    if isinstance(media, bytes):
        return read_video(media, max_frames, name)
    if isinstance(media, Image.Image):
        try:
            return _from_image(media)
        except Exception as error:  # a lazily opened file is decoded only now
            raise InputError(f"{name} cannot be decoded: {error}.", "Replace or remove it.") from error
    if isinstance(media, np.ndarray):
        if media.ndim not in (3, 4) or media.shape[-1] != 3:
            raise InputError(f"{name} is an array {list(media.shape)}.", "Give [H, W, 3] or [T, H, W, 3].")
        media = torch.from_numpy(np.ascontiguousarray(np.moveaxis(media, -1, -3)))
    if isinstance(media, Tensor):
        return _from_tensor(media, name)
    if not isinstance(media, Sequence) or not media:
        raise InputError(f"{name} is a {type(media).__name__}, which is no picture.", "Give pixels or a path.")
    return _stacked([as_pixels(frame, f"frame {number} of {name}") for number, frame in enumerate(media)], name)


def _stacked(frames: list[Tensor], name: str) -> Pixels:
    sizes = {tuple(frame.shape[1:]) for frame in frames}
    if len(sizes) > 1:
        raise InputError(f"{name} has frames of different sizes: {sorted(sizes)}.", "Give all frames one size.")
    return torch.cat(frames)


def _from_tensor(media: Tensor, name: str) -> Pixels:
    pixels = media.unsqueeze(0) if media.ndim == 3 else media
    if pixels.ndim != 4 or pixels.shape[1] != 3 or 0 in pixels.shape:
        raise InputError(f"{name} has the shape {list(media.shape)}.", "Give [3, H, W] or [T, 3, H, W].")
    if pixels.dtype == torch.uint8:
        return pixels.float() / 255
    if not pixels.is_floating_point():
        raise InputError(f"{name} holds {pixels.dtype}.", "Give floats in [0, 1] or 8-bit integers.")
    low, high = pixels.detach().min().item(), pixels.detach().max().item()
    if not (low >= -_SLACK and high <= 1 + _SLACK):  # written so that NaN does not pass
        raise InputError(f"{name} has values from {low:.3g} to {high:.3g}.", "Give floats in [0, 1].")
    return pixels if pixels.dtype == torch.float32 else pixels.float()


def read_picture(path: Path) -> Pixels:
    """One picture as float32 [1, 3, H, W] in [0, 1]; EXIF rotation applied, alpha laid on white.

    Raises InputError naming the file where it is missing or no picture.
    """
    try:
        with Image.open(path) as opened:
            refuse_bomb(*opened.size)
            return _from_image(opened)
    except Exception as error:  # Pillow's decoders raise nearly anything on a broken file, SyntaxError too
        raise InputError(f"the picture {path} cannot be read: {error}.", "Replace or remove it.") from error


def read_video(media: Path | bytes, max_frames: int = MAX_FRAMES, name: str = "the picture") -> Pixels:
    """A video's frames as float32 [T, 3, H, W] in [0, 1]; evenly spaced ones where it has more than `max_frames`.

    media: a file, the bytes of one, or a folder of pictures of one size, in the order of the numbers in their names.
    Pillow reads GIF, WebP, APNG and AVIF; PyAV (the extra `video`) reads mp4, webm and the like. What a file holds
    decides, not its name. A picture that does not move is one frame. The file is decoded to its end, whichever frames
    are wanted, so that one which was cut off is found. Raises InputError naming the file (bytes: beginning with `name`)
    where it is missing, broken, too large or neither picture nor video, or PyAV is needed and not there.
    """
    film = isinstance(media, Path) and media.suffix.lower() in VIDEO_SUFFIXES
    what = f"the {'video' if film else 'picture'} {media}" if isinstance(media, Path) else name
    try:
        if isinstance(media, Path) and media.is_dir():
            return _read_folder(media, max_frames)
        with media.open("rb") if isinstance(media, Path) else BytesIO(media) as file:
            film = _is_film(file, film)
            return read_film(file, max_frames, what) if film else _read_animation(file, max_frames)
    except InputError:
        raise
    except Exception as error:  # the decoders raise nearly anything on a broken file
        verb = "read" if isinstance(media, Path) else "decoded"
        raise InputError(f"{what} cannot be {verb}: {error}.", "Replace or remove it.") from error


def natural_order(path: Path) -> tuple[list[str | int], str]:
    """A key that sorts frame2 before frame10."""
    parts = re.split(r"(\d+)", path.name.casefold())
    return [int(part) if number % 2 else part for number, part in enumerate(parts)], path.name


def pictures_in(folder: Path) -> list[Path]:
    """The pictures right in a folder, by their suffix, in natural order; hidden files are left out."""
    found = (path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES and path.name[0] != ".")
    return sorted(found, key=natural_order)


def _read_folder(folder: Path, max_frames: int) -> Pixels:
    files = pictures_in(folder)
    if not files:
        raise InputError(f"the folder {folder} holds no pictures.", "Give a picture, a video, or a folder of frames.")
    chosen = [files[number] for number in evenly_spaced(len(files), max_frames)]
    first = read_picture(chosen[0])
    refuse_bomb(first.shape[-1], first.shape[-2], len(chosen))
    return _stacked([first, *map(read_picture, chosen[1:])], f"the video {folder}")


def _read_animation(file: File, max_frames: int) -> Pixels:
    with Image.open(file) as opened:
        moving = opened.format in _MOVING and getattr(opened, "n_frames", 1) > 1
        if not moving:
            refuse_bomb(*opened.size)
            return _from_image(opened)
        if opened.format == "GIF":  # cut off between two frames, it would pass for a shorter one
            file.seek(-16, 2)
            if not file.read().rstrip(b"\0").endswith(b";"):
                raise EOFError("it ends before the mark that ends a GIF")
        start = int(
            bool(opened.info.get("default_image"))
        )  # the still picture of an APNG, for those who cannot play it
        total = int(getattr(opened, "n_frames", 1))
        chosen = {start + number for number in evenly_spaced(total - start, max_frames)}
        refuse_bomb(*opened.size, len(chosen))
        frames = []
        for number in range(total):
            opened.seek(number)
            opened.load()
            if number in chosen:
                frames.append(_from_image(opened))
    return torch.cat(frames)


def _is_film(file: File, named_so: bool) -> bool:
    """Is this for PyAV? What Pillow knows is Pillow's, whatever its name: PyAV would read it without alpha and EXIF."""
    head = file.read(12)
    file.seek(0)
    looks = head[4:8] == b"ftyp" or head[:4] == EBML or (head[:4], head[8:]) == (b"RIFF", b"AVI ")
    if not (looks or named_so):
        return False
    try:
        with Image.open(file) as opened:
            return opened.format == "MPEG"  # known to Pillow by its size only
    except UnidentifiedImageError:
        return True
    finally:
        file.seek(0)


def _from_image(opened: Image.Image) -> Pixels:
    picture = ImageOps.exif_transpose(opened)
    if picture.mode.startswith("I;16"):  # Pillow's own conversion clips it to white
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    array = np.asarray(picture.convert("RGB"), dtype=np.float32) / 255
    return torch.from_numpy(array).permute(2, 0, 1).unsqueeze(0).contiguous()


def write_picture(pixels: Pixels, path: Path) -> None:
    """Write the first frame of `pixels` as PNG, rounded to 8 bits."""
    array = (pixels[0].detach().float().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
