"""How large each measurement is: as people have it, or as a dry run has it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Sizes:
    """judges: label to name or folder, for scoring. judge: of gradients and training. generator: of the alignments.

    product: side of the matrices. heads, width, prefix, own, rows: of one attention. side: of pictures in pixels, and
    scored_side where they are scored only. candidates: under one reference. differentiated: questions of a pixel
    gradient. pairs: of a training step. options: of the generator. group: samples of a prompt.
    """

    judges: dict[str, str]
    judge: str
    generator: str
    product: int = 8192
    heads: tuple[int, int] = (32, 8)
    width: int = 128
    prefix: int = 1300
    own: int = 1100
    rows: int = 4
    side: int = 1024
    scored_side: int = 448
    candidates: int = 16
    differentiated: int = 4
    pairs: int = 8
    group: int = 4
    options: dict[str, Any] = field(default_factory=dict)


REAL = Sizes(
    judges={
        "internvl3_1b": "OpenGVLab/InternVL3-1B-hf",
        "qwen3_vl_2b": "Qwen/Qwen3-VL-2B-Instruct",
        "internvl3_8b": "OpenGVLab/InternVL3-8B-hf",
        "qwen3_vl_8b": "Qwen/Qwen3-VL-8B-Instruct",
        "qwen3_vl_32b": "Qwen/Qwen3-VL-32B-Instruct",
    },
    judge="Qwen/Qwen3-VL-8B-Instruct",
    generator="black-forest-labs/FLUX.1-dev",
    options={
        "num_inference_steps": 10,
        "guidance_scale": 3.5,
        "height": 1024,
        "width": 1024,
        "max_sequence_length": 256,
    },
)
