"""The exact judge of videos: it reads frames, and nothing else.

It follows objects through the video (`tracks`), gives each object of the prompt the one that serves it best, and scores

- objects: how much of what the prompt names is there, and nothing else, over the frames;
- motion: how much of the change that the prompt asks for there is, step by step and in either direction of time, and
  no other change;
- order: the share of that change that goes the right way;
- consistency: how few breaks there are (jumps of place, size, shape or colour, objects that come and go unasked, a
  picture that flickers);
- quality: how little of the frames the clean drawing of the objects leaves unexplained;
- fidelity, of a video made from a picture: how like that picture the first frame is.

All lie in [0, 1]. alignment = objects x (0.2 + 0.8 motion x order^2) x (0.2 + 0.8 fidelity); without motion there is
hardly any. overall = 0.8 alignment + 0.1 consistency + 0.1 quality: the order that annotators see through their noise.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rewarddance.errors import InputError
from rewarddance.shapeworld.motion.roles import Part, breaks_of, play
from rewarddance.shapeworld.motion.scripts import FPS, MAX_FRAMES, MIN_FRAMES
from rewarddance.shapeworld.motion.specs import CROSSINGS, MotionSpec, parse_motion
from rewarddance.shapeworld.motion.tracks import Sight, look
from rewarddance.shapeworld.motion.videos import video_of
from rewarddance.shapeworld.scenes import BACKGROUND, CANVAS
from rewarddance.types import Prompt, as_prompts

ALIGNMENT_WEIGHT = 0.8
STANDING = 0.2
"""What the right objects are worth that do nothing, and a video that begins with another picture than the given one."""
_FORGIVEN = 6
"""Stray pixels of a frame that cost nothing. Beyond them each 24 count as one object too many, up to two objects."""
_UNASKED = 2.0
"""What a change that the prompt does not ask for counts, against one that it does."""
_FOLLOWED = 5
"""As many objects, those seen longest, are tried for the prompt's."""
_BACKGROUND = np.asarray(BACKGROUND, dtype=np.float32)


@dataclass(frozen=True)
class VideoScore:
    """The oracle's verdict on one video under one prompt; see the module's head. fidelity: None without a picture."""

    objects: float
    motion: float
    order: float
    consistency: float
    quality: float
    fidelity: float | None
    alignment: float
    category: str
    reasons: tuple[str, ...]

    @property
    def correct(self) -> bool:
        """All or nothing: everything that was asked for happens, and nothing else."""
        return self.alignment > 0.999

    @property
    def overall(self) -> float:
        rest = (1 - ALIGNMENT_WEIGHT) / 2
        return ALIGNMENT_WEIGHT * self.alignment + rest * (self.consistency + self.quality)


def score_video(frames: np.ndarray, spec: MotionSpec, image: np.ndarray | None = None) -> VideoScore:
    """Score one video [T, H, W, 3] under what a prompt asks for. image: the picture [H, W, 3] it was made from."""
    sight = look(frames)
    best: tuple[float, tuple[int, ...], list[Part]] = (-1.0, (), [])
    numbers = [*range(min(len(sight.tracks), _FOLLOWED)), *[-1] * len(spec.roles)]
    parts: dict[tuple[int, int, int], Part] = {}
    for trial in dict.fromkeys(itertools.permutations(numbers, len(spec.roles))):
        found = []
        for at, number in enumerate(trial):
            passed = trial[1] if spec.roles[at].action in CROSSINGS else -1
            if (at, number, passed) not in parts:
                parts[at, number, passed] = play(spec.roles[at], number, passed, sight)
            found.append(parts[at, number, passed])
        value = _objects(found, _surplus(sight, trial)) * (STANDING + (1 - STANDING) * _done(found))
        if value > best[0] + 1e-9:
            best = value, trial, found
    _, chosen, found = best
    surplus = _surplus(sight, chosen)
    objects = _objects(found, surplus)
    fidelity = None if image is None else _fidelity(frames[0], image)
    alignment = objects * (STANDING + (1 - STANDING) * _done(found))
    reasons = [reason for part in found for reason in part.reasons]
    if surplus > 0.05:
        reasons.append("there is more than the prompt asks for")
    if fidelity is not None:
        alignment *= STANDING + (1 - STANDING) * fidelity
        reasons += ["it does not begin with the given picture"] if fidelity < 0.5 else []
    asked = [part for part in found if part.motion is not None]
    moved = [part.order or 0.0 for part in asked if part.motion]
    return VideoScore(
        objects,
        float(np.mean([part.motion or 0.0 for part in asked])) / _clutter(found),
        float(np.mean(moved)) if moved else 0.0,
        _consistency(frames, sight, chosen, found),
        _quality(frames, sight),
        fidelity,
        alignment,
        spec.category,
        tuple(dict.fromkeys(reasons)),
    )


def _objects(parts: Sequence[Part], surplus: float) -> float:
    """Mean of how well each is shown, times n / (n + surplus)."""
    return float(np.mean([part.shown for part in parts])) * len(parts) / (len(parts) + surplus)


def _done(parts: Sequence[Part]) -> float:
    """Mean of motion x order^2 over what the prompt asks for, less the more there is that it does not ask for."""
    done = [part.motion * (part.order or 0.0) ** 2 for part in parts if part.motion is not None]
    return float(np.mean(done)) / _clutter(parts)


def _clutter(parts: Sequence[Part]) -> float:
    return 1 + _UNASKED * sum(part.unasked for part in parts)


# -- the whole video
# ----------------------------------------------------------------------------------------------------


def _surplus(sight: Sight, chosen: Sequence[int]) -> float:
    """Objects, and stray paint, that no object of the prompt accounts for, a frame."""
    seen = sum(len(track) - track.count(None) for n, track in enumerate(sight.tracks) if n not in chosen)
    stray = sum(min(max(strays - _FORGIVEN, 0) / 24, 2) for strays in sight.strays)
    return (seen + stray) / len(sight.scenes)


def _quality(frames: np.ndarray, sight: Sight) -> float:
    """1 - |video - clean| / |clean - background|, never below 0; the norms are Euclidean over all frames.

    A video without objects has quality 0.
    """
    paint = np.square(sight.clean - _BACKGROUND).sum()
    return max(0.0, 1.0 - float(np.sqrt(np.square(frames - sight.clean).sum() / paint))) if paint else 0.0


def _consistency(frames: np.ndarray, sight: Sight, chosen: Sequence[int], found: Sequence[Part]) -> float:
    """1 / (1 + breaks an object), times how little of what the drawing leaves unexplained changes between frames."""
    paint = np.square(sight.clean - _BACKGROUND).sum()
    if not paint:
        return 0.0
    others = [track for number, track in enumerate(sight.tracks) if number not in chosen]
    breaks = sum(part.breaks for part in found) + sum(breaks_of(track, None) for track in others)
    n = max(len(found), float(np.mean([len(scene) for scene in sight.scenes])))
    change = np.square(np.diff(frames - sight.clean, axis=0)).sum() / (2 * paint)
    return max(0.0, 1.0 - float(np.sqrt(change))) / (1 + breaks / n)


def _fidelity(first: np.ndarray, image: np.ndarray) -> float:
    """1 - |first - image| / |image - background|, never below 0."""
    paint = np.square(image - _BACKGROUND).sum()
    return max(0.0, 1.0 - float(np.sqrt(np.square(first - image).sum() / max(paint, 1e-6))))


# -- the seam ----------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4096)
def _spec_of(prompt: str) -> MotionSpec:
    return parse_motion(prompt)


def judge_videos(videos: Tensor | Sequence[Tensor], prompts: Sequence[str | Prompt]) -> list[VideoScore]:
    """Score videos [T, 3, H, W] in [0, 1] under their prompts, and the pictures [1, 3, H, W] that those come with.

    Raises InputError where a prompt is not ShapeWorld English, or a video has not ShapeWorld's size and length or is
    not finite.
    """
    if len(videos) != len(prompts):
        raise InputError(
            f"the oracle was given {len(videos)} videos and {len(prompts)} prompts.", "Give one prompt for every video."
        )
    scores = []
    for number, (video, prompt) in enumerate(zip(videos, as_prompts(prompts), strict=True)):
        where, image = f"video {number} ({prompt.text!r})", prompt.image
        if video.ndim != 4 or video.shape[1:] != (3, CANVAS, CANVAS) or not MIN_FRAMES <= len(video) <= MAX_FRAMES:
            raise InputError(
                f"the oracle was given {where} of shape {tuple(video.shape)}.",
                f"It reads videos as [T, 3, {CANVAS}, {CANVAS}], T from {MIN_FRAMES} to {MAX_FRAMES}.",
            )
        if image is not None and image.shape != (1, 3, CANVAS, CANVAS):
            raise InputError(
                f"the oracle was given {where} with an image of shape {tuple(image.shape)}.",
                f"It is one picture [1, 3, {CANVAS}, {CANVAS}].",
            )
        if not all(bool(torch.isfinite(pixels).all()) for pixels in (video, image) if pixels is not None):
            raise InputError(
                f"the oracle was given pixels that are not finite, in {where}.",
                "Look for the step that made them: a loss that overflowed, or a learning rate too high.",
            )
        first = None if image is None else video_of(image, FPS).first
        scores.append(score_video(video_of(video).frames, _spec_of(prompt.text), first))
    return scores
