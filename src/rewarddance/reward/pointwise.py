"""Rewards that give each picture a score of its own, and the generative one among them: P("yes") to a high standard.

A question with a reference is answered by Bradley-Terry: its margin is s(candidate) - s(reference). So tournaments,
accuracy, ReFL and search work unchanged with every kind.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from rewarddance.reward.decision_files import write_decision_files
from rewarddance.reward.instructions import Instruction, Reasoning, load_instruction, pictures_of
from rewarddance.reward.judge import Judge, LossNormalizer, RewardConfig, checked
from rewarddance.reward.objectives import (
    both_orders_cross_entropy,
    bradley_terry,
    reason_cross_entropy,
    win_tie_bradley_terry,
)
from rewarddance.reward.reasoning import Answers, reason_targets
from rewarddance.reward.vlm_judge import JudgeInput, VisionLanguageModel
from rewarddance.runtime.devices import on_device
from rewarddance.types import Preference, Question, Verdict

Places = list[tuple[int, int | None]]
"""For each question: which picture is its candidate, and which its reference, or None."""


class PointwiseJudge(Judge):
    """A judge that scores each picture by itself. A kind says what a score is; the rest is written here."""

    needs_reference = False

    @abstractmethod
    def scores(self, questions: Sequence[Question]) -> Float[Tensor, " K"]:
        """Scores [K], float32, in the graph, of the candidates of K questions without references."""

    def margin(self, questions: Sequence[Question]) -> Float[Tensor, " B"]:
        """s(candidate) - s(reference), or s(candidate) where there is none; each distinct picture is read once."""
        picture_questions, places = distinct(questions)
        return differences(self.scores(picture_questions), places)

    def _in_batches(self, questions: Sequence[Question]) -> Float[Tensor, " B"]:
        # Pictures are counted, not questions: cut by questions, a tournament would read each picture in every part.
        picture_questions, places = distinct(questions)
        size = self.config.batch_size
        parts = [
            self.scores(picture_questions[start : start + size]) for start in range(0, len(picture_questions), size)
        ]
        return differences(torch.cat(parts), places)

    def loss(self, pairs: Sequence[Preference], normalizer: LossNormalizer | None = None) -> Float[Tensor, ""]:
        """Bradley-Terry on the pair's margin, win-tie under a `tie_threshold`, and `answer_weight` times the answers'.

        The answers' cross-entropy is of yes for the better and no for the worse picture, each by its share of the
        votes (paper, section 3: Bradley-Terry "plus a small weighted cross-entropy").
        """
        loss = self._of_scores(self.margin(each_alone(pairs)), pairs)
        return loss * (len(pairs) / normalizer.pairs) if normalizer else loss

    def _of_scores(self, scores: Float[Tensor, " K"], pairs: Sequence[Preference]) -> Float[Tensor, ""]:
        """The loss on N pairs from the scores [2 N] of their second pictures and then of their first."""
        second, first = scores.split(len(pairs))
        share = on_device(torch.tensor([p.share for p in pairs]), second.device)
        threshold, weight = self.config.tie_threshold, self.config.answer_weight
        margin = second - first
        loss = bradley_terry(margin, share) if threshold is None else win_tie_bradley_terry(margin, share, threshold)
        return loss + weight * both_orders_cross_entropy(second, first, share) if weight else loss


class PointwiseReward(PointwiseJudge):
    """A vision-language model asked whether the candidate meets a high standard; s is the logit margin of yes over no.

    Source: paper, section 3 (the pointwise generative reward, its verifier in test-time search).
    """

    def __init__(self, vlm: VisionLanguageModel, config: RewardConfig) -> None:
        self.vlm, self.config, self.model = vlm, config, vlm.model
        self.answers = Answers(vlm, config)

    def scores(self, questions: Sequence[Question]) -> Float[Tensor, " K"]:
        return self.answers.margin(self._judge_inputs(questions))

    def loss(self, pairs: Sequence[Preference], normalizer: LossNormalizer | None = None) -> Float[Tensor, ""]:
        """As for every pointwise kind, and the cross-entropy of each picture's own reason.

        `reason` is the second picture's and `reason_swapped` the first's. A reason is learned behind or before yes for
        the better and no for the worse picture; pictures without one train on their answers alone.
        """
        if self.config.reasoning == "none":
            return super().loss(pairs, normalizer)
        scores, logits, tokens = self.answers.learn(self._judge_inputs(each_alone(pairs)), *reason_targets(pairs))
        part = len(pairs) / normalizer.pairs if normalizer else 1
        of_reasons = len(tokens) / max(normalizer.tokens, 1) if normalizer else 1
        reasons = self.config.reason_weight * of_reasons * reason_cross_entropy(logits, tokens)
        return part * self._of_scores(scores, pairs) + reasons

    def split_by_tokens(self, pairs: Sequence[Preference]) -> list[Sequence[Preference]]:
        return self.answers.split_by_tokens(self._judge_inputs(each_alone(pairs)), pairs)

    def loss_normalizer(self, pairs: Sequence[Preference]) -> LossNormalizer:
        return LossNormalizer(
            len(pairs), 0 if self.config.reasoning == "none" else self.answers.tokens_of(*reason_targets(pairs))
        )

    @torch.no_grad()
    def explain(self, questions: Sequence[Question]) -> Verdict:
        """The same verdicts as calling the judge, with reasons, each for the candidate's own score: of a reference it
        knows nothing.
        """
        if not questions:
            return Verdict(torch.zeros(0), ())
        picture_questions, places = distinct(questions)
        size = self.config.batch_size
        scores, reasons = [], []
        for start in range(0, len(picture_questions), size):
            part = picture_questions[start : start + size]
            scores.append(self.scores(part))
            reasons += self.answers.reasons(self._judge_inputs(part, self.answers.explaining), scores[-1])
        verdict = checked(differences(torch.cat(scores), places), questions)
        return Verdict(verdict.margin, tuple(reasons[candidate] for candidate, _ in places))

    def _judge_inputs(self, questions: Sequence[Question], reasoning: Reasoning | None = None) -> list[JudgeInput]:
        return pointwise_inputs(self.as_read(questions), self.instruction, reasoning or self.config.reasoning)

    def save(self, folder: Path) -> None:
        self.vlm.save(folder)
        self._save_config(folder)
        write_decision_files(self, folder)


def each_alone(pairs: Sequence[Preference]) -> list[Question]:
    """The 2 N questions on N pairs: the second picture of each, then the first of each."""
    second = [Question(p.prompt, p.second, fps=(p.fps[1], None)) for p in pairs]
    return [*second, *(Question(p.prompt, p.first, fps=(p.fps[0], None)) for p in pairs)]


def pointwise_inputs(
    questions: Sequence[Question], instruction: Instruction, reasoning: Reasoning = "none"
) -> list[JudgeInput]:
    """The pointwise question on each candidate, under its own instruction or else under `instruction`."""
    judge_inputs = []
    for number, question in enumerate(questions):
        template = load_instruction(question.instruction) if question.instruction else instruction
        parts = tuple(template.pointwise_question(question.prompt.text, reasoning))
        judge_inputs.append(JudgeInput(parts, pictures_of(parts, question, number)))
    return judge_inputs


def distinct(questions: Sequence[Question]) -> tuple[list[Question], Places]:
    """The distinct pictures under their prompts, as questions without references, and where each question's are.

    Tensors are compared by identity, as everywhere: the very same tensor under the same prompt, with the same
    picture, and instruction.
    """
    place_of: dict[tuple, int] = {}
    picture_questions: list[Question] = []

    def place(question: Question, pixels: Tensor, rate: float | None) -> int:
        key = (question.prompt.text, question.instruction, id(question.prompt.image), id(pixels))
        if key not in place_of:
            place_of[key] = len(picture_questions)
            alone = replace(question, candidate=pixels, reference=None, fps=(rate, None))
            picture_questions.append(alone)
        return place_of[key]

    places: Places = [
        (place(q, q.candidate, q.fps[0]), None if q.reference is None else place(q, q.reference, q.fps[1]))
        for q in questions
    ]
    return picture_questions, places


def differences(scores: Float[Tensor, " K"], places: Places) -> Float[Tensor, " B"]:
    """s(candidate) - s(reference) of each question [B] from the scores of K pictures; s(candidate) without one."""
    or_zero = torch.cat([scores, scores.new_zeros(1)])
    rows = [(candidate, -1 if reference is None else reference) for candidate, reference in places]
    numbers = torch.tensor(rows).reshape(-1, 2)
    candidates, references = on_device(numbers, scores.device).unbind(1)
    return scores[candidates] - or_zero[references]
