"""Videos (mp4, webm, mkv, mov, avi, ...) as frames, read by PyAV where the extra `video` is installed."""

from __future__ import annotations

from collections.abc import Iterator
from io import BufferedReader, BytesIO
from typing import Any

import numpy as np
import torch
from PIL import Image

from rewarddance.data.frame_sampling import evenly_timed
from rewarddance.errors import InputError
from rewarddance.types import Pixels

EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
"""How a WebM or Matroska file begins, and how the part that holds everything else does."""

File = BytesIO | BufferedReader
"""A file in memory, or an open one."""


def decode_video(file: File, max_frames: int, name: str) -> Pixels:
    """The video's frames [T, 3, H, W] in [0, 1], upright; evenly spaced ones where it has more than `max_frames`.

    Evenly in time: of a video whose frames come unevenly, those that are shown at evenly spaced moments, one that
    stands long more than once. Raises InputError beginning with `name` where PyAV is not installed, and PyAV's own
    errors, EOFError or ValueError where the file is broken, cut off or holds no pictures.
    """
    chosen = evenly_timed(_times(file, name), max_frames)
    arrays: dict[int, np.ndarray] = {}
    for number, frame in enumerate(_frames(file)):
        if number in chosen:
            refuse_bomb(frame.width, frame.height, len(chosen))
            turns = round(frame.rotation / 90)  # how the camera was held; counterclockwise, as rot90 turns
            arrays[number] = np.rot90(frame.to_ndarray(format="rgb24"), turns)
    frames = np.stack([arrays[number] for number in chosen])
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float().div(255).contiguous()


def video_frame_rate(file: File, name: str) -> float | None:
    """Frames a second of a video, the mean where they come unevenly; None of one frame, or without times.

    Raises as `decode_video` does.
    """
    times = _times(file, name)
    if len(times) < 2 or None in times:
        return None
    seconds = float(times[-1] or 0) - float(times[0] or 0)
    return (len(times) - 1) / seconds if seconds > 0 else None


def inspect_video(file: File, name: str) -> str:
    """Decode a video to its end; returns the suffix of its container. Raises as `decode_video` does."""
    _times(file, name)
    file.seek(0)
    head = file.read(12)
    if head[:4] == EBML:
        return ".mkv"
    return ".avi" if head[:4] == b"RIFF" else ".mp4" if head[4:8] == b"ftyp" else ".mpg"


def _times(file: File, name: str) -> list[float | None]:
    """When each frame is shown, in seconds, by decoding the video: a container's own count may be missing or wrong."""
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"{name} is a video, which PyAV reads, and PyAV is not installed.", "pip install 'rewarddance[video]'"
        ) from error
    length = file.seek(0, 2)
    declared = _declared_length(file, length)
    if declared > length:
        raise EOFError(f"it was cut off: {length} of at least {declared} bytes are there")
    times = [frame.time for frame in _frames(file)]
    if not times:
        raise ValueError("it holds no pictures")
    return times


def _frames(file: File) -> Iterator[Any]:
    import av

    file.seek(0)
    with av.open(file, "r") as container:
        if not container.streams.video:
            raise ValueError("it holds no pictures")
        container.streams.video[0].thread_type = "AUTO"
        for packet in container.demux(container.streams.video[0]):
            for frame in packet.decode():
                if packet.is_corrupt or frame.is_corrupt:
                    raise ValueError(f"the frame at {frame.time} s is broken")
                refuse_bomb(frame.width, frame.height)
                yield frame


def _declared_length(file: File, length: int) -> int:
    """The bytes that a video's container says it has, 0 where it does not say.

    Decoders take a file that was cut off for a shorter video, often without a word.
    """
    file.seek(0)
    head = file.read(64)
    if head[:4] == b"RIFF":
        return 8 + int.from_bytes(head[4:8], "little")
    if head[4:8] == b"ftyp":
        at = 0
        while at < length:
            file.seek(at)
            box = file.read(16)
            size = int.from_bytes(box[:4], "big")
            at += max(8, int.from_bytes(box[8:], "big") if size == 1 else size) if size else length  # 0: to the end
        return at if size else length
    if head[:4] != EBML:
        return 0
    size, at = _ebml_number(head, 4)
    at += size
    if head[at : at + 4] != _SEGMENT:
        return 0
    first = head[at + 4]
    size, at = _ebml_number(head, at + 4)
    unknown = size == (1 << 7 * (9 - first.bit_length())) - 1
    return 0 if unknown else at + size


def _ebml_number(data: bytes, at: int) -> tuple[int, int]:
    """The number at a place, whose first zero bits say its length, and the place after it."""
    length = 9 - data[at].bit_length()
    return int.from_bytes(data[at : at + length], "big") - (1 << 7 * length), at + length


def refuse_bomb(width: int, height: int, frames: int = 1) -> None:
    """Raise where a frame has more pixels than Pillow's limit, or all frames twice as many: they would fill the memory.

    Pillow itself only warns below twice its limit.
    """
    limit = Image.MAX_IMAGE_PIXELS
    if limit and (width * height > limit or width * height * frames > 2 * limit):
        raise Image.DecompressionBombError(f"{frames} x {width} x {height} pixels are too many to be a safe file")
