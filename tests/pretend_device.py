"""A GPU that is none: the torch device `pretend`, on the CPU's memory, which refuses what CUDA would refuse.

    pretend_device.register()             # before models are made; compiles a small extension once
    model.to("pretend:0")                 # a real device to autograd, nn.Module, torch.save, autocast
    with pretend_device.recording() as waits:
        step()
    print(waits.table())

Refused, as on CUDA: operations on tensors of two devices (but numbers and indices on the CPU, where CUDA takes them),
a generator of the CPU for tensors of the device, `.numpy()`. Recorded: what makes the host wait for the device, by the
function that asks for it. The kernels are the CPU's, so results are the CPU's.

It cannot show speed, memory, streams, or kernels that CUDA lacks. It is of a whole process, so tests of it have one.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import torch

NAME = "pretend"
SOURCE = Path(__file__).with_suffix(".cpp")
BUILT = SOURCE.parents[1] / "build" / "pretend_device"
COMPILERS = ("g++", "ninja")

_extension: Any = None


def missing_compilers() -> list[str]:
    """What is not on this machine of what the device is built with."""
    return [name for name in COMPILERS if shutil.which(name) is None]


def register(count: int = 2) -> None:
    """Make `pretend:0` .. `pretend:<count - 1>`; modules that move keep their parameters, as on CUDA."""
    global _extension
    if _extension is not None:
        return
    torch.utils.rename_privateuse1_backend(NAME)
    _extension = _load(_built())
    _extension.start(count)
    torch._register_device_module(NAME, _device_module(count))
    torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)
    torch.__future__.set_swap_module_params_on_conversion(True)


def _built() -> Path:
    """The compiled extension, made where it is not there yet: a build that is cut off leaves nothing behind."""
    from torch.utils.cpp_extension import load

    key = hashlib.blake2b(
        SOURCE.read_bytes() + f"{torch.__version__} {sys.version}".encode(), digest_size=8
    ).hexdigest()
    path = BUILT / f"pretend_{key}.so"
    if not path.is_file():
        BUILT.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=BUILT) as folder:
            load(f"pretend_{key}", [str(SOURCE)], extra_cflags=["-O0", "-w"], build_directory=folder)
            os.replace(Path(folder) / path.name, path)
    return path


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _index(device: Any) -> int:
    device = torch.device(device) if isinstance(device, str) else device
    return getattr(device, "index", device) or 0


def _device_module(count: int) -> ModuleType:
    """What torch looks for under `torch.pretend`."""

    class Within:
        def __init__(self, device: Any) -> None:
            self.index = _index(device)

        def __enter__(self) -> None:
            self.before = _extension.current_device()
            _extension.set_device(self.index)

        def __exit__(self, *error: Any) -> None:
            _extension.set_device(self.before)

    module = ModuleType(f"torch.{NAME}")
    answers: dict[str, Any] = {
        "_is_in_bad_fork": lambda: False,
        "_lazy_init": lambda: None,
        "current_device": lambda: _extension.current_device(),
        "device": Within,
        "device_count": lambda: count,
        "empty_cache": lambda: None,
        "get_amp_supported_dtype": lambda: [torch.bfloat16, torch.float16],
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
        "set_device": lambda device: _extension.set_device(_index(device)),
        "set_rng_state": lambda state, device=None: torch.set_rng_state(state),
        "synchronize": lambda device=None: None,
    }
    for name, answer in answers.items():
        setattr(module, name, answer)
    return module


class Waits:
    """How often the host waited for the device, by why and by which function of `package` made it wait.

    A function is its file within the package and its name, such as "reward/judge.py checked".
    """

    def __init__(self, package: str) -> None:
        self.package = f"/{package}/"
        self.counts: Counter[tuple[str, str]] = Counter()

    def __call__(self, why: str) -> None:
        try:
            frame: FrameType | None = sys._getframe(1)
        except ValueError:  # autograd's own thread: no line of Python asked
            self.counts[why, "the backward pass"] += 1
            return
        while frame is not None and not self._is_ours(frame):
            frame = frame.f_back
        where = "elsewhere"
        if frame is not None:
            name = frame.f_code.co_qualname.replace(".<locals>", "")
            where = f"{frame.f_code.co_filename.rpartition(self.package)[-1]} {name}"
        self.counts[why, where] += 1

    def _is_ours(self, frame: FrameType) -> bool:
        return self.package in frame.f_code.co_filename and "jaxtyp" not in frame.f_code.co_qualname

    def beside(self, allowed: Iterable[str]) -> dict[str, int]:
        """Those that no function of `allowed` caused: "function: why" and how often."""
        allowed = set(allowed)
        return {f"{where}: {why}": n for (why, where), n in sorted(self.counts.items()) if where not in allowed}

    def table(self) -> str:
        """A line for each, the most frequent first."""
        return "\n".join(f"{n:6d}  {why:24s} {where}" for (why, where), n in self.counts.most_common())


@contextmanager
def recording(package: str = "rewarddance") -> Iterator[Waits]:
    """Within the block all waits are recorded."""
    waits = Waits(package)
    _extension.record_with(waits)
    try:
        yield waits
    finally:
        _extension.record_with(None)
