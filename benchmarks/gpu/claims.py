"""The figures to reach on an H200: what was calculated, beside what is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Found = Mapping[str, Mapping[str, Any]]
"""Part to figure to value."""


class Claim(NamedTuple):
    """A line of the page. measured: from what all parts found; raises KeyError where a part has not found it."""

    figure: str
    to_reach: str
    measured: Callable[[Found], str]


def _of(part: str, figure: str, form: str = "{:.3g}") -> Callable[[Found], str]:
    return lambda found: form.format(found[part][figure])


def _pairs(label: str) -> Callable[[Found], str]:
    def told(found: Found) -> str:
        ours, theirs = (found["scoring"][f"{label}_{name}"] for name in ("pairs_a_second", "naive_pairs_a_second"))
        return f"{theirs:.3g} to {ours:.3g}"

    return told


def _beside(part: str, planned: str) -> Callable[[Found], str]:
    def told(found: Found) -> str:
        real, plan = found[part]["peak_gib"], found["planned"][planned]
        return f"{real:.1f} GiB, planned {plan:.1f} ({plan / real - 1:+.0%})"

    return told


def _training_share(found: Found) -> str:
    tflop, seconds, peak = found["planned"]["training_tflop"], found["training"]["seconds"], found["card"]["peak"]
    return f"{tflop / seconds / peak:.0%}"


def _gradient(found: Found) -> str:
    return "{:.1f}".format(found["gradient"]["added_gib"] / found["gradient"]["checkpointed_added_gib"])


def _attention(found: Found) -> str:
    return "{matrix_forward_ms:.3g} to {forward_ms:.3g}".format(**found["attention"])


SHARE = "{:.0%}"
CLAIMS = (
    Claim("TFLOP/s of a product of bfloat16", "790", _of("product", "tflops")),
    Claim("kernel of attention to a prefix", "FlashCUDA", _of("attention", "kernel", "{}")),
    Claim("a flash kernel in the judge's forward", "True", _of("kernels", "flash", "{}")),
    Claim("that attention, forward, ms, written out and ours", "none", _attention),
    Claim("pairs a second, one by one and ours, InternVL3-1B", "none", _pairs("internvl3_1b")),
    Claim("the same, Qwen3-VL-2B", "none", _pairs("qwen3_vl_2b")),
    Claim("the same, InternVL3-8B", "41 to 100", _pairs("internvl3_8b")),
    Claim("the same, Qwen3-VL-8B", "45 to 114, 90 at least", _pairs("qwen3_vl_8b")),
    Claim("the same, Qwen3-VL-32B", "12 to 30", _pairs("qwen3_vl_32b")),
    Claim("share of the peak in prefill, InternVL3-8B", "50%", _of("scoring", "internvl3_8b_utilisation", SHARE)),
    Claim("share of the peak in prefill, Qwen3-VL-8B", "50%", _of("scoring", "qwen3_vl_8b_utilisation", SHARE)),
    Claim("pixel gradient of 4 questions, 8B, GiB beside the weights", "none", _of("gradient", "added_gib")),
    Claim("the same, in times less with layers' inputs kept only", "none", _gradient),
    Claim("its time, s", "none", _of("gradient", "seconds")),
    Claim("share of the peak in training an 8B judge (LoRA)", "40%", _training_share),
    Claim("peak of that training, against the plan", "15% apart at most", _beside("training", "training_gib")),
    Claim("a step of ReFL, FLUX LoRA with an 8B judge, s", "fits one card", _of("refl", "seconds")),
    Claim("its peak, against the plan", "15% apart at most", _beside("refl", "refl_gib")),
    Claim("a step of Flow-GRPO of the same, s", "none", _of("grpo", "seconds")),
)
