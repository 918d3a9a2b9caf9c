"""Pictures and videos as the page gets them: what is seen, and nothing that says who made it.

Generators write prompts, settings and their own names into a picture's metadata, so no file is sent as it is. Pictures
become PNG, what Pillow animates and folders of frames become animated PNG, and videos are copied without metadata.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from rewarddance.data.media import as_images, as_pixels, is_video, media_size, read_rate
from rewarddance.data.video_io import without_metadata
from rewarddance.errors import InputError, as_ours

_CACHE = 256 << 20
"""Bytes that are kept, so that a picture is made once for several people."""
_FRAMES, _RATE = 600, 8.0
"""Frames of an animation at most, and a second where nothing says how many."""


class PageFile(NamedTuple):
    """A file for the page. kind: its media type."""

    data: bytes
    kind: str


def check_media(path: Path) -> None:
    """Raises InputError naming a file that is missing, is no picture or video, or cannot be played by a browser."""
    media_size(path)
    if is_video(path):
        _video(path)


def page_file(path: Path, fps: float | None = None) -> PageFile:
    """A file for the page. fps: of a folder of frames. Raises InputError naming the file."""
    if not path.is_dir() and is_video(path):
        return _video(path)
    pixels = as_pixels(path, max_frames=_FRAMES)
    first, *others = as_images(pixels)
    data = BytesIO()
    if others:
        rate = fps or (None if path.is_dir() else read_rate(path)) or _RATE
        first.save(data, "PNG", save_all=True, append_images=others, duration=1000 / rate, loop=0, compress_level=3)
    else:
        first.save(data, "PNG", compress_level=1)
    return PageFile(data.getvalue(), "image/png")


def _video(path: Path) -> PageFile:
    try:
        with path.open("rb") as file:
            return PageFile(*without_metadata(file, f"the video {path}"))
    except InputError:
        raise
    except Exception as error:  # PyAV raises nearly anything on a broken file
        raise InputError(f"the video {path} cannot be shown: {as_ours(error).what}", "Replace or remove it.") from error


class PageMedia:
    """`page_file` with what was made last kept. Used from many threads; each file is made by one of them."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, PageFile] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        self._making: dict[str, threading.Lock] = {}

    def get(self, medium: str, path: Path, fps: float | None) -> PageFile:
        with self._lock:
            if (kept := self._find(medium)) is not None:
                return kept
            making = self._making.setdefault(medium, threading.Lock())
        with making:
            with self._lock:
                if (kept := self._find(medium)) is not None:
                    return kept
            file = page_file(path, fps)
            with self._lock:
                self._kept[medium] = file
                self._bytes += len(file.data)
                self._making.pop(medium, None)
                while self._bytes > _CACHE and len(self._kept) > 1:
                    self._bytes -= len(self._kept.popitem(last=False)[1].data)
        return file

    def _find(self, medium: str) -> PageFile | None:
        if medium in self._kept:
            self._kept.move_to_end(medium)
        return self._kept.get(medium)
