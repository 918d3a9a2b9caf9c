"""Every algorithm takes any reward that it can use, of pictures and videos; what it cannot is refused by name."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from test_alignment_videos import bank_of, judge_of, prompts_of, videos_of
from tiny import clip_folder, generator_folder, judge_folder, trained_folder
from tiny_alignment import moved, updates_of

from rewarddance.alignment.algorithms import ALGORITHMS, align_generator
from rewarddance.alignment.group_rewards import Reward
from rewarddance.alignment.references import ReferenceBank, References
from rewarddance.alignment.surrogate import PRESETS
from rewarddance.alignment.train import Alignment, TrainRecipe
from rewarddance.errors import InputError, RewardError
from rewarddance.generators.pipelines import load_generator
from rewarddance.generators.sampling import rollout
from rewarddance.protocols import RewardModel
from rewarddance.reward.function_reward import as_reward
from rewarddance.reward.loading import load_reward
from rewarddance.runtime.config import parse_recipe
from rewarddance.runtime.tracking import Metrics
from rewarddance.types import Prompt

STEPS = 3
PROMPTS = [Prompt("a red circle"), Prompt("a blue cross")]
SIZE = {"prompts_per_step": 2, "group_size": 2}
SHORT = {"flowbp_sparse": {"count": 2}, "flowbp_bridge": {"count": 3}, "flowbp_lagrange": {"count": 2}}
ASKING = {
    **{name: (name, {}) for name in ("nft", "awm", "dgpo", "crd", "online_dpo")},
    **{kind: ("grpo", {"kind": kind, "window": 1}) for kind in ("dance", "cps", "precise")},
    "guard": ("grpo", {"guard": True, "window": 1}),
}
FOLLOWING = {name: ("refl", {"surrogate": {"like": name, **SHORT.get(name, {})}, "loss": "linear"}) for name in PRESETS}


def recipe_of(way: str, **changes: Any) -> TrainRecipe:
    algorithm, own = (ASKING | FOLLOWING)[way]
    return parse_recipe(ALGORITHMS[algorithm].recipe, SIZE | own | changes, way)


def contrast(images, prompts, metadata):
    """A program of somebody else: numbers without a graph."""
    return [float(image.std()) + 0.1 * len(prompt) for image, prompt in zip(images, prompts, strict=True)]


ALONE = ("pointwise", "regressive", "clip", "foreign")
"""Kinds of rewards that score one sample by itself."""


@functools.cache
def reward_of(kind: str) -> RewardModel:
    if kind == "foreign":
        return as_reward(contrast)
    if kind == "regressive":  # its head is trained
        return load_reward(str(trained_folder(kind) / "reward"))
    return load_reward(str(clip_folder() if kind == "clip" else judge_folder()), kind=kind)


def gradient_of(weights) -> torch.Tensor:
    found = torch.cat([weight.grad.flatten() for weight in weights if weight.grad is not None])
    assert torch.isfinite(found).all() and found.abs().max() > 0
    return found


def kinds_of(way: str) -> tuple[str, ...]:
    """Every kind for one way of each sort of algorithm, and for the others two: they get scores, not a judge."""
    return ("pairwise", *(ALONE if way in ("nft", "dance") else (ALONE[[*ASKING].index(way) % len(ALONE)],)))


@pytest.mark.parametrize("way", ASKING)
def test_what_only_asks_takes_every_kind_of_reward(way):
    recipe: Any = recipe_of(way)
    generator = load_generator(str(generator_folder()), STEPS)
    weights = moved(generator.add_lora(2, 2), 0.02)
    for kind in kinds_of(way):
        judge = reward_of(kind)
        for weight in weights:
            weight.grad = None
        reward = Reward(judge, recipe.judging_of(judge))
        assert reward.judging == ("group" if kind == "pairwise" else "alone")
        (figures,) = updates_of(generator, [reward], PROMPTS, recipe, weights=weights)
        assert figures["velocity_mse"] > 0, "the alarm of distance can ring"
        gradient_of(weights)


@pytest.mark.parametrize("way", ASKING)
def test_a_pairwise_judge_that_shall_score_one_alone_is_refused(way):
    recipe: Any = recipe_of(way, judging="alone")
    with pytest.raises(InputError, match="a pairwise judge cannot score one sample by itself"):
        recipe.judging_of(reward_of("pairwise"))


@pytest.mark.parametrize("way", ASKING)
def test_what_only_asks_takes_videos_and_a_video_judge(way):
    generator = videos_of("t2v")
    weights = generator.add_lora(2, 2)
    reward = Reward(judge_of("t2v"), "group")
    (figures,) = updates_of(generator, [reward], prompts_of("t2v"), recipe_of(way), seed=0, weights=weights)
    assert "velocity_mse" in figures
    gradient_of(weights)


def bank_of_pictures(generator) -> list[References]:
    x_0 = rollout(generator, PROMPTS, [91, 92], STEPS).x_t
    pictures = generator.decode(x_0).detach()
    return [
        References(prompt, (picture,), (91 + i,), (1.0,), x_0[i : i + 1])
        for i, (prompt, picture) in enumerate(zip(PROMPTS, pictures, strict=True))
    ]


@pytest.mark.parametrize("way", FOLLOWING)
def test_a_surrogate_follows_every_reward_that_has_a_gradient(way):
    generator = load_generator(str(generator_folder()), STEPS)
    bank = bank_of_pictures(generator)
    weights = moved(generator.add_lora(2, 2), 0.02)
    of_gradients = ("pointwise", "regressive", "clip")
    turn = [*FOLLOWING].index(way) % 3
    for kind in of_gradients if way == "leapalign" else of_gradients[turn : turn + 1]:  # a gradient of pixels is one
        for weight in weights:
            weight.grad = None
        reward = Reward(reward_of(kind), "references")
        updates_of(generator, [reward], PROMPTS, recipe_of(way, judge_batch=4), bank=bank, weights=weights)
        gradient_of(weights)


@pytest.mark.parametrize("way", FOLLOWING)
def test_a_surrogate_follows_a_video_judge_through_some_frames(way):
    generator = videos_of("t2v")
    bank = bank_of(generator, "t2v")
    weights = moved(generator.add_lora(2, 2), 0.02)
    recipe = recipe_of(way, frames=3, group_size=1)
    updates_of(
        generator, [Reward(judge_of("t2v"), "references")], prompts_of("t2v"), recipe, bank=bank, weights=weights
    )
    gradient_of(weights)


@pytest.mark.parametrize("way", ["draft_lv", "flowbp_bridge"])
def test_a_surrogate_refuses_a_program_without_a_gradient(tmp_path, way):
    generator = load_generator(str(generator_folder()), STEPS)
    bank = ReferenceBank(bank_of_pictures(generator))
    reward = Reward(reward_of("foreign"), "references")
    run = Alignment(generator, [reward], PROMPTS, recipe_of(way, steps=2, judge_batch=4), 0, bank)
    with pytest.raises(RewardError, match="gives no gradient"):
        align_generator(run, folder=tmp_path, metrics=Metrics(tmp_path / "metrics.jsonl"))
