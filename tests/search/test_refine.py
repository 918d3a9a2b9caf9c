"""Critique and refine: the reason goes into the prompt that is drawn from, never into the one that is judged."""

from __future__ import annotations

import pytest
import torch
from gaussian import Bright
from tiny import TinyGenerator, clip_folder, judge_folder

from rewarddance.errors import InputError
from rewarddance.generators.sampling import sample
from rewarddance.reward.loading import load_reward
from rewarddance.search.batch import noise_seed
from rewarddance.search.refine import Refine
from rewarddance.search.run import search
from rewarddance.types import Question


class Listening(TinyGenerator):
    """Draws brighter for a longer prompt; keeps the prompts."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain, self.heard = gain, []

    def encode(self, prompts):
        self.heard.append(sorted({prompt.text for prompt in prompts}))
        return torch.tensor([-self.gain if len(prompt.text) > 3 else 0.0 for prompt in prompts])[:, None, None, None]


def test_the_reason_is_said_to_the_generator_and_not_to_the_judge():
    made, judge = Listening(gain=1.0), Bright()
    (found,) = search(made, judge, ["cat"], Refine(samples=2), "samples=4")
    assert made.heard == [["cat"], ["cat. too dark 0"]]
    assert {question.prompt.text for question in judge.asked} == {"cat"}
    assert found.winner.origin["prompt"] == "cat. too dark 0"
    assert found.first.origin["prompt"] == "cat"


def test_a_wording_that_brought_no_new_best_is_dropped():
    made = Listening(gain=-1.0)
    (found,) = search(made, Bright(), ["cat"], Refine(samples=2), "samples=8")
    assert made.heard[:3] == [["cat"], ["cat. too dark 0"], ["cat"]]
    assert found.winner.origin["prompt"] == "cat"


def test_the_second_best_is_what_the_judge_criticises():
    judge = Bright()
    (found,) = search(Listening(0.0), judge, ["cat"], Refine(samples=3), "samples=3")
    critique = judge.asked[-1]
    assert critique.candidate is found.pictures[1].pixels and critique.reference is found.pictures[0].pixels


def test_another_wording_or_writer_may_be_given():
    made = Listening(0.0)
    search(made, Bright(), ["cat"], Refine(samples=2, wording="{reason} | {prompt}"), "samples=4")
    assert made.heard[1] == ["too dark 0 | cat"]
    made = Listening(0.0)
    search(made, Bright(), ["cat"], Refine(samples=2), "samples=4", rewrite=lambda prompt, reason: f"{prompt}, bright!")
    assert made.heard[1] == ["cat, bright!"]


@pytest.mark.parametrize("wording", ["{prompt}", "{prompt} {why}", "{prompt} {reason", "{} {prompt} {reason}"])
def test_a_wording_without_its_places_is_refused(wording):
    with pytest.raises(ValueError, match="places"):
        Refine(wording=wording)


def test_a_writer_is_for_refining_only():
    with pytest.raises(InputError, match="only the method refine"):
        search(TinyGenerator(), Bright(), ["cat"], "best_of_n", rewrite=lambda prompt, reason: prompt)


class Silent:
    needs_reference = False
    __call__ = Bright.__call__


def test_a_reward_without_reasons_is_refused():
    with pytest.raises(InputError, match="gives no reasons"):
        search(TinyGenerator(), Silent(), ["cat"], "refine", "samples=4")
    with pytest.raises(InputError, match="a clip reward gives no reasons"):
        search(TinyGenerator(), load_reward(str(clip_folder()), kind="clip"), ["cat"], "refine", "samples=4")


def test_a_pointwise_judge_explains_what_the_second_best_is_worth():
    judge, made = load_reward(str(judge_folder()), kind="pointwise", max_reason_tokens=4), Small()
    (found,) = search(made, judge, ["a red circle"], Refine(samples=2), "samples=4")
    assert found.judging == "alone" and found.rounds == 1
    (reason,) = judge.explain([Question("a red circle", made.second_best)]).reasons or ()
    assert made.heard == [["a red circle"], [f"a red circle. {reason}"]]


class Small(Listening):
    """Draws pictures that the judge is used to the size of; keeps which of the first two was the worse."""

    def __init__(self) -> None:
        super().__init__(0.0)

    def decode(self, x_0):
        return super().decode(x_0).repeat_interleave(8, -1).repeat_interleave(8, -2)

    @property
    def second_best(self):
        first = sample(self, ["a red circle"] * 2, [noise_seed(0, 0, 0), noise_seed(0, 0, 1)])
        self.heard.pop()
        judge = load_reward(str(judge_folder()), kind="pointwise")
        return min(first, key=lambda one: judge([Question("a red circle", one)]).margin.item())
