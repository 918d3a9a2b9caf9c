"""Source scenes that an edit can be asked of, and the scenes that it leads to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rewarddance.errors import InputError
from rewarddance.shapeworld.edits.specs import DIRECTIONS, EditSpec
from rewarddance.shapeworld.scenes import (
    CANVAS,
    COLOURS,
    GAP,
    SHAPES,
    SIZES,
    ObjectSpec,
    Scene,
    Thing,
    gap,
    holds,
    lay_out,
    pick,
    random_corner,
    random_side,
)

MOVED = (6, 14)
"""Pixels that an object is moved by, inclusive range."""


def target_of(spec: EditSpec, source: Scene) -> Thing | None:
    """The one object of the source that the instruction means; None where it means none.

    Raises InputError where the source shows none such, or several.
    """
    if spec.target is None:
        return None
    found = [thing for thing in source if spec.target.fits(thing)]
    if len(found) != 1:
        raise InputError(
            f"the source of the instruction {spec.text!r} shows {len(found)} objects that are {spec.target.text}.",
            "Name one that is there once, by shape, colour or size.",
        )
    return found[0]


def source_scene(spec: EditSpec, rng: np.random.Generator) -> tuple[Scene, Scene]:
    """A random source that the edit can be made to, with one or two other objects, and what the edit leads to."""
    for _ in range(500):
        parts = [] if spec.target is None else [_part(spec.target, rng)]
        if spec.kind == "resize":
            parts[0] = (*parts[0][:2], random_side("small" if spec.word == "larger" else "large", rng))
        for _ in range(int(rng.integers(1, 3))):
            parts.append(_part(ObjectSpec(pick(SHAPES, rng), size=pick(("small", "small", "large"), rng)), rng))
        try:
            source = lay_out(parts, rng)
            target = target_of(spec, source)
        except InputError:  # no place, or more than one that is meant
            continue
        changes_colour = spec.kind != "recolour" or (target is not None and target.colour != spec.word)
        if changes_colour and (edited := edited_scene(spec, source, rng)) is not None:
            return source, edited
    raise InputError(f"found no source for the instruction {spec.text!r}.", "Ask for another edit.")


def _part(noun: ObjectSpec, rng: np.random.Generator) -> tuple[str, str, int]:
    """An object's shape, colour and side, at random where the noun does not say them."""
    return noun.shape, noun.colour or pick(COLOURS, rng), random_side(noun.size or pick(SIZES, rng), rng)


def edited_scene(spec: EditSpec, source: Scene, rng: np.random.Generator) -> Scene | None:
    """The source after the edit, all else as it was; None where that found no place.

    Raises InputError where the source does not show the one object that the instruction means.
    """
    target = target_of(spec, source)
    others = tuple(thing for thing in source if thing is not target)
    if spec.kind == "remove":
        return others
    if spec.kind == "add" and spec.result:
        return _first_free(source, [_placed(spec.result, spec, target, rng) for _ in range(200)])
    if target is None:
        return None
    if spec.kind == "recolour":
        return tuple(replace(target, colour=spec.word) if thing is target else thing for thing in source)
    if spec.kind == "move":
        dx, dy = DIRECTIONS[spec.word]
        steps = rng.permutation(np.arange(MOVED[0], MOVED[1] + 1)).tolist()
        return _first_free(others, [replace(target, x=target.x + dx * n, y=target.y + dy * n) for n in steps])
    if spec.kind == "resize":
        size = "large" if spec.word == "larger" else "small"
        return _first_free(others, [_centred(target, random_side(size, rng)) for _ in range(5)])
    if spec.result is None:
        return None
    side = random_side(spec.result.size, rng) if spec.result.size else target.side
    new = _centred(target, side)
    return _first_free(others, [replace(new, shape=spec.result.shape, colour=spec.result.colour or target.colour)])


def _placed(noun: ObjectSpec, spec: EditSpec, anchor: Thing | None, rng: np.random.Generator) -> Thing | None:
    """A new object at random, in the instruction's relation to the anchor; None where it did not fall so."""
    shape, colour, side = _part(noun, rng)
    thing = Thing(shape, colour, side, *random_corner(side, rng))
    if anchor is not None and not holds(spec.word, thing.centre, anchor.centre, margin=8.0):
        return None
    return thing


def _centred(thing: Thing, side: int) -> Thing:
    """The object with another side, about its centre."""
    shift = (thing.side - side) // 2
    return replace(thing, side=side, x=thing.x + shift, y=thing.y + shift)


def _first_free(others: Scene, trials: list[Thing | None] | list[Thing]) -> Scene | None:
    """The others with the first of the trials that stands on the canvas and clear of them."""
    for thing in trials:
        if thing is None or not (min(thing.x, thing.y) >= 1 and max(thing.x, thing.y) + thing.side < CANVAS):
            continue
        if all(gap(thing, other) >= GAP for other in others):
            return (*others, thing)
    return None
