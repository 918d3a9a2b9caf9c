"""The exact judge of ShapeWorld: it reads pixels, and nothing else.

It finds objects by colour and form, explains the picture by the clean scene of those objects, and scores

- alignment in [0, 1]: how much of what the prompt asks for is there, and nothing else (1 = all of it);
- quality in [0, 1]: how little of the picture that clean scene leaves unexplained (noise, blur, smear, clutter);
- overall = 0.8 alignment + 0.2 quality: the order that annotators see through their noise.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from rewarddance.errors import InputError
from rewarddance.shapeworld.render import render
from rewarddance.shapeworld.scenes import (
    BACKGROUND,
    CANVAS,
    COLOURS,
    ObjectSpec,
    Scene,
    Spec,
    Thing,
    holds,
    parse_prompt,
)
from rewarddance.shapeworld.shapes import MARGIN, MAX_SIDE, MIN_SIDE, Fit, recognise

ALIGNMENT_WEIGHT = 0.8
_MIN_AREA = 9
_MIN_COVER = 0.3
"""Share of a mended piece that must be painted: half of a striped object is, a third of a hollow one."""
_MIN_COSINE = 0.93
_HALF, _FAINT = 0.5, 0.25
"""Share of its paint from which on a pixel counts as painted, and as faintly so."""
_LEAST_QUALITY, _MOST_FAINT = 0.5, 10
"""Of a picture that is clear; the second in pixels."""
_FORGIVEN = 6
"""Stray pixels that cost nothing. Beyond them each 24 count as one object too many, up to two objects."""


@dataclass(frozen=True)
class Reading:
    """What the oracle sees in one picture.

    things: the recognised objects, in reading order of their top left corners.
    strays: painted pixels that belong to no object.
    faint: pixels beside the objects that are a quarter to half as bright as paint.
    quality: see the module's head.
    """

    things: Scene
    strays: int
    faint: int
    quality: float


@dataclass(frozen=True)
class Score:
    """The oracle's verdict on one picture under one prompt.

    clear: whether a person would call the picture clean: quality is half at least, and nothing faint is beside.
    """

    alignment: float
    quality: float
    category: str
    reasons: tuple[str, ...]
    clear: bool = True

    @property
    def correct(self) -> bool:
        """GenEval's all-or-nothing figure: all of the prompt, nothing else, and clearly."""
        return self.alignment > 0.999 and self.clear

    @property
    def overall(self) -> float:
        return ALIGNMENT_WEIGHT * self.alignment + (1 - ALIGNMENT_WEIGHT) * self.quality


_BACKGROUND = np.asarray(BACKGROUND, dtype=np.float32)
_NAMES = tuple(COLOURS)
_PAINT = np.asarray([COLOURS[name] for name in _NAMES], dtype=np.float32) - _BACKGROUND
_LENGTH = np.linalg.norm(_PAINT, axis=1)
_DIRECTION = _PAINT / _LENGTH[:, None]
_CONNECTED = np.zeros((3, 3, 3), dtype=bool)
"""Which pixels of [colour, y, x] are connected: those of one colour that share a side."""
_CONNECTED[1] = ndimage.generate_binary_structure(2, 1)


def read(picture: np.ndarray) -> Reading:
    """Find the objects of a picture [H, W, 3] in [0, 1].

    A pixel belongs to the colour whose direction from the background it points in, once it is half way there: mixing
    with the background (soft edges, blur) moves along that direction and so changes neither colour nor outline. Where
    its paint is in pieces that are no objects, they are looked at once more with the gaps closed: a striped, hollow or
    torn object is still there, and its gaps count in the quality.
    """
    away = picture.astype(np.float32).reshape(-1, 3) - _BACKGROUND
    along = _DIRECTION @ away.T  # [colours, pixels]
    colour = along.argmax(axis=0)
    reach = along.max(axis=0)
    painted = reach >= _HALF * _LENGTH[colour]
    pure = reach >= _MIN_COSINE * np.linalg.norm(away, axis=1)
    layers = np.arange(len(_NAMES))[:, None] == np.where(painted & pure, colour, -1)
    layers = layers.reshape(-1, CANVAS, CANVAS)
    cover = np.where(np.arange(len(_NAMES))[:, None] == colour, along / _LENGTH[:, None], 0).clip(0, 1)
    cover = cover.reshape(-1, CANVAS, CANVAS)
    things = _take_objects(layers, layers, cover)
    if layers.sum() >= _MIN_AREA:
        mended = _mended(layers)
        things += _take_objects(mended, layers, mended)
    things.sort(key=lambda thing: (thing.y, thing.x))
    strays = int(layers.sum() + (painted & ~pure).sum())
    clean = render(tuple(things))
    quality = explained(picture, clean) if things else 0.0  # without objects there is none
    beside = np.logical_not(ndimage.binary_dilation((clean != _BACKGROUND).any(2), _CONNECTED[1], iterations=2))
    faint = (reach >= _FAINT * _LENGTH[colour]) & ~(painted & pure) & beside.ravel()
    return Reading(tuple(things), strays, int(faint.sum()), quality)


def _take_objects(mended: np.ndarray, layers: np.ndarray, cover: np.ndarray) -> list[Thing]:
    """The objects among the connected pieces of `mended` [colours, H, W]; their paint is cleared from `layers`.

    cover [colours, H, W]: how much of each pixel has the colour.
    """
    pieces = _pieces(mended)
    large = np.bincount(pieces.ravel()) >= _MIN_AREA
    large[0] = False
    pieces = (large * large.cumsum())[pieces]
    things = []
    for index, (layer, rows, columns) in enumerate(ndimage.find_objects(pieces), start=1):
        mask = pieces[layer, rows, columns][0] == index
        paint = layers[layer, rows, columns][0]
        if (paint & mask).sum() < _MIN_COVER * mask.sum():
            continue
        thing = _recognised(pieces[layer.start] == index, cover[layer.start], rows, columns, _NAMES[layer.start])
        if thing:
            things.append(thing)
            paint[mask] = False
    return things


def _recognised(piece: np.ndarray, cover: np.ndarray, rows: slice, columns: slice, colour: str) -> Thing | None:
    """The object that a piece [H, W] with the bounds `rows` and `columns` is, or None.

    A piece that is not square may have lost one side, to the edge or to clutter: its square is tried on either side.
    """
    height, width = rows.stop - rows.start, columns.stop - columns.start
    side = max(height, width)
    if not MIN_SIDE <= side <= MAX_SIDE or min(height, width) < 0.7 * side:
        return None
    soft = np.where(piece, np.maximum(cover, _HALF), np.where(ndimage.binary_dilation(piece), cover, 0))
    soft = np.minimum(soft / np.quantile(soft[piece], 0.75), 1)  # pale paint is paint: it costs quality
    padding = CANVAS
    soft, canvas = np.pad(soft, padding), np.pad(np.ones_like(piece), padding)
    best: tuple[Fit, float, int, int] | None = None
    tops = {rows.start, rows.stop - side, (rows.start + rows.stop - side) // 2}
    lefts = {columns.start, columns.stop - side, (columns.start + columns.stop - side) // 2}
    for top, left in itertools.product(tops, lefts):
        y, x = top - MARGIN + padding, left - MARGIN + padding
        window = np.s_[y : y + side + 2 * MARGIN, x : x + side + 2 * MARGIN]
        found = recognise(soft[window], canvas[window])
        if found and (best is None or found[1] > best[1]):
            best = (*found, top - MARGIN, left - MARGIN)
    if best is None:
        return None
    fit, _, y, x = best
    # An object that the edge cuts is put whole at the edge: a scene can be drawn, and the cut costs quality.
    top, left = (min(max(v, 0), CANVAS - fit.side) for v in (y + fit.top, x + fit.left))
    return Thing(fit.shape, colour, fit.side, left, top)


def _pieces(layers: np.ndarray) -> np.ndarray:
    """Connected pieces numbered from 1, background 0; a piece lies in one layer."""
    numbers = np.empty(layers.shape, dtype=np.int32)
    ndimage.label(layers, _CONNECTED, output=numbers)
    return numbers


def _mended(layers: np.ndarray) -> np.ndarray:
    """Layers [colours, H, W] with gaps of up to two pixels closed, and then every hole filled."""
    closed = np.asarray(ndimage.grey_closing(layers, size=(1, 3, 3)), dtype=bool)
    gaps = _pieces(~closed)
    outside = np.zeros(gaps.max() + 1, dtype=bool)
    outside[gaps[:, [0, -1]]] = outside[gaps[:, :, [0, -1]]] = True
    return closed | ~outside[gaps]


def explained(pixels: np.ndarray, clean: np.ndarray) -> float:
    """1 - |pixels - clean| / |clean - background|, never below 0; the norms are Euclidean over all pixels."""
    paint = np.square(clean - _BACKGROUND).sum()
    return max(0.0, 1.0 - float(np.sqrt(np.square(pixels - clean).sum() / max(paint, 1e-6))))


def score_picture(picture: np.ndarray, spec: Spec) -> Score:
    """Score one picture [H, W, 3] under what a prompt asks for.

    Alignment is the share of the prompt's demands that are met, times n / (n + extra) for a prompt of n objects, where
    extra is what is there beyond them: objects, and stray paint.
    """
    reading = read(picture)
    met, reasons = _match(reading.things, spec)
    surplus = max(0, len(reading.things) - spec.total)
    if surplus:
        reasons.append(f"{surplus} object{'s' if surplus > 1 else ''} too many")
    stray = min(max(reading.strays - _FORGIVEN, 0) / 24, 2)
    if stray:
        reasons.append("stray paint that is no object")
    alignment = met * spec.total / (spec.total + surplus + stray)
    clear = reading.quality >= _LEAST_QUALITY and reading.faint <= _MOST_FAINT
    return Score(alignment, reading.quality, spec.category, tuple(reasons), clear)


def _match(things: Scene, spec: Spec) -> tuple[float, list[str]]:
    """Share of the prompt's demands met under the best assignment of objects to nouns, and what is missing.

    Each object that the prompt names is one demand. A relation is one more: where it holds, it is met as far as the
    worst of its objects, else not at all.
    """
    nouns = [phrase for phrase in spec.objects for _ in range(phrase.count)]
    slots: list[Thing | None] = [*things, *[None] * (len(nouns) - len(things))]
    credits = [[noun_credit(noun, thing) for thing in slots] for noun in nouns]
    # As many candidates a noun as there are nouns are enough for the best sum; a relation may want another pair.
    depth = 6 if spec.relation else len(nouns)
    candidates = sorted({int(i) for row in credits for i in np.argsort(np.negative(row), kind="stable")[:depth]})
    best, met, chosen = -1.0, [0.0], ()
    for trial in itertools.permutations(candidates, len(nouns)):
        gains = [row[i] for row, i in zip(credits, trial, strict=True)]
        if spec.relation:
            gains.append(min(gains) if _placed([slots[i] for i in trial], spec) else 0.0)
        if sum(gains) > best:
            best, met, chosen = sum(gains), gains, trial
        if best >= len(gains):
            break
    assigned = [slots[i] for i in chosen]
    reasons = [_fault(noun, thing) for noun, thing, gain in zip(nouns, assigned, met, strict=False) if gain < 1]
    if spec.relation and None not in assigned and not _placed(assigned, spec):
        first, second = spec.objects
        reasons.append(f"the {first.shape} is not {spec.relation} the {second.shape}")
    return best / len(met), reasons


def _placed(assigned: Sequence[Thing | None], spec: Spec) -> bool:
    """True when every object of the first noun stands in the prompt's relation to every object of the second."""
    first, second = assigned[: spec.objects[0].count], assigned[spec.objects[0].count :]
    return all(
        a is not None and b is not None and holds(spec.relation or "", a.centre, b.centre)
        for a, b in itertools.product(first, second)
    )


def noun_credit(phrase: ObjectSpec, thing: Thing | None) -> float:
    """Demands of one noun that one object meets: its shape, and colour and size where they are said.

    1 where all are met; a wrong shape leaves 0.4 of it, a wrong colour 0.4, a wrong size 0.7. No object is 0.
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


def _fault(phrase: ObjectSpec, thing: Thing | None) -> str:
    if thing is None:
        return f"no {phrase.colour + ' ' if phrase.colour else ''}{phrase.shape} is there"
    if thing.shape != phrase.shape:
        return f"a {thing.colour} {thing.shape} stands where a {phrase.shape} should"
    if phrase.colour and thing.colour != phrase.colour:
        return f"the {phrase.shape} is {thing.colour}, not {phrase.colour}"
    return f"the {phrase.shape} is {thing.size}, not {phrase.size}"


def judge_pixels(pixels: Tensor, prompts: Sequence[str]) -> list[Score]:
    """Score pixels [B, 1, 3, H, W] in [0, 1] under their prompts.

    Raises InputError where a prompt is not ShapeWorld English, or a picture not ShapeWorld's size or not finite.
    """
    if pixels.ndim != 5 or pixels.shape[1:] != (1, 3, CANVAS, CANVAS) or len(prompts) != len(pixels):
        raise InputError(
            f"the oracle was given pixels of shape {tuple(pixels.shape)} and {len(prompts)} prompts.",
            f"It reads pictures as [B, 1, 3, {CANVAS}, {CANVAS}] with one prompt each.",
        )
    broken = (~torch.isfinite(pixels).flatten(1).all(dim=1)).nonzero().flatten().tolist()
    if broken:
        raise InputError(
            f"the oracle was given pixels that are not finite, in picture {broken[0]} ({prompts[broken[0]]!r}).",
            "Look for the step that made them: a loss that overflowed, or a learning rate too high.",
        )
    pictures = pixels.detach().float().cpu()[:, 0].permute(0, 2, 3, 1).numpy()
    return [score_picture(picture, parse_prompt(prompt)) for picture, prompt in zip(pictures, prompts, strict=True)]
