"""A card as the measurements see it: its clock, its memory, and which kernels it was given."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

GIB = 2**30


class Peak(NamedTuple):
    """What a piece of work took. seconds: of the clock. peak, kept: bytes at most, and how much more after it than
    before; None where the device does not say."""

    seconds: float
    peak: int | None
    before: int | None


class Card:
    """One device.

    device: such as cuda:0.
    peak: TFLOP/s of bfloat16 products without sparsity, by its maker.
    """

    def __init__(self, device: str, peak: float) -> None:
        self.device, self.peak = torch.device(device), peak
        self._module: Any = torch.get_device_module(self.device)
        self.tells_memory = self.device.type == "cuda"

    @property
    def name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else str(self.device)

    def seconds(self, work: Callable[[], Any], rounds: int = 5, warm: int = 2) -> float:
        """The median time of `rounds` runs after `warm` others, each waited for."""
        times = []
        for number in range(warm + rounds):
            self._module.synchronize()
            began = time.perf_counter()
            work()
            self._module.synchronize()
            if number >= warm:
                times.append(time.perf_counter() - began)
        return statistics.median(times)

    def peak_of(self, work: Callable[[], Any]) -> Peak:
        """One run's time, and the most memory that tensors held in it."""
        before = torch.cuda.memory_allocated(self.device) if self.tells_memory else None
        if self.tells_memory:
            torch.cuda.reset_peak_memory_stats(self.device)
        seconds = self.seconds(work, rounds=1, warm=0)
        return Peak(seconds, torch.cuda.max_memory_allocated(self.device) if self.tells_memory else None, before)

    def utilisation(self, flops: float, seconds: float) -> float:
        """The share of the peak that so many operations in so long are."""
        return flops / seconds / (self.peak * 1e12)

    def kernels(self, work: Callable[[], Any]) -> list[str]:
        """The names of the kernels that took most time, the longest first; empty where nobody can say."""
        if self.device.type != "cuda":
            work()
            return []
        with profile(activities=[ProfilerActivity.CUDA]) as found:
            work()
            self._module.synchronize()
        events = sorted(found.key_averages(), key=lambda event: -event.device_time_total)
        return [event.key[:120] for event in events[:12] if event.device_time_total]
