"""From scripts to videos, and the controlled defects of videos that preferences can be about.

Frames here are float32 numpy arrays [T, H, W, 3] in [0, 1]; `video_pixels` gives the [T, C, H, W] tensors of the seams.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from rewarddance.errors import InputError
from rewarddance.shapeworld.motion.scripts import FPS, Script, scenes_of
from rewarddance.shapeworld.render import DEFECTS, render, spoil, to_pixels
from rewarddance.types import Pixels

VIDEO_DEFECTS = ("flicker", "freeze", "reverse", *DEFECTS)
"""Defects of the frames; `scripts.changed_identity` is a defect of the objects."""


@dataclass(frozen=True, eq=False)
class Video:
    """Frames [T, H, W, 3] in [0, 1], and their rate per second."""

    frames: np.ndarray
    fps: float = FPS

    @property
    def first(self) -> np.ndarray:
        """The picture [H, W, 3] that it begins with."""
        return self.frames[0]


def render_video(script: Script, fps: float = FPS, style: str = "flat", seed: int = 0) -> Video:
    """Draw a script; `seed` fixes the shade and paint of the style `sketch`, which are the same in every frame."""
    if not fps > 0:
        raise InputError(f"a video of {fps} frames a second.", "Give the rate at which its frames are shown, above 0.")
    frames = [render(scene, style, np.random.default_rng([seed, 9])) for scene in scenes_of(script)]
    return Video(np.stack(frames), fps)


def spoil_video(video: Video, defect: str, level: float, seed: int) -> Video:
    """The video with one defect at `level` in [0, 1]; level 0 changes nothing, and one seed gives one defect.

    flicker: each frame is darkened by a random share, up to 9/10. freeze: the last part of the video is one frame.
    reverse: the first part of the video runs backwards to its start, then the video runs from there; at 1 it is the
    video backwards. The defects of pictures are the same in every frame, but for noise, which is new in each.
    """
    if defect not in VIDEO_DEFECTS or not 0 <= level <= 1:
        raise InputError(
            f"no defect {defect!r} at level {level}.", f"Defects are {', '.join(VIDEO_DEFECTS)}, from 0 to 1."
        )
    frames, last = video.frames, len(video.frames) - 1
    if defect == "flicker":
        dark = np.random.default_rng([seed, 10]).random((last + 1, 1, 1, 1)).astype(np.float32)
        return replace(video, frames=frames * (1 - np.float32(0.9 * level) * dark))
    if defect == "freeze":
        return replace(video, frames=frames[np.minimum(np.arange(last + 1), round((1 - level) * last))])
    if defect == "reverse":
        return replace(video, frames=frames[np.abs(np.arange(last + 1) - round(level * last))])
    rngs = [np.random.default_rng([seed, 11, i if defect == "noise" else 0]) for i in range(last + 1)]
    return replace(video, frames=np.stack([spoil(f, defect, level, r) for f, r in zip(frames, rngs, strict=True)]))


def video_pixels(video: Video) -> Pixels:
    """A video as pixels [T, 3, H, W], float32 in [0, 1]."""
    return to_pixels(video.frames)[:, 0]


def video_of(pixels: Tensor, fps: float = FPS) -> Video:
    """Pixels [T, 3, H, W] in [0, 1] as a video."""
    return Video(pixels.detach().float().cpu().permute(0, 2, 3, 1).numpy(), fps)
