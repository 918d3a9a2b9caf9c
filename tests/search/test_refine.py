"""Critique and refine: the reason goes into the generator's prompt, never into the judge's."""

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


class PromptRecorder(TinyGenerator):
    """Draws brighter for a longer prompt; keeps the distinct prompts of each batch."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain, self.prompts = gain, []

    def encode(self, prompts):
        self.prompts.append(sorted({prompt.text for prompt in prompts}))
        return torch.tensor([-self.gain if len(prompt.text) > 3 else 0.0 for prompt in prompts])[:, None, None, None]


def test_the_reason_reaches_the_generator_and_not_the_judge():
    generator, judge = PromptRecorder(gain=1.0), Bright()
    (result,) = search(generator, judge, ["cat"], Refine(samples=2), "samples=4")
    assert generator.prompts == [["cat"], ["cat. too dark 0"]]
    assert {question.prompt.text for question in judge.questions} == {"cat"}
    assert result.winner.origin["prompt"] == "cat. too dark 0"
    assert result.first.origin["prompt"] == "cat"


def test_a_wording_that_gave_no_new_best_is_dropped():
    generator = PromptRecorder(gain=-1.0)
    (result,) = search(generator, Bright(), ["cat"], Refine(samples=2), "samples=8")
    assert generator.prompts[:3] == [["cat"], ["cat. too dark 0"], ["cat"]]
    assert result.winner.origin["prompt"] == "cat"


def test_the_second_best_is_what_the_judge_criticises():
    judge = Bright()
    (result,) = search(PromptRecorder(0.0), judge, ["cat"], Refine(samples=3), "samples=3")
    critique = judge.questions[-1]
    assert critique.candidate is result.pictures[1].pixels and critique.reference is result.pictures[0].pixels


def test_another_wording_or_rewriter_can_be_given():
    generator = PromptRecorder(0.0)
    search(generator, Bright(), ["cat"], Refine(samples=2, wording="{reason} | {prompt}"), "samples=4")
    assert generator.prompts[1] == ["too dark 0 | cat"]
    generator = PromptRecorder(0.0)
    search(
        generator,
        Bright(),
        ["cat"],
        Refine(samples=2),
        "samples=4",
        rewrite=lambda prompt, reason: f"{prompt}, bright!",
    )
    assert generator.prompts[1] == ["cat, bright!"]


def test_more_samples_than_are_made_together_are_refused():
    with pytest.raises(InputError, match="samples is 100, and"):
        search(TinyGenerator(), Bright(), ["cat"], Refine(samples=100), "samples=200", batch_size=8, prompts_at_once=1)


@pytest.mark.parametrize("wording", ["{prompt}", "{prompt} {why}", "{prompt} {reason", "{} {prompt} {reason}"])
def test_a_wording_without_both_places_is_refused(wording):
    with pytest.raises(ValueError, match="places"):
        Refine(wording=wording)


def test_a_rewriter_is_for_the_method_refine_only():
    with pytest.raises(InputError, match="only the method refine"):
        search(TinyGenerator(), Bright(), ["cat"], "best_of_n", rewrite=lambda prompt, reason: prompt)


class WithoutReasons:
    needs_reference = False
    __call__ = Bright.__call__


def test_a_reward_without_reasons_is_refused():
    with pytest.raises(InputError, match="gives no reasons"):
        search(TinyGenerator(), WithoutReasons(), ["cat"], "refine", "samples=4")
    with pytest.raises(InputError, match="a clip reward gives no reasons"):
        search(TinyGenerator(), load_reward(str(clip_folder()), kind="clip"), ["cat"], "refine", "samples=4")


def test_a_pointwise_judge_explains_what_the_second_best_is_worth():
    judge, generator = load_reward(str(judge_folder()), kind="pointwise", max_reason_tokens=4), LargePictures()
    (result,) = search(generator, judge, ["a red circle"], Refine(samples=2), "samples=4")
    assert result.judging == "alone" and result.rounds == 1
    (reason,) = judge.explain([Question("a red circle", generator.second_best)]).reasons or ()
    assert generator.prompts == [["a red circle"], [f"a red circle. {reason}"]]


class LargePictures(PromptRecorder):
    """Draws pictures of the size that the judge reads."""

    def __init__(self) -> None:
        super().__init__(0.0)

    def decode(self, x_0):
        return super().decode(x_0).repeat_interleave(8, -1).repeat_interleave(8, -2)

    @property
    def second_best(self):
        """The worse of the first two pictures, by the judge."""
        pictures = sample(self, ["a red circle"] * 2, [noise_seed(0, 0, 0), noise_seed(0, 0, 1)])
        self.prompts.pop()
        judge = load_reward(str(judge_folder()), kind="pointwise")
        return min(pictures, key=lambda pixels: judge([Question("a red circle", pixels)]).margin.item())
