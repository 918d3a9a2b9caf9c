"""Files that are no pictures or videos to be judged, as bytes by name: cut off, mislabelled, too large, odd."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

FORMATS = {"png": {}, "jpg": {}, "webp": {"lossless": True}, "gif": {}, "bmp": {}, "tiff": {}, "ppm": {}, "jp2": {}}
_NAMES = {"jpg": "JPEG", "jp2": "JPEG2000"}


def picture(kind: str = "png", mode: str = "RGB", size: int = 24, **options) -> bytes:
    """A picture without structure, which no format shortens much."""
    noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(file, _NAMES.get(kind, kind.upper()), **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int = 8, colour: int = 0, data: bytes = b"", more: bytes = b"") -> bytes:
    """A PNG of one's own making."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + more + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def animation(kind: str, frames: int = 6) -> bytes:
    rng, file = np.random.default_rng(1), io.BytesIO()
    first, *rest = [Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)) for _ in range(frames)]
    first.save(file, kind.upper(), save_all=True, append_images=rest)
    return file.getvalue()


def video(codec: str = "libx264", container: str = "mp4", pictures: bool = True) -> bytes:
    import av

    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        if not pictures:
            stream = out.add_stream("aac", rate=44100)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 44100
            out.mux(stream.encode(frame))
        else:
            stream = out.add_stream(codec, rate=8)
            stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
            for i in range(12):
                shown = np.random.default_rng(i).integers(0, 256, (32, 48, 3), dtype=np.uint8)
                out.mux(stream.encode(av.VideoFrame.from_ndarray(shown, format="rgb24")))
        out.mux(stream.encode())
    return file.getvalue()


def tiff(mode: str) -> bytes:
    file = io.BytesIO()
    values = np.arange(64, dtype=np.float32 if mode == "F" else np.int32).reshape(8, 8)
    (Image.new("LAB", (8, 8)) if mode == "LAB" else Image.fromarray(values)).save(file, "TIFF")
    return file.getvalue()


def other(kind: str) -> bytes:
    """A picture in a format that Pillow knows and we do not take."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, kind)
    return file.getvalue()


def bad_media() -> Iterator[tuple[str, bytes]]:
    """Names with what they hold."""
    for kind, options in FORMATS.items():
        whole = picture(kind, **options)
        for left in (0.9, 0.5, 0.1):
            yield f"cut-{left}.{kind}", whole[: int(left * len(whole))]
    for kind in ("gif", "webp", "png"):
        whole = animation(kind)
        for left in (0.95, 0.4):
            yield f"cut-animation-{left}.{kind}", whole[: int(left * len(whole))]
    for codec, container, name in (("libx264", "mp4", "mp4"), ("libvpx", "webm", "webm"), ("mpeg4", "avi", "avi")):
        whole = video(codec, container)
        for left in (0.9, 0.3):
            yield f"cut-video-{left}.{name}", whole[: int(left * len(whole))]
    texts = {
        "empty": b"",
        "page": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "drawing": b'<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"/>',
        "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        "message": b'{"error": "Access denied"}',
        "words": b"this is no picture",
        "zeros": bytes(4096),
        "zip": b"PK\x03\x04" + bytes(60),
        "gzip": b"\x1f\x8b\x08\x00" + bytes(60),
        "pdf": b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n",
        "program": b"\x7fELF\x02\x01\x01" + bytes(60),
        "sound": b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(30),
        "pickle": b"\x80\x04\x95\x0b\x00\x00\x00",
        "utf16": "a picture".encode("utf-16"),
    }
    for name, data in texts.items():
        yield f"{name}.png", data
    yield "words.mp4", b"this is no video"
    yield "sound-only.mp4", video("", "mp4", pictures=False)
    for name in ("EPS", "TGA", "ICO", "PCX", "SGI", "DDS"):
        yield f"format-{name.lower()}.png", other(name)
    yield "floats.tiff", tiff("F")
    yield "whole-numbers.tiff", tiff("I")
    yield "lab.tiff", tiff("LAB")
    yield "bomb.png", png(30_000, 30_000)
    yield "bomb-below-twice-the-limit.png", png(12_000, 12_000)
    yield "bomb.gif", b"GIF89a" + struct.pack("<HH", 65_000, 65_000) + picture("gif")[10:]
    yield "bomb.bmp", picture("bmp")[:18] + struct.pack("<ii", 60_000, 60_000) + picture("bmp")[26:]
    yield "bomb.ppm", b"P6 50000 50000 255\n" + bytes(64)
    yield "bomb-in-text.png", png(8, 8, more=chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(80_000_000), 9)))
    yield "no-pixels.png", png(8, 8)
    yield "no-width.png", png(0, 8)
    yield "wrong-depth.png", png(8, 8, depth=7)
    yield "wrong-colours.png", png(8, 8, colour=5)
    good = bytearray(picture("png"))
    good[60] ^= 0xFF
    yield "flipped.png", bytes(good)
    yield "head-only.jpg", b"\xff\xd8\xff\xe0\x00\x10JFIF\x00"
    yield "jpeg-without-end.png", picture("jpg")[:200]
