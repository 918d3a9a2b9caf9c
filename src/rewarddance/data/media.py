"""Pictures and videos in and out: files to pixels [T, C, H, W] in [0, 1], and back."""

from __future__ import annotations

import contextlib
import functools
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from rewarddance.data.frame_sampling import evenly_spaced
from rewarddance.data.video_io import (
    File,
    container_of,
    decode_video,
    inspect_video,
    refuse_bomb,
    video_frame_rate,
    video_size,
)
from rewarddance.errors import InputError, shown
from rewarddance.runtime.files import check_plain
from rewarddance.types import Pixels

_SLACK = 1e-3
"""How far resampling and rounding may leave [0, 1]."""

MAX_FRAMES = 16
"""How many frames of a longer video are read, unless the caller says otherwise."""

PICTURE_SUFFIXES = frozenset(
    f".{kind}"
    for kind in (
        *("apng", "avif", "bmp", "gif", "heic", "heif", "jfif", "jp2", "jpe", "jpeg", "jpg", "png", "ppm", "tif"),
        *("tiff", "webp"),
    )
)
VIDEO_SUFFIXES = frozenset(f".{kind}" for kind in ("avi", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "ts", "webm"))
_MOVING = ("AVIF", "GIF", "PNG", "WEBP")
"""Pillow's formats whose frames follow one another in time; the pages of a TIFF and the shots of an MPO do not."""

_FORMATS = ("AVIF", "BMP", "DIB", "GIF", "HEIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
"""What a file may be, by Pillow's names. It knows others that run a program to be drawn (EPS) or are no pictures."""
_BITS, _PHOTOMETRIC = 258, 262
"""TIFF's tags: bits of a value, and whether 0 is white."""
_SUFFIXES = {"JPEG": ".jpg", "JPEG2000": ".jp2", "MPO": ".jpg", "DIB": ".bmp"}
_PICTURE_MARKS = (
    *(b"\x89PNG\r\n", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*", b"BM", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"),
    *(b"P1\n", b"P2\n", b"P3\n", b"P4\n", b"P5\n", b"P6\n"),
)
"""How pictures begin, whatever they are called."""
_INSTEAD = (
    (b"version https://git-lfs", "it is the pointer of a Git LFS file that was not fetched"),
    (b"<", "it is a web page or a drawing in XML, no picture"),
    (b"{", "it is JSON, no picture"),
)
"""What downloads leave in place of a picture, by how it begins."""
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # `refuse_bomb` raises where Pillow warns

Media = Tensor | np.ndarray | Image.Image | bytes | bytearray | memoryview | str | Path | Sequence["Media"]
"""A picture or video as people have it at hand; see `as_pixels`."""


def as_pixels(media: Media, name: str = "the picture", max_frames: int = MAX_FRAMES) -> Pixels:
    """Any picture or video as pixels [T, 3, H, W] in [0, 1].

    media: a tensor [3, H, W] or [T, 3, H, W]; an array [H, W, 3] or [T, H, W, 3]; a PIL picture; a path or the bytes of
    a file, as `read_video` takes them, with its `max_frames`; or a sequence of these, one a frame, all of one size.
    Floats lie in [0, 1], 8-bit integers in 0 to 255. A float tensor keeps its graph. Raises InputError that names the
    file, or begins with `name`, where it is none of these.
    """
    if isinstance(media, str) and (not media.strip() or "://" in media):
        why = "an address" if media.strip() else "an empty text"
        raise InputError(f"{name} is {why} ({shown(media)}), and no path.", "Give the path of a file, or its bytes.")
    if isinstance(media, str | Path):
        return read_video(Path(media), max_frames)
    if isinstance(media, bytes | bytearray | memoryview):
        return read_video(bytes(media), max_frames, name)
    if isinstance(media, Image.Image):
        if 0 in media.size:
            raise InputError(f"{name} has the size {media.size}.", "Give a picture with pixels.")
        try:
            return _from_image(media)
        except Exception as error:  # a lazily opened file is decoded only now
            raise InputError(f"{name} cannot be decoded: {error}.", "Replace or remove it.") from error
    if isinstance(media, np.ndarray):
        if media.ndim not in (3, 4) or media.shape[-1] != 3:
            raise InputError(f"{name} is an array {list(media.shape)}.", "Give [H, W, 3] or [T, H, W, 3].")
        try:
            media = torch.from_numpy(np.ascontiguousarray(np.moveaxis(media, -1, -3)))
        except (TypeError, ValueError) as error:
            raise InputError(f"{name} is an array of {media.dtype}.", "Give float32, or 8-bit integers.") from error
    if isinstance(media, Tensor):
        return _from_tensor(media, name)
    if not isinstance(media, Sequence) or not media:
        found = "empty" if isinstance(media, Sequence) else f"of the type {type(media).__name__}"
        raise InputError(f"{name} is {found}, and no picture.", "Give pixels or a path.")
    return _stacked([as_pixels(frame, f"frame {number} of {name}") for number, frame in enumerate(media)], name)


def _stacked(frames: list[Tensor], name: str) -> Pixels:
    sizes = {tuple(frame.shape[1:]) for frame in frames}
    if len(sizes) > 1:
        raise InputError(f"{name} has frames of different sizes: {sorted(sizes)}.", "Give all frames one size.")
    return torch.cat(frames)


def _from_tensor(media: Tensor, name: str) -> Pixels:
    if media.is_meta or media.layout != torch.strided or media.is_quantized:
        kind = "meta" if media.is_meta else "quantised" if media.is_quantized else "sparse"
        raise InputError(f"{name} is a {kind} tensor.", "Give a dense one with values.")
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
        with check_plain(path).open("rb") as file, _open(file) as opened:
            refuse_bomb(*opened.size)
            return _from_image(opened)
    except Exception as error:  # Pillow's decoders raise nearly anything on a broken file, SyntaxError too
        why = _why(error, path)
        raise InputError(f"the picture {path} cannot be read: {why}.", "Replace or remove it.") from error


def read_video(media: Path | bytes, max_frames: int = MAX_FRAMES, name: str = "the picture") -> Pixels:
    """A video's frames as float32 [T, 3, H, W] in [0, 1]; evenly spaced ones where it has more than `max_frames`.

    media: a file, the bytes of one, or a folder of pictures of one size, in the order of the numbers in their names.
    Pillow reads GIF, WebP, APNG and AVIF; PyAV (the extra `video`) reads mp4, webm and the like. What a file holds
    decides, not its name. A picture that does not move is one frame. The file is always decoded to its end, so that one
    which was cut off is found. Raises InputError naming the file (bytes: beginning with `name`)
    where it is missing, broken, too large or neither picture nor video, or PyAV is needed and not there.
    """
    with _opened(media, name) as (file, what, video):
        if isinstance(file, Path):
            return _read_folder(file, max_frames)
        return decode_video(file, max_frames, what) if video else _read_animation(file, max_frames)


def read_rate(media: Path | bytes, name: str = "the video") -> float | None:
    """Frames a second of a video file, the mean where they come unevenly; None of a picture or a folder of frames.

    Raises InputError as `read_video` does.
    """
    with _opened(media, name) as (file, what, video):
        if isinstance(file, Path):
            return None
        if video:
            return video_frame_rate(file, what)
        with _open(file) as opened:
            durations = [frame.info.get("duration") or 0 for frame in _frames(opened, file)]
        return 1000 * len(durations) / sum(durations) if len(durations) > 1 and all(durations) else None


def inspect_media(media: Path | bytes, name: str = "the picture") -> str:
    """Decode a picture or video to its end and keep nothing: quicker than `read_video`, and it finds the same faults.

    Returns the suffix of what the file holds, whatever it is called ("" for a folder). Raises InputError as
    `read_video` does.
    """
    with _opened(media, name) as (file, what, video):
        if isinstance(file, Path):
            _read_folder(file, MAX_FRAMES)
            return ""
        if video:
            return inspect_video(file, what)
        with _open(file) as opened:
            for number, frame in enumerate(_frames(opened, file)):
                _refuse_mode(frame)
                if number == 0:
                    ImageOps.exif_transpose(frame)
            return _SUFFIXES.get(str(opened.format), f".{str(opened.format).lower()}")


def is_video(path: Path) -> bool:
    """Is it a video that PyAV reads, as opposed to a folder, a picture, or what Pillow animates?

    Raises InputError naming the file where it is missing.
    """
    with _opened(path, "the video") as (_, _, video):
        return video


def looks_like_media(path: Path) -> bool:
    """Does a file begin as pictures or videos do?"""
    try:
        with check_plain(path).open("rb") as file:
            head = file.read(256)
    except OSError:
        return False
    webp = (head[:4], head[8:12]) == (b"RIFF", b"WEBP")
    return webp or head.startswith(_PICTURE_MARKS) or container_of(head) is not None


def media_size(media: Path | bytes, max_frames: int = MAX_FRAMES, name: str = "the picture") -> tuple[int, int, int]:
    """Frames (at most `max_frames`), height and width of a picture or video, by its header alone.

    Raises InputError naming the file where it is missing or has none.
    """
    with _opened(media, name) as (file, what, video):
        if isinstance(file, Path):
            files = pictures_in(file)
            if not files:
                raise InputError(f"the folder {file} holds no pictures.", "Give a picture, or a folder of frames.")
            chosen = [files[number] for number in evenly_spaced(len(files), max_frames)]
            sizes = {media_size(frame)[1:] for frame in chosen}
            if len(sizes) > 1:
                raise InputError(f"the folder {file} has frames of different sizes.", "Give all frames one size.")
            ((height, width),) = sizes
            refuse_bomb(width, height, len(chosen))
            return len(chosen), height, width
        if video:
            frames, height, width = video_size(file, what)
            refuse_bomb(width, height, min(frames, max_frames))
            return min(frames, max_frames), height, width
        with _open(file) as opened:
            frames = _span(opened)[1]
            width, height = opened.size
            refuse_bomb(width, height, min(frames, max_frames))
            turned = opened.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # EXIF's orientation
            return min(frames, max_frames), *((width, height) if turned else (height, width))


@contextmanager
def _opened(media: Path | bytes, name: str) -> Iterator[tuple[File | Path, str, bool]]:
    """An open file or the path of a folder, what an error calls it, and whether PyAV reads it.

    What goes wrong with the file becomes an InputError that names it.
    """
    named_so = isinstance(media, Path) and media.suffix.lower() in VIDEO_SUFFIXES
    what = f"the {'video' if named_so else 'picture'} {media}" if isinstance(media, Path) else name
    try:
        if isinstance(media, Path) and media.is_dir():
            yield media, what, False
            return
        with check_plain(media).open("rb") if isinstance(media, Path) else BytesIO(media) as file:
            yield file, what, _is_video(file)
    except InputError:
        raise
    except Exception as error:  # the decoders raise nearly anything on a broken file
        verb = "read" if isinstance(media, Path) else "decoded"
        raise InputError(f"{what} cannot be {verb}: {_why(error, media)}.", "Replace or remove it.") from error


def natural_order(path: Path) -> tuple[list[str | int], str]:
    """A key that sorts frame2 before frame10."""
    parts = re.split(r"(\d+)", path.name.casefold())
    return [int(part) if number % 2 else part for number, part in enumerate(parts)], path.name


def pictures_in(folder: Path) -> list[Path]:
    """The pictures right in a folder, by their suffix, in natural order; hidden files are left out."""
    files = (path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES and path.name[0] != ".")
    return sorted(files, key=natural_order)


def _read_folder(folder: Path, max_frames: int) -> Pixels:
    files = pictures_in(folder)
    if not files:
        raise InputError(f"the folder {folder} holds no pictures.", "Give a picture, a video, or a folder of frames.")
    chosen = [files[number] for number in evenly_spaced(len(files), max_frames)]
    first = read_picture(chosen[0])
    refuse_bomb(first.shape[-1], first.shape[-2], len(chosen))
    return _stacked([first, *map(read_picture, chosen[1:])], f"the video {folder}")


def _read_animation(file: File, max_frames: int) -> Pixels:
    with _open(file) as opened:
        start, total = _span(opened)
        chosen = {start + number for number in evenly_spaced(total, max_frames)}
        refuse_bomb(*opened.size, len(chosen))
        frames = [_from_image(frame) for number, frame in enumerate(_frames(opened, file)) if number in chosen]
    return torch.cat(frames)


def _span(opened: Image.Image) -> tuple[int, int]:
    """Where a file's frames begin and how many there are: one of what does not move.

    The still picture in an APNG, for programs that cannot play it, is no frame.
    """
    refuse_bomb(*opened.size)
    if opened.format not in _MOVING or getattr(opened, "n_frames", 1) == 1:
        return 0, 1
    start = int(bool(opened.info.get("default_image")))
    return start, int(getattr(opened, "n_frames", 1)) - start


def _frames(opened: Image.Image, file: File) -> Iterator[Image.Image]:
    """All pictures of a file one by one, decoded, in the same object; of what does not move the first."""
    start, total = _span(opened)
    if total > 1 and opened.format == "GIF":  # cut off between two frames, it would pass for a shorter one
        file.seek(-16, 2)
        if not file.read().rstrip(b"\0").endswith(b";"):
            raise EOFError("it ends before the mark that ends a GIF")
    for number in range(start + total):
        if total > 1:
            opened.seek(number)
        opened.load()
        yield opened


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    with contextlib.suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener(thumbnails=False)
    return tuple(name for name in _FORMATS if name in Image.OPEN)  # some builds of Pillow lack AVIF


def _open(file: File) -> Image.Image:
    return Image.open(file, formats=_formats())


def _why(error: Exception, media: Path | bytes) -> str:
    """What is wrong with a file, in words; Pillow's own name the place in memory where it is open."""
    if not isinstance(error, UnidentifiedImageError):
        return getattr(error, "strerror", None) or str(error) or type(error).__name__
    with media.open("rb") if isinstance(media, Path) else BytesIO(media) as file:
        head = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not head:
        return "it is empty"
    return next((what for begins, what in _INSTEAD if head.startswith(begins)), "it is no picture or video")


def _is_video(file: File) -> bool:
    """Does PyAV read it? What Pillow can read is left to Pillow, since PyAV ignores alpha and EXIF."""
    head = file.read(256)
    file.seek(0)
    if container_of(head) is None:
        return False
    try:
        with _open(file):
            return False
    except UnidentifiedImageError:
        return True
    finally:
        file.seek(0)


def _refuse_mode(picture: Image.Image) -> None:
    """Raise where it is not known which value is white: floats, and whole numbers of more than 16 bits."""
    if picture.mode == "F" or (picture.mode == "I" and picture.format != "PPM"):
        raise ValueError("its values are 32-bit numbers without a scale; give 8 or 16 bits a channel")
    if picture.mode in ("HSV", "LAB"):
        raise ValueError(f"its colours are {picture.mode}; give RGB")
    if picture.format == "TIFF" and picture.mode.startswith("I;16"):
        tags = getattr(picture, "tag_v2", {})
        (bits,) = tags.get(_BITS, (16,))
        if bits != 16:
            raise ValueError(f"it has {bits} bits a value; give 8 or 16")
        if tags.get(_PHOTOMETRIC, 1) == 0:
            raise ValueError("its 0 is white; give a picture whose 0 is black")


def _from_image(opened: Image.Image) -> Pixels:
    _refuse_mode(opened)
    picture = ImageOps.exif_transpose(opened)
    if picture.mode == "I" or picture.mode.startswith("I;16"):  # Pillow's own conversion clips it to white
        values, transparent = np.asarray(picture), picture.info.get("transparency")
        white = 0xFFFF if transparent is None else np.where(values == transparent, 0xFFFF, 0)
        picture = Image.fromarray(((values if transparent is None else values | white) >> 8).astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    array = np.asarray(picture.convert("RGB"), dtype=np.float32) / 255
    return torch.from_numpy(array).permute(2, 0, 1).unsqueeze(0).contiguous()


def as_images(pixels: Pixels) -> list[Image.Image]:
    """Each frame as a PIL picture, rounded to 8 bits."""
    bytes_ = (pixels.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [*map(Image.fromarray, bytes_)]


def write_picture(pixels: Pixels, path: Path) -> None:
    """Write `pixels` as PNG, rounded to 8 bits; several frames as an animated PNG, which `read_video` gives back.

    Its frames have no durations: with them, frames that stand still would be merged into one.
    """
    first, *others = as_images(pixels)
    path.parent.mkdir(parents=True, exist_ok=True)
    first.save(path, **({"save_all": True, "append_images": others} if others else {}))
