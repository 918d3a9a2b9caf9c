"""Preferences about videos of ShapeWorld: a generator's own, its early predictions, and drawn ones.

From text, or from a picture and text.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import numpy as np
from pydantic import Field

from rewarddance.protocols import Generator
from rewarddance.runtime.config import MOST
from rewarddance.shapeworld.motion.oracle import score_video
from rewarddance.shapeworld.motion.scripts import (
    FPS,
    FRAMES,
    MAX_FRAMES,
    MIN_FRAMES,
    Script,
    changed_identity,
    new_script,
    sample_script,
    script_like,
)
from rewarddance.shapeworld.motion.specs import MotionSpec, motion_near_miss, motion_prompts, sample_motion
from rewarddance.shapeworld.motion.videos import Video, render_video, spoil_video
from rewarddance.shapeworld.preferences import (
    Candidate,
    Early,
    PairRecipe,
    Pool,
    fill_pools,
    pair_drawn_and_generated,
)
from rewarddance.shapeworld.render import DEFECTS, to_pixels
from rewarddance.shapeworld.scenes import SPLITS, pick
from rewarddance.types import Preference, Prompt

_MOVING = ("flicker", "freeze", "reverse")
"""The defects that only a video can have; half of the spoiled videos have one of them."""


class MotionRecipe(PairRecipe):
    """How many preferences about videos are made.

    task: "t2v", or "i2v", where both videos of a pair were made from one picture, the prompt's image.
    frames, fps: of every video.
    """

    task: Literal["t2v", "i2v"] = "t2v"
    frames: int = Field(default=FRAMES, ge=MIN_FRAMES, le=MAX_FRAMES)
    fps: float = Field(default=FPS, gt=0)
    drawn: int = Field(default=8, ge=2, le=MOST)
    overlaid: int = Field(default=2, ge=0, le=MOST)


def draw_pools(split: str, recipe: MotionRecipe, seed: int) -> list[Pool]:
    """Drawn videos of every quality for the prompts of a split, in the order of `motion_prompts`.

    In domain (train, held_out) they are flat; out of domain (unseen) they show combinations and actions that no
    training pair shows, in another style ("sketch").
    """
    prompts = motion_prompts(split, recipe.prompt_counts().get(split, 1), seed, recipe.task)
    rng = np.random.default_rng([seed, 12, SPLITS.index(split)])
    style = "sketch" if split == "unseen" else "flat"
    pools = []
    for text, spec in prompts:
        style_seed = int(rng.integers(2**31))
        correct = new_script(spec, recipe.frames, rng)
        image = render_video(correct, recipe.fps, style, style_seed).first if recipe.task == "i2v" else None
        judge = partial(score_video, spec=spec, image=image)
        drawn = []
        for _ in range(recipe.drawn):
            frames = draw_video(spec, correct, recipe, style, style_seed, rng).frames
            drawn.append(Candidate(frames, style, judge(frames)))
        prompt = Prompt(text, image=None if image is None else to_pixels([image])[0])
        pools.append(Pool(prompt, spec, judge, drawn=drawn))
    return pools


def draw_video(
    spec: MotionSpec, correct: Script, recipe: MotionRecipe, style: str, style_seed: int, rng: np.random.Generator
) -> Video:
    """A drawn video for a prompt: correct, with another action, another object or another identity, or with too much.

    correct: a script that shows the prompt; for "i2v" most videos begin as it does, the others with another picture.
    Half of all are spoiled.
    """
    same_start = recipe.task == "i2v" and rng.random() < 0.85
    kind = rng.random()
    if kind < 0.3:
        script = script_like(spec, correct, same_start, rng)
    elif kind < 0.6:
        script = script_like(motion_near_miss(spec, rng, appearance=not same_start), correct, same_start, rng)
    elif kind < 0.75:
        script = changed_identity(script_like(spec, correct, same_start, rng), float(rng.uniform(0.2, 1)), rng)
    elif kind < 0.85:
        other = sample_motion(rng)
        script = script_like(spec, correct, same_start, rng)
        script += sample_script(other, recipe.frames, rng, beside=script) or ()
    else:
        script = script_like(sample_motion(rng), correct, False, rng)
    video = render_video(script, recipe.fps, style, style_seed)
    if rng.random() < 0.5:
        defect = pick(_MOVING if rng.random() < 0.5 else DEFECTS, rng)
        video = spoil_video(video, defect, float(rng.uniform(0.1, 0.9)), int(rng.integers(2**31)))
    return video


def generate_videos(
    generator: Generator, pools: Sequence[Pool], split: str, recipe: MotionRecipe, seed: int
) -> list[Pool]:
    """The pools with `recipe.samples` videos of a generator each, and their one-step predictions at random steps."""
    rng = np.random.default_rng([seed, 15, SPLITS.index(split)])
    return fill_pools(pools, generator, recipe.samples, rng, name=f"videos ({split.replace('_', ' ')})", batch_size=48)


def pair_videos(
    pools: Sequence[Pool],
    split: str,
    pairs: int,
    recipe: MotionRecipe,
    seed: int,
    *,
    exact: bool,
    early: Early = "none",
) -> list[Preference]:
    """`pairs` pairs of different videos for each pool, drawn and generated, with their rates.

    exact: shares are the oracle's own order (0 or 1), and pairs without one are left out; else the annotators' votes;
    of a crowd each vote is a preference of its own, those of a pair one after the other.
    early: see `generated_candidates`.
    """
    rng = np.random.default_rng([seed, 13, SPLITS.index(split)])
    return pair_drawn_and_generated(pools, pairs, recipe, rng, exact=exact, early=early, fps=recipe.fps)


def video_prompts(recipe: MotionRecipe, split: str, n: int, seed: int) -> list[Prompt]:
    """`n` prompts of a split, as `motion_prompts` gives them, with their categories in the metadata.

    For "i2v" each has the picture that its videos are to begin with.
    """
    prompts = []
    for number, (text, spec) in enumerate(motion_prompts(split, n, seed, recipe.task)):
        rng = np.random.default_rng([seed, 14, SPLITS.index(split), number])
        image = None
        if recipe.task == "i2v":
            script, style_seed = new_script(spec, recipe.frames, rng), int(rng.integers(2**31))
            image = to_pixels([render_video(script, recipe.fps, "flat", style_seed).first])[0]
        prompts.append(Prompt(text, metadata={"category": spec.category}, image=image))
    return prompts
