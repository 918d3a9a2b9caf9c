"""What a run is begun with: a device, a precision, and files that should not change before it is done."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from rewarddance.errors import InputError, first_line

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def find_device(name: str | None) -> str:
    """`cpu`, `cuda` or `cuda:1`; None is cuda where there is one. Raises InputError naming one that is not there.

    On a GPU, products in float32 are from now on taken by its TF32 units, as convolutions are by default.
    """
    there = torch.cuda.is_available()
    if name is None:
        return _with_tf32("cuda" if there else "cpu")
    if name != "cpu" and not re.fullmatch(r"cuda(:\d+)?", name):
        raise InputError(f"there is no device named {name!r}.", "Say cpu or cuda, or cuda:1 for the second GPU.")
    if name != "cpu" and not there:
        raise InputError("there is no CUDA device here.", "Leave the device out, or say cpu.")
    if name.startswith("cuda:") and int(name[5:]) >= torch.cuda.device_count():
        raise InputError(f"there is no device {name}: {torch.cuda.device_count()} are here.", "They count from cuda:0.")
    return _with_tf32(name)


def check_device(device: str | torch.device) -> None:
    """Raises InputError where nothing can be put on a device."""
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError, TypeError) as error:
        raise InputError(
            f"there is no device {device!r} here: {first_line(error)}.",
            "Say cpu, or cuda where there is one; options go by name, such as kind='pointwise'.",
        ) from error


def _with_tf32(name: str) -> str:
    if name != "cpu":
        torch.backends.cuda.matmul.allow_tf32 = True
    return name


def find_dtype(name: str | torch.dtype, device: str | None = "cpu") -> torch.dtype:
    """The precision of a name (`Precision`) on a device, None being cuda where there is one.

    Raises InputError naming one that is not known.
    """
    if isinstance(name, torch.dtype):
        return name
    if name == "auto":
        is_gpu = (device or find_device(None)) != "cpu"
        half = is_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if half else torch.float32
    if name not in DTYPES:
        raise InputError(f"there is no precision named {name!r}.", f"Say auto, {', '.join(DTYPES)}.")
    return DTYPES[name]


def on_device(values: Tensor, device: torch.device) -> Tensor:
    """The values on a device. On their way from the host to a GPU the host does not wait for it."""
    if values.device.type == "cpu" and device.type not in ("cpu", "meta"):
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def random_on(device: torch.device, seed: int) -> torch.Generator:
    """A random generator of the device, which draws there; of the CPU for the meta device, where nothing is drawn."""
    return torch.Generator("cpu" if device.type == "meta" else device).manual_seed(seed)


def multiplies_bfloat16(device: torch.device) -> bool:
    """Is this the CPU, and does it have instructions for products of bfloat16? Without them they are slower."""
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def digest_of(files: Iterable[Path]) -> str:
    """Of the files' sizes and times of writing: weights are too large to be read for this."""
    stats = sorted((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file())
    return hashlib.blake2b(json.dumps(stats).encode(), digest_size=16).hexdigest()
