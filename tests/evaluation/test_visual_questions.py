"""Questions about pictures: the first token's share, choices, and P(yes) of any judge."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import judge_folder, pictures

from rewarddance.errors import InputError
from rewarddance.evaluation.visual_questions import FirstToken, VisualQuestion, YesNo, answerer, spellings
from rewarddance.reward.function_reward import as_reward
from rewarddance.reward.instructions import Picture
from rewarddance.reward.loading import load_reward
from rewarddance.reward.prefill import JudgeInput


def test_an_answers_spellings_are_those_of_genevals_second_version():
    assert set(spellings("Yes")) == {"Yes", "yes", " yes", " Yes"}
    assert set(spellings("three")) == {"three", "Three", " three", " Three", "3", " 3"}


def test_the_first_tokens_share_is_the_models_own():
    vlm = load_reward(str(judge_folder())).vlm
    asked = [VisualQuestion(shot, "Is the circle red?", "Yes") for shot in pictures(3)]
    chance = FirstToken(vlm).probabilities(asked)
    tokens = {vlm.tokenizer(word, add_special_tokens=False).input_ids[0] for word in ("yes", "Yes", " yes", " Yes")}
    tokens -= {vlm.tokenizer.unk_token_id}
    for one, share in zip(asked, chance, strict=True):
        parts = (Picture("candidate"), "Is the circle red? Answer in one word.")
        inputs = vlm._generation_inputs([JudgeInput(parts, (one.picture,))], 0)
        with torch.no_grad():
            logits = vlm.model(**inputs).logits[0, -1].float().softmax(-1)
        known = sum(logits[token] for token in tokens if vlm.tokenizer.decode([token]).strip())
        assert share.item() == pytest.approx(float(known), rel=1e-3)


class KnownModel:
    """A vocabulary of single words whose logits are given."""

    unk_token_id = 0

    def __init__(self, logits: dict[str, float]) -> None:
        self.words, self.tokenizer, self.asked = ["?", *logits], self, list[str]()
        self.logits = torch.tensor([-50.0, *logits.values()])

    def __call__(self, text: str, add_special_tokens: bool = True) -> Any:
        first = text.strip().split()[0]
        known = self.words.index(first) if first in self.words else 0
        return type("Tokens", (), {"input_ids": [known]})

    def decode(self, tokens: list[int]) -> str:
        return self.words[tokens[0]]

    def last_states(self, asked):
        self.asked += [str(one.parts[1]) for one in asked]
        return torch.zeros(len(asked), 1)

    def head(self, hidden):
        return self.logits.expand(len(hidden), -1)


def test_a_choice_is_the_likeliest_letter_or_yes_and_no():
    model = KnownModel({"A": 0.0, "B": 2.0, "C": 1.0, "yes": 0.0, "no": 1.0})
    answers, (shot,) = FirstToken(model), pictures(1)
    assert answers.choose(shot, "who is there?", ["surfer", "skier", "diver"]) == "skier"
    assert answers.choose(shot, "is it red?", ["yes", "no"]) == "no"
    assert model.asked == [
        "who is there?\nA. surfer\nB. skier\nC. diver\nAnswer with one letter.",
        "is it red? Answer in one word.",
    ]
    chance = answers.probabilities([VisualQuestion(shot, "is it red?", "Yes")])
    assert chance.item() == pytest.approx(model.logits.softmax(0)[4].item())
    with pytest.raises(InputError, match="seven"):
        answers.probabilities([VisualQuestion(shot, "How many?", "seven")])


def test_a_judge_of_any_kind_is_asked_whether_that_is_the_answer():
    asked = []

    def function(images, prompts, metadata):
        asked.extend(prompts)
        return [{"two": 3.0, "yes": -1.0, "b": 1.0}.get(one["answer"].lower(), 0.0) for one in metadata]

    answers, (shot,) = YesNo(as_reward(function)), pictures(1)
    questions = [VisualQuestion(shot, "How many dogs?", "two"), VisualQuestion(shot, "Is it a dog?", "Yes")]
    assert answers.probabilities(questions).tolist() == pytest.approx(torch.tensor([3.0, -1.0]).sigmoid().tolist())
    assert asked == ['How many dogs? Is the answer "two"?', "Is it a dog?"]
    assert answers.choose(shot, "which?", ["a", "b", "c"]) == "b"
    assert answers.choose(shot, "is it?", ["yes", "no"]) == "no"


def test_a_pointwise_judge_answers_in_either_form():
    judge = load_reward(str(judge_folder()), kind="pointwise")
    assert answerer(judge).form == "first_token"
    (shot,) = pictures(1)
    asked = answerer(judge, "yes_no").probabilities([VisualQuestion(shot, "Is it red?", "yes")])
    assert asked.shape == (1,) and 0 < asked.item() < 1


def test_a_judge_that_cannot_answer_is_refused():
    with pytest.raises(InputError, match="pairwise"):
        answerer(load_reward(str(judge_folder())), "yes_no")
    with pytest.raises(InputError, match="tokens"):
        answerer(as_reward(lambda images, prompts, metadata: [0.0] * len(prompts)), "first_token")
