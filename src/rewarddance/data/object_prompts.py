"""The files of benchmarks that ask what is in a picture: GenEval, GenEval 2 and TIFA, each in its own published form.

GenEval (2310.11513): evaluation_metadata.jsonl, a line {"tag", "include": [{"class", "count", "color"?, "position"?}],
"exclude"?, "prompt"}. GenEval 2 (2512.16853): geneval2_data.jsonl, a line {"prompt", "atom_count", "vqa_list":
[[question, answer]], "skills"}. TIFA (2303.11897): tifa_v1.0_question_answers.json, an array of {"id", "caption",
"question", "choices", "answer", "element_type"}, several for a caption.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import ConfigDict, Field, field_validator, model_validator

from rewarddance.data.faults import FaultyRow
from rewarddance.data.prompts import records
from rewarddance.data.recipe import Benchmark
from rewarddance.errors import InputError, shown
from rewarddance.runtime.config import Recipe, parse_recipe

Relation = Literal["left of", "right of", "above", "below"]
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
"""GenEval's, in its order: what the colour of an object is chosen from."""
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
"""The words that GenEval 2 answers "How many" with."""


class Clause(Recipe):
    """What GenEval asks of a class: at least `count` objects, of a colour, in a relation to an earlier clause's."""

    name: str = Field(alias="class", min_length=1)
    count: int = Field(ge=1)
    color: str | None = None
    position: tuple[Relation, int] | None = None

    @field_validator("color")
    @classmethod
    def _is_known(cls, value: str | None) -> str | None:
        if value is not None and value not in COLOURS:
            raise ValueError(f"GenEval tells apart {', '.join(COLOURS)}")
        return value


class GenEvalRow(Recipe):
    """A line of GenEval's metadata: every clause of `include` must hold, and none of `exclude`."""

    tag: Literal["single_object", "two_object", "counting", "colors", "position", "color_attr"]
    include: tuple[Clause, ...] = Field(min_length=1)
    exclude: tuple[Clause, ...] = ()
    prompt: str

    @model_validator(mode="after")
    def _positions_look_back(self) -> GenEvalRow:
        for number, clause in enumerate(self.include):
            if clause.position is not None and not 0 <= clause.position[1] < number:
                raise ValueError(
                    f"the position of {clause.name} is relative to clause {clause.position[1]}, not before"
                )
        return self

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes that are looked for, each once."""
        return tuple(dict.fromkeys(clause.name for clause in (*self.include, *self.exclude)))


class GenEval2Row(Recipe):
    """A line of GenEval 2: a question with its expected answer, and the skill that it tests, an atom.

    atom_count: the prompt's atoms without those of "a", whose questions are asked all the same.
    """

    prompt: str
    atom_count: int = Field(ge=1)
    vqa_list: tuple[tuple[str, str], ...] = Field(min_length=1)
    skills: tuple[Literal["object", "attribute", "count", "position", "verb"], ...]

    @model_validator(mode="after")
    def _answers_are_known(self) -> GenEval2Row:
        if len(self.skills) != len(self.vqa_list):
            raise ValueError(f"there are {len(self.vqa_list)} questions and {len(self.skills)} skills")
        for question, answer in self.vqa_list:
            counts = question.startswith("How many")
            if answer.lower() not in (NUMBERS if counts else ("yes",)):
                raise ValueError(
                    f"the answer to {question!r} is {answer!r}, not {'a number word' if counts else 'Yes'}"
                )
        return self


class TifaQuestion(Recipe):
    """A question of TIFA about one caption, with the answers to choose from. Further keys are left unread."""

    model_config = ConfigDict(extra="ignore")

    id: str = Field(coerce_numbers_to_str=True, min_length=1)
    caption: str
    question: str
    choices: tuple[str, ...] = Field(min_length=2)
    answer: str
    element_type: str

    @model_validator(mode="after")
    def _answer_is_a_choice(self) -> TifaQuestion:
        if self.answer not in self.choices:
            raise ValueError(f"the answer {self.answer!r} is none of the choices {', '.join(self.choices)}")
        return self


class BenchPrompt(NamedTuple):
    """A prompt of a benchmark and what is asked of its pictures.

    number: its place in the file, from 0. key: what its pictures are named by: the number, or TIFA's id.
    where: the item in words.
    """

    number: int
    key: str
    text: str
    asked: GenEvalRow | GenEval2Row | tuple[TifaQuestion, ...]
    where: str


def read_benchmark(name: Benchmark, path: Path, faults: list[FaultyRow]) -> list[BenchPrompt]:
    """The prompts of a benchmark's file in their order; what cannot be used is added to `faults`, each with its line.

    Raises InputError where the file cannot be read or is empty.
    """
    kind = {"geneval": GenEvalRow, "geneval2": GenEval2Row, "tifa": TifaQuestion}[name]
    read: list[tuple[str, Any]] = []
    found: list[FaultyRow] = []
    for where, record in records(path):
        try:
            read.append((where, parse_recipe(kind, _as_record(record), "the row")))
        except InputError as error:
            read.append((where, None))
            found.append(FaultyRow(f"{where} of {path}", error.what, error.remedy))
    if not read:
        raise InputError(f"the prompt file {path} is empty.", "Give the benchmark's own file, as published.")
    faults += found
    if name == "tifa":
        return _captions(question for _, question in read if question is not None)
    return [
        BenchPrompt(number, str(number), row.prompt, row, f"{where} of {path} ({shown(row.prompt, 50)})")
        for number, (where, row) in enumerate(read)
        if row is not None
    ]


def _as_record(record: dict[str, Any] | InputError) -> dict[str, Any]:
    if isinstance(record, InputError):
        raise record
    return record


def _captions(questions: Iterable[TifaQuestion]) -> list[BenchPrompt]:
    """TIFA's questions by the id of their caption, in the order of first appearance."""
    groups: dict[str, list[TifaQuestion]] = {}
    for question in questions:
        groups.setdefault(question.id, []).append(question)
    return [
        BenchPrompt(number, key, group[0].caption, tuple(group), f"{key} ({shown(group[0].caption, 50)})")
        for number, (key, group) in enumerate(groups.items())
    ]
