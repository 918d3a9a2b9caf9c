"""What a search may spend, and the ways in which its pictures can be compared."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rewarddance.errors import InputError
from rewarddance.runtime.config import Recipe, parse_recipe

JudgingName = Literal["alone", "first", "knockout", "tournament"]


class Budget(Recipe):
    """What may be spent on each prompt; whichever is used up first ends its search.

    evaluations: steps of single pictures through the generator (with guidance the network runs twice in each).
    samples: as many evaluations as that many plain samples take. questions: put to the reward. seconds: wall-clock time
    of all work.
    """

    samples: int | None = Field(default=None, ge=1)
    evaluations: int | None = Field(default=None, ge=1)
    questions: int | None = Field(default=None, ge=1)
    seconds: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _has_a_limit(self) -> Budget:
        if not self.model_fields_set or all(limit is None for limit in self.model_dump().values()):
            raise ValueError(f"a budget needs one of {', '.join(type(self).model_fields)}")
        return self


def read_budget(text: str) -> Budget:
    """`samples=16`, `seconds=30` or `evaluations=400,questions=64`. Raises InputError naming what is wrong."""
    limits = {}
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not value:
            raise InputError(f"the budget {text!r} is not of the form NAME=AMOUNT.", "Write e.g. samples=16.")
        if name in limits:
            raise InputError(f"the budget {text!r} says {name} twice.", "Give each limit once.")
        limits[name] = value
    return parse_recipe(Budget, limits, "the budget")
