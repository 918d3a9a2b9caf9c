"""The exact judge of videos: it reads frames, and nothing else.

It tracks the objects of the video (`tracks`), matches each role of the prompt to the best track (`roles`), and scores

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

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rewarddance.errors import InputError
from rewarddance.shapeworld.motion.roles import RoleMatch, breaks_of, match_role
from rewarddance.shapeworld.motion.scripts import FPS, MAX_FRAMES, MIN_FRAMES
from rewarddance.shapeworld.motion.specs import CROSSINGS, MotionSpec, parse_motion
from rewarddance.shapeworld.motion.tracks import TrackedVideo, track_objects
from rewarddance.shapeworld.motion.videos import video_of
from rewarddance.shapeworld.oracle import explained
from rewarddance.shapeworld.scenes import BACKGROUND, CANVAS
from rewarddance.types import Prompt, as_prompts

ALIGNMENT_WEIGHT = 0.8
STANDING = 0.2
"""What the right objects are worth that do nothing, and a video that begins with another picture than the given one."""
_FORGIVEN = 6
"""Stray pixels of a frame that cost nothing. Beyond them each 24 count as one object too many, up to two objects."""
_UNASKED = 2.0
"""What a change that the prompt does not ask for counts, against one that it does."""
_CANDIDATES = 5
"""How many tracks, the longest, are tried for the prompt's roles."""
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
    video = track_objects(frames)
    numbers = [*range(min(len(video.tracks), _CANDIDATES)), *[-1] * len(spec.roles)]
    best: tuple[float, tuple[int, ...], list[RoleMatch]] = (-1.0, (), [])
    cache: dict[tuple[int, int, int], RoleMatch] = {}
    for chosen in dict.fromkeys(itertools.permutations(numbers, len(spec.roles))):
        keys = [(i, n, chosen[1] if spec.roles[i].action in CROSSINGS else -1) for i, n in enumerate(chosen)]
        for key in keys:
            if key not in cache:
                cache[key] = match_role(spec.roles[key[0]], key[1], key[2], video)
        matches = [cache[key] for key in keys]
        value = _objects(matches, _surplus(video, chosen)) * _motion_factor(matches)
        if value > best[0] + 1e-9:
            best = value, chosen, matches
    _, chosen, matches = best
    surplus = _surplus(video, chosen)
    objects = _objects(matches, surplus)
    fidelity = None if image is None else explained(frames[0], image)
    alignment = objects * _motion_factor(matches)
    reasons = [reason for match in matches for reason in match.reasons]
    if surplus > 0.05:
        reasons.append("there is more than the prompt asks for")
    if fidelity is not None:
        alignment *= STANDING + (1 - STANDING) * fidelity
        reasons += ["it does not begin with the given picture"] if fidelity < 0.5 else []
    motions = [match.motion for match in matches if match.motion is not None]
    orders = [match.order or 0.0 for match in matches if match.motion]
    return VideoScore(
        objects,
        float(np.mean(motions)) / _clutter(matches),
        float(np.mean(orders)) if orders else 0.0,
        _consistency(frames, video, chosen, matches),
        explained(frames, video.clean) if video.tracks else 0.0,  # without objects there is no quality
        fidelity,
        alignment,
        spec.category,
        tuple(dict.fromkeys(reasons)),
    )


def _objects(matches: Sequence[RoleMatch], surplus: float) -> float:
    """Mean of how well each is shown, times n / (n + surplus)."""
    return float(np.mean([match.appearance for match in matches])) * len(matches) / (len(matches) + surplus)


def _motion_factor(matches: Sequence[RoleMatch]) -> float:
    """From `STANDING` to 1, by the mean of motion x order^2 over what the prompt asks for, less what it does not."""
    done = [match.motion * (match.order or 0.0) ** 2 for match in matches if match.motion is not None]
    return STANDING + (1 - STANDING) * (float(np.mean(done)) / _clutter(matches))


def _clutter(matches: Sequence[RoleMatch]) -> float:
    return 1 + _UNASKED * sum(match.unasked for match in matches)


def _surplus(video: TrackedVideo, chosen: Sequence[int]) -> float:
    """Objects, and stray paint, that no role of the prompt accounts for, a frame."""
    objects = sum(len(track) - track.count(None) for n, track in enumerate(video.tracks) if n not in chosen)
    stray = sum(min(max(strays - _FORGIVEN, 0) / 24, 2) for strays in video.strays)
    return (objects + stray) / len(video.scenes)


def _consistency(frames: np.ndarray, video: TrackedVideo, chosen: Sequence[int], matches: Sequence[RoleMatch]) -> float:
    """1 / (1 + breaks an object), times how little of what the drawing leaves unexplained changes between frames."""
    if not video.tracks:
        return 0.0
    others = [track for number, track in enumerate(video.tracks) if number not in chosen]
    breaks = sum(match.breaks for match in matches) + sum(breaks_of(track, None) for track in others)
    n = max(len(matches), float(np.mean([len(scene) for scene in video.scenes])))
    paint = np.square(video.clean - _BACKGROUND).sum()
    change = np.square(np.diff(frames - video.clean, axis=0)).sum() / (2 * paint)
    return max(0.0, 1.0 - float(np.sqrt(change))) / (1 + breaks / n)


# -- the seam ----------------------------------------------------------------------------------------------------------


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
        scores.append(score_video(video_of(video).frames, parse_motion(prompt.text), first))
    return scores
