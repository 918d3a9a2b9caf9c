"""What the loops on the pretend device stand on: importing this registers the device for the whole process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pretend_device
import torch
from torch import nn

from rewarddance.runtime import devices, process_group

DEVICE = "pretend:0"

pretend_device.register()


def on_device() -> None:
    """From now on the commands that look for a device find this one."""
    for replaced, answer in ((devices.find_device, lambda name: DEVICE), (process_group.device, _device)):
        for module in list(sys.modules.values()):
            if getattr(module, replaced.__name__, None) is replaced:
                setattr(module, replaced.__name__, answer)


def _device() -> torch.device:
    return torch.device(DEVICE)


def waits_of(step: Callable[[], Any], allowed: dict[str, str]) -> dict[str, int]:
    """What makes the host wait in a step and is not allowed; what only the first step does is not counted."""
    step()
    with pretend_device.recording() as waits:
        step()
    return waits.beside(allowed)


@contextmanager
def seen_by(layers: Iterable[nn.Module]) -> Iterator[set[tuple[str, torch.dtype]]]:
    """Within the block the devices and precisions of what these layers are given."""
    seen: set[tuple[str, torch.dtype]] = set()

    def look(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        tensors = [one for one in (*inputs, *named.values()) if isinstance(one, torch.Tensor)]
        seen.update((str(one.device), one.dtype) for one in tensors if one.is_floating_point())

    handles = [layer.register_forward_pre_hook(look, with_kwargs=True) for layer in layers]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
