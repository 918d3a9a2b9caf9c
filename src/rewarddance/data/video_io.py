"""Videos (mp4, webm, mkv, mov, avi, ...) as frames, read by PyAV where the extra `video` is installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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

_MP4 = "mov,mp4,m4a,3gp,3g2,mj2"
_MARKS = (
    (0, EBML, "matroska"),
    (0, b"\x00\x00\x01\xba", "mpeg"),
    (0, b"\x00\x00\x01\xb3", "mpegvideo"),
    (0, b"FLV\x01", "flv"),
    (0, b"OggS", "ogg"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),
    (8, b"AVI ", "avi"),
)
"""FFmpeg's names of containers, and what stands at which place of a file that is one."""
MOST_PIXELS = 2**26
"""Of all frames of a video that are kept: at 16 bytes a pixel for a moment, 1 GiB."""
MOST_DECODED = 2**33
"""Of all frames of a video that are decoded: some 4,000 in full HD, which take a minute or two."""
File = BytesIO | BufferedReader
"""A file in memory, or an open one."""


_PLAYED = {"mp4": ("h264", "av1", "libdav1d"), "webm": ("vp8", "vp9", "libvpx", "libvpx-vp9")}
"""What browsers play, by container: PyAV's names of codecs."""


def container_of(head: bytes) -> str | None:
    """FFmpeg's name of the container of a file that begins with these 256 bytes; None where it is no video.

    FFmpeg itself would guess, and take a text with a session description for a video: it then opens sockets.
    """
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"skip", b"free", b"pnot"):
        return _MP4
    if len(head) > 188 and head[0] == head[188] == 0x47:
        return "mpegts"
    return next((name for at, mark, name in _MARKS if head[at : at + len(mark)] == mark), None)


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


def video_size(file: File, name: str) -> tuple[int, int, int]:
    """Frames, height and width. Raises as above.

    The number of frames is what the container says; where it says nothing, as a browser's recording does not, the video
    is decoded.
    """
    _need_pyav(name)
    with _container(file) as (container, stream):
        stated = stream.frames or round(_stated_seconds(container, stream) * float(stream.average_rate or 0))
        height, width = stream.codec_context.height, stream.codec_context.width
    return stated or len(_times(file, name)), height, width


def inspect_video(file: File, name: str) -> str:
    """Decode a video to its end; returns the suffix of its container. Raises as `decode_video` does."""
    _times(file, name)
    file.seek(0)
    head = file.read(12)
    if head[:4] == EBML:
        return ".mkv"
    return ".avi" if head[:4] == b"RIFF" else ".mp4" if head[4:8] == b"ftyp" else ".mpg"


def without_metadata(file: File, name: str) -> tuple[bytes, str]:
    """The video alone, as it is coded, in a new file without sound, titles and comments; and its media type.

    Raises InputError beginning with `name` where browsers cannot play it or PyAV is not installed, and PyAV's own
    errors where the file is broken.
    """
    _need_pyav(name)
    import av

    with _container(file) as (container, stream):
        codec = stream.codec_context.name
        kind = next((kind for kind, codecs in _PLAYED.items() if codec in codecs), None)
        if kind is None:
            raise InputError(f"{name} is coded as {codec}, which browsers do not play.", "Make it H.264 in .mp4.")
        copy = BytesIO()
        with av.open(copy, "w", format=kind) as written:
            copied = written.add_stream_from_template(stream)
            copied.metadata.clear()
            for packet in container.demux(stream):
                if packet.dts is not None:
                    packet.stream = copied
                    written.mux(packet)
        return copy.getvalue(), f"video/{kind}"


def _need_pyav(name: str) -> None:
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"{name} is a video, which PyAV reads, and PyAV is not installed.", "pip install 'rewarddance[video]'"
        ) from error


def _times(file: File, name: str) -> list[float | None]:
    """When each frame is shown, in seconds, by decoding the video: a container's own count may be missing or wrong."""
    _need_pyav(name)
    length = file.seek(0, 2)
    declared = _declared_length(file, length)
    if declared > length:
        raise EOFError(f"it was cut off: {length} of at least {declared} bytes are there")
    times: list[float | None] = []
    pixels = 0
    for frame in _frames(file):
        times.append(frame.time)
        pixels += frame.width * frame.height
        if pixels > MOST_DECODED:
            raise ValueError(_too_long(frame.width, frame.height))
    if not times:
        raise ValueError("it holds no pictures")
    return times


def _frames(file: File) -> Iterator[Any]:
    with _container(file) as (container, stream):
        stream.thread_type = "AUTO"
        for packet in container.demux(stream):
            for frame in packet.decode():
                if packet.is_corrupt or frame.is_corrupt:
                    raise ValueError(f"the frame at {frame.time} s is broken")
                refuse_bomb(frame.width, frame.height)
                yield frame


@contextmanager
def _container(file: File) -> Iterator[tuple[Any, Any]]:
    """An open container and the stream of it that is shown. Raises ValueError where it is none, or too much."""
    import av

    file.seek(0)
    kind = container_of(file.read(256))
    if kind is None:
        raise ValueError("it is no video of a known kind")
    file.seek(0)
    options = {"protocol_whitelist": "", "format_whitelist": kind}  # no other file, no address
    with av.open(file, "r", format=kind.partition(",")[0], options=options) as container:
        stream = _stream(container)
        width, height = stream.codec_context.width, stream.codec_context.height
        refuse_bomb(width, height)
        seconds = _stated_seconds(container, stream)
        if width * height * max(stream.frames, seconds * float(stream.average_rate or 0)) > MOST_DECODED:
            raise ValueError(_too_long(width, height))
        yield container, stream


def _stated_seconds(container: Any, stream: Any) -> float:
    """How long a file says that it is; 0 where it does not. Matroska, WebM and Flash say it of the whole file only."""
    if stream.duration and stream.time_base:
        return max(0.0, float(stream.duration * stream.time_base))
    return max(0, container.duration or 0) / 1_000_000


def _stream(container: Any) -> Any:
    """The stream that a player shows: no cover picture, the one marked as default, or else the first."""
    from av.stream import Disposition

    streams = list(container.streams.video)
    if not streams:
        raise ValueError("it holds no pictures")
    moving = [stream for stream in streams if Disposition.attached_pic not in stream.disposition] or streams
    return next((stream for stream in moving if Disposition.default in stream.disposition), moving[0])


def _too_long(width: int, height: int) -> str:
    frames = MOST_DECODED // (width * height)
    return f"it is too long: of {width}x{height} pixels some {frames} frames are read; cut or shrink it"


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
            if at and not (box[4:8].isascii() and box[4:8].decode().isprintable()):
                return at  # bytes behind the end, which are no box
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
    """Raise where a frame has more pixels than Pillow's limit, or all frames more than MOST_PIXELS: too much memory.

    Pillow itself only warns below twice its limit.
    """
    limit = Image.MAX_IMAGE_PIXELS
    if not limit:
        return
    most = limit if width * height > limit else min(2 * limit, MOST_PIXELS)
    if width * height * frames > most:
        raise Image.DecompressionBombError(
            f"{frames} x {width} x {height} pixels are too many to be a safe file (at most {most:,} in all): scale it "
            "down, or read fewer frames"
        )
