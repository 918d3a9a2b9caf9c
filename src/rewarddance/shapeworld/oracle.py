"""The exact judge of ShapeWorld: it reads pixels, and nothing else.

It finds objects by colour and form, explains the picture by the clean scene of those objects, and scores

- alignment in [0, 1]: how much of what the prompt asks for is there, and nothing else (1 = all of it);
- quality in [0, 1]: how little of the picture that clean scene leaves unexplained (noise, blur, smear, clutter);
- overall = 0.8 alignment + 0.2 quality: the order that annotators see through their noise.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from torch import Tensor

from rewarddance.errors import InputError
from rewarddance.shapeworld.render import render, shape_mask
from rewarddance.shapeworld.scenes import (
    BACKGROUND,
    CANVAS,
    COLOURS,
    SHAPES,
    ObjectSpec,
    Scene,
    Spec,
    Thing,
    holds,
    parse_prompt,
)

ALIGNMENT_WEIGHT = 0.8
_MIN_AREA = 9
_MIN_SIDE, _MAX_SIDE = 5, 17
_MIN_IOU = 0.62
_MIN_COSINE = 0.93
_HALF = 0.5


@dataclass(frozen=True)
class Reading:
    """What the oracle sees in one picture.

    things: the recognised objects. strays: pieces of foreground that are no object, counted as one for each
    12 pixels, rounded. quality: see the module's head.
    """

    things: Scene
    strays: int
    quality: float


@dataclass(frozen=True)
class Score:
    """The oracle's verdict on one picture under one prompt."""

    alignment: float
    quality: float
    category: str
    reasons: tuple[str, ...]

    @property
    def correct(self) -> bool:
        """GenEval's all-or-nothing figure."""
        return self.alignment > 0.999

    @property
    def overall(self) -> float:
        return ALIGNMENT_WEIGHT * self.alignment + (1 - ALIGNMENT_WEIGHT) * self.quality


_BACKGROUND = np.asarray(BACKGROUND, dtype=np.float32)
_NAMES = tuple(COLOURS)
_PAINT = np.asarray([COLOURS[name] for name in _NAMES], dtype=np.float32) - _BACKGROUND
_LENGTH = np.linalg.norm(_PAINT, axis=1)


def read(picture: np.ndarray) -> Reading:
    """Find the objects of a picture [H, W, 3] in [0, 1].

    A pixel belongs to the colour whose direction from the background it points in, once it is half way there: mixing
    with the background (soft edges, blur) moves along that direction and so changes neither colour nor outline.
    """
    away = picture.astype(np.float32) - _BACKGROUND
    along = away @ (_PAINT / _LENGTH[:, None] ** 2).T  # [H, W, colours]: 1 at full paint
    cosine = along * _LENGTH / np.maximum(np.linalg.norm(away, axis=2, keepdims=True), 1e-6)
    label = cosine.argmax(axis=2)
    strength = np.take_along_axis(along, label[..., None], axis=2)[..., 0]
    pure = np.take_along_axis(cosine, label[..., None], axis=2)[..., 0] >= _MIN_COSINE
    foreground = strength >= _HALF
    things: list[Thing] = []
    stray_area = int((foreground & ~pure).sum())
    for colour in range(len(_NAMES)):
        pieces, n = ndimage.label(foreground & pure & (label == colour))
        for index, box in enumerate(ndimage.find_objects(pieces), start=1):
            mask = pieces[box] == index
            area = int(mask.sum())
            shape = _shape_of(mask) if area >= _MIN_AREA else None
            if shape is None:
                stray_area += area
            else:
                side = max(mask.shape)
                things.append(Thing(shape, _NAMES[colour], side, box[1].start, box[0].start))
    things.sort(key=lambda thing: (thing.y, thing.x))
    return Reading(tuple(things), round(stray_area / 12), _quality(picture, tuple(things)))


def _shape_of(mask: np.ndarray) -> str | None:
    """The shape whose mask overlaps best, or None where no shape fits."""
    height, width = mask.shape
    side = max(height, width)
    if side < _MIN_SIDE or side > _MAX_SIDE or min(height, width) < 0.7 * side:
        return None
    best, name = 0.0, None
    for shape in SHAPES:
        ideal = shape_mask(shape, side)
        for top, left in itertools.product({0, side - height}, {0, side - width}):
            window = ideal[top : top + height, left : left + width]
            overlap = int((window & mask).sum())
            iou = overlap / (int(ideal.sum()) + int(mask.sum()) - overlap)
            if iou > best:
                best, name = iou, shape
    return name if best >= _MIN_IOU else None


def _quality(picture: np.ndarray, things: Scene) -> float:
    """1 minus the share of the picture's contrast that its own clean scene does not explain, never below 0.

    Contrast is measured against the larger of the clean scene's and 16 pixels of full paint's, so that a picture with
    nothing recognised in it scores 0.
    """
    if not things:
        return 0.0
    inside = tuple(t for t in things if t.x + t.side <= CANVAS and t.y + t.side <= CANVAS)
    clean = render(inside)
    error = float(np.square(picture - clean).sum())
    contrast = float(np.square(clean - _BACKGROUND).sum())
    return float(np.clip(1.0 - np.sqrt(error / max(contrast, 16.0)), 0.0, 1.0))


def score_picture(picture: np.ndarray, spec: Spec) -> Score:
    """Score one picture [H, W, 3] under what a prompt asks for."""
    reading = read(picture)
    credit, reasons = _match(reading.things, spec)
    surplus = max(0, len(reading.things) - spec.total)
    if surplus:
        reasons.append(f"{surplus} object{'s' if surplus > 1 else ''} too many")
    if reading.strays:
        reasons.append("stray paint that is no object")
    extra = surplus + min(reading.strays, 4) * 0.5
    precision = spec.total / (spec.total + extra)
    return Score(credit * precision, reading.quality, spec.category, tuple(reasons))


def _match(things: Scene, spec: Spec) -> tuple[float, list[str]]:
    """Share of the prompt's demands met under the best assignment of objects to nouns, and what is missing."""
    wanted: list[ObjectSpec] = [phrase for phrase in spec.objects for _ in range(phrase.count)]
    slots: list[Thing | None] = [*things[:6], *[None] * len(wanted)]
    best, best_reasons = -1.0, [""]
    for chosen in set(itertools.permutations(range(len(slots)), len(wanted))) if things else [()]:
        assigned = [slots[i] for i in chosen] if chosen else [None] * len(wanted)
        credits, reasons = [], []
        for phrase, thing in zip(wanted, assigned, strict=True):
            credits.append(_credit(phrase, thing))
            if credits[-1] < 1:
                reasons.append(_complaint(phrase, thing))
        if spec.relation:
            first, second = assigned[0], assigned[1]
            placed = first is not None and second is not None and holds(spec.relation, first.centre, second.centre)
            both = min(credits[0], credits[1])
            credits.append(both if placed else 0.0)
            if not placed and first is not None and second is not None:
                reasons.append(f"the {wanted[0].shape} is not {spec.relation} the {wanted[1].shape}")
        total = sum(credits) / len(credits)
        if total > best:
            best, best_reasons = total, reasons
        if best >= 1:
            break
    return best, best_reasons


def _credit(phrase: ObjectSpec, thing: Thing | None) -> float:
    """Demands of one noun that one object meets: its shape, and colour and size where they are said.

    Half of the credit is lost with the shape, and half with a colour; a size is a quarter.
    """
    if thing is None:
        return 0.0
    credit = 1.0
    if thing.shape != phrase.shape:
        credit *= 0.4
    if phrase.colour and thing.colour != phrase.colour:
        credit *= 0.4
    if phrase.size and thing.size != phrase.size:
        credit *= 0.7
    return credit


def _complaint(phrase: ObjectSpec, thing: Thing | None) -> str:
    if thing is None:
        return f"no {phrase.colour + ' ' if phrase.colour else ''}{phrase.shape} is there"
    if thing.shape != phrase.shape:
        return f"a {thing.colour} {thing.shape} stands where a {phrase.shape} should"
    if phrase.colour and thing.colour != phrase.colour:
        return f"the {phrase.shape} is {thing.colour}, not {phrase.colour}"
    return f"the {phrase.shape} is {thing.size}, not {phrase.size}"


@functools.lru_cache(maxsize=4096)
def _spec_of(prompt: str) -> Spec:
    return parse_prompt(prompt)


def judge_pixels(pixels: Tensor, prompts: Sequence[str]) -> list[Score]:
    """Score pixels [B, 1, 3, H, W] in [0, 1] under their prompts.

    Raises InputError where a prompt is not ShapeWorld English or a picture is not ShapeWorld's size.
    """
    if pixels.ndim != 5 or pixels.shape[1:] != (1, 3, CANVAS, CANVAS) or len(prompts) != len(pixels):
        raise InputError(
            f"the oracle was given pixels of shape {tuple(pixels.shape)} and {len(prompts)} prompts.",
            f"It reads pictures as [B, 1, 3, {CANVAS}, {CANVAS}] with one prompt each.",
        )
    pictures = pixels.detach().float().cpu()[:, 0].permute(0, 2, 3, 1).numpy()
    return [score_picture(picture, _spec_of(prompt)) for picture, prompt in zip(pictures, prompts, strict=True)]
