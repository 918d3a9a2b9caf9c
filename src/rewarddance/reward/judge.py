"""What every kind of reward model shares: batching, finiteness, pictures in any form, ranking, its folder."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from rewarddance.data.media import Media, as_pixels
from rewarddance.errors import RewardError
from rewarddance.reward.ranking import Ranking, tournament
from rewarddance.runtime.config import Recipe
from rewarddance.types import Pixels, Preference, Question, Verdict

YES = ("yes", "Yes", "YES", " yes", " Yes")
NO = ("no", "No", "NO", " no", " No")
CONFIG_FILE = "reward_config.json"
Kind = Literal["pairwise"]
SomeJudge = TypeVar("SomeJudge", bound="Judge")


class RewardConfig(Recipe):
    """What makes a checkpoint a reward; saved beside its weights as reward_config.json.

    kind: which question is asked and how it is answered. instruction: the template used where a question names none.
    instruction_version: its version at training time. orders: "forward" asks once; "both" also asks with the pictures
    swapped and averages, which cancels a bias to either place (pairwise only). yes, no: spellings of the two answers.
    batch_size: questions a forward when no gradient is kept.
    """

    kind: Kind = "pairwise"
    instruction: str = "t2i"
    instruction_version: int = 1
    orders: Literal["forward", "both"] = "forward"
    yes: tuple[str, ...] = YES
    no: tuple[str, ...] = NO
    batch_size: int = Field(default=128, ge=1)


class Judge(ABC):
    """A reward model. A kind says what its margin is and how it is trained; the rest is written once, here.

    model: the module whose weights are trained. config: see `RewardConfig`.
    """

    model: Any
    config: RewardConfig

    @abstractmethod
    def margin(self, questions: Sequence[Question]) -> Float[Tensor, " B"]:
        """Margins [B], float32, always in the graph; each distinct tensor is encoded once."""

    @abstractmethod
    def loss(self, pairs: Sequence[Preference]) -> Float[Tensor, ""]:
        """The training loss on pairs, in the graph."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write a plain save_pretrained folder plus reward_config.json."""

    @abstractmethod
    def score(self, prompt: str, candidates: Sequence[Media], instruction: str | None = None) -> Verdict:
        """How good is each of N candidates, by itself or among the others? [N]."""

    def __call__(self, questions: Sequence[Question]) -> Verdict:
        """Margins [B], with a graph where a question's pixels require one.

        Raises InputError for a question that this kind cannot answer, and RewardError where a margin is not finite.
        """
        if not questions:
            return Verdict(torch.zeros(0))
        wants_graph = torch.is_grad_enabled() and any(
            pixels.requires_grad for q in questions for pixels in (q.candidate, q.reference) if pixels is not None
        )
        if wants_graph:
            margin = self.margin(questions)
        else:
            with torch.no_grad():
                size = self.config.batch_size
                parts = [questions[start : start + size] for start in range(0, len(questions), size)]
                margin = torch.cat([self.margin(part) for part in parts])
        bad = (~torch.isfinite(margin)).nonzero().flatten().tolist()
        if bad:
            raise RewardError(
                f"the judge gave no finite margin for question {bad[0]} (prompt {questions[bad[0]].prompt!r}).",
                "Look at its picture for values that are not finite, and at the judge's weights and precision.",
            )
        return Verdict(margin)

    def compare(
        self, prompt: str, candidates: Sequence[Media], reference: Media, instruction: str | None = None
    ) -> Verdict:
        """Is each of N candidates better than the reference? Pictures in any form that `as_pixels` takes; [N].

        Raises InputError naming the candidate that is no picture.
        """
        shown = as_pixels(reference, "the reference")
        return self([Question(prompt, each, shown, instruction) for each in all_pixels(candidates)])

    def rank(self, prompt: str, candidates: Sequence[Media]) -> Ranking:
        """Order N candidates by wins in an all-pairs tournament in both orders (paper, section 3), best first.

        Raises InputError naming the candidate that is no picture.
        """
        (ranking,) = tournament(self, [prompt], [all_pixels(candidates)])
        return ranking

    def freeze(self: SomeJudge) -> SomeJudge:
        """Weights take no gradient any more: it is asked, and differentiated in pixels, but not trained."""
        self.model.requires_grad_(False).eval()
        return self

    def _save_config(self, folder: Path) -> None:
        (folder / CONFIG_FILE).write_text(json.dumps(self.config.model_dump(), indent=2) + "\n", encoding="utf-8")


def all_pixels(candidates: Sequence[Media]) -> list[Pixels]:
    """`as_pixels` of each candidate, named by its number."""
    return [as_pixels(each, f"candidate {number}") for number, each in enumerate(candidates)]
