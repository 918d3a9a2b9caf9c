"""Prompts of videos and scripts that show them, for the tests of their oracle."""

from __future__ import annotations

import numpy as np

from rewarddance.shapeworld.motion.scripts import Script, sample_script
from rewarddance.shapeworld.motion.specs import MotionSpec, motion_prompts


def drawn(spec: MotionSpec, frames: int, rng: np.random.Generator) -> Script:
    script = sample_script(spec, frames, rng)
    assert script
    return script


def prompts_and_scripts(rng: np.random.Generator) -> tuple[list[MotionSpec], list[Script]]:
    """18 training prompts, every category among them, and a script of 8 to 16 frames for each."""
    prompts = [spec for _, spec in motion_prompts("train", 18, 0)]
    return prompts, [drawn(spec, int(rng.integers(8, 17)), rng) for spec in prompts]
