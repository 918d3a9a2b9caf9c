"""Compiled layers against the same layers as they are: a judge's answers and its gradient in pixels, in one process.

python benchmarks/compiled.py           some minutes on one core; the last line is JSON, figure name to number

CPU seconds of this process and its compilers, not of the clock: they say the same beside other work.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from judges import PROMPT, build_judge, candidates

from rewarddance.reward.loading import load_reward
from rewarddance.reward.pixel_gradient import pixel_gradient
from rewarddance.types import Question

ROUNDS = 3


def cpu_seconds(work: Callable[[], Any]) -> float:
    """Of this process and of those that it has waited for."""
    before = os.times()
    work()
    after = os.times()
    return sum(after[:4]) - sum(before[:4])


def main() -> None:
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        build_judge(Path(folder))
        judges = {
            name: load_reward(folder, dtype="float32", compile=name == "compiled") for name in ("plain", "compiled")
        }
    reference, *shown = candidates(9)
    asked = [Question(PROMPT, candidate, reference) for candidate in shown]

    def ask(judge: Any) -> torch.Tensor:
        with torch.no_grad():
            return judge(asked).margin

    def gradient(judge: Any) -> torch.Tensor:
        return pixel_gradient(judge, asked[:2], lambda margin: -margin.mean()).gradients[0]

    figures: dict[str, float] = {}
    for name, work in (("ask", ask), ("gradient", gradient)):
        own = work(judges["plain"])
        began = time.perf_counter()
        first = cpu_seconds(lambda work=work: work(judges["compiled"]))
        figures[f"{name}_first_clock_seconds"] = time.perf_counter() - began
        best = {
            label: min(cpu_seconds(lambda j=j, work=work: work(j)) for _ in range(ROUNDS))
            for label, j in judges.items()
        }
        figures |= {f"{name}_{label}_seconds": value for label, value in best.items()}
        figures[f"{name}_compiling_seconds"] = first - best["compiled"]
        figures[f"{name}_ratio"] = best["plain"] / best["compiled"]
        figures[f"{name}_max_diff"] = float((work(judges["compiled"]) - own).abs().max() / own.abs().max())
        print({key: f"{value:.4g}" for key, value in figures.items() if key.startswith(name)}, flush=True)
    print(json.dumps({key: float(f"{value:.4g}") for key, value in figures.items()}))


if __name__ == "__main__":
    main()
