"""Videos to the objects in them: every frame is read by itself, and what is seen is followed from frame to frame.

A frame in which one object hides another cannot be read by itself. It is explained by the frames before and after it:
the two objects as they were seen apart, where they must be by now, one painted over the other.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import linear_sum_assignment

from rewarddance.shapeworld.motion.scripts import gap, overlap
from rewarddance.shapeworld.oracle import read
from rewarddance.shapeworld.render import render, shape_mask
from rewarddance.shapeworld.scenes import CANVAS, COLOURS, Scene, Thing

Track = tuple[Thing | None, ...]
"""One object in every frame, as it is seen; None where it is not."""

_NEAR = 5.0
"""Pixels that something which changes its looks may have moved: what looks the same may be anywhere."""
_UNLIKE = 1.5
"""A difference, as `_difference` counts it, from which on two things are two objects."""
_AROUND = sorted(itertools.product(range(-2, 3), repeat=2), key=lambda step: abs(step[0]) + abs(step[1]))[1:]
"""Where an object may be instead, nearest first: where much is hidden, one pixel on can look worse and two right."""
_FAR_OFF = 0.35
"""How far a channel is from what is explained, where a pixel counts as painted by something else."""


@dataclass(frozen=True, eq=False)
class Sight:
    """What the oracle sees in a video.

    scenes: the objects of each frame, in the order in which they are painted. tracks: the same objects, followed
    through the video, those seen longest first. clean: the drawing of the scenes, [T, H, W, 3]. strays: painted pixels
    of each frame that belong to no object. hidden: the tracks' numbers (below, above) of each frame in which one object
    covers a part of another.
    """

    scenes: tuple[Scene, ...]
    tracks: tuple[Track, ...]
    clean: np.ndarray
    strays: tuple[int, ...]
    hidden: tuple[tuple[int, int], ...]


def look(frames: np.ndarray) -> Sight:
    """Find and follow the objects of a video [T, H, W, 3] in [0, 1]."""
    known = {frame.tobytes(): number for number, frame in enumerate(frames)}  # what stands still is read once
    once = {number: read(frames[number]) for number in known.values()}
    readings = [once[known[frame.tobytes()]] for frame in frames]
    scenes, strays = [reading.things for reading in readings], [reading.strays for reading in readings]
    for moment, rest, one, other in _meetings(scenes):
        explained = _explain(frames[moment], scenes[moment], rest, one, other)
        if explained:
            scenes[moment] = explained
            off = np.abs(frames[moment] - render(explained)).max(axis=2) > _FAR_OFF
            strays[moment] = min(strays[moment], int(off.sum()))
    tracks = follow(scenes)
    clean = np.stack([render(scene) for scene in scenes])
    return Sight(tuple(scenes), tracks, clean, tuple(strays), tuple(_covered(scenes, tracks)))


def follow(scenes: Sequence[Scene]) -> tuple[Track, ...]:
    """The objects of each frame joined to those of the frames before them; the longest seen first.

    Frame by frame the assignment with the least difference in all is taken. An object that is gone may come back.
    """
    tracks: list[list[Thing | None]] = []
    heads: list[Thing] = []
    for moment, scene in enumerate(scenes):
        costs = np.array([[_difference(head, thing) for thing in scene] for head in heads]).reshape(
            len(heads), len(scene)
        )
        rows, columns = linear_sum_assignment(np.minimum(costs, _UNLIKE))
        joined = {int(c): int(r) for r, c in zip(rows, columns, strict=True) if costs[r, c] < _UNLIKE}
        for track in tracks:
            track.append(None)
        for number, thing in enumerate(scene):
            if number in joined:
                tracks[joined[number]][-1], heads[joined[number]] = thing, thing
            else:
                tracks.append([None] * moment + [thing])
                heads.append(thing)
    return tuple(sorted(map(tuple, tracks), key=lambda track: track.count(None)))


def _difference(before: Thing, after: Thing) -> float:
    """How unlike two things of two frames are; infinite where both place and looks are others."""
    way = float(np.hypot(after.centre[0] - before.centre[0], after.centre[1] - before.centre[1]))
    looks = 0.6 * ((before.shape != after.shape) + (before.colour != after.colour))
    if looks and way > _NEAR:
        return float("inf")
    return way / 24 + looks + abs(after.side - before.side) / 16


def _meetings(scenes: Sequence[Scene]) -> Iterator[tuple[int, Scene, Thing, Thing]]:
    """Frames in which two objects that were seen apart before and after must touch.

    Gives each frame's number, its other objects, and where the two are by the frames around it.
    """
    apart = [tuple(t for t in scene if all(t is u or gap(t, u) > 0 for u in scene)) for scene in scenes]
    tracks = [track for track in follow(apart) if len(track) - track.count(None) > 1][:4]
    expected = [_filled(track) for track in tracks]
    for one, other in itertools.combinations(range(len(tracks)), 2):
        for moment, (a, b) in enumerate(zip(expected[one], expected[other], strict=True)):
            if a and b and gap(a, b) <= 0 and not (tracks[one][moment] and tracks[other][moment]):
                rest = tuple(t for t in scenes[moment] if gap(t, a) > 0 and gap(t, b) > 0)
                yield moment, rest, a, b


def _filled(track: Track) -> Track:
    """The track with its gaps bridged: between two frames an object goes straight and keeps its first looks."""
    seen = [moment for moment, thing in enumerate(track) if thing]
    filled = list(track)
    for start, end in itertools.pairwise(seen):
        before, after = track[start], track[end]
        for moment in range(start + 1, end):
            assert before and after
            part = (moment - start) / (end - start)
            x, y, side = (
                round(getattr(before, name) + part * (getattr(after, name) - getattr(before, name)))
                for name in ("x", "y", "side")
            )
            filled[moment] = replace(before, x=x, y=y, side=side)
    return tuple(filled)


def _explain(picture: np.ndarray, before: Scene, rest: Scene, one: Thing, other: Thing) -> Scene | None:
    """The frame as `rest` and two objects of which one lies over the other, both within a few pixels of their places.

    None where the frame is explained better by what was read in it `before`: then one of the two is not there.
    """
    ground = render(rest)
    least, found = np.inf, None
    for below, above in ((one, other), (other, one)):
        pair = (below, above)
        error = _error(picture, ground, pair)
        improved = True
        while improved and error > 1e-6:
            improved = False
            for at, (dx, dy) in itertools.product((0, 1), _AROUND):
                moved = replace(pair[at], x=pair[at].x + dx, y=pair[at].y + dy)
                if min(moved.x, moved.y) < 0 or max(moved.x, moved.y) + moved.side > CANVAS:
                    continue
                trial = (moved, pair[1]) if at == 0 else (pair[0], moved)
                if (there := _error(picture, ground, trial)) < error:
                    error, pair, improved = there, trial, True
        if error < least:
            least, found = error, pair
    as_read = np.square(picture - render(before)).sum()
    return (*rest, *found) if found and least <= as_read + 1e-4 else None


def _error(picture: np.ndarray, ground: np.ndarray, things: Sequence[Thing]) -> float:
    drawn = ground.copy()
    for thing in things:
        square = drawn[thing.y : thing.y + thing.side, thing.x : thing.x + thing.side]
        square[shape_mask(thing.shape, thing.side)] = COLOURS[thing.colour]
    return float(np.square(picture - drawn).sum())


def _covered(scenes: Sequence[Scene], tracks: Sequence[Track]) -> Iterator[tuple[int, int]]:
    """The numbers of two tracks, once for every frame in which the first is partly covered by the second."""
    for moment, scene in enumerate(scenes):
        for below, above in itertools.combinations(scene, 2):
            if gap(below, above) < 0 and overlap(below, above) > 0:
                numbers = [next(n for n, track in enumerate(tracks) if track[moment] is t) for t in (below, above)]
                yield numbers[0], numbers[1]
