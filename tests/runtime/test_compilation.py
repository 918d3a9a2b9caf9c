"""Compiled layers give what they give uncompiled: margins, gradients in pixels, predictions, and what is trained."""

from __future__ import annotations

import functools
import shutil
from contextlib import nullcontext

import pytest
import torch
from pydantic import ValidationError
from tiny import generator_folder, judge_folder, pictures
from torch import nn

from rewarddance.errors import InputError
from rewarddance.generators.pipelines import load_generator
from rewarddance.reward.judge import RewardConfig
from rewarddance.reward.loading import load_reward
from rewarddance.reward.pixel_gradient import checkpointing, pixel_gradient
from rewarddance.reward.recipe import JudgeRecipe
from rewarddance.runtime.compilation import compile_layers
from rewarddance.runtime.memory import checkpointed
from rewarddance.types import Question

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for a CPU by g++, not here")


def questions(n: int, seed: int = 0) -> list[Question]:
    reference, *candidates = pictures(n + 1, seed)
    return [Question("a red circle", candidate, reference) for candidate in candidates]


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are taken as they are in compiling, and run without making code of them, which takes a minute."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))


@needs_compiler
@pytest.mark.timeout(620)
def test_a_compiled_judge_gives_the_same_margins():
    plain, compiled = load_reward(judge_folder()), load_reward(judge_folder(), compile=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(questions(3)).margin, plain(questions(3)).margin, atol=1e-5, rtol=1e-5)


@pytest.mark.timeout(620)
@pytest.mark.parametrize("kept", ["all", "inputs"])
def test_a_compiled_judge_gives_the_same_gradients_in_pixels(kept, no_kernels):
    plain, compiled = load_reward(judge_folder()), load_reward(judge_folder(), compile=True)
    found = []
    for judge in (plain, compiled):
        with checkpointing(judge) if kept == "inputs" else nullcontext():
            found.append(pixel_gradient(judge, questions(3), lambda margin: -margin.mean()).gradients)
    for ours, own in zip(*found, strict=True):
        torch.testing.assert_close(ours, own, atol=1e-6, rtol=1e-4)
    layers = compiled.vlm._language_model.layers
    assert all("forward" in vars(layer) for layer in layers)  # still, after layers computed again


@pytest.mark.timeout(620)
def test_a_compiled_generator_gives_the_same_predictions_and_lora_gradients(no_kernels):
    gradients = []
    for compiled in (False, True):
        generator = load_generator(str(generator_folder()), 4, compile=compiled)
        torch.manual_seed(0)
        weights = generator.add_lora(2, 2)
        with torch.no_grad():
            for weight in weights:
                weight.add_(0.1)
        condition, x_t = generator.encode(["a red circle", "two small blue crosses"]), generator.init_noise([1, 2])
        v = generator.predict(x_t, 1, condition)
        with generator.as_before_training(), torch.no_grad():
            base = generator.predict(x_t, 1, condition)
        gradients.append([v.detach(), base, *torch.autograd.grad(v.square().mean(), weights)])
    for ours, own in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, own, atol=1e-5, rtol=1e-4)


def test_compiling_is_of_a_run_and_not_of_a_reward(tmp_path):
    judge = load_reward(judge_folder(), compile=True)
    judge.save(tmp_path / "reward")
    assert "compile" not in (tmp_path / "reward" / "reward_config.json").read_text()
    assert not any("forward" in vars(layer) for layer in load_reward(tmp_path / "reward").vlm._language_model.layers)


def test_what_is_sharded_is_not_compiled():
    with pytest.raises(ValidationError, match="compile"):
        JudgeRecipe(compile=True, sharded=True)
    with pytest.raises(ValidationError, match="compile"):
        RewardConfig(kind="clip", compile=True)
    generator = load_generator(str(generator_folder()), 2, compile=True)
    with pytest.raises(InputError, match="compile"):
        generator.train_all(sharded=True)
    with pytest.raises(InputError, match="compile"):
        generator.add_lora(2, 2, sharded=True)


def test_layers_that_are_computed_again_are_compiled_afterwards_as_before():
    layers = [nn.Linear(2, 2), nn.Linear(2, 2)]
    compile_layers(layers[:1])
    before = layers[0].forward
    with checkpointed(layers):
        assert layers[0].forward is not before and "forward" in vars(layers[1])
    assert layers[0].forward is before and "forward" not in vars(layers[1])
