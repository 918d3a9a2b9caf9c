"""Chain of thought: how a vision-language model says yes or no, and why (paper, section 3 and Table 9).

Two forms beside the bare answer. `after`, which the paper scores with: "yes. REASON"; the answer is the first token,
so the reward needs one position whatever is said then. `before`: "REASON / Answer: yes"; reasons are sampled, the
answer is read after each, and the probabilities are averaged.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rewarddance.errors import InputError
from rewarddance.reward.averages import mean_probability
from rewarddance.reward.batches import split_by_tokens
from rewarddance.reward.instructions import Reasoning
from rewarddance.reward.judge import RewardConfig
from rewarddance.reward.vlm_judge import JudgeInput, VisionLanguageModel
from rewarddance.types import Preference

ANSWER = "Answer:"
"""What comes between a reason and its answer, in the form `before`."""


class Learned(NamedTuple):
    """What a batch of B answers teaches: their margins, and for the N tokens of their reasons the logits of all V."""

    margin: Float[Tensor, " B"]
    logits: Float[Tensor, "N V"]
    tokens: Int[Tensor, " N"]


class _TargetResponse(NamedTuple):
    """One answer as it is learned. text: of all of it. answer: number of the state that the margin is read from.
    reason: numbers of the states from which `tokens`, the reason's, are predicted; none without a reason.
    """

    text: str
    answer: int
    reason: list[int]
    tokens: list[int]


class Answers:
    """Reads yes and no out of a vision-language model in the form that `config.reasoning` says.

    The questions that it is given (`JudgeInput`) already say how to answer. Raises InputError where the tokenizer has
    no single token for either answer.
    """

    def __init__(self, vlm: VisionLanguageModel, config: RewardConfig) -> None:
        self.vlm, self.config = vlm, config
        self._yes, self._no = vlm.answer_tokens(config.yes), vlm.answer_tokens(config.no)
        if both := {*self._yes} & {*self._no}:
            raise InputError(
                f"{vlm.tokenizer.decode(sorted(both))!r} would be both a yes and a no.",
                "Set yes and no to different spellings.",
            )

    def margin(self, judge_inputs: Sequence[JudgeInput]) -> Float[Tensor, " B"]:
        """log of yes odds minus log of no odds, float32, in the graph.

        In the form `before`, the logit of the mean probability over K sampled reasons. The reasons are sampled without
        a graph: the gradient is that of the answer, given what was thought.
        """
        if self.config.reasoning != "before":
            return self._margin(judge_inputs)
        margins, _ = self.thoughts(judge_inputs)
        return mean_probability(margins, margins.new_ones(len(margins)))

    def thoughts(self, judge_inputs: Sequence[JudgeInput]) -> tuple[Float[Tensor, "K B"], list[list[str]]]:
        """Margins after each of K sampled reasons, in the graph, and the reasons [B][K].

        They are sampled question by question, so that what else is asked does not change them.
        """
        k = self.config.reasons
        written = [
            self.vlm.write([judge_input] * k, self.config.max_reason_tokens, self.config.reason_temperature)
            for judge_input in judge_inputs
        ]
        reasons = [[re.split(rf"\s*{ANSWER}", text)[0].strip() for text in texts] for texts in written]
        with_reasons = [
            judge_input._replace(response_prefix=_reason_prefix(text))
            for judge_input, texts in zip(judge_inputs, reasons, strict=True)
            for text in texts
        ]
        return self._margin(with_reasons).view(len(judge_inputs), k).T, reasons

    @property
    def explaining(self) -> Reasoning:
        """The form in which `reasons` wants its questions: a judge that learned none is asked for them all the same."""
        return "before" if self.config.reasoning == "before" else "after"

    def reasons(self, judge_inputs: Sequence[JudgeInput], margin: Float[Tensor, " B"]) -> list[str]:
        """Why each answer is what its margin says; `judge_inputs` are of the form `explaining`.

        Written greedily behind the answer; in the form `before`, of those that were sampled, the one that argued most
        for it.
        """
        if self.config.reasoning != "before":
            answered = [
                judge_input._replace(response_prefix=f"{self._word(m > 0)}.")
                for judge_input, m in zip(judge_inputs, margin.tolist(), strict=True)
            ]
            return self.vlm.write(answered, self.config.max_reason_tokens)
        margins, reasons = self.thoughts(judge_inputs)  # seeded: those of the margin once more
        best = torch.where(margin > 0, margins, -margins).argmax(0).tolist()
        return [texts[k] for texts, k in zip(reasons, best, strict=True)]

    def learn(self, judge_inputs: Sequence[JudgeInput], reasons: Sequence[str], yes: Sequence[bool]) -> Learned:
        """Read B answers with the right reason before or after them; "" is none. In the graph.

        yes: the answers that the reasons argue for; in the form `after` a reason is learned behind its answer.
        """
        targets = [self._target_response(*pair) for pair in zip(reasons, yes, strict=True)]
        states = self.vlm.response_states(_with_responses(judge_inputs, targets))
        answers = torch.stack([row[target.answer] for row, target in zip(states, targets, strict=True)])
        reason_states = torch.cat([row[target.reason] for row, target in zip(states, targets, strict=True)])
        tokens = torch.tensor([token for target in targets for token in target.tokens], dtype=torch.long)
        margin, logits = self.vlm.margin(answers, self._yes, self._no), self.vlm.head(reason_states)
        return Learned(margin, logits, tokens.to(logits.device))

    def split_by_tokens(
        self, judge_inputs: Sequence[JudgeInput], pairs: Sequence[Preference]
    ) -> list[Sequence[Preference]]:
        """N pairs in parts that fit the model's token budget. judge_inputs [2 N]: as `learn` takes them."""
        if self.config.reasoning != "none":
            reasons, yes = reason_targets(pairs)
            targets = [self._target_response(*pair) for pair in zip(reasons, yes, strict=True)]
            judge_inputs = _with_responses(judge_inputs, targets)
        return split_by_tokens(pairs, self.vlm.lengths_of(judge_inputs), self.vlm.max_batch_tokens)

    def tokens_of(self, reasons: Sequence[str], yes: Sequence[bool]) -> int:
        """How many tokens `learn` would teach."""
        return sum(len(self._target_response(*pair).tokens) for pair in zip(reasons, yes, strict=True))

    def _margin(self, judge_inputs: Sequence[JudgeInput]) -> Float[Tensor, " B"]:
        return self.vlm.margin(self.vlm.last_states(judge_inputs), self._yes, self._no, self.config.among)

    def _target_response(self, reason: str, yes: bool) -> _TargetResponse:
        special = next((token for token in self.vlm.tokenizer.all_special_tokens if token in reason), None)
        if special:
            raise InputError(f"the reason {reason!r} contains the token {special!r}.", "Remove it from the reason.")
        reason_first, end = self.config.reasoning == "before", self.vlm.tokenizer.eos_token_id
        if not reason:
            text = ANSWER if reason_first else ""
            return _TargetResponse(text, len(self.vlm.response_prefix_tokens(text)), [], [])
        if reason_first:  # the answer's own token is the margin's to learn; the end of the turn comes after it
            text = _reason_prefix(reason) + self._word(yes, after_space=True)
            tokens = self.vlm.response_prefix_tokens(text)
            answer = len(tokens) - 1
            if tokens[answer] not in (*self._yes, *self._no):
                raise InputError(
                    f"the tokenizer does not end {text[-24:]!r} with the answer's token.", "Set reasoning to 'after'."
                )
            return _TargetResponse(text, answer, [*range(answer), answer + 1], [*tokens[:answer], end])
        text = f"{self._word(yes)}. {reason}"
        tokens = self.vlm.response_prefix_tokens(text)
        return _TargetResponse(text, 0, list(range(1, len(tokens) + 1)), [*tokens[1:], end])

    def _word(self, yes: bool, after_space: bool = False) -> str:
        """The first spelling of an answer that is one token and begins with a space, or does not, if there is one."""
        words, answers = (self.config.yes, self._yes) if yes else (self.config.no, self._no)
        single = [word for word in words if self.vlm.response_prefix_tokens(word) in [[answer] for answer in answers]]
        return next((word for word in single if word.startswith(" ") == after_space), single[0])


def reason_targets(pairs: Sequence[Preference]) -> tuple[list[str], list[bool]]:
    """The reasons of both orders of each pair, second as the candidate first, and the answers that they argue for."""
    reasons = [*(p.reason for p in pairs), *(p.reason_swapped for p in pairs)]
    return reasons, [*(p.share > 0.5 for p in pairs), *(p.share < 0.5 for p in pairs)]


def _with_responses(judge_inputs: Sequence[JudgeInput], targets: Sequence[_TargetResponse]) -> list[JudgeInput]:
    """The questions, each with its answer behind it."""
    return [
        judge_input._replace(response_prefix=target.text)
        for judge_input, target in zip(judge_inputs, targets, strict=True)
    ]


def _reason_prefix(reason: str) -> str:
    return f"{reason}\n{ANSWER}".lstrip()
