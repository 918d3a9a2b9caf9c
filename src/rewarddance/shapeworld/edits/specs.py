"""The instructions of ShapeWorld's edits: recolour, replace, add, remove, move or resize one object of a source.

An `EditSpec` is what an instruction asks for. Instructions are plain English in several phrasings; `parse_edit` reads
them back, so the oracle can judge one that it has never seen.
"""

from __future__ import annotations

import functools
import itertools
import re
from dataclasses import dataclass, replace

import numpy as np

from rewarddance.errors import InputError
from rewarddance.shapeworld.scenes import (
    COLOURS,
    RELATIONS,
    SHAPES,
    SIZES,
    SPLITS,
    UNSEEN_COMBINATIONS,
    ObjectSpec,
    in_turn,
    parse_prompt,
    pick,
    split_of,
)

KINDS = ("recolour", "replace", "add", "remove", "move", "resize")
DIRECTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
"""Steps of x (to the right) and y (down)."""
PHRASINGS: dict[str, tuple[str, ...]] = {
    "recolour": ("make {target} {word}", "paint {target} {word}", "change the colour of {target} to {word}"),
    "replace": ("replace {target} with {result}", "swap {target} for {result}", "change {target} into {result}"),
    "add": ("add {result}", "draw {result}", "put in {result}"),
    "remove": ("remove {target}", "delete {target}", "erase {target}", "take away {target}"),
    "move": ("move {target} {word}", "shift {target} {word}"),
    "larger": ("make {target} larger", "make {target} bigger", "enlarge {target}"),
    "smaller": ("make {target} smaller", "shrink {target}"),
}
"""The phrasings of each kind, and of either way to resize; a spec's own text has the first."""


@dataclass(frozen=True)
class EditSpec:
    """What an instruction asks for.

    kind: one of KINDS.
    target: the one object of the source that is meant; of "add" the one that the new object is placed by, if any.
    result: the object that takes the target's place, or is added.
    word: the new colour; of "move" a direction; of "resize" larger or smaller; of "add" a relation to the target.
    """

    kind: str
    target: ObjectSpec | None = None
    result: ObjectSpec | None = None
    word: str = ""

    @property
    def text(self) -> str:
        return self._phrased(PHRASINGS[self._phrasing][0])

    @property
    def canonical(self) -> str:
        """The same for two instructions of the same content."""
        return self.text

    @property
    def held_out_share(self) -> float:
        """The share of contents that preferences could show and that is held out."""
        return 0.3

    @property
    def unseen(self) -> bool:
        """True where the instruction needs a combination that no training preference asks for."""
        combinations = {(noun.colour, noun.shape) for noun in (self.target, self.result) if noun}
        if self.kind == "recolour" and self.target:
            combinations.add((self.word, self.target.shape))
        return bool(combinations & UNSEEN_COMBINATIONS)

    @property
    def _phrasing(self) -> str:
        return self.word if self.kind == "resize" else self.kind

    def _phrased(self, phrasing: str) -> str:
        target = "the" + self.target.text.removeprefix("a") if self.target else ""
        text = phrasing.format(target=target, result=self.result.text if self.result else "", word=self.word)
        return f"{text} {self.word} {target}" if self.kind == "add" and self.target else text

    def paraphrase(self, rng: np.random.Generator) -> str:
        """The instruction in a random phrasing."""
        return pick(("", "", "please "), rng) + self._phrased(pick(PHRASINGS[self._phrasing], rng))


_WORDS = {"recolour": tuple(COLOURS), "move": tuple(DIRECTIONS)}


def _patterns() -> list[tuple[str, re.Pattern[str]]]:
    """Every phrasing as a pattern with its kind, the longest first: 'make X larger' is no colour."""
    patterns = []
    for name, phrasings in PHRASINGS.items():
        words = "|".join(_WORDS.get(name, ()))
        for phrasing in phrasings:
            fields = {"target": "the (?P<target>.+?)", "result": "(?P<result>an? .+)", "word": f"(?P<word>{words})"}
            pattern = phrasing.format(**fields)
            if name == "add":
                pattern = pattern.replace(".+)", ".+?)") + rf"(?: (?P<word>{'|'.join(RELATIONS)}) the (?P<target>.+))?"
            patterns.append((name, re.compile(pattern)))
    return sorted(patterns, key=lambda pattern: pattern[0] == "recolour")


_PATTERNS = _patterns()


@functools.lru_cache(maxsize=4096)
def parse_edit(text: str) -> EditSpec:
    """Read an instruction of an edit. Raises InputError naming what is not ShapeWorld English, or asks for nothing."""
    cleaned = " ".join(text.lower().replace("color", "colour").split()).rstrip(". ")
    cleaned = re.sub(r"^please,? ", "", cleaned)
    cleaned = re.sub(r"^(move|shift) (.+) to the (left|right)$", r"\1 \2 \3", cleaned)
    cleaned = re.sub(r" to the (left|right) of the ", r" \1 of the ", cleaned)
    for name, pattern in _PATTERNS:
        match = pattern.fullmatch(cleaned)
        if match is None:
            continue
        groups = match.groupdict()
        target, result = (_noun(text, groups.get(part)) for part in ("target", "result"))
        kind = "resize" if name in ("larger", "smaller") else name
        word = name if kind == "resize" else groups.get("word") or ""
        spec = EditSpec(kind, target, result, word)
        if fault := _fault(spec):
            raise InputError(f"the instruction {text!r} asks for nothing: {fault}.", "Ask for something that changes.")
        return spec
    raise InputError(
        f"the instruction {text!r} is not ShapeWorld English.",
        "Say one edit of one object, such as 'make the red circle blue', 'replace the circle with a small cross', 'add "
        "a white square', 'remove the cross', 'move the circle left' or 'make the square larger'.",
    )


def _noun(text: str, phrase: str | None) -> ObjectSpec | None:
    """One object of an instruction, which `phrase` names with or without its article."""
    if phrase is None:
        return None
    spec = parse_prompt("a " + re.sub(r"^an? ", "", phrase))
    if spec.total != 1 or spec.relation:
        raise InputError(f"the instruction {text!r} names more than one object in {phrase!r}.", "Name one.")
    return spec.objects[0]


def _fault(spec: EditSpec) -> str:
    """Why an instruction asks for nothing, "" where it asks for something."""
    target, result = spec.target, spec.result
    if spec.kind == "recolour" and target and target.colour == spec.word:
        return f"it is {spec.word} already"
    if spec.kind == "resize" and target and target.size == {"larger": "large", "smaller": "small"}[spec.word]:
        return f"it is {target.size} already"
    if spec.kind != "replace" or target is None or result is None or target.shape != result.shape:
        return ""
    same = result.colour in (None, target.colour) and result.size in (None, target.size)
    return "it is that already" if same else ""


@functools.lru_cache(maxsize=1)
def all_edits() -> dict[str, tuple[EditSpec, ...]]:
    """Every instruction that ShapeWorld's own sets draw from, by kind, in a fixed order."""
    nouns = [ObjectSpec(shape, colour=colour) for shape, colour in itertools.product(SHAPES, (None, *COLOURS))]
    coloured = [noun for noun in nouns if noun.colour]
    sized = [replace(noun, size=size) for noun, size in itertools.product(coloured, (None, *SIZES))]
    edits: dict[str, list[EditSpec]] = {kind: [] for kind in KINDS}
    for noun in nouns:
        edits["recolour"] += [EditSpec("recolour", noun, word=colour) for colour in COLOURS if colour != noun.colour]
        edits["replace"] += [EditSpec("replace", noun, other) for other in coloured if other.shape != noun.shape]
        edits["remove"].append(EditSpec("remove", noun))
        edits["move"] += [EditSpec("move", noun, word=direction) for direction in DIRECTIONS]
        edits["resize"] += [EditSpec("resize", noun, word=word) for word in ("larger", "smaller")]
    edits["add"] += [EditSpec("add", None, noun) for noun in sized]
    for noun, shape, relation in itertools.product(coloured, SHAPES, RELATIONS):
        if shape != noun.shape:
            edits["add"].append(EditSpec("add", ObjectSpec(shape), noun, relation))
    return {kind: tuple(members) for kind, members in edits.items()}


def edit_specs(split: str, n: int, seed: int) -> list[tuple[str, EditSpec]]:
    """`n` (text, spec) pairs of one split, each kind in turn.

    No spec is repeated before every other of its kind was used. Raises InputError for a split that there is not.
    """
    if split not in SPLITS:
        raise InputError(f"no instructions of a split named {split!r}.", f"Splits are {', '.join(SPLITS)}.")
    rng = np.random.default_rng([seed, SPLITS.index(split), 21])
    return [(spec.paraphrase(rng), spec) for spec in in_turn(_pools(split), n, rng)]


@functools.cache
def _pools(split: str) -> tuple[tuple[EditSpec, ...], ...]:
    """The specs of a split by kind."""
    return tuple(tuple(spec for spec in specs if split_of(spec) == split) for specs in all_edits().values())


def edit_near_miss(spec: EditSpec, rng: np.random.Generator) -> EditSpec:
    """A spec for the same target that differs in what is done to it: another word, another result, another kind."""
    while True:
        if spec.kind == "add" and spec.result:
            what = pick(("shape", "colour", *(("word",) if spec.word else ())), rng)
            if what == "word":
                changed = replace(spec, word=pick(RELATIONS, rng))
            elif what == "shape":
                changed = replace(spec, result=replace(spec.result, shape=pick(SHAPES, rng)))
            else:
                changed = replace(spec, result=replace(spec.result, colour=pick(COLOURS, rng)))
        else:
            kind = spec.kind if rng.random() < 0.6 else pick([kind for kind in KINDS if kind != "add"], rng)
            result = ObjectSpec(pick(SHAPES, rng), colour=pick(COLOURS, rng)) if kind == "replace" else None
            words = {**_WORDS, "resize": ("larger", "smaller")}.get(kind, ("",))
            changed = EditSpec(kind, spec.target, result, pick(words, rng))
        if changed != spec and not _fault(changed):
            return changed
