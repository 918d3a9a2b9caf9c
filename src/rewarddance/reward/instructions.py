"""Task instructions: what the judge is told besides the prompt and the pictures (paper, section 3: the `i` in r).

The paper does not publish its wording. Ours are versioned files in `templates/`, three a task (t2i, t2v, i2v, edit:
plain, brief and bare) and vqa, criteria listed by name. What is written in a published version never changes: another
wording is another version.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from rewarddance.errors import InputError
from rewarddance.runtime.config import Recipe, load_recipe
from rewarddance.runtime.files import is_there
from rewarddance.types import Pixels, Question

TEMPLATES = Path(__file__).parent / "templates"
TREES = Path(__file__).parent / "trees"
_TEXTS, _PICTURES = ("prompt", "criteria", "answer"), ("image", "reference", "candidate")
_TEXT_PLACE = re.compile(rf"\{{({'|'.join(_TEXTS)})\}}")
_PICTURE_PLACE = re.compile(rf"\{{({'|'.join(_PICTURES)})\}}\n?")
Reasoning = Literal["none", "after", "before"]
"""Chain of thought: the answer alone, the answer and then its reason, or a reason and then the answer."""


class Picture(str):
    """A place in a question where a picture goes, of a `Question`: its prompt's image, its reference or candidate."""


class AnswerForms(Recipe):
    """What {answer} says in each form of reasoning."""

    none: str = "Answer yes or no."
    after: str = "Answer yes or no. Then give the reason."
    before: str = "Think first, then answer yes or no."


class Questions(Recipe):
    """The questions of a template.

    list: `described` writes one criterion a line with its meaning, `names` writes the names alone, which is what a
    small model reads fast. pairwise: the question with {prompt}, {reference} and {candidate}; pointwise: the one
    without {reference}. Either may hold {criteria}, {image} where the prompt comes with a picture, and {answer},
    which says how to answer (`answer`); a question without it can only be answered without reasons. Pictures stand in
    the order image, reference, candidate.
    """

    name: str
    version: int
    list: Literal["described", "names"] = "described"
    pairwise: str | None = None
    pointwise: str | None = None
    answer: AnswerForms = AnswerForms()

    @field_validator("pairwise")
    @classmethod
    def _compares(cls, text: str | None) -> str | None:
        return text and _check_places(text, ("prompt", "reference", "candidate"))

    @field_validator("pointwise")
    @classmethod
    def _judges_alone(cls, text: str | None) -> str | None:
        if text and "{reference}" in text:
            raise ValueError("a pointwise question holds no {reference}")
        return text and _check_places(text, ("prompt", "candidate"))

    @property
    def question_texts(self) -> tuple[str, ...]:
        """The texts of the questions that there are."""
        return tuple(text for text in (self.pairwise, self.pointwise) if text)


class Instruction(Questions):
    """One template file: its questions, and its criteria, name -> what it means; none in a bare template."""

    criteria: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _criteria_are_read(self) -> Instruction:
        if not self.question_texts:
            raise ValueError("the template holds neither a pairwise nor a pointwise question")
        if any("{criteria}" in text for text in self.question_texts) != bool(self.criteria):
            raise ValueError("criteria are listed where a question holds {criteria}, and only there")
        return self

    def question(self, prompt: str, reasoning: Reasoning = "none") -> Iterator[str]:
        """The pairwise question: the parts of the user's turn in order, text and `Picture`s where pictures go.

        Raises InputError naming the template where it has none, or none that can be answered with reasons.
        """
        return self._filled(self.pairwise, "pairwise", prompt, reasoning)

    def pointwise_question(self, prompt: str, reasoning: Reasoning = "none") -> Iterator[str]:
        """The question on the candidate alone, as `question` gives it: the same errors."""
        return self._filled(self.pointwise, "pointwise", prompt, reasoning)

    def _filled(self, text: str | None, kind: str, prompt: str, reasoning: Reasoning) -> Iterator[str]:
        if text is None:
            raise InputError(
                f"the instruction {self.name!r} has no {kind} question.",
                f"Add the key '{kind}' to its file, or choose another instruction.",
            )
        if reasoning != "none" and "{answer}" not in text:
            raise InputError(
                f"the {kind} question of the instruction {self.name!r} cannot be answered with reasons.",
                "Write {answer} where it says how to answer, or set reasoning to 'none'.",
            )
        if self.list == "names":
            criteria = ", ".join(self.criteria)
        else:
            criteria = "\n".join(f"- {name}: {meaning}" for name, meaning in self.criteria.items())
        return _filled(text, {"criteria": criteria, "prompt": prompt, "answer": getattr(self.answer, reasoning)})


class Criterion(Recipe):
    """One node of a tree of criteria: a leaf says what it means, an inner node holds the criteria that it is made of.

    weight: of the node among its siblings, where verdicts are averaged.
    """

    weight: float = Field(default=1.0, gt=0)
    meaning: str | None = None
    criteria: dict[str, Criterion] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _is_leaf_or_branch(self) -> Criterion:
        if (self.meaning is None) == (not self.criteria):
            raise ValueError("a criterion has either a meaning, or criteria below it")
        return self


class CriteriaTree(Questions):
    """A file of named criteria with weights, each leaf asked in a question of its own.

    {criteria} stands for the leaf's name and meaning, and after the candidate: prompt and pictures are the same for all
    leaves, so that they can be computed once.
    """

    criteria: dict[str, Criterion]

    @model_validator(mode="after")
    def _leaves_share_their_prefix(self) -> CriteriaTree:
        if not self.question_texts or not self.criteria:
            raise ValueError("a tree of criteria holds criteria, and a pairwise or a pointwise question")
        for text in self.question_texts:
            if text.find("{criteria}") < text.index("{candidate}"):
                raise ValueError("{criteria} comes after {candidate}, so that all before it can be shared")
        names = [*self.criteria, *(name for _, node in nodes(self.criteria) for name in node.criteria)]
        for name in names:
            if not name or "/" in name or "#" in name:
                raise ValueError(f"a criterion is named {name!r}; a name holds no '/' and no '#'")
        return self

    @property
    def leaves(self) -> dict[str, Criterion]:
        """The criteria that are asked, by their path: 'alignment/count'."""
        return {path: node for path, node in nodes(self.criteria) if not node.criteria}

    @property
    def leaf_weights(self) -> dict[str, float]:
        """The share that each leaf has of the whole verdict, by its path; they add up to 1."""
        return dict(_leaf_weights(self.criteria))

    def below(self, criterion: str) -> CriteriaTree:
        """The tree of one criterion and all that is below it, by the same paths.

        Raises InputError with the criteria that there are.
        """
        known = dict(nodes(self.criteria))
        if criterion not in known:
            raise InputError(
                f"the tree of criteria {self.name!r} has no criterion {criterion!r}.", f"It has {', '.join(known)}."
            )
        above, _, name = criterion.rpartition("/")
        kept = {name: known[criterion]}
        while above:
            node = known[above].model_copy(update={"criteria": kept})
            above, _, name = above.rpartition("/")
            kept = {name: node}
        return self.model_copy(update={"criteria": kept})

    def instruction(self, leaf: str) -> Instruction:
        """The question of one leaf. Raises InputError with the leaves that there are."""
        if leaf not in self.leaves:
            raise InputError(
                f"the tree of criteria {self.name!r} has no leaf {leaf!r}.", f"It has {', '.join(self.leaves)}."
            )
        return Instruction(
            name=f"{self.name}#{leaf}",
            version=self.version,
            list=self.list,
            pairwise=self.pairwise,
            pointwise=self.pointwise,
            answer=self.answer,
            criteria={leaf.rpartition("/")[2]: self.leaves[leaf].meaning or ""},
        )


def _leaf_weights(criteria: dict[str, Criterion], above: str = "", share: float = 1.0) -> Iterator[tuple[str, float]]:
    total = sum(node.weight for node in criteria.values())
    for name, node in criteria.items():
        node_share = share * node.weight / total
        if node.criteria:
            yield from _leaf_weights(node.criteria, f"{above}{name}/", node_share)
        else:
            yield above + name, node_share


def nodes(criteria: dict[str, Criterion], above: str = "") -> Iterator[tuple[str, Criterion]]:
    """Every node of a tree with its path, a node before what is below it."""
    for name, node in criteria.items():
        yield above + name, node
        yield from nodes(node.criteria, f"{above}{name}/")


def _filled(text: str, words: dict[str, str]) -> Iterator[str]:
    """The parts of a checked template: text with its words filled in, and `Picture`s.

    The line break after a picture is the chat template's own, where it writes one, so the instruction's is dropped.
    What is filled in is not read again: a prompt that says "{criteria}" stays as it is.
    """
    for number, part in enumerate(_PICTURE_PLACE.split(text)):
        if number % 2:
            yield Picture(part)
        elif part:
            yield _TEXT_PLACE.sub(lambda match: words[match[1]], part)


def _check_places(text: str, needed: Sequence[str]) -> str:
    """The template's text, if it holds each of the `needed` places once, no other but known ones, the candidate last.

    Raises ValueError with the place that is missing, doubled, unknown or out of order.
    """
    for place in re.findall(r"\{(\w+)\}", text):
        if place not in _TEXTS + _PICTURES:
            known = ", ".join(f"{{{name}}}" for name in _TEXTS + _PICTURES)
            raise ValueError(f"{{{place}}} is no place; known are {known}")
    for place in _TEXTS + _PICTURES:
        count = text.count(f"{{{place}}}")
        if count > 1 or (count == 0 and place in needed):
            raise ValueError(f"the question must hold {{{place}}} exactly once")
    pictures = [match[1] for match in _PICTURE_PLACE.finditer(text)]
    if pictures[-1] != "candidate":
        raise ValueError("the candidate comes last, so that all before it can be shared")
    if "image" in pictures[1:]:
        raise ValueError("the image comes before the reference and the candidate")
    return text


def pictures_of(parts: Sequence[str], question: Question, number: int = 0) -> tuple[Pixels, ...]:
    """The question's pictures in the order of its parts' places.

    Raises InputError naming the question (by `number`) where it lacks a picture that its instruction shows, or its
    prompt has one that its instruction would not show, or a video. A reference without a place is left out: that is the
    ablation.
    """
    places = [str(part) for part in parts if isinstance(part, Picture)]
    pictures = {"image": question.prompt.image, "reference": question.reference, "candidate": question.candidate}
    in_order = []
    for place in places:
        if (pixels := pictures[place]) is None:
            raise InputError(
                f"question {number} ({question.prompt.text!r}) has no {place}.",
                "A pairwise judge needs one." if place == "reference" else "Its instruction shows one: give it.",
            )
        if place == "image" and len(pixels) != 1:
            raise InputError(
                f"the prompt of question {number} ({question.prompt.text!r}) comes with a video of {len(pixels)} "
                "frames.",
                "Give one picture, such as its first frame.",
            )
        in_order.append(pixels)
    if question.prompt.image is not None and "image" not in places:
        raise InputError(
            f"the prompt of question {number} ({question.prompt.text!r}) has an image, but its instruction has no "
            "place for one.",
            "Choose an instruction that does, such as i2v or edit.",
        )
    return tuple(in_order)


def load_instruction(name: str) -> Instruction:
    """A template by name, or a user's own by the path of its YAML file; `tree#leaf` is one question of a tree.

    A file that was edited is read again. Raises InputError with the known names, or naming file and key where a
    template is not right.
    """
    tree, leaf = split_tree(name)
    if leaf:
        return _read_leaf(*_template(tree, TREES, "tree of criteria"), leaf)
    return _read_instruction(*_template(name, TEMPLATES, "instruction"))


def split_tree(name: str) -> tuple[str, str]:
    """`tree#criterion` as its two parts; the criterion is "" where the name is a tree's, or a file's, as a whole."""
    if "#" not in name or Path(name).is_file():
        return name, ""
    tree, _, criterion = name.rpartition("#")
    return tree, criterion


def load_tree(name: str) -> CriteriaTree:
    """A tree of criteria by name, or a user's own by the path of its YAML file; `tree#criterion` is a part of it.

    Raises as `load_instruction` does.
    """
    tree, criterion = split_tree(name)
    whole = _read_tree(*_template(tree, TREES, "tree of criteria"))
    return whole.below(criterion) if criterion else whole


@functools.lru_cache(maxsize=256)
def _read_instruction(path: Path, written: int) -> Instruction:
    return load_recipe(Instruction, path)


@functools.lru_cache(maxsize=64)
def _read_tree(path: Path, written: int) -> CriteriaTree:
    return load_recipe(CriteriaTree, path)


@functools.lru_cache(maxsize=256)
def _read_leaf(path: Path, written: int, leaf: str) -> Instruction:
    return _read_tree(path, written).instruction(leaf)


def _template(name: str, folder: Path, what: str) -> tuple[Path, int]:
    """A template's file, and when it was written."""
    path = next((path for path in (folder / f"{name}.yaml", Path(name)) if is_there(path) and path.is_file()), None)
    if path is None:
        known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        raise InputError(f"there is no {what} named {name!r}.", f"Give one of {known}, or a YAML file's path.")
    return path, path.stat().st_mtime_ns


def template_file(name: str) -> Path:
    """The file of an instruction or a tree that somebody wrote; of a name of ours a path where nothing is."""
    return Path(split_tree(name)[0] or ".")


def is_ours(name: str) -> bool:
    """Does this instruction, or the tree that it is a leaf of, come with the package?"""
    return any(is_there(folder / f"{name.partition('#')[0]}.yaml") for folder in (TEMPLATES, TREES))


def check_version(name: str, version: int) -> None:
    """Is the installed instruction `name` the one that a reward was trained with?

    Raises InputError where its version is another: a judge asked in words that it was not trained on answers worse,
    and nobody would see why.
    """
    installed = load_instruction(name).version
    if installed != version:
        raise InputError(
            f"the reward was trained with version {version} of the instruction {name!r}; version {installed} is here.",
            f"Give instruction= the file of version {version}, or instruction={name!r} to ask it in the words of now.",
        )
