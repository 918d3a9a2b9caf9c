"""GPUs by name, for plans: their memory with its bandwidth, and their peak rate of matrix products."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from rewarddance.errors import InputError

GIB = 2**30
CONTEXT = 1.0
"""GiB that CUDA, NCCL and the libraries' workspaces take before anything is computed. Assumed."""
FRAGMENTATION = 0.05
"""Share of the memory in use that the allocator loses to gaps between tensors. Assumed; it varies with the sizes."""


@dataclass(frozen=True)
class Gpu:
    """A GPU's memory and its peak, without sparsity.

    name: what plans call it.
    memory: GiB, as nvidia-smi reports it.
    bf16: TFLOP/s of matrix products in bfloat16, summed in float32.
    fp32: TFLOP/s of matrix products in float32 without TF32, which torch leaves off by default.
    bandwidth: GB/s (10^9 bytes) of the GPU's own memory.
    source: the maker's document that states them.
    """

    name: str
    memory: float
    bf16: float
    fp32: float
    bandwidth: float
    source: str

    def seconds(self, flops: float, half: bool, utilisation: float, traffic: float = 0) -> float:
        """Time of so many operations in matrix products, in bfloat16 (half) or float32, at a share of the peak; but
        no less than memory takes to read and write `traffic` bytes."""
        return max(flops / (1e12 * (self.bf16 if half else self.fp32) * utilisation), self.seconds_to_move(traffic))

    def seconds_to_move(self, traffic: float) -> float:
        """Time in which memory reads and writes so many bytes."""
        return traffic / (1e9 * self.bandwidth)


_AMPERE = "A100 datasheet, nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/nvidia-a100-datasheet"
_AMPERE_RTX = (
    "Ampere GA102 whitepaper, nvidia.com/content/PDF/nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.1.pdf"
)
_A6000 = "RTX A6000 datasheet, proviz-print-nvidia-rtx-a6000-datasheet-us-nvidia-1454980"
_ADA_RTX = "Ada whitepaper, images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf"
_BLACKWELL_RTX = "RTX Blackwell whitepaper, images.nvidia.com/aem-dam/Solutions/geforce/blackwell/"
_BLACKWELL_RTX += "nvidia-rtx-blackwell-gpu-architecture.pdf"
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("b200", 179.0, 2250.0, 80.0, 8000.0, "Blackwell Architecture Technical Brief, HGX B200"),
        Gpu("h200", 140.4, 989.5, 67.0, 4800.0, "nvidia.com/en-us/data-center/h200"),
        Gpu("h100", 79.6, 989.5, 67.0, 3350.0, "nvidia.com/en-us/data-center/h100, H100 SXM"),
        Gpu("h20", 95.6, 148.0, 44.0, 4000.0, "none of NVIDIA's; resellers agree"),
        Gpu("a100", 80.0, 312.0, 19.5, 2039.0, _AMPERE),
        Gpu("a100-40", 40.0, 312.0, 19.5, 1555.0, _AMPERE),
        Gpu("l40s", 45.0, 362.0, 91.6, 864.0, "L40S datasheet, resources.nvidia.com/en-us-l40s/l40s-datasheet-28413"),
        Gpu("l4", 22.5, 121.0, 30.3, 300.0, "L4 datasheet, nvdam.widen.net/s/rvq98gbwsw/l4-datasheet-2595652"),
        Gpu("a6000", 48.0, 154.8, 38.7, 768.0, _A6000),
        Gpu("mi300x", 192.0, 1307.4, 163.4, 5300.0, "AMD Instinct MI300X data sheet, amd.com"),
        Gpu("rtx5090", 31.8, 209.5, 104.8, 1792.0, _BLACKWELL_RTX),
        Gpu("rtx4090", 24.0, 165.2, 82.6, 1008.0, _ADA_RTX),
        Gpu("rtx3090", 24.0, 71.0, 35.6, 936.0, _AMPERE_RTX),
    )
}
"""Data-centre GPUs are the SXM versions where there are several. The makers' documents were not opened themselves: the
figures were read off public pages and code that quote and name them. Memory is from public logs of nvidia-smi.
Documents that state peaks with sparsity only (Hopper, L4, A6000) say that half of it holds without."""


def find_gpu(name: str, memory: float | None = None) -> Gpu:
    """A GPU by name. memory: GiB to plan with instead. Raises InputError for a name that is not in the table."""
    if name.lower() not in GPUS:
        raise InputError(f"there is no GPU named {name!r} here.", f"Known are {', '.join(GPUS)}; see --gpu-memory.")
    gpu = GPUS[name.lower()]
    return gpu if memory is None else replace(gpu, memory=memory)


class Work(NamedTuple):
    """Operations in matrix products, and bytes of memory that are read and written."""

    flops: float
    traffic: float


NOTHING = Work(0, 0)


def bound_by_memory(gpu: Gpu, work: Mapping[str, Work], seconds: Mapping[str, float]) -> tuple[str, ...]:
    """Phases of which memory's bandwidth says how long they take, but for those under a hundredth of all.

    seconds: the time of each phase, by `Gpu.seconds`.
    """
    least = sum(seconds.values()) / 100
    bound = [phase for phase, done in work.items() if seconds[phase] == gpu.seconds_to_move(done.traffic)]
    return tuple(phase for phase in bound if seconds[phase] > least)


def allocated(size: int) -> int:
    """Bytes that a GPU needs for tensors of so many bytes: with its context and the allocator's gaps."""
    return int(size * (1 + FRAGMENTATION) + CONTEXT * GIB)
