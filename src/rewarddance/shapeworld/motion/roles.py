"""How well one tracked object of a video matches one role of a prompt: its appearance, its motion, and its breaks."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np

from rewarddance.shapeworld.motion.scripts import LEAST_GROWTH
from rewarddance.shapeworld.motion.specs import CROSSINGS, DIRECTIONS, Role
from rewarddance.shapeworld.motion.tracks import Track, TrackedVideo
from rewarddance.shapeworld.oracle import noun_credit

_FULL_MOTION = 8.0
"""Pixels that a motion must reach to count in full."""
_SLACK = {"x": 2.0, "y": 2.0, "size": 1.5, "presence": 0.0, "colour": 0.0}
"""Change that costs nothing: the error of reading a spoiled frame."""
_FULL = {"x": _FULL_MOTION, "y": _FULL_MOTION, "size": float(LEAST_GROWTH), "presence": 0.25, "colour": 0.25}
"""Change beyond the slack that counts in full: pixels, and shares of the frames."""
_LEAP, _JUMP = 5.5, 3
"""A larger change of place, or of side, within one frame is a break, in pixels."""


@dataclass(frozen=True)
class RoleMatch:
    """How well a track matches a role.

    appearance: how much of the noun the object is, over the frames.
    motion: how much of the change that the role asks for there is; None where it asks for none.
    order: the share of that change that goes the right way; None where it asks for none.
    unasked: how much other change there is.
    breaks: see `breaks_of`.
    reasons: what is wrong, in words.
    """

    appearance: float
    motion: float | None
    order: float | None
    unasked: float
    breaks: int
    reasons: tuple[str, ...]


def match_role(role: Role, number: int, passed: int, video: TrackedVideo) -> RoleMatch:
    """How well track `number` matches a role, with track `passed` as the one that it is to pass; -1 is none."""
    absent = 0.0 if role.action else None
    noun = role.noun.text.removeprefix("a ")
    if number < 0:
        return RoleMatch(0.0, absent, absent, 0.0, 0, (f"no {noun} is there",))
    track = video.tracks[number]
    kind, signal = _signal(role, track)
    changes = _changes(track)
    unasked = sum(min(1.0, max(0.0, changes[k] - _SLACK[k]) / _FULL[k]) for k in changes if k != kind)
    steps = _steps(kind, signal, track)
    forward, backward = float(steps.clip(0).sum()), float(-steps.clip(None, 0).sum())
    reasons = []
    appearance = _appearance(role, track)
    if appearance < 0.9:
        reasons.append(f"the {role.noun.shape} is not a {noun} throughout")
    motion = order = None
    if role.action:
        full = _FULL[kind] if kind in ("x", "y", "size") else 1.0
        motion = min(1.0, float(np.ptp([0.0, *steps.cumsum()])) / full)
        if role.action in CROSSINGS:
            forward, backward = max(forward, backward), min(forward, backward)
            motion *= _passage(role, number, passed, video)
        order = forward / (forward + backward) if forward + backward else 0.0
        if motion < 0.5:
            reasons.append(f"the {role.noun.shape} does not do what it should: {role.action_text}")
        elif order < 0.5:
            reasons.append(f"the {role.noun.shape} does the opposite of what it should: {role.action_text}")
    if unasked > 0.5:
        reasons.append(f"the {role.noun.shape} does more than it should")
    return RoleMatch(appearance, motion, order, unasked, breaks_of(track, role.action), tuple(reasons))


def _appearance(role: Role, track: Track) -> float:
    """Mean over the frames of how much of the noun the object is; over those that show it, where it comes or goes."""
    size = role.noun.size if role.action not in ("grows", "shrinks") else None
    nouns = [replace(role.noun, size=size)]
    if role.action == "changes colour":
        nouns.append(replace(role.noun, size=size, colour=role.into))
    credits = [max(noun_credit(noun, thing) for noun in nouns) for thing in track if thing]
    return sum(credits) / (len(credits) if role.action in ("appears", "disappears") else len(track))


def _signal(role: Role, track: Track) -> tuple[str, np.ndarray]:
    """What kind of change an action is, and how far it has come in each frame where that can be seen."""
    things = [thing for thing in track if thing]
    if role.action in DIRECTIONS:
        dx, dy = DIRECTIONS[role.action]
        return ("x" if dx else "y"), np.array([dx * thing.centre[0] + dy * thing.centre[1] for thing in things])
    if role.action in ("grows", "shrinks"):
        return "size", np.array([thing.side for thing in things]) * (1.0 if role.action == "grows" else -1.0)
    if role.action in ("appears", "disappears"):
        present = np.array([thing is not None for thing in track], dtype=float)
        return "presence", present if role.action == "appears" else -present
    if role.action == "changes colour":
        before = role.noun.colour or things[0].colour
        changed = [thing.colour == role.into if role.into else thing.colour != before for thing in things]
        return "colour", np.array(changed, dtype=float)
    if role.action in CROSSINGS:
        centres = np.array([thing.centre for thing in things])
        axis = int(np.ptp(centres, axis=0).argmax())
        return "xy"[axis], centres[:, axis]
    return "", np.zeros(0)


def _steps(kind: str, signal: np.ndarray, track: Track) -> np.ndarray:
    """How far each step of a signal goes; a leap in place or size is no step of a motion."""
    limit = {"x": _LEAP, "y": _LEAP, "size": float(_JUMP)}.get(kind)
    steps = np.diff(signal)
    if limit is None:
        return steps
    moments = np.diff([moment for moment, thing in enumerate(track) if thing])
    return np.where(np.abs(steps) > limit * moments, 0.0, steps)


def _changes(track: Track) -> dict[str, float]:
    """How much an object changes in each way: pixels of place and side, shares of the frames without it or its
    commonest colour."""
    things = [thing for thing in track if thing]
    x, y = np.ptp([thing.centre for thing in things], axis=0)
    colours = [thing.colour for thing in things]
    other_colours = 1 - max(colours.count(colour) for colour in set(colours)) / len(colours)
    size = float(np.ptp([thing.side for thing in things]))
    absent = 1 - len(things) / len(track)
    return {"x": float(x), "y": float(y), "size": size, "presence": absent, "colour": other_colours}


def _passage(role: Role, number: int, passed: int, video: TrackedVideo) -> float:
    """How much of a passage there is: from one side to the other, and on the way behind, or in front of, the other."""
    if passed < 0:
        return 0.0
    both = zip(video.tracks[number], video.tracks[passed], strict=True)
    offsets = [np.subtract(a.centre, b.centre) for a, b in both if a and b]
    if len(offsets) < 2:
        return 0.0
    axis = int(np.abs(offsets[0]).argmax())
    crossed = float(offsets[0][axis] * offsets[-1][axis] < 0)
    order = (number, passed) if role.action == "passes behind" else (passed, number)
    correct, opposite = video.occlusions.count(order), video.occlusions.count(order[::-1])
    return crossed * (0.2 + 0.8 * (correct / (correct + opposite) if correct + opposite else 0.0))


def breaks_of(track: Track, action: str | None) -> int:
    """How often an object jumps in place, size or appearance, or comes and goes, but for one change of the action."""
    breaks = 0
    detections = [(moment, thing) for moment, thing in enumerate(track) if thing]
    for (before, a), (after, b) in itertools.pairwise(detections):
        distance = float(np.hypot(b.centre[0] - a.centre[0], b.centre[1] - a.centre[1]))
        leaps = (distance > _LEAP * (after - before)) + (abs(a.side - b.side) > _JUMP * (after - before))
        breaks += (a.shape != b.shape) + leaps
    recoloured = sum(a.colour != b.colour for (_, a), (_, b) in itertools.pairwise(detections))
    appearances = sum((a is None) != (b is None) for a, b in itertools.pairwise(track))
    if action == "changes colour":
        recoloured = max(0, recoloured - 1)
    if action in ("appears", "disappears"):
        appearances = max(0, appearances - 1)
    return breaks + recoloured + appearances
