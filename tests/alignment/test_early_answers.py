"""Rewards elsewhere are asked while sampling goes on: the same answers, gradients and figures, sooner."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from tiny import BrightnessJudge, TinyGenerator
from tiny_alignment import updates_of, with_lora

from rewarddance.alignment.flow_grpo import GrpoRecipe
from rewarddance.alignment.group_rewards import Reward
from rewarddance.alignment.nft import NftRecipe
from rewarddance.errors import RewardError
from rewarddance.protocols import is_elsewhere
from rewarddance.reward.function_reward import FunctionReward
from rewarddance.types import Question, Verdict

PROMPTS = ["a red circle", "a blue square", "a green star", "two crosses"]
SLOW = 0.15
"""Seconds that a group takes to be drawn, and to be judged."""
STEP: dict[str, Any] = {"prompts_per_step": 4, "group_size": 2, "generator_batch": 2}
RECIPES = [
    GrpoRecipe(**STEP, kind="ddim", window=2, window_range=(0.0, 0.0), shared_prefix=False, kl=0.0),
    NftRecipe(**STEP, levels=1),
]


class SlowGenerator(TinyGenerator):
    """Takes its time to decode, and says when."""

    drawn: list[float]

    def decode(self, x_0: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():
            time.sleep(SLOW)
            self.drawn.append(time.perf_counter())
        return super().decode(x_0)


class RemoteJudge(BrightnessJudge):
    """Takes its time for each group, at the other end of a wire; cannot say anything of `refused`."""

    def __init__(self, elsewhere: bool, refused: str = "") -> None:
        super().__init__()
        self.elsewhere, self.refused, self.times = elsewhere, refused, list[float]()

    def __call__(self, questions: list[Question]) -> Verdict:
        self.times.append(time.perf_counter())
        if any(question.prompt.text == self.refused for question in questions):
            raise RewardError("the server does not answer.", "Start it.")
        time.sleep(SLOW * len(questions) / STEP["group_size"])
        return super().__call__(questions)


def a_step(recipe: Any, judge: RemoteJudge, judging: Any = "group") -> tuple[Any, list[torch.Tensor], SlowGenerator]:
    generator, weights = with_lora(SlowGenerator)
    generator.drawn = []
    figures = updates_of(generator, [Reward(judge, judging)], PROMPTS, recipe, weights=weights)
    return figures, [weight.grad for weight in weights], generator


@pytest.mark.parametrize("recipe", RECIPES, ids=["grpo", "nft"])
def test_a_remote_reward_is_asked_while_other_groups_are_drawn(recipe):
    seconds, results = {}, {}
    for elsewhere in (False, True):
        judge = RemoteJudge(elsewhere)
        began = time.perf_counter()
        figures, gradients, generator = a_step(recipe, judge)
        seconds[elsewhere], results[elsewhere] = time.perf_counter() - began, (figures, gradients)
        early = sum(asked < generator.drawn[-1] for asked in judge.times)
        assert early == (3 if elsewhere else 0)
    assert results[True][0] == results[False][0]
    assert all(map(torch.equal, results[True][1], results[False][1]))
    assert seconds[False] - seconds[True] > SLOW, "three of four groups were judged meanwhile"


@pytest.mark.parametrize("recipe", RECIPES, ids=["grpo", "nft"])
def test_a_group_that_a_remote_reward_refuses_is_left_out_alone(recipe):
    (waiting, _, _), (early, gradients, _) = (a_step(recipe, RemoteJudge(there, PROMPTS[1])) for there in (False, True))
    assert early == waiting and early[0]["failed_groups"] == 1
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_a_function_says_that_it_asks_a_server():
    def score(images: Any, prompts: Any, metadata: Any) -> list[float]:
        return [0.0] * len(prompts)

    assert not is_elsewhere(FunctionReward(score))
    score.elsewhere = True  # type: ignore[attr-defined]
    assert is_elsewhere(FunctionReward(score))
