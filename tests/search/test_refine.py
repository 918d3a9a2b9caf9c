"""Critique and refine: the reason goes into the prompt that is drawn from, never into the one that is judged."""

from __future__ import annotations

import pytest
import torch
from gaussian import Bright
from tiny import TinyGenerator

from rewarddance.errors import InputError
from rewarddance.search.refine import Refine
from rewarddance.search.run import search


class Listening(TinyGenerator):
    """Draws brighter for a longer prompt; keeps the prompts."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain, self.heard = gain, []

    def encode(self, prompts):
        self.heard.append(sorted(set(prompts)))
        return torch.tensor([-self.gain if len(prompt) > 3 else 0.0 for prompt in prompts])[:, None, None, None]


def test_the_reason_is_said_to_the_generator_and_not_to_the_judge():
    made, judge = Listening(gain=1.0), Bright()
    (found,) = search(made, judge, ["cat"], Refine(samples=2), "samples=4")
    assert made.heard == [["cat"], ["cat. too dark 0"]]
    assert {question.prompt for question in judge.asked} == {"cat"}
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


def test_a_reward_without_reasons_is_refused():
    with pytest.raises(InputError, match="gives no reasons"):
        search(TinyGenerator(), lambda questions: Bright()(questions), ["cat"], "refine", "samples=4")
