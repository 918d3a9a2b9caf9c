"""The generative pairwise reward: r(x1, x2, y, i) = P("yes" | x1, x2, y, i) (paper, section 3).

x1 is the reference, x2 the candidate, y the prompt, i the task instruction. P is the softmax over the tokenizer's
spellings of yes against those of no, at the place where the answer begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from rewarddance.data.media import Media
from rewarddance.errors import InputError
from rewarddance.reward.instructions import load_instruction
from rewarddance.reward.judge import Judge, RewardConfig, all_pixels
from rewarddance.reward.objectives import both_orders_cross_entropy
from rewarddance.reward.vlm import Asked, VisionLanguageModel
from rewarddance.types import Preference, Question, Verdict


class PairwiseReward(Judge):
    """A vision-language model asked whether the candidate is better than the reference. A RewardModel."""

    def __init__(self, vlm: VisionLanguageModel, config: RewardConfig) -> None:
        self.vlm, self.config, self.model = vlm, config, vlm.model
        self._yes, self._no = vlm.answer_tokens(config.yes), vlm.answer_tokens(config.no)

    def margin(self, questions: Sequence[Question]) -> Float[Tensor, " B"]:
        """log of yes odds minus log of no odds, float32, always in the graph; each distinct tensor is encoded once.

        With orders="both", half the difference of the two orders' margins.
        """
        if self.config.orders == "forward":
            return self._forward_margin(questions)
        both = self._forward_margin([*questions, *map(swapped, questions)])
        return (both[: len(questions)] - both[len(questions) :]) / 2

    def loss(self, pairs: Sequence[Preference]) -> Float[Tensor, ""]:
        """The answer's cross-entropy in both orders of each pair, from one encoding of its pictures."""
        questions = [Question(p.prompt, p.second, p.first) for p in pairs]
        margin = self._forward_margin([*questions, *map(swapped, questions)])
        share = torch.tensor([p.share for p in pairs], device=margin.device)
        return both_orders_cross_entropy(margin[: len(pairs)], margin[len(pairs) :], share)

    def score(self, prompt: str, candidates: Sequence[Media], instruction: str | None = None) -> Verdict:
        """How good is each of N >= 2 candidates among the others: its mean margin against each of them, both orders.

        Raises InputError for a single candidate: a pairwise judge has nothing to compare it with.
        """
        pixels = all_pixels(candidates)
        n = len(pixels)
        if n < 2:
            raise InputError(
                "a pairwise judge cannot score one candidate by itself.", "Give a reference to compare, or two or more."
            )
        pairs = [(c, r) for c in range(n) for r in range(n) if c != r]
        found = self([Question(prompt, pixels[c], pixels[r], instruction) for c, r in pairs]).margin
        margins = found.new_zeros(n, n)
        margins[tuple(torch.tensor(pairs).T)] = found
        return Verdict((margins - margins.T).sum(1) / (2 * (n - 1)))

    def _forward_margin(self, questions: Sequence[Question]) -> Float[Tensor, " B"]:
        asked = []
        for number, question in enumerate(questions):
            if question.reference is None:
                raise InputError(
                    f"question {number} ({question.prompt!r}) has no reference.", "A pairwise judge needs one."
                )
            instruction = load_instruction(question.instruction or self.config.instruction)
            asked.append(Asked(tuple(instruction.question(question.prompt)), (question.reference, question.candidate)))
        return self.vlm.margin(self.vlm.read(asked), self._yes, self._no)

    def save(self, folder: Path) -> None:
        self.vlm.save(folder)
        self._save_config(folder)


def swapped(question: Question) -> Question:
    """The same question with reference and candidate changed over."""
    if question.reference is None:
        raise InputError(f"the question on {question.prompt!r} has no reference to swap.", "Give it one.")
    return Question(question.prompt, question.reference, question.candidate, question.instruction)
