"""The generative pairwise reward: r(x1, x2, y, i) = P("yes" | x1, x2, y, i) (paper, section 3).

x1 is the reference, x2 the candidate, y the prompt, i the task instruction. P is the softmax over the tokenizer's
spellings of yes against those of no, at the place where the answer stands: the beginning, or after a reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from rewarddance.errors import InputError
from rewarddance.reward.decision_files import write_decision_files
from rewarddance.reward.instructions import Reasoning, load_instruction, pictures_of
from rewarddance.reward.judge import Judge, LossNormalizer, RewardConfig, checked
from rewarddance.reward.objectives import pairwise_cross_entropy, reason_cross_entropy
from rewarddance.reward.reasoning import Answers, reason_targets
from rewarddance.reward.vlm_judge import JudgeInput, VisionLanguageModel
from rewarddance.runtime.devices import on_device
from rewarddance.types import Preference, Question, Verdict


class PairwiseReward(Judge):
    """A vision-language model asked whether the candidate is better than the reference. A RewardModel."""

    needs_reference = True

    def __init__(self, vlm: VisionLanguageModel, config: RewardConfig) -> None:
        self.vlm, self.config, self.model = vlm, config, vlm.model
        self.answers = Answers(vlm, config)

    def margin(self, questions: Sequence[Question]) -> Float[Tensor, " B"]:
        """log of yes odds minus log of no odds, float32, always in the graph; each distinct tensor is encoded once.

        With reasoning="before", that of the mean probability over the sampled reasons. With orders="both", half the
        difference of the two orders' margins.
        """
        if self.config.orders == "forward":
            return self.answers.margin(self._judge_inputs(questions))
        both = self.answers.margin(self._judge_inputs([*questions, *map(swapped, questions)]))
        return (both[: len(questions)] - both[len(questions) :]) / 2

    def loss(self, pairs: Sequence[Preference], normalizer: LossNormalizer | None = None) -> Float[Tensor, ""]:
        """The answers' cross-entropy in both orders of each pair and that of their difference, and that of its reasons.

        Both orders are read from one encoding of the pictures. Each order learns its own reason (`Preference`), behind
        or before the answer that most votes are for; a pair without reasons trains on the answers alone.
        """
        judge_inputs = self.training_inputs(pairs)
        share = on_device(torch.tensor([p.share for p in pairs]), self.vlm.device)
        weight = self.config.difference_weight
        part = len(pairs) / normalizer.pairs if normalizer else 1
        if self.config.reasoning == "none":
            margin = self.answers.margin(judge_inputs)
            return part * pairwise_cross_entropy(margin[: len(pairs)], margin[len(pairs) :], share, weight)
        margin, logits, tokens = self.answers.learn(judge_inputs, *reason_targets(pairs))
        answers = pairwise_cross_entropy(margin[: len(pairs)], margin[len(pairs) :], share, weight)
        of_reasons = len(tokens) / max(normalizer.tokens, 1) if normalizer else 1
        return part * answers + self.config.reason_weight * of_reasons * reason_cross_entropy(logits, tokens)

    def training_inputs(self, pairs: Sequence[Preference]) -> list[JudgeInput]:
        """The 2 N questions on N pairs: all with the second picture as the candidate, then all with the first."""
        questions = [Question(p.prompt, p.second, p.first, fps=(p.fps[1], p.fps[0])) for p in pairs]
        return self._judge_inputs([*questions, *map(swapped, questions)])

    def split_by_tokens(self, pairs: Sequence[Preference]) -> list[Sequence[Preference]]:
        return self.answers.split_by_tokens(self.training_inputs(pairs), pairs)

    def loss_normalizer(self, pairs: Sequence[Preference]) -> LossNormalizer:
        return LossNormalizer(
            len(pairs), 0 if self.config.reasoning == "none" else self.answers.tokens_of(*reason_targets(pairs))
        )

    @torch.no_grad()
    def explain(self, questions: Sequence[Question]) -> Verdict:
        """The same verdicts as calling the judge, with reasons.

        The reason is written behind the verdict's answer; with reasoning="before" it is, of those that were sampled,
        the one that argued most for the verdict. A judge that was not trained on reasons is asked for one all the same.
        """
        if not questions:
            return Verdict(torch.zeros(0), ())
        size = self.config.batch_size
        parts = [self._explained(questions[start : start + size]) for start in range(0, len(questions), size)]
        reasons = tuple(reason for part in parts for reason in part.reasons or ())
        return Verdict(torch.cat([part.margin for part in parts]), reasons)

    def _explained(self, questions: Sequence[Question]) -> Verdict:
        verdict = checked(self.margin(questions), questions)
        reasons = self.answers.reasons(self._judge_inputs(questions, self.answers.explaining), verdict.margin)
        return Verdict(verdict.margin, tuple(reasons))

    def _judge_inputs(self, questions: Sequence[Question], reasoning: Reasoning | None = None) -> list[JudgeInput]:
        """The questions with their pictures, as they are answered in a form of reasoning (the judge's own if None)."""
        judge_inputs = []
        for number, question in enumerate(self.as_read(questions)):
            instruction = load_instruction(question.instruction) if question.instruction else self.instruction
            parts = tuple(instruction.question(question.prompt.text, reasoning or self.config.reasoning))
            judge_inputs.append(JudgeInput(parts, pictures_of(parts, question, number)))
        return judge_inputs

    def save(self, folder: Path) -> None:
        self.vlm.save(folder)
        self._save_config(folder)
        write_decision_files(self, folder)


def swapped(question: Question) -> Question:
    """The same question with reference and candidate changed over."""
    if question.reference is None:
        raise InputError(f"the question on {question.prompt.text!r} has no reference to swap.", "Give it one.")
    return replace(question, candidate=question.reference, reference=question.candidate, fps=question.fps[::-1])
