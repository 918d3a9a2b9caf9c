"""What a comparison with a peer hands over, and how both sides are measured: in turn, on one thread, best of k."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from judges import flops, interleaved, saved_at_once
from torch import nn

Work = Callable[[], object]


@dataclass
class Comparison:
    """works: the peer's first, then ours by what they do. away: how far ours is from theirs on equal noise, by what.

    models: whose weights are no memory of a backward pass, where that is measured.
    """

    works: Mapping[str, Work]
    away: Mapping[str, float] = field(default_factory=dict)
    models: nn.Module | None = None


def measured(comparison: Comparison, rounds: int) -> dict[str, dict[str, float]]:
    """Figures of each work: GFLOPs, CPU seconds (best of `rounds`), and by how much the peer's are more."""
    operations = {name: flops(work) for name, work in comparison.works.items()}
    best = interleaved(dict(comparison.works), rounds, time.process_time)
    theirs = next(iter(comparison.works))
    figures = {
        name: {
            "gflop": round(operations[name] / 1e9, 2),
            "cpu_seconds": round(best[name], 3),
            "flop_ratio": round(operations[theirs] / operations[name], 3),
            "cpu_ratio": round(best[theirs] / best[name], 3),
        }
        for name in comparison.works
    }
    if comparison.models is not None:
        for name, work in comparison.works.items():
            figures[name]["saved_mb"] = round(saved_at_once(comparison.models, work), 1)
    return figures
