"""The pictures of requests, decoded within limits. The same bytes are the same tensor: a judge encodes it once."""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

from rewarddance.data.media import as_pixels, media_size, read_rate
from rewarddance.errors import InputError, RewardDanceError, shown
from rewarddance.types import Pixels

_BEYOND = 0.5
"""How far a float may lie outside of [0, 1]: a decoder overshoots a little, and another range is a mistake."""


class TooLarge(InputError):
    """A request beyond the limits of the server."""


class Busy(RewardDanceError):
    """More is asked than the server can keep. seconds: when to come again."""

    def __init__(self, what: str, seconds: float) -> None:
        super().__init__(what, "Ask again after a pause.")
        self.seconds = seconds


class PictureStore:
    """Pixels by the hash of what they were decoded from. The last used ones are kept, up to `limit` bytes.

    While anybody holds a picture, the same content is that very tensor, kept or not. Used from many threads.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes, self.hits, self.misses = limit, 0, 0, 0
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()
        self._alive: WeakValueDictionary[bytes, Tensor] = WeakValueDictionary()
        self._lock = threading.Lock()

    def find(self, key: bytes) -> Pixels | None:
        """The pixels of a content that is known, by its `key_of`."""
        with self._lock:
            if (pixels := self._alive.get(key)) is not None:
                self.hits += 1
                self._keep(key, pixels)
            return pixels

    def add(self, key: bytes, made: Pixels) -> Pixels:
        """The pixels of this content: those given, or another's who was first."""
        with self._lock:
            pixels = self._alive.setdefault(key, made)
            self.misses += 1
            self._keep(key, pixels)
        return pixels

    def _keep(self, key: bytes, pixels: Tensor) -> None:
        if key not in self._kept:
            self._kept[key] = pixels
            self.bytes += pixels.nbytes
        self._kept.move_to_end(key)
        while self.bytes > self.limit:
            _, last = self._kept.popitem(last=False)
            self.bytes -= last.nbytes


def key_of(content: bytes | np.ndarray, form: str) -> bytes:
    """The hash of a content. form: of what kind it is."""
    return hashlib.blake2b(content, digest_size=16, key=form.encode()[:64]).digest()  # type: ignore[arg-type]


class Memory:
    """Bytes that all requests in flight hold together. Used from many threads."""

    def __init__(self, limit: int) -> None:
        self.limit, self.held = limit, 0
        self._lock = threading.Lock()

    def take(self, size: int) -> None:
        """Raises TooLarge where it would never fit, and Busy where others have to end first."""
        with self._lock:
            if size > self.limit:
                raise TooLarge(f"the request takes {size:,} bytes, of {self.limit:,}.", "Ask in parts.")
            if self.held + size > self.limit:
                raise Busy("the requests in flight take all the memory that they may.", 1.0)
            self.held += size

    def give_back(self, size: int) -> None:
        with self._lock:
            self.held -= size


class RequestPictures:
    """The pictures of one request, up to `max_pixels` in all. Use as a context: what it holds is given back.

    Its methods raise InputError beginning with `name` for what is no picture, TooLarge and Busy.
    """

    def __init__(self, store: PictureStore, memory: Memory, max_pixels: int) -> None:
        self._store, self._memory, self.max_pixels = store, memory, max_pixels
        self._pixels = self._bytes = 0
        self._videos: dict[int, tuple[Pixels, bytes, str]] = {}

    def __enter__(self) -> RequestPictures:
        return self

    def __exit__(self, *_: object) -> None:
        self._memory.give_back(self._bytes)

    def take_bytes(self, size: int) -> None:
        self._memory.take(size)
        self._bytes += size

    def take_pixels(self, count: int) -> None:
        self._pixels += count
        if self._pixels > self.max_pixels:
            raise TooLarge(
                f"the pictures of the request have {self._pixels:,} pixels or more, of {self.max_pixels:,}.",
                "Ask in parts, or with smaller pictures.",
            )
        self.take_bytes(12 * count)

    def from_file(self, data: bytes, name: str) -> Pixels:
        """The bytes of a picture's or a video's file."""
        key = key_of(data, "file")
        pixels = self._store.find(key)
        if pixels is not None:
            self.take_pixels(pixels.numel() // 3)
        else:
            frames, height, width = media_size(data, name=name)
            self.take_pixels(frames * height * width)
            pixels = self._store.add(key, as_pixels(data, name))
        if len(pixels) > 1:
            self._videos[id(pixels)] = pixels, data, name
        return pixels

    def rate_of(self, pixels: Pixels | None) -> float | None:
        """Frames a second of what `from_file` made of a video's file, where they are known."""
        _, data, name = self._videos.get(id(pixels), (None, None, ""))
        return None if data is None else read_rate(data, name)

    def from_base64(self, text: object, name: str) -> Pixels:
        """A file in base64, with or without the head of a data URL. No other URL is followed."""
        if not isinstance(text, str):
            raise InputError(f"{name} is no text in base64.", "Send a PNG or JPEG file in base64.")
        head, comma, rest = text.partition(",")
        if head.startswith("data:"):
            if not comma or not head.endswith(";base64"):
                raise InputError(f"{name} is a data URL that is not in base64.", "Send data:image/png;base64,...")
            text = rest
        elif "://" in text[:16]:
            raise InputError(
                f"{name} is at {shown(text)}, and this server fetches nothing.", "Send the picture itself."
            )
        try:
            data = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise InputError(f"{name} is no base64: {error}.", "Send a PNG or JPEG file in base64.") from error
        return self.from_file(data, name)

    def from_frames(self, texts: object, name: str) -> Pixels:
        """A video as a list of its frames in base64."""
        if not isinstance(texts, Sequence) or isinstance(texts, str) or not texts:
            raise InputError(f"{name} is no list of frames.", "Send a list of PNG files in base64.")
        frames = [self.from_base64(text, f"frame {number} of {name}") for number, text in enumerate(texts)]
        return as_pixels(frames, name) if len(frames) > 1 else frames[0]

    def from_tensor(self, tensor: Tensor, name: str) -> Pixels:
        """8-bit values or floats [T, 3, H, W] as they came."""
        if tensor.ndim != 4 or tensor.shape[1] != 3 or 0 in tensor.shape:
            raise InputError(f"{name} has the shape {list(tensor.shape)}.", "Send [T, 3, H, W].")
        if tensor.dtype not in (torch.uint8, torch.float16, torch.bfloat16, torch.float32):
            raise InputError(f"{name} holds {tensor.dtype}.", "Send uint8, float16, bfloat16 or float32.")
        self.take_pixels(math.prod(tensor.shape) // 3)
        key = key_of(tensor.contiguous().view(torch.uint8).numpy(), f"{tensor.dtype} {[*tensor.shape]}")
        if (known := self._store.find(key)) is not None:
            return known
        pixels = tensor.float() / 255 if tensor.dtype == torch.uint8 else tensor.float()
        if not pixels.isfinite().all():  # the judge would fail on all that are asked with it, to find out which it was
            raise InputError(f"{name} has values that are not finite.", "Look for NaN in what made it.")
        low, high = pixels.min().item(), pixels.max().item()
        if not -_BEYOND <= low <= high <= 1 + _BEYOND:
            raise InputError(f"{name} has values from {low:.3g} to {high:.3g}.", "Send floats in [0, 1], or uint8.")
        return self._store.add(key, pixels)
