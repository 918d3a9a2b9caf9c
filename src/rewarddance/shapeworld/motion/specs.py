"""The prompts of ShapeWorld's videos: one or two coloured shapes, and what each of them does.

A `MotionSpec` is what a prompt asks for. Prompts are plain English in several phrasings and six categories;
`parse_motion` reads them back, so the oracle can judge a prompt it has never seen.
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

DIRECTIONS: dict[str, tuple[int, int]] = {
    "moves left": (-1, 0),
    "moves right": (1, 0),
    "moves up": (0, -1),
    "moves down": (0, 1),
}
"""Steps of x (to the right) and y (down)."""
CROSSINGS = ("passes behind", "passes in front of")
PHRASINGS: dict[str, tuple[str, ...]] = {
    "moves left": ("moves left", "moves to the left", "goes left"),
    "moves right": ("moves right", "moves to the right", "goes right"),
    "moves up": ("moves up", "goes up", "rises"),
    "moves down": ("moves down", "goes down", "falls"),
    "grows": ("grows", "gets bigger", "becomes larger"),
    "shrinks": ("shrinks", "gets smaller", "becomes smaller"),
    "appears": ("appears", "comes into view"),
    "disappears": ("disappears", "vanishes"),
    "changes colour": ("changes colour", "changes color"),
    "passes behind": ("passes behind", "goes behind", "moves behind"),
    "passes in front of": ("passes in front of", "goes in front of", "moves in front of"),
}
"""The phrasings of each action; a spec's own text has the first."""
_INTO = ("turns {}", "becomes {}", "changes colour to {}")
ACTIONS = tuple(PHRASINGS)
MOTION_CATEGORIES = ("direction", "size_change", "presence", "colour_change", "occlusion", "two_motions")
UNSEEN_ACTIONS = frozenset(
    {
        ("moves left", "cross"),
        ("moves right", "yellow"),
        ("moves up", "triangle"),
        ("moves down", "purple"),
        ("grows", "square"),
        ("shrinks", "green"),
        ("appears", "circle"),
        ("disappears", "blue"),
        ("changes colour", "cross"),
        ("passes behind", "triangle"),
        ("passes in front of", "circle"),
    }
)
"""(action, shape or colour) pairs kept out of every training preference, as `UNSEEN_COMBINATIONS` are."""
TASKS = ("t2v", "i2v")
_TOGETHER = (*DIRECTIONS, "grows", "shrinks", "appears", "disappears")
"""The actions that one of two objects may have while the other has another one."""
_OPENINGS = ("a video of ", "a film of ")
_VERBS = {
    **{f"{stem}s": f"{stem}ing" for stem in ("grow", "shrink", "appear", "disappear", "turn", "fall")},
    **{f"{stem}es": f"{stem}ing" for stem in ("go", "vanish", "pass")},
    **{f"{stem}es": f"{stem}ing" for stem in ("mov", "ris", "com", "becom", "chang")},
    "gets": "getting",
}


@dataclass(frozen=True)
class Role:
    """One object of a prompt and what it does; no action where others pass it. `into` is the colour it turns into."""

    noun: ObjectSpec
    action: str | None = None
    into: str | None = None

    @property
    def text(self) -> str:
        return f"{self.noun.text} {self.action_text}".rstrip()

    @property
    def action_text(self) -> str:
        """What it does, in the first phrasing: 'moves left', 'turns blue'; "" where it does nothing."""
        return _INTO[0].format(self.into) if self.into else self.action or ""


@dataclass(frozen=True)
class MotionSpec:
    """What a prompt asks for: an object that does something, two that do different things, or one that passes another.

    Of a passage the passing object stands first.
    """

    category: str
    roles: tuple[Role, ...]

    @property
    def text(self) -> str:
        return (" " if self.category == "occlusion" else " and ").join(role.text for role in self.roles)

    @property
    def canonical(self) -> str:
        """The same for two prompts of the same content; two motions in another order are another content."""
        return self.text

    @property
    def held_out_share(self) -> float:
        """The share of contents that preferences could show and that is held out."""
        return 0.3

    @property
    def unseen(self) -> bool:
        """True where the prompt needs a combination that no training prompt asks for."""
        for role in self.roles:
            combinations = {(role.noun.colour, role.noun.shape), (role.into, role.noun.shape)}
            actions = {(role.action, word) for word in (role.noun.shape, role.noun.colour, role.into)}
            if combinations & UNSEEN_COMBINATIONS or actions & UNSEEN_ACTIONS:
                return True
        return False

    @property
    def begins_empty(self) -> bool:
        """True where the first frame shows nothing, so that there is no picture to begin from."""
        return all(role.action == "appears" for role in self.roles)

    def paraphrase(self, rng: np.random.Generator) -> str:
        """The prompt in a random phrasing."""
        opening = pick(_OPENINGS, rng) if rng.random() < 0.5 else ""
        parts = []
        for role in self.roles:
            phrasings = PHRASINGS.get(role.action or "", ("",))
            verb = pick([phrasing.format(role.into) for phrasing in _INTO] if role.into else phrasings, rng)
            parts.append(f"{role.noun.text} {_progressive(verb) if opening and verb else verb}".rstrip())
        join = " " if self.category == "occlusion" else f" {pick(('and',) if opening else ('and', 'while'), rng)} "
        return opening + join.join(parts)


def _progressive(phrase: str) -> str:
    """'moves left' as 'moving left'."""
    verb, _, rest = phrase.partition(" ")
    return f"{_VERBS[verb]} {rest}".rstrip()


def _meanings() -> dict[str, tuple[str, str | None]]:
    """Every phrasing, also with -ing and 'is ... -ing', with its action and the colour it names."""
    meanings = {}
    for action, phrasings in PHRASINGS.items():
        meanings |= {phrasing: (action, None) for phrasing in phrasings}
    for colour in COLOURS:
        for phrasing in (*_INTO, "changes color to {}"):
            meanings[phrasing.format(colour)] = ("changes colour", colour)
    for phrasing, meaning in list(meanings.items()):
        meanings |= {_progressive(phrasing): meaning, f"is {_progressive(phrasing)}": meaning}
    return meanings


_MEANINGS = _meanings()


def motion_words() -> list[str]:
    """Every word of prompts about motion but the nouns, with the space before it, for a tokenizer's vocabulary."""
    words = [f" {word}" for phrasing in _MEANINGS for word in phrasing.split()]
    return [*words, *(f"{opening}a" for opening in _OPENINGS), " and while clip movie"]


_ACTIONS = "|".join(sorted(_MEANINGS, key=len, reverse=True))
_ROLE = re.compile(rf"(?P<noun>.+?) (?P<action>{_ACTIONS})(?: (?P<other>.+))?")


@functools.lru_cache(maxsize=4096)
def parse_motion(text: str) -> MotionSpec:
    """Read a prompt about motion. Raises InputError naming what is not ShapeWorld English or cannot be shown."""
    cleaned = " ".join(text.lower().split()).rstrip(". ")
    cleaned = re.sub(r"^an? (?:video|film|clip|movie) of ", "", cleaned)
    parts = re.split(r",? (?:and|while) ", cleaned)
    roles: list[Role] = []
    for part in parts:
        roles_of_part = _parse_part(part)
        if not roles_of_part or len(parts) > 2 or (len(parts) == 2 and len(roles_of_part) > 1):
            raise InputError(
                f"the prompt {text!r} is not ShapeWorld English: cannot read {part!r}.",
                "Say what one or two things do, such as 'a red circle moves left and a square grows' or 'a cross "
                f"passes behind a blue square'; actions are {', '.join(ACTIONS)}.",
            )
        roles += roles_of_part
    faults = _faults(roles)
    if faults:
        raise InputError(f"the prompt {text!r} cannot be shown: {faults[0]}.", "Ask for another change.")
    return MotionSpec(_category(roles), tuple(roles))


def _parse_part(text: str) -> list[Role] | None:
    """One noun and what it does, and the noun that it passes; None where it cannot be read."""
    match = _ROLE.fullmatch(text)
    if match is None:
        return None
    action, into = _MEANINGS[match["action"]]
    nouns = [noun for noun in (match["noun"], match["other"]) if noun is not None]
    if (len(nouns) == 2) != (action in CROSSINGS):
        return None
    try:
        specs = [parse_prompt(noun).objects for noun in nouns]
    except InputError:
        return None
    if any(len(objects) != 1 or objects[0].count != 1 for objects in specs):
        return None
    return [Role(specs[0][0], action, into), *(Role(objects[0]) for objects in specs[1:])]


def _faults(roles: list[Role]) -> list[str]:
    """Why ShapeWorld cannot show this, in words."""
    faults = [f"it is {role.into} already" for role in roles if role.into and role.into == role.noun.colour]
    sized = {"grows": "large", "shrinks": "small"}
    faults += [
        f"what {r.action} is not {r.noun.size} before"
        for r in roles
        if r.noun.size and sized.get(r.action or "") == r.noun.size
    ]
    if len(roles) == 2 and roles[0].noun.shape == roles[1].noun.shape:
        faults.append("two objects of a video have different shapes")
    if len(roles) == 2 and roles[0].action in CROSSINGS:
        if roles[0].noun.colour and roles[0].noun.colour == roles[1].noun.colour:
            faults.append("things of one colour that pass each other become one")
        if roles[0].noun.size == "large" or roles[1].noun.size == "small":
            faults.append("a small object passes a large one")
    elif len(roles) == 2 and roles[0].action_text == roles[1].action_text:
        faults.append("two objects of a video do different things")
    return faults


def _category(roles: list[Role]) -> str:
    action = roles[0].action or ""
    if action in CROSSINGS:
        return "occlusion"
    if len(roles) == 2:
        return "two_motions"
    kinds = {"grows": "size_change", "shrinks": "size_change", "appears": "presence", "disappears": "presence"}
    return kinds.get(action, "colour_change" if action == "changes colour" else "direction")


@functools.lru_cache(maxsize=1)
def all_motion_specs() -> dict[str, tuple[MotionSpec, ...]]:
    """Every prompt that ShapeWorld's own sets of videos draw from, by category, in a fixed order."""
    colours, sizes = (None, *COLOURS), (None, *SIZES)
    shape_pairs = itertools.permutations(SHAPES, 2)
    colour_pairs = [(None, None), *itertools.permutations(COLOURS, 2)]
    specs: dict[str, list[MotionSpec]] = {category: [] for category in MOTION_CATEGORIES}

    def add(*roles: Role) -> None:
        category = _category(list(roles))
        specs[category].append(MotionSpec(category, roles))

    for shape, colour, size in itertools.product(SHAPES, colours, sizes):
        noun = ObjectSpec(shape, colour=colour, size=size)
        for action in (*DIRECTIONS, "appears", "disappears"):
            add(Role(noun, action))
    for shape, colour in itertools.product(SHAPES, colours):
        noun = ObjectSpec(shape, colour=colour)
        for action in ("grows", "shrinks"):
            add(Role(noun, action))
        for into in colours:
            if into is None or into != colour:
                add(Role(noun, "changes colour", into))
    for (shape, other_shape), (colour, other_colour) in itertools.product(shape_pairs, colour_pairs):
        nouns = ObjectSpec(shape, colour=colour), ObjectSpec(other_shape, colour=other_colour)
        for action in CROSSINGS:
            add(Role(nouns[0], action), Role(nouns[1]))
        for actions in itertools.permutations(_TOGETHER, 2):
            add(*map(Role, nouns, actions))
    return {category: tuple(members) for category, members in specs.items()}


def motion_prompts(split: str, n: int, seed: int, task: str = "t2v") -> list[tuple[str, MotionSpec]]:
    """`n` (text, spec) pairs of one split, each category in turn; for "i2v" none that begins with an empty frame.

    No spec is repeated before every other of its category was used.
    """
    if split not in SPLITS or task not in TASKS:
        raise InputError(
            f"no prompts of a split named {split!r} for {task!r}.",
            f"Splits are {', '.join(SPLITS)}; tasks are {', '.join(TASKS)}.",
        )
    rng = np.random.default_rng([seed, SPLITS.index(split), TASKS.index(task), 8])
    return [(spec.paraphrase(rng), spec) for spec in in_turn(_pools(split, task), n, rng)]


@functools.cache
def _pools(split: str, task: str) -> tuple[tuple[MotionSpec, ...], ...]:
    """The specs of a split by category."""
    return tuple(
        tuple(spec for spec in specs if split_of(spec) == split and not (task == "i2v" and spec.begins_empty))
        for specs in all_motion_specs().values()
    )


def sample_motion(rng: np.random.Generator) -> MotionSpec:
    """A random prompt of any split: a category, then one of its specs."""
    return pick(all_motion_specs()[pick(MOTION_CATEGORIES, rng)], rng)


def motion_near_miss(spec: MotionSpec, rng: np.random.Generator, appearance: bool = True) -> MotionSpec:
    """A spec that differs in one thing a prompt can say: an action, two actions swapped, or an object's appearance.

    appearance: whether shapes and colours may differ, too; else only actions do. The object that another one passes may
    stand still while the other does something else: a video that no prompt asks for.
    """
    while True:
        roles = list(spec.roles)
        kind = pick(("action", "action", "swap", "shape", "colour")[: 5 if appearance else 3], rng)
        index = int(rng.integers(len(roles)))
        role = roles[index]
        if kind == "action" and role.action:
            actions = [*_TOGETHER, *(("changes colour",) if len(roles) == 1 else ())]
            actions += CROSSINGS if spec.category == "occlusion" else ()
            roles[index] = Role(role.noun, pick(actions, rng))
            if role.into and rng.random() < 0.5:
                roles[index] = replace(role, into=pick(COLOURS, rng))
        elif kind == "swap" and spec.category == "two_motions":
            roles = [replace(a, action=b.action, into=b.into) for a, b in zip(roles, roles[::-1], strict=True)]
        elif kind == "shape":
            roles[index] = replace(role, noun=replace(role.noun, shape=pick(SHAPES, rng)))
        elif kind == "colour" and role.noun.colour:
            roles[index] = replace(role, noun=replace(role.noun, colour=pick(COLOURS, rng)))
        changed = MotionSpec(_category(roles), tuple(roles))
        if changed.roles != spec.roles and not _faults(roles):
            return changed
