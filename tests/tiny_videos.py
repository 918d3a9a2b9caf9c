"""Prompts of videos and scripts that show them, for the tests of their oracle."""

from __future__ import annotations

import numpy as np

from rewarddance.shapeworld.motion.scripts import Script, sample_script
from rewarddance.shapeworld.motion.specs import MotionSpec, motion_prompts
from rewarddance.shapeworld.motion.videos import render_video
from rewarddance.shapeworld.scenes import BACKGROUND

DARK = np.float32(BACKGROUND)


def drawn(spec: MotionSpec, frames: int, rng: np.random.Generator) -> Script:
    script = sample_script(spec, frames, rng)
    assert script
    return script


def frames_of(script: Script) -> np.ndarray:
    return render_video(script).frames


def looks_the_same_backwards(spec: MotionSpec) -> bool:
    """A passage, and a change of a colour that is not named."""
    role = spec.roles[0]
    return spec.category == "occlusion" or (spec.category == "colour_change" and not (role.noun.colour or role.into))


def prompts_and_scripts(rng: np.random.Generator) -> list[tuple[MotionSpec, Script]]:
    """18 training prompts, every category among them, each with a script of 8 to 16 frames."""
    prompts = [spec for _, spec in motion_prompts("train", 18, 0)]
    return [(spec, drawn(spec, int(rng.integers(8, 17)), rng)) for spec in prompts]
