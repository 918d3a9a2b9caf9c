"""Videos are aligned as pictures are: some frames are decoded and judged, and the gradient is exactly theirs."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from test_alignment_images import Hearing
from tiny import TinyGenerator, video_generator_folder, video_judge_folder
from tiny_alignment import updates_of
from torch import Tensor

from rewarddance.alignment.flow_grpo import GrpoRecipe
from rewarddance.alignment.group_rewards import Reward
from rewarddance.alignment.nft import NftRecipe
from rewarddance.alignment.references import References
from rewarddance.alignment.refl import refl_step
from rewarddance.alignment.refl_batch import decode_frames
from rewarddance.alignment.refl_losses import LOSSES
from rewarddance.alignment.refl_recipe import ReflRecipe
from rewarddance.alignment.relay import decoder_vjp
from rewarddance.alignment.train import prompts_of_step
from rewarddance.data.frame_sampling import one_of_each
from rewarddance.errors import InputError
from rewarddance.generators.pipelines import load_generator
from rewarddance.generators.sampling import rollout
from rewarddance.reward.loading import load_reward
from rewarddance.search.best_of_n import best_of_n
from rewarddance.types import Prompt, Question

TEXTS = ["a red circle moves left", "a blue square grows"]
FIRST = [torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(n)) for n in (7, 8)]
SIZE: dict[str, Any] = {"height": 32, "width": 32, "num_frames": 9, "max_sequence_length": 24}
both = pytest.mark.parametrize("task", ["t2v", "i2v"])


def videos_of(task: str):
    kind = "WanImageToVideoPipeline" if task == "i2v" else None
    return load_generator(str(video_generator_folder()), num_inference_steps=3, pipeline=kind, **SIZE)


@functools.cache
def judge_of(task: str, kind: str = "pairwise", frames: int = 3):
    return load_reward(str(video_judge_folder()), kind=kind, instruction=f"{task}-brief", frames=frames, fps=8.0)


def prompts_of(task: str) -> list[Prompt]:
    first = [*FIRST] if task == "i2v" else [None, None]
    return [Prompt(text, image=image) for text, image in zip(TEXTS, first, strict=True)]


def bank_of(generator, task: str) -> list[References]:
    made = rollout(generator, prompts_of(task), [91, 92], 3).x_t
    videos = generator.decode(made).detach()
    return [
        References(prompt, (video,), (91 + i,), (1.0,), made[i : i + 1])
        for i, (prompt, video) in enumerate(zip(prompts_of(task), videos, strict=True))
    ]


@both
@pytest.mark.parametrize("numbers", [[0], [1, 2], [0, 3, 5, 8], [4]])
def test_some_frames_are_decoded_as_all_are_with_the_gradient_of_one_graph(task, numbers):
    generator = videos_of(task)
    x_0 = torch.randn(2, 8, 5, 8, 8, generator=torch.Generator().manual_seed(0))
    aim = torch.rand(2, len(numbers), 3, 32, 32)

    def ask(pixels: Tensor) -> None:
        (pixels - aim).square().mean().backward()

    torch.testing.assert_close(
        decode_frames(generator, numbers, x_0), generator.decode(x_0)[:, numbers], atol=1e-6, rtol=0
    )
    _, gradient = decoder_vjp(functools.partial(decode_frames, generator, numbers), x_0, ask, 1)
    leaf = x_0.clone().requires_grad_()
    (generator.decode(leaf)[:, numbers] - aim).square().mean().backward()
    assert leaf.grad is not None and leaf.grad.abs().max() > 0
    torch.testing.assert_close(gradient, leaf.grad, atol=1e-7, rtol=1e-4)


def test_what_comes_after_the_last_of_the_frames_is_not_decoded(monkeypatch):
    generator, lengths = videos_of("t2v"), []
    decode = generator.pipeline.vae.decode
    monkeypatch.setattr(generator.pipeline.vae, "decode", lambda z, **k: lengths.append(z.shape[2]) or decode(z, **k))
    for numbers in ([0], [1], [2], [0, 3], [7, 8]):
        decode_frames(generator, numbers, torch.zeros(1, 8, 5, 8, 8))
    assert lengths == [1, 2, 2, 3, 5]


@both
def test_a_step_on_some_frames_leaves_the_gradient_of_one_graph(task):
    generator, judge = videos_of(task), judge_of(task)
    weights = generator.add_lora(2, 2)
    torch.manual_seed(5)
    for weight in weights:
        torch.nn.init.normal_(weight, std=0.05)
    bank = bank_of(generator, task)
    recipe = ReflRecipe(
        prompts_per_step=2,
        group_size=1,
        frames=3,
        loss="margin",
        velocity_mse=0.0,
        grad_step_range=(0.5, 1.0),
        decode_batch=1,
    )
    refl_step(generator, judge, bank, recipe, seed=4, step=1)
    ours = [weight.grad for weight in weights]
    for weight in weights:
        weight.grad = None

    draw = np.random.default_rng([4, 2, 1])  # what the step draws, in its order
    draw.integers(2**31)
    group = [bank[i] for i in prompts_of_step(2, 2, 4, 1)]
    seeds = draw.integers(2**31, size=2).tolist()
    low, high = recipe.first_grad_steps(3)
    stop = int(draw.integers(low, high + 1))
    for one, noise in zip(group, seeds, strict=True):
        one.choose(draw, noise)
    numbers = one_of_each(9, 3, draw)
    prompts = [one.prompt for one in group]
    x_t = rollout(generator, prompts, seeds, stop).x_t
    v = generator.predict(x_t, stop, generator.encode(prompts))
    videos = generator.decode(generator.predict_x0(x_t, v, stop))[:, numbers].clamp(0, 1)
    asked = [
        Question(prompt, video, one.pictures[0][numbers])
        for prompt, video, one in zip(prompts, videos, group, strict=True)
    ]
    LOSSES["margin"](judge(asked).margin, cap=recipe.cap).backward()
    assert any(weight.grad is not None and weight.grad.abs().max() > 0 for weight in weights)
    for weight, one in zip(weights, ours, strict=True):
        assert weight.grad is not None and one is not None
        torch.testing.assert_close(one, weight.grad, atol=1e-6, rtol=1e-3)


def test_frames_are_drawn_anew_each_step_one_of_each_stretch():
    draws = [one_of_each(9, 4, np.random.default_rng([0, step])) for step in range(200)]
    for numbers in draws:
        assert [low <= n < high for n, low, high in zip(numbers, (0, 2, 4, 6), (2, 4, 6, 9), strict=True)] == [True] * 4
    assert {n for numbers in draws for n in numbers} == set(range(9)), "no frame is never judged"
    assert one_of_each(3, 3, np.random.default_rng(0)) == [0, 1, 2]
    with pytest.raises(InputError, match=r"4 frames of a video are wanted, and the videos have 3"):
        one_of_each(3, 4, np.random.default_rng(0))


def test_more_frames_than_the_videos_have_are_an_error_that_names_the_key():
    generator = videos_of("t2v")
    generator.add_lora(2, 2)
    recipe = ReflRecipe(prompts_per_step=2, group_size=1, frames=10)
    with pytest.raises(InputError, match=r"refl.frames is 10, and the videos have 9 frames"):
        refl_step(generator, judge_of("t2v"), bank_of(generator, "t2v"), recipe, seed=4, step=1)


def test_a_generator_that_decodes_only_whole_gives_the_frames_all_the_same():
    tiny = TinyGenerator()
    x_0 = tiny.init_noise([1, 2])
    torch.testing.assert_close(decode_frames(tiny, [0], x_0), tiny.decode(x_0))


@both
def test_flow_grpo_and_diffusion_nft_take_videos_and_a_video_judge(task):
    size = {"prompts_per_step": 2, "group_size": 2}
    for recipe in (GrpoRecipe(**size, window=1), NftRecipe(**size)):
        generator = videos_of(task)
        weights = generator.add_lora(2, 2)
        figures = updates_of(
            generator, [Reward(judge_of(task), "group")], prompts_of(task), recipe, seed=0, weights=weights
        )
        assert figures and all(np.isfinite(list(one.values())).all() for one in figures)
        assert any(weight.grad is not None and weight.grad.abs().max() > 0 for weight in weights)


@both
def test_a_search_finds_the_video_that_the_video_judge_prefers(task):
    generator = videos_of(task)
    found = best_of_n(generator, judge_of(task), prompts_of(task), [[1, 2, 3], [4, 5, 6]])
    assert found.pictures.shape == (2, 3, 9, 3, 32, 32)
    assert (found.wins.argmax(1) == found.chosen).all() or found.wins.max() == found.wins.min()


def test_every_question_about_a_video_has_its_first_picture():
    judge = Hearing()
    bank = bank_of(videos_of("i2v"), "i2v")
    generator = videos_of("i2v")
    generator.add_lora(2, 2)
    refl_step(generator, judge, bank, ReflRecipe(prompts_per_step=2, group_size=2, frames=2), seed=0, step=0)
    assert judge.heard == {(text, id(first)) for text, first in zip(TEXTS, FIRST, strict=True)}


@both
def test_references_are_denoised_without_guidance(task):
    kind = "WanImageToVideoPipeline" if task == "i2v" else None
    recipe = ReflRecipe(prompts_per_step=2, group_size=1, reference_mse=1.0)
    said = []
    for scale in (1.0, 4.0):
        generator = load_generator(str(video_generator_folder()), 3, scale, pipeline=kind, **SIZE)
        bank = bank_of(videos_of(task), task)
        x_t, prompts = generator.init_noise([0, 1]), prompts_of(task)
        with torch.no_grad(), generator.without_guidance():
            plain = generator.predict(x_t, 1, generator.encode(prompts))
        with torch.no_grad():
            guided = generator.predict(x_t, 1, generator.encode(prompts))
        generator.add_lora(2, 2)
        said.append((plain, guided, refl_step(generator, judge_of(task), bank, recipe, seed=4, step=1)))
    (plain, unguided, at_1), (same, guided, at_4) = said
    torch.testing.assert_close(plain, same)
    torch.testing.assert_close(plain, unguided)
    assert (guided - unguided).abs().max() > 1e-4, "after the block it is guided again"
    assert at_1["reference_mse"] == pytest.approx(at_4["reference_mse"], rel=1e-5)
    assert at_1["margin"] != pytest.approx(at_4["margin"], rel=1e-6)
