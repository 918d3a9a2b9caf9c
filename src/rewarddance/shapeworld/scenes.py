"""The prompts and scenes of ShapeWorld: scenes of one to four coloured shapes, and prompts about them.

A `Spec` is what a prompt asks for; a `Scene` is one picture's contents. Prompts are plain English in GenEval's six
categories; `parse_prompt` reads them back, so the oracle can judge a prompt it has never seen.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np

from rewarddance.errors import InputError

T = TypeVar("T")

CANVAS = 32
"""Width and height of a picture in pixels."""

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.95, 0.12, 0.12),
    "green": (0.12, 0.80, 0.20),
    "blue": (0.15, 0.32, 0.98),
    "yellow": (0.98, 0.88, 0.10),
    "purple": (0.74, 0.16, 0.86),
    "white": (0.96, 0.96, 0.96),
}
BACKGROUND = (0.05, 0.05, 0.08)
SIZES: dict[str, tuple[int, int]] = {"small": (7, 9), "large": (12, 14)}
"""Side of an object's bounding square in pixels, inclusive range by size word."""
SIZE_BOUNDARY = 10.5
COUNTS = {"a": 1, "one": 1, "two": 2, "three": 3, "four": 4}
RELATIONS = ("left of", "right of", "above", "below")
OPPOSITES = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
CATEGORIES = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
"""GenEval's tags, in its own order and spelling."""
PREFIXES = ("", "a picture of ", "a drawing of ")
UNSEEN_COMBINATIONS = frozenset({("purple", "square"), ("yellow", "cross"), ("green", "triangle"), ("white", "circle")})
"""(colour, shape) pairs that no training prompt asks for, though drawings may show them: out of domain."""
UNSEEN_COUNT = 4
SPLITS = ("train", "held_out", "unseen")
MAX_OBJECTS = 4
GAP = 2


def plural(noun: str) -> str:
    """The plural of a noun phrase: 'red cross' -> 'red crosses'."""
    return noun + ("es" if noun.endswith("s") else "s")


_PLURALS = {shape: plural(shape) for shape in SHAPES}


@dataclass(frozen=True)
class ObjectSpec:
    """One noun phrase: how many of which shape, and the colour and size where the prompt says them."""

    shape: str
    count: int = 1
    colour: str | None = None
    size: str | None = None

    @property
    def text(self) -> str:
        word = {1: "a", 2: "two", 3: "three", 4: "four"}[self.count]
        noun = self.shape if self.count == 1 else _PLURALS[self.shape]
        return " ".join(part for part in (word, self.size, self.colour, noun) if part)

    def fits(self, thing: Thing) -> bool:
        """True when one drawn object is what the phrase names."""
        return thing.shape == self.shape and self.colour in (None, thing.colour) and self.size in (None, thing.size)


@dataclass(frozen=True)
class Spec:
    """What a prompt asks for: one or two noun phrases, and a relation between the two or none.

    With a relation, every object of the first phrase stands in it to every object of the second.
    """

    category: str
    objects: tuple[ObjectSpec, ...]
    relation: str | None = None

    @property
    def text(self) -> str:
        return f" {self.relation or 'and'} ".join(phrase.text for phrase in self.objects)

    @property
    def canonical(self) -> str:
        """The same text for the two wordings of one content: "a and b", "b and a"; "a above b", "b below a"."""
        turned = Spec(self.category, self.objects[::-1], self.relation and OPPOSITES[self.relation])
        return min(self.text, turned.text)

    @property
    def total(self) -> int:
        return sum(phrase.count for phrase in self.objects)

    @property
    def held_out_share(self) -> float:
        """Of the contents that preferences may show, the share that none does."""
        return 0.45

    @property
    def layout(self) -> str:
        """How many objects, and whether it says where: the groups that results are reported by."""
        if self.relation:
            return "relation"
        if len(self.objects) == 2:
            return "two objects"
        return "one object" if self.total == 1 else "several of a kind"

    @property
    def unseen(self) -> bool:
        """True where the prompt needs a combination or a count that no training prompt asks for."""
        combinations = {(phrase.colour, phrase.shape) for phrase in self.objects}
        return bool(combinations & UNSEEN_COMBINATIONS) or self.total >= UNSEEN_COUNT

    def geneval(self, prompt: str | None = None) -> dict:
        """GenEval's metadata record for this prompt. It has no word for sizes, so they are left out."""
        include = []
        for phrase in self.objects:
            entry: dict = {"class": phrase.shape, "count": phrase.count}
            include.append(entry | ({"color": phrase.colour} if phrase.colour else {}))
        if self.relation:  # GenEval lists the anchor first and states the relation on the object placed beside it
            include = [include[1], include[0] | {"position": [self.relation, 0]}]
        exclude = []
        if self.category == "counting":  # its counts are minima: one more of a class is excluded
            totals: Counter[str] = Counter()
            for phrase in self.objects:
                totals[phrase.shape] += phrase.count
            exclude = [{"class": shape, "count": count + 1} for shape, count in totals.items()]
        return {"tag": self.category, "include": include, "exclude": exclude, "prompt": prompt or self.text}


@dataclass(frozen=True)
class Thing:
    """One drawn object: `x`, `y` are the left and top pixel of its bounding square of side `side`."""

    shape: str
    colour: str
    side: int
    x: int
    y: int

    @property
    def centre(self) -> tuple[float, float]:
        return self.x + (self.side - 1) / 2, self.y + (self.side - 1) / 2

    @property
    def size(self) -> str:
        return "small" if self.side < SIZE_BOUNDARY else "large"


Scene = tuple[Thing, ...]


def holds(relation: str, first: tuple[float, float], second: tuple[float, float], margin: float = 4.0) -> bool:
    """True when the object centred at `first` (x, y in pixels) stands in `relation` to the one at `second`."""
    dx, dy = second[0] - first[0], second[1] - first[1]
    return {"left of": dx, "right of": -dx, "above": dy, "below": -dy}[relation] >= margin


_PHRASE = re.compile(
    rf"(?:(?P<count>{'|'.join(COUNTS)}|an) )?(?:(?P<size>{'|'.join(SIZES)}) )?(?:(?P<colour>{'|'.join(COLOURS)}) )?"
    rf"(?:(?P<one>{'|'.join(SHAPES)})|(?P<many>{'|'.join(_PLURALS.values())}))"
)
_JOIN = re.compile(rf" (?:(?:is )?(?:(?:to|on) the )?({'|'.join(RELATIONS)})|and) ")


@functools.lru_cache(maxsize=4096)
def parse_prompt(text: str) -> Spec:
    """Read a ShapeWorld prompt. Raises InputError naming the phrase that is not ShapeWorld English."""
    cleaned = " ".join(text.lower().split()).rstrip(". ")
    cleaned = re.sub(r"^an? (?:picture|drawing|photo|image) of ", "", cleaned)
    parts = _JOIN.split(cleaned)  # phrase, relation or None for 'and', phrase, ...
    phrases = [_parse_phrase(part) for part in parts[:3:2]]
    unread = [part for part, phrase in zip(parts[::2], phrases, strict=False) if phrase is None] or parts[4::2]
    if unread:
        raise InputError(
            f"the prompt {text!r} is not ShapeWorld English: cannot read {unread[0]!r}.",
            "Say one or two things such as 'two small red circles', joined by 'and', 'left of', 'right of', "
            f"'above' or 'below'; shapes are {', '.join(SHAPES)}; colours are {', '.join(COLOURS)}.",
        )
    objects = [phrase for phrase in phrases if phrase]
    relation = parts[1] if len(parts) > 1 else None
    if sum(phrase.count for phrase in objects) > MAX_OBJECTS:
        raise InputError(
            f"the prompt {text!r} asks for more than {MAX_OBJECTS} objects.",
            f"ShapeWorld scenes hold 1 to {MAX_OBJECTS} objects; ask for fewer.",
        )
    return Spec(_category(objects, relation), tuple(objects), relation)


def _parse_phrase(text: str) -> ObjectSpec | None:
    """One noun phrase, or None where it cannot be read; number and noun must agree."""
    match = _PHRASE.fullmatch(text)
    if match is None:
        return None
    count = COUNTS.get(match["count"], 1)
    shape = match["one"] if count == 1 else next((s for s in SHAPES if _PLURALS[s] == match["many"]), None)
    return ObjectSpec(shape, count, match["colour"], match["size"]) if shape else None


def _category(phrases: list[ObjectSpec], relation: str | None) -> str:
    if relation:
        return "position"
    if any(phrase.count > 1 for phrase in phrases):
        return "counting"
    if len(phrases) == 1:
        return "colors" if phrases[0].colour else "single_object"
    return "color_attr" if any(phrase.colour for phrase in phrases) else "two_object"


@functools.lru_cache(maxsize=1)
def all_specs() -> dict[str, tuple[Spec, ...]]:
    """Every prompt that ShapeWorld's own prompt sets draw from, by category, in a fixed order."""
    sizes = (None, *SIZES)
    pairs = list(itertools.permutations(SHAPES, 2))
    specs: dict[str, list[Spec]] = {category: [] for category in CATEGORIES}
    for shape, size in itertools.product(SHAPES, sizes):
        specs["single_object"].append(Spec("single_object", (ObjectSpec(shape, size=size),)))
        for colour in COLOURS:
            specs["colors"].append(Spec("colors", (ObjectSpec(shape, colour=colour, size=size),)))
    for (first, second), left, right in itertools.product(pairs, sizes, sizes):
        specs["two_object"].append(Spec("two_object", (ObjectSpec(first, size=left), ObjectSpec(second, size=right))))
    for shape, count, colour in itertools.product(SHAPES, (2, 3, 4), (None, *COLOURS)):
        specs["counting"].append(Spec("counting", (ObjectSpec(shape, count=count, colour=colour),)))
    for (first, second), relation in itertools.product(pairs, RELATIONS):
        specs["position"].append(Spec("position", (ObjectSpec(first), ObjectSpec(second)), relation))
    for (first, second), (left, right) in itertools.product(pairs, itertools.permutations(COLOURS, 2)):
        objects = (ObjectSpec(first, colour=left), ObjectSpec(second, colour=right))
        specs["color_attr"].append(Spec("color_attr", objects))
    return {category: tuple(members) for category, members in specs.items()}


@runtime_checkable
class PromptSpec(Protocol):
    """What a prompt asks for, of pictures (`Spec`) or of videos (`MotionSpec`)."""

    @property
    def canonical(self) -> str: ...
    @property
    def unseen(self) -> bool: ...
    @property
    def held_out_share(self) -> float: ...


def split_of(spec: PromptSpec) -> str:
    """'train', 'held_out' (an unseen prompt of seen parts) or 'unseen' (parts that no training prompt asks for).

    The two wordings of one content are of one split.
    """
    if spec.unseen:
        return "unseen"
    drawn = hashlib.sha256(spec.canonical.encode()).digest()[0]
    return "held_out" if drawn < round(256 * spec.held_out_share) else "train"


def pick(options: Collection[T], rng: np.random.Generator) -> T:
    """A random one of some options."""
    return tuple(options)[int(rng.integers(len(options)))]


def in_turn(pools: Sequence[Sequence[T]], n: int, rng: np.random.Generator) -> list[T]:
    """`n` members of some pools, of each pool in turn; none is repeated before every other of its pool was taken."""
    shuffled = [[pool[i] for i in rng.permutation(len(pool))] for pool in pools]
    turns = [(shuffled[i % len(pools)], i // len(pools)) for i in range(n)]
    return [pool[turn % len(pool)] for pool, turn in turns]


def prompt_set(split: str, n: int, seed: int) -> list[tuple[str, Spec]]:
    """`n` (text, spec) pairs of one split, each of its categories in turn.

    Of the training split no spec is repeated before every other of its category was used. What is tested on is
    distinct in content: each content comes once, in one of its wordings, and a category that has no more is passed
    over. Raises InputError for more contents than there are.
    """
    if split not in SPLITS:
        raise InputError(f"no prompts of a split named {split!r}.", f"Splits are {', '.join(SPLITS)}.")
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    pools = [[spec for spec in specs if split_of(spec) == split] for specs in all_specs().values()]
    pools = [pool for pool in pools if pool]
    specs = in_turn(pools, n, rng) if split == "train" else _distinct(pools, n, split, rng)
    return [(pick(PREFIXES, rng) + spec.text, spec) for spec in specs]


def _distinct(pools: Sequence[Sequence[Spec]], n: int, split: str, rng: np.random.Generator) -> list[Spec]:
    """`n` specs of some pools in turn, of each content one."""
    queues = []
    for pool in pools:
        shuffled = [pool[i] for i in rng.permutation(len(pool))]
        queues.append(list({spec.canonical: spec for spec in shuffled}.values()))
    turns = [spec for row in itertools.zip_longest(*queues) for spec in row if spec is not None]
    if n > len(turns):
        raise InputError(
            f"{n} prompts of the split {split!r} were asked for, and {len(turns)} differ in content.",
            f"Ask for at most {len(turns)}, and for more samples of each.",
        )
    return turns[:n]


def sample_spec(rng: np.random.Generator) -> Spec:
    """A random prompt of any split: a category, then one of its specs."""
    return pick(all_specs()[pick(CATEGORIES, rng)], rng)


def sample_scene(spec: Spec, rng: np.random.Generator) -> Scene:
    """A scene that shows exactly what `spec` asks for; what the spec leaves open is random."""
    parts: list[tuple[str, str, int]] = []
    for phrase in spec.objects:
        for _ in range(phrase.count):
            colour = phrase.colour or pick(COLOURS, rng)
            size = phrase.size
            if size is None:
                size = "small" if spec.total > 2 or rng.random() < 0.5 else "large"
            parts.append((phrase.shape, colour, random_side(size, rng)))
    return lay_out(parts, rng, spec.relation, spec.objects[0].count)


def random_scene(rng: np.random.Generator) -> Scene:
    """One to four random objects, sizes drawn so that they fit."""
    n = int(rng.integers(1, MAX_OBJECTS + 1))
    parts = []
    for _ in range(n):
        size = "small" if n > 2 or rng.random() < 0.5 else "large"
        colour, shape = pick(COLOURS, rng), pick(SHAPES, rng)
        parts.append((shape, colour, random_side(size, rng)))
    return lay_out(parts, rng)


def random_side(size: str, rng: np.random.Generator) -> int:
    low, high = SIZES[size]
    return int(rng.integers(low, high + 1))


def random_corner(side: int, rng: np.random.Generator) -> tuple[int, int]:
    """The left and top pixel of an object that stands on the canvas, not at its edge."""
    x, y = rng.integers(1, CANVAS - side, size=2)
    return int(x), int(y)


def gap(a: Thing, b: Thing) -> int:
    """Free pixels between the squares of two objects, less than 0 where they overlap."""
    return max(b.x - a.x - a.side, a.x - b.x - b.side, b.y - a.y - a.side, a.y - b.y - b.side)


def lay_out(
    parts: list[tuple[str, str, int]], rng: np.random.Generator, relation: str | None = None, first: int = 1
) -> Scene:
    """Lay (shape, colour, side) out at random with `GAP` free pixels between any two.

    With a relation, each of the `first` ones stands in it to each of the others.
    """
    for _ in range(5000):
        things: list[Thing] = []
        for shape, colour, side in parts:
            for _ in range(20):
                thing = Thing(shape, colour, side, *random_corner(side, rng))
                if all(gap(thing, other) >= GAP for other in things):
                    things.append(thing)
                    break
            else:
                break
        if len(things) < len(parts):
            continue
        pairs = itertools.product(things[:first], things[first:]) if relation else ()
        if all(holds(relation, a.centre, b.centre, margin=8.0) for a, b in pairs):  # type: ignore[arg-type]
            return tuple(things)
    sides = ", ".join(str(side) for _, _, side in parts)
    raise InputError(
        f"found no place for objects of {sides} pixels on a canvas of {CANVAS}{f', {relation}' if relation else ''}.",
        "Ask for fewer objects, or for small ones.",
    )


def wrong_attribute(scene: Scene, rng: np.random.Generator, n: int = 1) -> Scene:
    """The scene with `n` of its objects given another colour or shape, as a generator errs: all places kept."""
    things = list(scene)
    for index in rng.permutation(len(things))[: min(n, len(things))]:
        thing = things[index]
        if rng.random() < 0.5:
            things[index] = replace(thing, colour=pick([c for c in COLOURS if c != thing.colour], rng))
        else:
            things[index] = replace(thing, shape=pick([s for s in SHAPES if s != thing.shape], rng))
    return tuple(things)


def near_miss(spec: Spec, rng: np.random.Generator) -> Spec:
    """A spec that differs from `spec` in one thing a prompt can say: shape, colour, size, count, relation or a noun."""
    while True:
        objects, relation = list(spec.objects), spec.relation
        kind = pick(("shape", "colour", "size", "count", "relation", "swap", "drop", "add"), rng)
        index = int(rng.integers(len(objects)))
        phrase = objects[index]
        values = {"shape": pick(SHAPES, rng), "colour": pick(COLOURS, rng), "size": pick(SIZES, rng)}
        if kind in values:
            if getattr(phrase, kind) is None:
                continue
            objects[index] = replace(phrase, **{kind: values[kind]})  # type: ignore[arg-type]
        elif kind == "count":
            objects[index] = replace(phrase, count=int(rng.integers(1, MAX_OBJECTS + 1)))
        elif kind == "relation" and relation:
            relation = pick(RELATIONS, rng)
        elif kind == "swap" and len(objects) == 2:
            a, b = objects
            turned = [replace(a, colour=b.colour, size=b.size), replace(b, colour=a.colour, size=a.size)]
            objects = [b, a] if relation else turned
        elif kind == "drop" and len(objects) == 2:
            objects, relation = [phrase], None
        elif kind == "add" and len(objects) == 1:
            objects.append(ObjectSpec(values["shape"], colour=values["colour"]))
        changed = Spec(_category(objects, relation), tuple(objects), relation)
        fits = changed.total <= MAX_OBJECTS and (changed.total <= 2 or all(o.size != "large" for o in objects))
        if changed != spec and fits:
            return changed
