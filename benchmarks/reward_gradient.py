"""The reward's gradient in a candidate's pixels: ours against plain autograd, in one process, on one random judge.

python benchmarks/reward_gradient.py    about 1 minute on 2 cores; the last line is JSON, figure name to number
"""

from __future__ import annotations

import json

import torch
from judges import PROMPT, build_judge, candidates, flops, interleaved, naive_margin, peak_rss, saved
from torch import Tensor

from rewarddance.types import Question


def main() -> None:
    judge = build_judge()
    reference, candidate = candidates(2)
    print(
        f"{sum(w.numel() for w in judge.model.parameters()) / 1e6:.0f}M parameters, {torch.get_num_threads()} threads"
    )

    def margin(variant: str, pixels: Tensor) -> Tensor:
        judge.model.requires_grad_(variant == "plain")
        judge.vlm.checkpointing = variant == "checkpointed"
        question = Question(PROMPT, pixels, reference)
        return naive_margin(judge, question) if variant in ("plain", "frozen") else judge([question]).margin[0]

    def gradient(variant: str) -> Tensor:
        pixels = candidate.clone().requires_grad_()
        margin(variant, pixels).backward()
        judge.model.zero_grad(set_to_none=True)
        assert pixels.grad is not None
        return pixels.grad

    variants = ("plain", "frozen", "ours", "checkpointed")
    found = {variant: gradient(variant) for variant in variants}
    scale = found["plain"].abs().max()
    kept, peak = {}, {}
    for variant in variants:
        kept[variant] = saved(judge.model, lambda v=variant: margin(v, candidate.clone().requires_grad_()))
        with peak_rss() as rose:
            gradient(variant)
        (peak[variant],) = rose
    operations = {variant: flops(lambda v=variant: gradient(v)) for variant in variants}
    best = interleaved({variant: (lambda v=variant: gradient(v)) for variant in variants}, rounds=5)
    judge.model.requires_grad_(False)
    figures = {"max_relative_diff": max(float((g - found["plain"]).abs().max() / scale) for g in found.values())}
    for variant in variants:
        figures |= {f"{variant}_seconds": round(best[variant], 4), f"{variant}_saved_mb": round(kept[variant], 1)}
        figures |= {f"{variant}_peak_mb": round(peak[variant], 1)}
        print({key: value for key, value in figures.items() if key.startswith(variant)}, flush=True)
    for variant in variants[1:]:
        figures[f"{variant}_wall"] = round(best["plain"] / best[variant], 3)
        figures[f"{variant}_flops"] = round(operations["plain"] / operations[variant], 3)
        figures[f"{variant}_saved"] = round(kept["plain"] / kept[variant], 2)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
