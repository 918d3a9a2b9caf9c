"""GPUs by name, for plans: what their memory holds and what they compute at most."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rewarddance.errors import InputError

GIB = 2**30
CONTEXT = 1.0
"""GiB that CUDA, NCCL and the libraries' workspaces take before anything is computed. Assumed."""
LOST = 0.05
"""Share of what is held that the allocator loses to gaps between tensors. Assumed; it varies with the sizes."""


@dataclass(frozen=True)
class Gpu:
    """memory: GiB, as nvidia-smi says it. half, single: dense peak TFLOP/s of matrix products in bfloat16, and in
    float32 without TF32, which torch leaves off unless it is told."""

    name: str
    memory: float
    half: float
    single: float

    def seconds(self, flops: float, half: bool, utilisation: float) -> float:
        """For so many operations of matrix products, in half precision or single, at a share of the peak."""
        return flops / (1e12 * (self.half if half else self.single) * utilisation)


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("h100", 79.6, 989.0, 67.0),
        Gpu("h200", 140.4, 989.0, 67.0),
        Gpu("h20", 95.6, 148.0, 44.0),
        Gpu("a100", 80.0, 312.0, 19.5),
        Gpu("a100-40", 40.0, 312.0, 19.5),
        Gpu("l40s", 45.0, 362.0, 91.6),
        Gpu("rtx4090", 24.0, 165.0, 82.6),
    )
}
"""As NVIDIA states them for the SXM versions, without sparsity; written from memory and not looked up again."""


def find_gpu(name: str, memory: float | None = None) -> Gpu:
    """memory: GiB to count with instead. Raises InputError naming a GPU that is not known."""
    if name.lower() not in GPUS:
        raise InputError(f"there is no GPU named {name!r} here.", f"Known are {', '.join(GPUS)}; see --gpu-memory.")
    found = GPUS[name.lower()]
    return found if memory is None else replace(found, memory=memory)
