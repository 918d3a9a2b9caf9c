"""The exact judge of edits: it reads the pixels of the source and of the edit, and nothing else.

It finds the objects of both, says which object of the edit each of the source has become, and scores

- following: how much of the change that was asked for there is;
- keeping: how much of all else is as it was: the other objects, and of the edited one what the instruction left alone,
  times n / (n + surplus) for what was added unasked;
- quality: how little of the edit the clean drawing of its objects leaves unexplained.

All lie in [0, 1]. A source that was left alone follows nothing and keeps all; another picture with the right object in
it follows all and keeps little. alignment = sqrt(following x keeping), as EditScore (arXiv 2509.23909) joins its
figures; overall = 0.8 alignment + 0.2 quality, the order that annotators see through their noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from rewarddance.errors import InputError
from rewarddance.shapeworld.edits.scenes import MOVED, target_of
from rewarddance.shapeworld.edits.specs import DIRECTIONS, EditSpec, parse_edit
from rewarddance.shapeworld.oracle import ALIGNMENT_WEIGHT, noun_credit, read
from rewarddance.shapeworld.render import shape_mask
from rewarddance.shapeworld.scenes import BACKGROUND, CANVAS, SIZES, Scene, Thing, holds
from rewarddance.types import Prompt, as_prompts

_WRONG = 0.4
"""What is left of an object's credit where its shape or its colour is another."""
_SIDE, _PLACE = 2, 2.5
"""Pixels by which a side, and a place, may differ and still be the same."""
_LEAST = 0.25
"""Credit from which on an object of the edit is taken for one of the source."""
_FORGIVEN = 6
"""Stray pixels that cost nothing. Beyond them each 24 count as one object too many, up to two objects."""


@dataclass(frozen=True)
class EditScore:
    """The oracle's verdict on one edit under one instruction; see the module's head."""

    following: float
    keeping: float
    quality: float
    category: str
    reasons: tuple[str, ...]

    @property
    def alignment(self) -> float:
        return math.sqrt(self.following * self.keeping)

    @property
    def correct(self) -> bool:
        """All or nothing: the change was made, all else is as it was, and the picture is clean."""
        return min(self.following, self.keeping) > 0.999 and self.quality >= 0.5

    @property
    def overall(self) -> float:
        return ALIGNMENT_WEIGHT * self.alignment + (1 - ALIGNMENT_WEIGHT) * self.quality


class _Done(NamedTuple):
    """What one object of the edit is worth as the edited one: of the change, and of what was to stay of the target."""

    change: float
    stays: float


def score_edit(edit: np.ndarray, before: Scene, spec: EditSpec) -> EditScore:
    """Score one edit [H, W, 3] under what an instruction asks for.

    before: the objects of the source, as they were drawn or as `oracle.read` finds them.
    Raises InputError where the source does not show the one object that the instruction means.
    """
    after = read(edit)
    target = target_of(spec, before)
    edited = None if spec.kind == "add" else target
    others = [thing for thing in before if thing is not edited]
    rows = [[_same(thing, seen) for seen in after.things] for thing in others]
    rows.append([_worth(spec, target, seen) for seen in after.things])
    *kept, became = _assigned(rows, after.things)
    done = _Done(0.0, 0.0) if became is None else _done(spec, target, became)
    if spec.kind == "remove" and target is not None:
        has_moved = became is not None and _place(target, became) < 1
        done = _Done(0.0 if has_moved else 1 - _covered(edit, target), 1.0)
    credits = [0.0 if seen is None else _same(thing, seen) for thing, seen in zip(others, kept, strict=True)]
    if spec.kind not in ("add", "remove"):
        credits.append(done.stays)
    surplus = len(after.things) - sum(seen is not None for seen in (*kept, became))
    surplus += min(max(after.strays - _FORGIVEN, 0) / 24, 2)
    n = max(1, len(credits))
    keeping = (sum(credits) / n if credits else 1.0) * n / (n + surplus)
    reasons = (
        [] if done.change > 0.999 else ["the change is not made" if not done.change else "the change is half made"]
    )
    reasons += [
        f"the {thing.colour} {thing.shape} has changed" for thing, c in zip(others, credits, strict=False) if c < 1
    ]
    reasons += ["the edited object changed in more than was asked"] if edited and done.change and done.stays < 1 else []
    reasons += ["there is more than before"] if surplus > 0 else []
    return EditScore(done.change, keeping, after.quality, spec.kind, tuple(dict.fromkeys(reasons)))


def _assigned(rows: Sequence[Sequence[float]], things: Scene) -> list[Thing | None]:
    """For each row of credits the object that it has become, None where none is worth `_LEAST`."""
    found: list[Thing | None] = [None] * len(rows)
    if things:
        for row, column in zip(*linear_sum_assignment(np.array(rows), maximize=True), strict=True):
            if rows[row][column] >= _LEAST:
                found[row] = things[column]
    return found


def _same(thing: Thing, seen: Thing) -> float:
    """How much an object is as it was: shape, colour, side and place."""
    return _looks(thing, seen) * _colour(thing, seen) * _side(thing, seen) * _place(thing, seen)


def _looks(thing: Thing, seen: Thing) -> float:
    return 1.0 if thing.shape == seen.shape else _WRONG


def _colour(thing: Thing, seen: Thing) -> float:
    return 1.0 if thing.colour == seen.colour else _WRONG


def _side(thing: Thing, seen: Thing) -> float:
    return 1.0 if abs(thing.side - seen.side) <= _SIDE else 0.7


def _place(thing: Thing, seen: Thing) -> float:
    """1 within `_PLACE` pixels, and less the farther it is off, down to 0.3."""
    return min(1.0, max(0.3, 1 - (math.dist(thing.centre, seen.centre) - _PLACE) / 8))


def _worth(spec: EditSpec, target: Thing | None, seen: Thing) -> float:
    """How well an object of the edit passes for the edited one: as it was, or as it was to be."""
    done = _done(spec, target, seen)
    untouched = 0.0 if target is None or spec.kind == "add" else _same(target, seen)
    return max(untouched, done.change * done.stays)


def _done(spec: EditSpec, target: Thing | None, seen: Thing) -> _Done:
    """What of the change, and of what had to stay of the target, an object of the edit shows."""
    if spec.kind == "add" and spec.result:
        placed = target is None or holds(spec.word, seen.centre, target.centre)
        return _Done(noun_credit(spec.result, seen) * (1 if placed else 0.5), 1.0)
    if target is None or spec.kind == "remove":
        return _Done(0.0, 1.0)
    if spec.kind == "recolour":
        change = 1.0 if seen.colour == spec.word else 0.0 if seen.colour == target.colour else 0.3
        return _Done(change, _looks(target, seen) * _side(target, seen) * _place(target, seen))
    if spec.kind == "replace" and spec.result:
        alike = (seen.shape, seen.colour) == (target.shape, target.colour)
        wanted = noun_credit(spec.result, seen)
        return _Done(0.0 if alike and wanted < 1 else wanted, _place(target, seen))
    if spec.kind == "resize":
        grown = (seen.side - target.side) * (1 if spec.word == "larger" else -1)
        least = SIZES["large"][0] - SIZES["small"][1]
        return _Done(
            min(1.0, max(0.0, grown / least)), _looks(target, seen) * _colour(target, seen) * _place(target, seen)
        )
    (across, down), (x, y) = DIRECTIONS[spec.word], np.subtract(seen.centre, target.centre)
    along, aside = across * x + down * y, abs(down * x) + abs(across * y)
    change = min(1.0, max(0.0, (along - 1) / (MOVED[0] - 2))) * (1 if aside <= 2 * _PLACE else 0.5)
    return _Done(float(change), _looks(target, seen) * _colour(target, seen) * _side(target, seen))


def _covered(edit: np.ndarray, target: Thing) -> float:
    """The share of the target's pixels that are still painted: half as far from the background as any colour is."""
    window = edit[target.y : target.y + target.side, target.x : target.x + target.side]
    away = np.abs(window - np.asarray(BACKGROUND, dtype=np.float32)).max(2)[shape_mask(target.shape, target.side)]
    return float((away > 0.3).mean())


# -- the seam ----------------------------------------------------------------------------------------------------------


def judge_edits(pixels: Tensor, prompts: Sequence[str | Prompt]) -> list[EditScore]:
    """Score edits [B, 1, 3, H, W] in [0, 1] under their prompts, whose images [1, 3, H, W] are the sources.

    Raises InputError naming a prompt that is no instruction of an edit, has no source, or whose source does not show
    the one object that it means; and an edit or a source that has not ShapeWorld's size or is not finite.
    """
    if len(pixels) != len(prompts):
        raise InputError(
            f"the oracle was given {len(pixels)} edits and {len(prompts)} prompts.", "Give one prompt for every edit."
        )
    scores = []
    for edit, prompt in zip(pixels, as_prompts(prompts), strict=True):
        if prompt.image is None:
            raise InputError(f"the edit for {prompt.text!r} has no source.", "Give the prompt its image.")
        pictures = []
        for what, picture in (("edit", edit), ("source", prompt.image)):
            if picture.shape != (1, 3, CANVAS, CANVAS):
                raise InputError(
                    f"the oracle was given the {what} of {prompt.text!r} of shape {tuple(picture.shape)}.",
                    f"It reads one picture [1, 3, {CANVAS}, {CANVAS}].",
                )
            if not bool(torch.isfinite(picture).all()):
                raise InputError(
                    f"the oracle was given pixels that are not finite, in the {what} of {prompt.text!r}.",
                    "Look for the step that made them: a loss that overflowed, or a learning rate too high.",
                )
            pictures.append(picture[0].detach().float().cpu().permute(1, 2, 0).numpy())
        scores.append(score_edit(pictures[0], read(pictures[1]).things, parse_edit(prompt.text)))
    return scores
