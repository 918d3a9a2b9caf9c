"""From videos to the objects in them, which are detected frame by frame and tracked from frame to frame.

A frame in which one object hides another cannot be read by itself. It is explained by the frames before and after it:
the two objects as they were seen apart, where they must be by now, one painted over the other.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import linear_sum_assignment

from rewarddance.shapeworld.motion.scripts import overlap
from rewarddance.shapeworld.oracle import read
from rewarddance.shapeworld.render import render, shape_mask
from rewarddance.shapeworld.scenes import CANVAS, COLOURS, Scene, Thing, gap

Track = tuple[Thing | None, ...]
"""One object in every frame, as it is detected; None where it is not."""

_NEAR = 5.0
"""How many pixels an object may move while its shape or colour changes; one that keeps both may move any distance."""
_MAX_COST = 1.5
"""Two detections whose match costs this or more (see `_cost`) are two objects."""
_SHIFTS = sorted(itertools.product(range(-2, 3), repeat=2), key=lambda step: abs(step[0]) + abs(step[1]))[1:]
"""Shifts of an object that are tried, shortest first: where much is hidden, one pixel can be worse and two correct."""
_UNEXPLAINED = 0.35
"""A pixel with a larger error in a channel counts as painted by something else."""


@dataclass(frozen=True, eq=False)
class TrackedVideo:
    """The objects of a video.

    scenes: those detected in each frame, in the order in which they are painted.
    tracks: the same objects through the video, the longest track first.
    clean: the drawing of the scenes, [T, H, W, 3].
    strays: painted pixels of each frame that belong to no object.
    occlusions: two tracks' numbers (below, above), once for each frame in which one object covers a part of another.
    """

    scenes: tuple[Scene, ...]
    tracks: tuple[Track, ...]
    clean: np.ndarray
    strays: tuple[int, ...]
    occlusions: tuple[tuple[int, int], ...]


def track_objects(frames: np.ndarray) -> TrackedVideo:
    """Detect and track the objects of a video [T, H, W, 3] in [0, 1]."""
    readings = {key: read(frame) for key, frame in {frame.tobytes(): frame for frame in frames}.items()}
    by_frame = [readings[frame.tobytes()] for frame in frames]  # equal frames are read once
    scenes, strays = [reading.things for reading in by_frame], [reading.strays for reading in by_frame]
    for number, others, pair in _expected_overlaps(scenes):
        explained = _explain_overlap(frames[number], scenes[number], others, pair)
        if explained:
            scenes[number] = explained
            unexplained = np.abs(frames[number] - render(explained)).max(axis=2) > _UNEXPLAINED
            strays[number] = min(strays[number], int(unexplained.sum()))
    tracks = link(scenes)
    clean = np.stack([render(scene) for scene in scenes])
    return TrackedVideo(tuple(scenes), tracks, clean, tuple(strays), tuple(_occlusions(scenes, tracks)))


def link(scenes: Sequence[Scene]) -> tuple[Track, ...]:
    """Link the detections of each frame to the tracks of the frames before it; the longest track comes first.

    Frame by frame the assignment of the least cost is taken. An object that is gone may come back.
    """
    tracks: list[list[Thing | None]] = []
    last: list[Thing] = []
    for number, scene in enumerate(scenes):
        costs = np.array([[_cost(before, thing) for thing in scene] for before in last])
        costs = costs.reshape(len(last), len(scene))
        rows, columns = linear_sum_assignment(np.minimum(costs, _MAX_COST))
        linked = {int(c): int(r) for r, c in zip(rows, columns, strict=True) if costs[r, c] < _MAX_COST}
        for track in tracks:
            track.append(None)
        for index, thing in enumerate(scene):
            if index in linked:
                tracks[linked[index]][-1] = last[linked[index]] = thing
            else:
                tracks.append([None] * number + [thing])
                last.append(thing)
    return tuple(sorted(map(tuple, tracks), key=lambda track: track.count(None)))


def _cost(before: Thing, after: Thing) -> float:
    """The cost of a match of two frames' detections; infinite where both place and appearance differ."""
    distance = float(np.hypot(after.centre[0] - before.centre[0], after.centre[1] - before.centre[1]))
    appearance = 0.6 * ((before.shape != after.shape) + (before.colour != after.colour))
    if appearance and distance > _NEAR:
        return float("inf")
    return distance / 24 + appearance + abs(after.side - before.side) / 16


def _expected_overlaps(scenes: Sequence[Scene]) -> Iterator[tuple[int, Scene, tuple[Thing, Thing]]]:
    """Frames in which two objects that were detected apart before and after must touch.

    Gives each frame's number, its other objects, and where the two are by the frames around it.
    """
    apart = [tuple(t for t in scene if all(t is u or gap(t, u) > 0 for u in scene)) for scene in scenes]
    tracks = [track for track in link(apart) if len(track) - track.count(None) > 1][:4]
    for first, second in itertools.combinations(tracks, 2):
        for number, (a, b) in enumerate(zip(_interpolated(first), _interpolated(second), strict=True)):
            if a and b and gap(a, b) <= 0 and not (first[number] and second[number]):
                others = tuple(t for t in scenes[number] if gap(t, a) > 0 and gap(t, b) > 0)
                yield number, others, (a, b)


def _interpolated(track: Track) -> Track:
    """The track with its gaps filled: between two frames an object goes straight and keeps its first appearance."""
    detected = [number for number, thing in enumerate(track) if thing]
    filled = list(track)
    for start, end in itertools.pairwise(detected):
        before, after = track[start], track[end]
        for number in range(start + 1, end):
            assert before and after
            share = (number - start) / (end - start)
            ends = ((before.x, after.x), (before.y, after.y), (before.side, after.side))
            x, y, side = (round(low + share * (high - low)) for low, high in ends)
            filled[number] = replace(before, x=x, y=y, side=side)
    return tuple(filled)


def _explain_overlap(
    picture: np.ndarray, detected: Scene, others: Scene, expected: tuple[Thing, Thing]
) -> Scene | None:
    """The frame as `others` and two objects of which one lies over the other, within a few pixels of where expected.

    None where the frame is explained better by what was `detected` in it: then one of the two is not there.
    """
    background = render(others)
    least_error, best = np.inf, None
    for pair in (expected, expected[::-1]):
        error = _error(picture, background, pair)
        improved = True
        while improved and error > 1e-6:
            improved = False
            for index, (dx, dy) in itertools.product((0, 1), _SHIFTS):
                moved = replace(pair[index], x=pair[index].x + dx, y=pair[index].y + dy)
                if min(moved.x, moved.y) < 0 or max(moved.x, moved.y) + moved.side > CANVAS:
                    continue
                trial = (moved, pair[1]) if index == 0 else (pair[0], moved)
                if (trial_error := _error(picture, background, trial)) < error:
                    error, pair, improved = trial_error, trial, True
        if error < least_error:
            least_error, best = error, pair
    error_as_detected = np.square(picture - render(detected)).sum()
    return (*others, *best) if best and least_error <= error_as_detected + 1e-4 else None


def _error(picture: np.ndarray, background: np.ndarray, things: Sequence[Thing]) -> float:
    """The squared error of a drawing of these objects over a background."""
    drawing = background.copy()
    for thing in things:
        square = drawing[thing.y : thing.y + thing.side, thing.x : thing.x + thing.side]
        square[shape_mask(thing.shape, thing.side)] = COLOURS[thing.colour]
    return float(np.square(picture - drawing).sum())


def _occlusions(scenes: Sequence[Scene], tracks: Sequence[Track]) -> Iterator[tuple[int, int]]:
    """The numbers of two tracks, once for every frame in which the first is partly covered by the second."""
    for frame, scene in enumerate(scenes):
        for below, above in itertools.combinations(scene, 2):
            if gap(below, above) < 0 and overlap(below, above) > 0:
                numbers = [next(n for n, track in enumerate(tracks) if track[frame] is t) for t in (below, above)]
                yield numbers[0], numbers[1]
