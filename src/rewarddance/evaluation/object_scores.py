"""Object-level scores of a picture: GenEval's rules on what a detector found, Soft-TIFA and TIFA on answers.

Sources: GenEval (2310.11513 and its evaluate_images.py, whose rules these are to the letter), GenEval 2 (2512.16853),
TIFA (2303.11897).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rewarddance.data.object_prompts import COLOURS, Clause, GenEvalRow
from rewarddance.evaluation.recipe import GenEvalRules

Box = tuple[float, float, float, float]
"""Left, top, right and bottom edge in pixels."""


class Detection(NamedTuple):
    """One object that a detector found.

    name: its class. score: how sure the detector is, in [0, 1]. mask [H, W]: which pixels are the object's, where the
    detector says so. colour: where it says that, too; nobody else is then asked.
    """

    name: str
    box: Box
    score: float
    mask: np.ndarray | None = None
    colour: str | None = None


ColoursOf = Callable[[str, Sequence[Detection]], Sequence[str]]
"""A class and objects of it -> the colour of each, one of COLOURS."""


class ObjectVerdict(NamedTuple):
    """reason: every demand that is not met, "" where all are."""

    correct: bool
    reason: str


def kept(detections: Sequence[Detection], tag: str, rules: GenEvalRules) -> dict[str, list[Detection]]:
    """The objects that count, by class, the surest first.

    Above the threshold of the tag, at most `max_objects` of a class, and of two that overlap by `max_overlap` (IoU) the
    surer one; at 1 overlaps are left.
    """
    threshold = rules.counting_threshold if tag == "counting" else rules.threshold
    by_class: dict[str, list[Detection]] = {}
    for name in dict.fromkeys(detection.name for detection in detections):
        sure = [detection for detection in detections if detection.name == name and detection.score > threshold]
        sure = sorted(sure, key=lambda detection: -detection.score)[: rules.max_objects]
        distinct: list[Detection] = []
        for detection in sure:
            if rules.max_overlap == 1 or all(
                overlap(other.box, detection.box) < rules.max_overlap for other in distinct
            ):
                distinct.append(detection)
        if distinct:
            by_class[name] = distinct
    return by_class


def overlap(box: Box, other: Box) -> float:
    """Intersection over union, in pixels that both edges belong to."""

    def area(left: float, top: float, right: float, bottom: float) -> float:
        return max(right - left + 1, 0) * max(bottom - top + 1, 0)

    both = area(max(box[0], other[0]), max(box[1], other[1]), min(box[2], other[2]), min(box[3], other[3]))
    union = area(*box) + area(*other) - both
    return both / union if union else 0.0


def relations(box: Box, other: Box, threshold: float = 0.1) -> set[str]:
    """Where `box` is, seen from `other`: of left of, right of, above and below none, one or two.

    The offset of the centres, less `threshold` times both boxes' size, must be more than half the offset's length.
    """
    corners = np.array([box, other], dtype=np.float64).reshape(2, 2, 2)
    sizes = np.abs(corners[:, 1] - corners[:, 0]).sum(0)
    centres = corners.mean(1)
    offset = centres[0] - centres[1]
    beyond = np.maximum(np.abs(offset) - threshold * sizes, 0) * np.sign(offset)
    if np.all(np.abs(beyond) < 1e-3):
        return set()
    dx, dy = beyond / np.linalg.norm(offset)
    holds_of = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {relation for relation, holds in holds_of.items() if holds}


def geneval_verdict(
    objects: Mapping[str, Sequence[Detection]], row: GenEvalRow, colours_of: ColoursOf, rules: GenEvalRules
) -> ObjectVerdict:
    """Is a picture what its prompt asks for? GenEval's rule.

    objects: as `kept` gives them. Of each clause of `include` the `count` surest objects of its class are looked at:
    there must be so many, all of its colour, each in its relation to each that an earlier clause was met by. No class
    of `exclude` may have its count. colours_of: asked where a clause has a colour and objects do not say theirs.
    """
    reasons: list[str] = []
    met: list[Sequence[Detection] | None] = []
    for clause in row.include:
        clause_objects = objects.get(clause.name, [])[: clause.count]
        fault = _fault(clause, clause_objects, met, colours_of, rules.position_threshold)
        met.append(None if fault else clause_objects)
        reasons += [fault] if fault else []
    for clause in row.exclude:
        if (n := len(objects.get(clause.name, []))) >= clause.count:
            reasons.append(f"expected {clause.name}<{clause.count}, found {n}")
    return ObjectVerdict(not reasons, "; ".join(reasons))


def _fault(
    clause: Clause,
    objects: Sequence[Detection],
    met: Sequence[Sequence[Detection] | None],
    colours_of: ColoursOf,
    threshold: float,
) -> str:
    """What a clause lacks, "" where it is met. met: by which objects each earlier clause is, None where it is not."""
    if len(objects) < clause.count:
        return f"expected {clause.name}>={clause.count}, found {len(objects)}"
    if clause.color is not None:
        colours = _colours(clause.name, objects, colours_of)
        if (n := colours.count(clause.color)) < clause.count:
            counts = ", ".join(f"{colours.count(colour)} {colour}" for colour in COLOURS if colour in colours)
            return f"expected {clause.color} {clause.name}>={clause.count}, found {n} ({counts})"
    if clause.position is None:
        return ""
    relation, target = clause.position
    others = met[target]
    if others is None:
        return f"no target for {clause.name} to be {relation}"
    for detection in objects:
        for other in others:
            if relation not in (directions := relations(detection.box, other.box, threshold)):
                place = " and ".join(sorted(directions)) or "in no clear relation to"
                return f"expected {clause.name} {relation} target, found {place} target"
    return ""


def _colours(name: str, objects: Sequence[Detection], colours_of: ColoursOf) -> list[str]:
    uncoloured = [detection for detection in objects if detection.colour is None]
    answers = iter(colours_of(name, uncoloured) if uncoloured else ())
    return [next(answers) if detection.colour is None else detection.colour for detection in objects]


def soft_tifa(probabilities: Sequence[float]) -> tuple[float, float]:
    """GenEval 2's Soft-TIFA of a picture from P(expected answer) of each of its questions: AM and GM.

    The arithmetic mean speaks of atoms, the geometric mean of the whole prompt: one 0 makes it 0. Raises ValueError for
    no probabilities.
    """
    values = np.asarray(probabilities, dtype=np.float64)
    if not len(values):
        raise ValueError("Soft-TIFA needs the probability of at least one answer")
    with np.errstate(divide="ignore"):
        return float(values.mean()), float(np.exp(np.log(values).mean()))


def tifa(chosen: Sequence[str], expected: Sequence[str]) -> tuple[list[bool], float]:
    """TIFA of a picture: which answers are the expected ones, and their share. Raises ValueError for none."""
    right = [answer == right_answer for answer, right_answer in zip(chosen, expected, strict=True)]
    if not right:
        raise ValueError("TIFA needs at least one question")
    return right, sum(right) / len(right)
