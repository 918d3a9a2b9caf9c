"""Scripts of videos: where every object is in each frame.

Objects of a video keep apart in every frame, but for one that passes another; nothing leaves the canvas.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rewarddance.errors import InputError
from rewarddance.shapeworld.motion.specs import CROSSINGS, DIRECTIONS, MotionSpec, Role
from rewarddance.shapeworld.render import shape_mask
from rewarddance.shapeworld.scenes import (
    CANVAS,
    COLOURS,
    GAP,
    SHAPES,
    Scene,
    Thing,
    gap,
    pick,
    random_corner,
    random_side,
)

MIN_FRAMES, MAX_FRAMES = 8, 16
FRAMES, FPS = 9, 8.0
"""Of a video, unless the caller says otherwise: a little more than a second. Video VAEs take 4k + 1 frames."""
MIN_DISTANCE, MAX_DISTANCE = 10, 22
"""How far moving objects go, in pixels."""
LEAST_GROWTH = 4
_LEAST_HIDDEN = 0.5
"""Share of the smaller object's pixels that is covered at the height of a passage."""
_TRIES = 3000

Path = tuple[Thing | None, ...]
"""One object in every frame; None where it is not there."""
Script = tuple[Path, ...]
"""The objects of a video, in the order in which they are painted: the last lies on top."""


def scenes_of(script: Script) -> list[Scene]:
    """The scene of each frame, its objects in the order in which they are painted."""
    return [tuple(thing for thing in things if thing) for things in zip(*script, strict=True)]


def first_of(path: Path) -> Thing:
    """An object as it is when it is first seen."""
    return next(thing for thing in path if thing)


def sample_script(
    spec: MotionSpec,
    frames: int,
    rng: np.random.Generator,
    begin: Sequence[Thing] | None = None,
    beside: Script = (),
) -> Script | None:
    """A script that shows exactly what `spec` asks for; what the spec leaves open is random.

    begin: each role's object as it is first seen; None: random ones. beside: other objects of the video, to keep apart
    from. Returns None where no such script was found, which happens only with `begin` or `beside`. Raises InputError
    where a video cannot have so many frames.
    """
    if not MIN_FRAMES <= frames <= MAX_FRAMES:
        raise InputError(f"a video of {frames} frames.", f"ShapeWorld's videos have {MIN_FRAMES} to {MAX_FRAMES}.")
    for _ in range(_TRIES if begin is None and not beside else 60):
        things = begin or _beginning(spec, rng)
        paths = _paths(spec, things, frames, rng) if things else None
        if paths and _apart(paths, beside, spec.roles[0].action in CROSSINGS):
            return paths[::-1] if spec.roles[0].action == "passes in front of" else paths
    if begin is not None or beside:
        return None
    raise InputError(f"found no place for {spec.text!r} on a canvas of {CANVAS}.", "Ask for smaller objects.")


def new_script(spec: MotionSpec, frames: int, rng: np.random.Generator) -> Script:
    """A script for `spec` from random objects."""
    script = sample_script(spec, frames, rng)
    assert script is not None, "without given objects there is always a script, or an error"
    return script


def script_like(spec: MotionSpec, other: Script, same_start: bool, rng: np.random.Generator) -> Script:
    """A script for `spec` as long as another one.

    same_start: it begins with the other's objects in their places, unless they have no room for what `spec` asks for.
    """
    frames = len(other[0])
    if same_start:
        by_shape = {first_of(path).shape: first_of(path) for path in other}
        script = sample_script(spec, frames, rng, [by_shape[role.noun.shape] for role in spec.roles])
        if script:
            return script
    return new_script(spec, frames, rng)


def _paths(spec: MotionSpec, things: Sequence[Thing], frames: int, rng: np.random.Generator) -> Script | None:
    """Every role's path from its first position, in the order of the roles; None where one has no room."""
    paths = []
    for index, (role, thing) in enumerate(zip(spec.roles, things, strict=True)):
        passed = things[1] if index == 0 and role.action in CROSSINGS else None
        path = _across(thing, passed, frames) if passed else _path(role, thing, frames, rng)
        if path is None:
            return None
        paths.append(path)
    return tuple(paths)


def _path(role: Role, thing: Thing, frames: int, rng: np.random.Generator) -> Path | None:
    """The path of an object that does what its role says; None where it has no room for it."""
    event = int(rng.integers(-(-frames // 4), 3 * frames // 4 + 1))
    if role.action in DIRECTIONS:
        dx, dy = DIRECTIONS[role.action]
        edge = CANVAS - 1 - thing.side
        room = {(-1, 0): thing.x - 1, (1, 0): edge - thing.x, (0, -1): thing.y - 1, (0, 1): edge - thing.y}[dx, dy]
        if room < MIN_DISTANCE:
            return None
        distance = int(rng.integers(MIN_DISTANCE, min(room, MAX_DISTANCE) + 1))
        steps = [_covered(distance, i, frames) for i in range(frames)]
        return tuple(replace(thing, x=thing.x + dx * step, y=thing.y + dy * step) for step in steps)
    if role.action in ("grows", "shrinks"):
        end = random_side("large" if role.action == "grows" else "small", rng)
        if abs(end - thing.side) < LEAST_GROWTH or (end > thing.side) != (role.action == "grows"):
            return None
        sides = [thing.side + _covered(end - thing.side, i, frames) for i in range(frames)]
        path = [_resized(thing, side) for side in sides]
        fits = all(t.x >= 0 and t.y >= 0 and max(t.x, t.y) + t.side <= CANVAS for t in path)
        return tuple(path) if fits else None
    if role.action == "appears":
        return (None,) * event + (thing,) * (frames - event)
    if role.action == "disappears":
        return (thing,) * event + (None,) * (frames - event)
    if role.action == "changes colour":
        other_colours = [colour for colour in COLOURS if colour != thing.colour]
        into = role.into or pick(other_colours, rng)
        return (thing,) * event + (replace(thing, colour=into),) * (frames - event) if into in other_colours else None
    return (thing,) * frames


def _covered(distance: int, i: int, frames: int) -> int:
    """How much of a distance is covered in frame `i`, in whole pixels."""
    return int(np.sign(distance)) * ((2 * abs(distance) * i + frames - 1) // (2 * (frames - 1)))


def _resized(thing: Thing, side: int) -> Thing:
    """The object with another side length and the same centre."""
    shift = (side - thing.side) // 2 if side > thing.side else -((thing.side - side) // 2)
    return replace(thing, side=side, x=thing.x - shift, y=thing.y - shift)


def _across(thing: Thing, passed: Thing, frames: int) -> Path | None:
    """The path of one object across another, from beside it to beyond it; None where there is no such path."""
    (x, y), (px, py) = thing.centre, passed.centre
    dx, dy = (int(np.sign(px - x)), 0) if abs(px - x) >= abs(py - y) else (0, int(np.sign(py - y)))
    distance = int(np.ceil(abs(px - x if dx else py - y) + (passed.side + thing.side) / 2 + 1))
    corner = (thing.x, thing.y)[0 if dx else 1]
    room = CANVAS - thing.side - corner if dx + dy > 0 else corner
    if gap(thing, passed) < 1 or distance > room:
        return None
    steps = [_covered(distance, i, frames) for i in range(frames)]
    path = tuple(replace(thing, x=thing.x + dx * step, y=thing.y + dy * step) for step in steps)
    return path if max(hidden_share(moved, passed) for moved in path) >= _LEAST_HIDDEN else None


def hidden_share(thing: Thing, other: Thing) -> float:
    """Share of an object's pixels that lie where the other's do."""
    return overlap(thing, other) / int(shape_mask(thing.shape, thing.side).sum())


def overlap(a: Thing, b: Thing) -> int:
    """Pixels that two objects share."""
    masks = []
    for thing in (a, b):
        mask = np.zeros((CANVAS, CANVAS), dtype=bool)
        mask[thing.y : thing.y + thing.side, thing.x : thing.x + thing.side] = shape_mask(thing.shape, thing.side)
        masks.append(mask)
    return int((masks[0] & masks[1]).sum())


def _beginning(spec: MotionSpec, rng: np.random.Generator) -> list[Thing] | None:
    """Every role's object as it is first seen, at a random place; None where the places do not go together."""
    things: list[Thing] = []
    for role in spec.roles:
        side = random_side(role.noun.size or _size(spec, role, rng), rng)
        colour = role.noun.colour or pick(COLOURS, rng)
        things.append(Thing(role.noun.shape, colour, side, *random_corner(side, rng)))
    if spec.roles[0].action in CROSSINGS:
        return _lined_up(things[0], things[1], rng) if things[0].colour != things[1].colour else None
    return things if all(gap(a, b) >= GAP for a, b in itertools.combinations(things, 2)) else None


def _size(spec: MotionSpec, role: Role, rng: np.random.Generator) -> str:
    """The size of an object where the prompt does not say it."""
    if role.action == "shrinks" or (spec.roles[0].action in CROSSINGS and role.action is None):
        return "large"
    return "small" if role.action == "grows" or len(spec.roles) > 1 or rng.random() < 0.5 else "large"


def _lined_up(thing: Thing, passed: Thing, rng: np.random.Generator) -> list[Thing] | None:
    """An object on one side of the one that it is to pass, with room on the other; None where there is none."""
    room = CANVAS - 2 * thing.side - passed.side - 2
    if room < 0:
        return None
    start = int(rng.integers(room + 1))
    at = start + thing.side + 1
    if rng.random() < 0.5:
        start, at = CANVAS - thing.side - start, CANVAS - at - passed.side
    beside = int(rng.integers(0, CANVAS - passed.side + 1))
    level = beside + (passed.side - thing.side) // 2 + int(rng.integers(-2, 4))
    if not 0 <= level <= CANVAS - thing.side:
        return None
    if rng.random() < 0.5:
        return [replace(thing, x=start, y=level), replace(passed, x=at, y=beside)]
    return [replace(thing, x=level, y=start), replace(passed, x=beside, y=at)]


def _apart(paths: Script, beside: Script, crossing: bool) -> bool:
    """True where no two objects come near each other in any frame, but for two that pass."""
    pairs = [*itertools.product(paths, beside), *(() if crossing else itertools.combinations(paths, 2))]
    return all(gap(a, b) >= GAP for path, other in pairs for a, b in zip(path, other, strict=True) if a and b)


def changed_identity(script: Script, level: float, rng: np.random.Generator) -> Script:
    """The script with one object that jumps to another colour or shape and keeps it, for up to 3/4 of the video.

    level in [0, 1]: how early it jumps; at 0 never.
    """
    index = int(rng.integers(len(script)))
    path, frames = script[index], len(script[index])
    if rng.random() < 0.5:
        change = {"colour": pick([c for c in COLOURS if all(t is None or t.colour != c for t in path)], rng)}
    else:
        change = {"shape": pick([shape for shape in SHAPES if shape != first_of(path).shape], rng)}
    after = frames - round(0.75 * level * frames)
    jumped = tuple(replace(t, **change) if t and i >= after else t for i, t in enumerate(path))
    return tuple(jumped if i == index else other for i, other in enumerate(script))
