"""How one object that was followed through a video serves one of a prompt: what it shows, what it does, what breaks."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from rewarddance.shapeworld.motion.scripts import LEAST_GROWTH
from rewarddance.shapeworld.motion.specs import CROSSINGS, DIRECTIONS, Role
from rewarddance.shapeworld.motion.tracks import Sight, Track

ENOUGH_WAY = 8.0
"""Pixels from which on something has moved for certain."""
_SLACK = {"x": 2.0, "y": 2.0, "size": 1.5, "presence": 0.0, "colour": 0.0}
"""Change that costs nothing: what reading a spoiled frame is off by."""
_WHOLE = {"x": ENOUGH_WAY, "y": ENOUGH_WAY, "size": float(LEAST_GROWTH), "presence": 0.25, "colour": 0.25}
"""Change beyond the slack that counts in full: pixels, and shares of the frames."""
_LEAP, _JUMP = 5.5, 3
"""Pixels of place, and of side, within one frame, from which on it is a break."""


@dataclass(frozen=True)
class Part:
    """How one object of the video serves one of the prompt. motion, order: None where the prompt asks for none."""

    shown: float
    motion: float | None
    order: float | None
    unasked: float
    breaks: int
    reasons: tuple[str, ...]


def play(role: Role, number: int, passed: int, sight: Sight) -> Part:
    """How track `number` serves a role, with track `passed` as the one that it is to pass; -1 is none."""
    asks = role.action is not None
    if number < 0:
        return Part(0.0, 0.0 if asks else None, 0.0 if asks else None, 0.0, 0, (f"no {_named(role)} is there",))
    track = sight.tracks[number]
    kind, signal = _signal(role, track)
    changes = _changes(track)
    unasked = sum(min(1.0, max(0.0, changes[k] - _SLACK[k]) / _WHOLE[k]) for k in changes if k != kind)
    steps = _steps(kind, signal, track)
    forward, backward = float(steps.clip(0).sum()), float(-steps.clip(None, 0).sum())
    reasons = []
    shown = _shown(role, track)
    if shown < 0.9:
        reasons.append(f"the {role.noun.shape} is not a {_named(role)} throughout")
    motion = order = None
    if asks:
        whole = _WHOLE[kind] if kind in ("x", "y", "size") else 1.0
        motion = min(1.0, float(np.ptp([0.0, *steps.cumsum()])) / whole)
        if role.action in CROSSINGS:
            forward, backward = max(forward, backward), min(forward, backward)
            motion *= _crossed(role, track, number, passed, sight)
        order = forward / (forward + backward) if forward + backward else 0.0
        if motion < 0.5:
            reasons.append(f"the {role.noun.shape} does not do what it should: {role.deed}")
        elif order < 0.5:
            reasons.append(f"the {role.noun.shape} does the opposite of what it should: {role.deed}")
    if unasked > 0.5:
        reasons.append(f"the {role.noun.shape} does more than it should")
    return Part(shown, motion, order, unasked, breaks_of(track, role.action), tuple(reasons))


def _named(role: Role) -> str:
    return role.noun.text.removeprefix("a ")


def _shown(role: Role, track: Track) -> float:
    """Mean over the frames of how much of the noun the object is; over those that show it, where it comes or goes.

    A wrong shape leaves 0.4 of it, a wrong colour 0.4, a wrong size 0.7.
    """
    sized = role.noun.size if role.action not in ("grows", "shrinks") else None
    credits = []
    for thing in track:
        if thing is None:
            credits.append(None)
            continue
        fits_colour = role.noun.colour in (None, thing.colour)
        if role.action == "changes colour" and not fits_colour:
            fits_colour = role.into in (None, thing.colour)
        credit = 0.4 if thing.shape != role.noun.shape else 1.0
        credit *= 1.0 if fits_colour else 0.4
        credits.append(credit * (1.0 if sized in (None, thing.size) else 0.7))
    seen = [credit for credit in credits if credit is not None]
    return sum(seen) / (len(seen) if role.action in ("appears", "disappears") else len(track))


def _signal(role: Role, track: Track) -> tuple[str, np.ndarray]:
    """What kind of change an action is, and how far it has come in each frame in which that can be seen."""
    seen = [thing for thing in track if thing]
    if role.action in DIRECTIONS:
        dx, dy = DIRECTIONS[role.action]
        return ("x" if dx else "y"), np.array([dx * thing.centre[0] + dy * thing.centre[1] for thing in seen])
    if role.action in ("grows", "shrinks"):
        return "size", np.array([thing.side for thing in seen]) * (1.0 if role.action == "grows" else -1.0)
    if role.action in ("appears", "disappears"):
        here = np.array([thing is not None for thing in track], dtype=float)
        return "presence", here if role.action == "appears" else -here
    if role.action == "changes colour":
        before = role.noun.colour or seen[0].colour
        done = [thing.colour == role.into if role.into else thing.colour != before for thing in seen]
        return "colour", np.array(done, dtype=float)
    if role.action in CROSSINGS:
        places = np.array([thing.centre for thing in seen])
        axis = int(np.ptp(places, axis=0).argmax())
        return "xy"[axis], places[:, axis]
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
    seen = [thing for thing in track if thing]
    places = np.ptp([thing.centre for thing in seen], axis=0)
    colours = [thing.colour for thing in seen]
    other = 1 - max(colours.count(colour) for colour in set(colours)) / len(colours)
    size = float(np.ptp([thing.side for thing in seen]))
    absent = 1 - len(seen) / len(track)
    return {"x": float(places[0]), "y": float(places[1]), "size": size, "presence": absent, "colour": other}


def _crossed(role: Role, track: Track, number: int, passed: int, sight: Sight) -> float:
    """How much of a passage there is: from one side to the other, and on the way behind, or in front of, the other."""
    if passed < 0:
        return 0.0
    sides = [np.subtract(a.centre, b.centre) for a, b in zip(track, sight.tracks[passed], strict=True) if a and b]
    if len(sides) < 2:
        return 0.0
    axis = int(np.abs(sides[0]).argmax())
    there = float(sides[0][axis] * sides[-1][axis] < 0)
    right = (number, passed) if role.action == "passes behind" else (passed, number)
    met = sight.hidden.count(right) + sight.hidden.count(right[::-1])
    return there * (0.2 + 0.8 * (sight.hidden.count(right) / met if met else 0.0))


def breaks_of(track: Track, action: str | None) -> int:
    """How often an object jumps in place, size or looks, or comes and goes; what the prompt asks for, once, is none."""
    breaks = 0
    seen = [(moment, thing) for moment, thing in enumerate(track) if thing]
    for (before, a), (after, b) in itertools.pairwise(seen):
        way = float(np.hypot(b.centre[0] - a.centre[0], b.centre[1] - a.centre[1]))
        leaps = (way > _LEAP * (after - before)) + (abs(a.side - b.side) > _JUMP * (after - before))
        breaks += (a.shape != b.shape) + leaps
    recoloured = sum(a.colour != b.colour for (_, a), (_, b) in itertools.pairwise(seen))
    came = sum((a is None) != (b is None) for a, b in itertools.pairwise(track))
    if action == "changes colour":
        recoloured = max(0, recoloured - 1)
    if action in ("appears", "disappears"):
        came = max(0, came - 1)
    return breaks + recoloured + came
