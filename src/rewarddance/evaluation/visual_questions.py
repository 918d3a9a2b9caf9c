"""Questions about a picture, answered by a judge: P(expected answer), and the likeliest of some choices.

Two forms. `first_token`, of a vision-language model here: the share of the whole vocabulary that the answer's first
token has, as GenEval 2 reads it. `yes_no`, of any judge that scores a picture by itself: P("yes") to "is that the
answer?".
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from rewarddance.data.object_prompts import NUMBERS
from rewarddance.errors import InputError
from rewarddance.evaluation.recipe import AnswerForm
from rewarddance.protocols import RewardModel, needs_reference
from rewarddance.reward.instructions import Picture
from rewarddance.reward.prefill import JudgeInput
from rewarddance.types import Pixels, Prompt, Question


class VisualQuestion(NamedTuple):
    """Is `answer` the answer to `question` about `picture` [1, 3, H, W]?"""

    picture: Pixels
    question: str
    answer: str


class Answerer(Protocol):
    """What answers visual questions."""

    form: AnswerForm

    def probabilities(self, questions: Sequence[VisualQuestion]) -> Float[Tensor, " N"]:
        """P(answer) of each, float32 on the CPU."""
        ...

    def choose(self, picture: Pixels, question: str, choices: Sequence[str]) -> str:
        """The likeliest choice."""
        ...


class FirstToken:
    """A vision-language model's probability that its answer begins with the expected one; greedy choices.

    vlm: a `VisionLanguageModel`. The question is the picture, and then "<question> Answer in one word.". P is the sum
    over the answer's spellings (small and capital, with and without a space before, a number word as a digit too) of
    their first tokens' share in the whole vocabulary. A spelling whose first token is blank or unknown is left out.
    Of choices that are not yes and no the letter is asked for. Source: GenEval 2's evaluation.py.
    """

    form: AnswerForm = "first_token"

    def __init__(self, vlm: Any) -> None:
        self.vlm = vlm

    def probabilities(self, questions: Sequence[VisualQuestion]) -> Float[Tensor, " N"]:
        shares = self._shares(
            [(question.picture, f"{question.question} Answer in one word.") for question in questions]
        )
        tokens = [self._first_tokens(question.answer) for question in questions]
        return torch.stack([share[numbers].sum() for share, numbers in zip(shares, tokens, strict=True)])

    def choose(self, picture: Pixels, question: str, choices: Sequence[str]) -> str:
        if _is_yes_no(choices):
            answers, text = list(choices), f"{question} Answer in one word."
        else:
            answers = list(string.ascii_uppercase[: len(choices)])
            listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip(answers, choices, strict=True))
            text = f"{question}\n{listed}\nAnswer with one letter."
        (share,) = self._shares([(picture, text)])
        return choices[int(torch.stack([share[self._first_tokens(answer)].sum() for answer in answers]).argmax())]

    @torch.no_grad()
    def _shares(self, questions: Sequence[tuple[Pixels, str]]) -> Float[Tensor, "N V"]:
        judge_inputs = [JudgeInput((Picture("candidate"), text), (picture,)) for picture, text in questions]
        return self.vlm.head(self.vlm.last_states(judge_inputs)).softmax(-1).cpu()

    def _first_tokens(self, answer: str) -> list[int]:
        tokenizer, numbers = self.vlm.tokenizer, set()
        for word in spellings(answer):
            first = tokenizer(word, add_special_tokens=False).input_ids[:1]
            if first and first[0] != tokenizer.unk_token_id and tokenizer.decode(first).strip():
                numbers.add(first[0])
        if not numbers:
            raise InputError(
                f"the judge's tokenizer has no token that begins the answer {answer!r}.",
                "Ask with answers=yes_no, or by another judge.",
            )
        return sorted(numbers)


class YesNo:
    """P("yes") of a judge that scores a picture by itself, to "<question> Is the answer ...?".

    A question whose answer is yes is asked as it stands. The prompt is the question, under the instruction `vqa`;
    question and answer are in its metadata, too, for functions that read them.
    """

    form: AnswerForm = "yes_no"

    def __init__(self, judge: RewardModel) -> None:
        self.judge = judge

    @torch.no_grad()
    def probabilities(self, questions: Sequence[VisualQuestion]) -> Float[Tensor, " N"]:
        judge_questions = []
        for picture, question, answer in questions:
            text = question if answer.lower() == "yes" else f'{question} Is the answer "{answer}"?'
            prompt = Prompt(text, metadata={"question": question, "answer": answer})
            judge_questions.append(Question(prompt, picture, instruction="vqa"))
        return self.judge(judge_questions).probability.float().cpu()

    def choose(self, picture: Pixels, question: str, choices: Sequence[str]) -> str:
        if _is_yes_no(choices):
            says_yes = self.probabilities([VisualQuestion(picture, question, "yes")]).item() > 0.5
            return next(choice for choice in choices if (choice.lower() == "yes") == says_yes)
        chance = self.probabilities([VisualQuestion(picture, question, choice) for choice in choices])
        return choices[int(chance.argmax())]


def _is_yes_no(choices: Sequence[str]) -> bool:
    return sorted(choice.lower() for choice in choices) == ["no", "yes"]


def spellings(answer: str) -> tuple[str, ...]:
    """How an answer may begin: small and capital, with a space before, and a number word as its digits."""
    words = [answer.lower(), answer.lower().capitalize(), answer]
    if answer.lower() in NUMBERS:
        words.append(str(NUMBERS.index(answer.lower()) + 1))
    return tuple(dict.fromkeys(word for text in words for word in (text, f" {text}")))


def answerer(judge: Any, form: AnswerForm | None = None) -> Answerer:
    """A judge as it answers visual questions: by its first token where it is a vision-language model here.

    Raises InputError for a form that the judge has not.
    """
    vlm = getattr(judge, "vlm", None)
    if form == "first_token" or (form is None and vlm is not None):
        if vlm is None:
            raise InputError(f"{judge!r} is no vision-language model whose tokens can be read.", "Say answers=yes_no.")
        return FirstToken(vlm)
    if needs_reference(judge):
        raise InputError("a pairwise judge cannot be asked about one picture by itself.", "Say --kind pointwise.")
    return YesNo(judge)
