"""No trick pays: videos that do not show what the prompt asks for score low, whatever else they show."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from tiny_videos import DARK, drawn, frames_of, looks_the_same_backwards, prompts_and_scripts

from rewarddance.shapeworld.motion.oracle import score_video
from rewarddance.shapeworld.motion.scripts import Script
from rewarddance.shapeworld.motion.specs import MotionSpec, motion_near_miss, sample_motion
from rewarddance.shapeworld.render import render
from rewarddance.shapeworld.scenes import CANVAS, COLOURS, random_scene

RNG = np.random.default_rng(0)
EXAMPLES = prompts_and_scripts(RNG)

Trick = Callable[[Script, MotionSpec, np.random.Generator], np.ndarray]
"""From the right script to frames [T, H, W, 3] that are not it."""


def still(frame: np.ndarray, script: Script) -> np.ndarray:
    return np.tile(frame, (len(script[0]), 1, 1, 1))


def frozen(share: float) -> Trick:
    return lambda script, spec, rng: still(frames_of(script)[round(share * (len(script[0]) - 1))], script)


def unrelated(script: Script, spec: MotionSpec, rng: np.random.Generator) -> np.ndarray:
    return np.stack([render(random_scene(rng)) for _ in script[0]])


def slides_of_the_prompt(script: Script, spec: MotionSpec, rng: np.random.Generator) -> np.ndarray:
    """Every frame is of another right video."""
    return np.stack([frames_of(drawn(spec, 9, rng))[int(rng.integers(9))] for _ in script[0]])


def many_videos(n: int) -> Trick:
    def trick(script: Script, spec: MotionSpec, rng: np.random.Generator) -> np.ndarray:
        return np.max([frames_of(drawn(sample_motion(rng), len(script[0]), rng)) for _ in range(n)], axis=0)

    return trick


def tiled(script: Script, spec: MotionSpec, rng: np.random.Generator) -> np.ndarray:
    return np.tile(frames_of(script)[:, ::2, ::2], (1, 2, 2, 1))


def opposite(script: Script, spec: MotionSpec, rng: np.random.Generator) -> np.ndarray:
    """The video backwards; of one that looks the same backwards, a frame of it."""
    return frozen(0)(script, spec, rng) if looks_the_same_backwards(spec) else frames_of(script)[::-1]


def another_action(script: Script, spec: MotionSpec, rng: np.random.Generator) -> np.ndarray:
    return frames_of(drawn(motion_near_miss(spec, rng, appearance=False), len(script[0]), rng))


TRICKS: dict[str, Trick] = {
    "its first frame, frozen": frozen(0),
    "its middle frame, frozen": frozen(0.5),
    "its last frame, frozen": frozen(1),
    "a slide show of unrelated frames": unrelated,
    "a slide show of right frames": slides_of_the_prompt,
    "blank": lambda script, spec, rng: still(np.broadcast_to(DARK, (CANVAS, CANVAS, 3)), script),
    "black": lambda script, spec, rng: still(np.zeros((CANVAS, CANVAS, 3)), script),
    "noise": lambda script, spec, rng: rng.random((len(script[0]), CANVAS, CANVAS, 3)),
    "still noise": lambda script, spec, rng: still(rng.random((CANVAS, CANVAS, 3)), script),
    "the right colour everywhere": lambda script, spec, rng: still(
        np.broadcast_to(COLOURS[spec.roles[0].noun.colour or "red"], (CANVAS, CANVAS, 3)), script
    ),
    "colours one after the other": lambda script, spec, rng: np.stack(
        [np.broadcast_to(list(COLOURS.values())[i % 6], (CANVAS, CANVAS, 3)) for i in range(len(script[0]))]
    ),
    "four small copies": tiled,
    "eight videos at once": many_videos(8),
    "thirty videos at once": many_videos(30),
    "the right video with three others": lambda script, spec, rng: np.maximum(
        many_videos(3)(script, spec, rng), frames_of(script)
    ),
    "every other frame blank": lambda script, spec, rng: np.where(
        (np.arange(len(script[0])) % 2 == 0)[:, None, None, None], frames_of(script), DARK
    ),
    "the video backwards": opposite,
    "another action": another_action,
}


@pytest.mark.parametrize("name", TRICKS)
def test_a_video_that_does_not_show_what_is_asked_scores_low(name: str):
    rng = np.random.default_rng(6)
    overall = [
        score_video(TRICKS[name](script, spec, rng).astype(np.float32), spec).overall for spec, script in EXAMPLES
    ]
    assert min(overall) >= 0 and max(overall) < 0.9 and np.mean(overall) <= 0.4, overall


def test_a_frozen_picture_scores_low_for_every_prompt():
    for spec, script in EXAMPLES:
        for share in (0, 0.5, 1):
            frames = frozen(share)(script, spec, RNG)
            assert score_video(frames, spec, frames[0]).overall <= 0.4


def test_a_blank_video_and_one_colour_score_nothing():
    for name in ("blank", "black", "the right colour everywhere"):
        assert all(score_video(TRICKS[name](s, p, RNG), p).overall == 0 for p, s in EXAMPLES)
