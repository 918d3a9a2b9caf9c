"""What a real run takes on the CPU, by torch's own profiler."""

from __future__ import annotations

import gc
from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile


def measured_peak(work: Callable[[], object]) -> int:
    """Bytes by which a real run's memory on the CPU rises at most."""
    gc.collect()  # what an earlier test left in a cycle would be freed on the way, and hide as much of the peak
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as told:
        work()
    held = peak = 0
    for event in told.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak
