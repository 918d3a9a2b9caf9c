"""Attention to a shared prefix: merged by log-sum-exp against one matrix of scores over both parts, in one process.

python benchmarks/prefix_attention.py    more than 3 minutes on 1 core; the last line is JSON, figure name to number
"""

from __future__ import annotations

import json

import torch
from judges import interleaved, peak_rss
from torch import Tensor

from rewarddance.reward.prefix_attention import prefix_attention

SHAPES = {  # query heads, key heads, width, tokens of the prefix, tokens of each row, rows
    "8b": (32, 8, 128, 1300, 1100, 4),
    "shapeworld": (4, 4, 32, 60, 30, 64),
}


def score_matrix(query: Tensor, key: Tensor, value: Tensor, prefix_key: Tensor, prefix_value: Tensor) -> Tensor:
    """The baseline: softmax over the scores of both parts side by side, which autograd keeps; one group."""
    rows, heads, length, width = query.shape
    kv_heads, prefix_length = prefix_key.shape[1:3]
    shared = heads // kv_heads
    query = (query * width**-0.5).reshape(rows, kv_heads, shared * length, width)
    to_prefix = query @ prefix_key.mT
    later = torch.ones(length, length, dtype=torch.bool).triu(1)
    own = (query @ key.mT).view(rows, kv_heads, shared, length, length).masked_fill(later, -torch.inf)
    weights = torch.cat([to_prefix, own.flatten(2, 3)], -1).softmax(-1)
    found = weights[..., :prefix_length] @ prefix_value + weights[..., prefix_length:] @ value
    return found.view(rows, heads, length, width)


def main() -> None:
    figures: dict[str, float] = {}
    for name, (heads, kv, width, prefix_length, length, rows) in SHAPES.items():
        g = torch.Generator().manual_seed(0)
        shapes = [(rows, n, length, width) for n in (heads, kv, kv)] + [(1, kv, prefix_length, width)] * 2
        inputs = [torch.randn(shape, generator=g) for shape in shapes]
        ways = {
            "matrix": score_matrix,
            "merged": lambda *x, p=prefix_length, w=width: prefix_attention(*x[:3], x[3:], [p], w**-0.5),
        }
        leaves = [x.clone().requires_grad_() for x in inputs]

        def gradients(way: str, ways=ways, leaves=leaves) -> tuple[Tensor, ...]:
            return torch.autograd.grad(ways[way](*leaves).square().mean(), leaves)

        theirs, ours = gradients("matrix"), gradients("merged")
        with torch.no_grad():
            figures[f"{name}_max_diff"] = float((ways["merged"](*inputs) - ways["matrix"](*inputs)).abs().max())
        figures[f"{name}_gradient_diff"] = max(
            float((a - b).norm() / a.norm()) for a, b in zip(theirs, ours, strict=True)
        )
        del theirs, ours
        with torch.no_grad():
            forward = interleaved({way: (lambda f=f, x=inputs: f(*x)) for way, f in ways.items()}, rounds=5)
        both = interleaved({way: (lambda w=way, g=gradients: g(w)) for way in ways}, rounds=3)
        for way in ways:
            figures |= {f"{name}_{way}_forward_seconds": forward[way], f"{name}_{way}_gradient_seconds": both[way]}
            kept: dict[int, int] = {}
            own = {x.untyped_storage().data_ptr() for x in leaves}

            def keep(x: Tensor, kept=kept, own=own) -> Tensor:
                if x.untyped_storage().data_ptr() not in own:
                    kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
                return x

            with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), peak_rss() as rose:
                out = ways[way](*leaves)
                figures[f"{name}_{way}_kept_mb"] = sum(kept.values()) / 2**20
                out.sum().backward()
            figures[f"{name}_{way}_peak_mb"] = rose[0]
        for figure in ("forward_seconds", "gradient_seconds", "kept_mb"):
            figures[f"{name}_{figure}_ratio"] = figures[f"{name}_matrix_{figure}"] / figures[f"{name}_merged_{figure}"]
        print({key: f"{value:.4g}" for key, value in figures.items() if key.startswith(name)}, flush=True)
    print(json.dumps({key: float(f"{value:.4g}") for key, value in figures.items()}))


if __name__ == "__main__":
    main()
