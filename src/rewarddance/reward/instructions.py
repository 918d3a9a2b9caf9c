"""Task instructions: what the judge is told besides the prompt and the pictures (paper, section 3: the `i` in r).

The paper does not publish its wording. Ours are versioned files in `templates/`, one a task, criteria listed by name.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import field_validator

from rewarddance.errors import InputError
from rewarddance.runtime.config import Recipe, load_recipe

TEMPLATES = Path(__file__).parent / "templates"


class Picture(str):
    """A place in a question where a picture goes: 'reference' or 'candidate'."""


class Instruction(Recipe):
    """One template file.

    criteria: name -> what it means. list: `described` writes one criterion a line with its meaning, `names` writes the
    names alone, which is what a small model reads fast. pairwise: the question, with {prompt}, {criteria},
    {reference} and {candidate}.
    """

    name: str
    version: int
    criteria: dict[str, str]
    list: Literal["described", "names"] = "described"
    pairwise: str

    @field_validator("pairwise")
    @classmethod
    def _has_its_places(cls, text: str) -> str:
        for place in ("{prompt}", "{reference}", "{candidate}"):
            if text.count(place) != 1:
                raise ValueError(f"the question must hold {place} exactly once")
        if text.index("{reference}") > text.index("{candidate}"):
            raise ValueError("the candidate comes last, so that all before it can be shared")
        return text

    def question(self, prompt: str) -> Iterator[str]:
        """The parts of the user's turn in order: text, and `Picture`s where pictures go."""
        if self.list == "names":
            criteria = ", ".join(self.criteria)
        else:
            criteria = "\n".join(f"- {name}: {meaning}" for name, meaning in self.criteria.items())
        for part in re.split(r"(\{reference\}|\{candidate\})\n?", self.pairwise):
            if part in ("{reference}", "{candidate}"):
                yield Picture(part[1:-1])
            elif part:
                yield part.replace("{criteria}", criteria).replace("{prompt}", prompt)


@functools.lru_cache(maxsize=64)
def load_instruction(name: str) -> Instruction:
    """A template by name, or a user's own by the path of its YAML file. Raises InputError with the known names."""
    path = TEMPLATES / f"{name}.yaml"
    if not path.is_file():
        path = Path(name)
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in TEMPLATES.glob("*.yaml")))
        raise InputError(f"there is no instruction named {name!r}.", f"Give one of {known}, or a YAML file's path.")
    return load_recipe(Instruction, path)
