"""The generative pairwise reward: r(x1, x2, y, i) = P("yes" | x1, x2, y, i) (paper, section 3).

x1 is the reference, x2 the candidate, y the prompt, i the task instruction. P is the softmax over the tokenizer's
spellings of yes against those of no, at the place where the answer begins.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from rewarddance.data.media import Media, as_pixels
from rewarddance.errors import InputError, RewardError
from rewarddance.reward.instructions import load_instruction
from rewarddance.reward.ranking import Ranking, tournament
from rewarddance.reward.vlm import VisionLanguageModel
from rewarddance.runtime.checkpoint import find_checkpoint
from rewarddance.runtime.config import Recipe, parse_recipe
from rewarddance.types import Pixels, Question, Verdict

YES = ("yes", "Yes", "YES", " yes", " Yes")
NO = ("no", "No", "NO", " no", " No")
CONFIG_FILE = "reward_config.json"


class RewardConfig(Recipe):
    """What makes a checkpoint a reward; saved beside its weights as reward_config.json.

    instruction: the template used where a question names none. instruction_version: its version at training time.
    orders: "forward" asks once; "both" also asks with the pictures swapped and averages, which cancels a bias to
    either place. batch_size: questions a forward when no gradient is kept.
    """

    kind: Literal["pairwise_generative"] = "pairwise_generative"
    instruction: str = "t2i"
    instruction_version: int = 1
    orders: Literal["forward", "both"] = "forward"
    yes: tuple[str, ...] = YES
    no: tuple[str, ...] = NO
    batch_size: int = 128


class PairwiseReward:
    """A vision-language model asked whether the candidate is better than the reference. A RewardModel."""

    def __init__(self, vlm: VisionLanguageModel, config: RewardConfig) -> None:
        self.vlm, self.config = vlm, config
        self._yes, self._no = vlm.answer_tokens(config.yes), vlm.answer_tokens(config.no)

    def __call__(self, questions: Sequence[Question]) -> Verdict:
        """Margins [B], with a graph where a question's pixels require one.

        Raises InputError for a question without a reference, and RewardError where a margin is not finite.
        """
        if not questions:
            return Verdict(torch.zeros(0))
        wants_graph = torch.is_grad_enabled() and any(
            pixels.requires_grad for q in questions for pixels in (q.candidate, q.reference) if pixels is not None
        )
        if wants_graph:
            margin = self._margin_by_orders(questions)
        else:
            with torch.no_grad():
                size = self.config.batch_size
                parts = [questions[start : start + size] for start in range(0, len(questions), size)]
                margin = torch.cat([self._margin_by_orders(part) for part in parts])
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
        return self([Question(prompt, each, shown, instruction) for each in _all_pixels(candidates)])

    def rank(self, prompt: str, candidates: Sequence[Media]) -> Ranking:
        """Order N candidates by wins in an all-pairs tournament in both orders (paper, section 3), best first.

        Raises InputError naming the candidate that is no picture.
        """
        (ranking,) = tournament(self, [prompt], [_all_pixels(candidates)])
        return ranking

    def _margin_by_orders(self, questions: Sequence[Question]) -> Float[Tensor, " B"]:
        if self.config.orders == "forward":
            return self.margin(questions)
        both = self.margin([*questions, *map(swapped, questions)])
        return (both[: len(questions)] - both[len(questions) :]) / 2

    def margin(self, questions: Sequence[Question]) -> Float[Tensor, " B"]:
        """log of yes odds minus log of no odds, float32, always in the graph; each distinct tensor is encoded once."""
        place: dict[int, int] = {}
        pictures, asked, rows = [], [], []
        for number, question in enumerate(questions):
            if question.reference is None:
                raise InputError(
                    f"question {number} ({question.prompt!r}) has no reference.", "A pairwise judge needs one."
                )
            row = []
            for pixels in (question.reference, question.candidate):
                if id(pixels) not in place:
                    place[id(pixels)] = len(pictures)
                    pictures.append(pixels)
                row.append(place[id(pixels)])
            rows.append(row)
            instruction = load_instruction(question.instruction or self.config.instruction)
            parts = tuple(instruction.question(question.prompt))
            asked.append(self.vlm.sequence(parts, frames=len(question.candidate)))
        encoded = self.vlm.encode(pictures)
        hidden = self.vlm.last_hidden(asked, [[encoded[at] for at in row] for row in rows]).float()
        yes = hidden @ self.vlm.head_rows(self._yes).float().T
        no = hidden @ self.vlm.head_rows(self._no).float().T
        return yes.logsumexp(-1) - no.logsumexp(-1)

    def freeze(self) -> PairwiseReward:
        """Weights take no gradient any more: it is asked, and differentiated in pixels, but not trained."""
        self.vlm.model.requires_grad_(False).eval()
        return self

    def save(self, folder: Path) -> None:
        """Write a plain save_pretrained folder plus reward_config.json."""
        self.vlm.save(folder)
        (folder / CONFIG_FILE).write_text(json.dumps(self.config.model_dump(), indent=2) + "\n", encoding="utf-8")


def _all_pixels(candidates: Sequence[Media]) -> list[Pixels]:
    return [as_pixels(each, f"candidate {number}") for number, each in enumerate(candidates)]


def swapped(question: Question) -> Question:
    """The same question with reference and candidate changed over."""
    if question.reference is None:
        raise InputError(f"the question on {question.prompt!r} has no reference to swap.", "Give it one.")
    return Question(question.prompt, question.reference, question.candidate, question.instruction)


def load_reward(name: str, device: str = "cpu", **changes: object) -> PairwiseReward:
    """Load a trained reward folder, or any vision-language model zero-shot (default instruction); frozen.

    changes: fields of `RewardConfig` to set differently, such as orders="both". Raises InputError naming an unknown
    field, a missing checkpoint or a broken reward_config.json.
    """
    path = find_checkpoint(name) / CONFIG_FILE
    saved: dict = {}
    if path.is_file():
        try:
            saved = dict(json.loads(path.read_text(encoding="utf-8")))
        except (TypeError, ValueError) as error:
            raise InputError(f"{path} is no JSON object: {error}.", "Restore it or train the reward again.") from error
    config = parse_recipe(RewardConfig, saved | changes, str(path))
    return PairwiseReward(VisionLanguageModel(name, device=device), config).freeze()
