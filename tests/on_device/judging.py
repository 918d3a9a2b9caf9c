"""Asking, differentiating, training and serving a judge on the pretend device."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch
from tiny import (
    FAMILIES,
    INTERNVL_LLAMA,
    clip_folder,
    colour_preferences,
    family_folder,
    judge_folder,
    pictures,
    training_recipe,
)

from rewarddance.evaluation.answers import ask
from rewarddance.reward.batches import MicroBatches
from rewarddance.reward.judge import RewardConfig
from rewarddance.reward.loading import build_reward, load_reward
from rewarddance.reward.parallel import replicate
from rewarddance.reward.pixel_gradient import checkpointing, pixel_gradient
from rewarddance.reward.train import accumulate_gradient, build_optimiser, clip_gradient, take_step
from rewarddance.reward.trainable import Trainable
from rewarddance.serve.batching import Waiting, _gradients, _margins
from rewarddance.types import Question
from tests.on_device.ground import DEVICE, on_device, seen_by, waits_of

HALF = torch.bfloat16
ALLOWED = {
    "reward/judge.py checked": "a margin that is not finite is an error before anything is done with it",
    "reward/pixel_gradient.py pixel_gradient": "the same of a gradient; and the loss, which is logged",
    "protocols.py margins_on_host": "the order is made on the host, from all margins at once",
    "reward/families/qwen_vl.py QwenVL.encode": "transformers reads the pictures' shapes, which it takes as a tensor",
    "reward/families/qwen_vl.py QwenVL.picture_inputs": "these shapes",
    "reward/clip.py ClipReward.text_features": "transformers looks whether a mask hides anything",
}
DEEPSTACK = {
    "reward/prefill.py Prefill._language_model_forward": "transformers adds Qwen3-VL's features by masks",
    "the backward pass": "of the same",
}
AGAIN = {
    "elsewhere": "a layer that is computed again, in autograd's own thread",
    "runtime/memory.py _twice.run": "Qwen's tower cuts each layer's attention by pictures, whose lengths it reads",
}
TRAINING = {
    "reward/train.py clip_gradient": "a norm that is not finite is an error before a step is taken with it",
    "runtime/sharding.py all_finite.<genexpr>": "a weight that is not finite is one before a checkpoint is written",
}


def questions(n: int = 4, side: int = 40) -> list[Question]:
    reference, *candidates = pictures(n + 1, size=side).to(DEVICE)
    return [Question("a red circle", candidate, reference) for candidate in candidates]


def allowed_for(family: str) -> dict[str, str]:
    of_family = DEEPSTACK if family == "qwen3_vl" else {}
    # of Qwen2.5-VL's windows, whose order is an index of the host
    of_family |= {"the backward pass": "of windows"} if family == "qwen2_5_vl" else {}
    return ALLOWED | of_family


@pytest.mark.parametrize("family", (*FAMILIES, INTERNVL_LLAMA))
def test_asking_waits_for_nothing_but_its_answer(family):
    judge, asked = load_reward(family_folder(family), DEVICE, "bfloat16", orders="both"), questions()
    with torch.no_grad(), seen_by(judge.vlm._language_model.layers) as seen:
        assert not waits_of(lambda: judge(asked), allowed_for(family))
    assert {(DEVICE, HALF)} == {one for one in seen if one[1] != torch.float32}  # rotary factors may be in float32
    assert {device for device, _ in seen} == {DEVICE}
    margin = judge(asked).margin
    assert str(margin.device) == DEVICE and margin.dtype == torch.float32


def test_the_margins_are_those_of_the_cpu():
    asked = questions()
    on_cpu = [Question(q.prompt, q.candidate.cpu(), q.reference.cpu()) for q in asked]
    for family in FAMILIES:
        judge, other = (load_reward(family_folder(family), place, "float32") for place in (DEVICE, "cpu"))
        torch.testing.assert_close(judge(asked).margin.cpu(), other(on_cpu).margin, atol=1e-4, rtol=1e-4)


def test_a_question_of_clip_is_checked_before_it_is_asked():
    judge = load_reward(clip_folder(), DEVICE, "float32", kind="clip")
    blank = torch.zeros(1, 1, 1, 1).expand(1, 3, 32, 32)
    assert [*judge.faults([Question("a cross", blank), Question("a cross", blank, blank)])] == [None, None]


def test_pictures_of_the_host_are_taken_without_waiting():
    judge, asked = load_reward(judge_folder(), DEVICE, "bfloat16"), pictures(3)
    with torch.no_grad():
        assert not waits_of(lambda: judge([Question("a cross", asked[0], asked[1])]), ALLOWED)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kept", ["all", "inputs"])
def test_the_pixels_gradient_waits_for_nothing_but_itself(family, kept):
    judge, asked = load_reward(family_folder(family), DEVICE, "bfloat16"), questions()

    def step():
        found = pixel_gradient(judge, asked, lambda margin: -margin.mean(), at_once=2)
        assert {(str(g.device), g.dtype) for g in found.gradients} == {(DEVICE, torch.float32)}

    if kept == "inputs":
        with checkpointing(judge):
            assert not waits_of(step, allowed_for(family) | AGAIN)
    else:
        assert not waits_of(step, allowed_for(family))


@pytest.mark.parametrize("kind", ["pointwise", "clip"])
def test_other_kinds_wait_for_nothing_but_their_answer(kind):
    folder = clip_folder() if kind == "clip" else judge_folder()
    judge, asked = load_reward(folder, DEVICE, "float32", kind=kind), questions()
    with torch.no_grad():
        assert not waits_of(lambda: judge(asked), ALLOWED)


@pytest.mark.parametrize("kind", ["pairwise", "pointwise", "regressive", "clip"])
def test_a_training_step_waits_for_its_norm_and_its_weights_only(kind):
    on_device()
    recipe = training_recipe(kind, dtype="float32" if kind == "clip" else "bfloat16", gradient_accumulation_steps=2)
    student = Trainable(lambda dtype: build_reward(recipe.base, recipe.reward_config(), dtype=dtype), recipe)
    model = student.reward.model.to(DEVICE)
    optimiser, whole = build_optimiser(model, recipe), replicate(student.module)
    of_host = MicroBatches(colour_preferences(8), 4, 50, 0, parts=2, pixel_noise=0.05).after(0, 0)

    def step():
        accumulate_gradient(whole, student.reward, next(of_host))
        clip_gradient(model, 1.0, 1)
        take_step(optimiser, model, 1)

    assert not waits_of(step, ALLOWED | TRAINING)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    assert {(str(weight.device), weight.dtype) for weight in trained} == {(DEVICE, torch.float32)}


def test_a_judge_is_ranked_with_by_one_reading_of_its_margins():
    judge, shown = load_reward(judge_folder(), DEVICE, "bfloat16"), list(pictures(4).to(DEVICE))
    checked = {"data/media.py _from_tensor": "pixels that a user gives are looked at"}
    with torch.no_grad():
        assert not waits_of(lambda: judge.rank("a red circle", shown), ALLOWED | checked)


def test_an_evaluation_reads_its_answers_once_a_batch():
    judge, pairs = load_reward(judge_folder(), DEVICE, "bfloat16"), colour_preferences(4)
    read = {
        "evaluation/answers.py _answers": "all figures are made on the host",
        "evaluation/agreement.py both_orders": "the same",
        "protocols.py checked_verdict": "a margin that is not finite is an error before it is a figure",
    }
    assert not waits_of(lambda: ask(judge, pairs, batch_size=4, probed=[0]), ALLOWED | read)


def test_a_servers_batch_reads_its_answers_once():
    judge = load_reward(judge_folder(), DEVICE, "bfloat16")
    future = asyncio.new_event_loop().create_future()
    of_host = [Question("a red circle", picture, picture.flip(-1)) for picture in pictures(3)]
    read = {"serve/batching.py _margins": "answers go out on the wire"}
    assert not waits_of(lambda: _margins(judge, [Waiting(q, (), future) for q in of_host]), ALLOWED | read)
    batch = [Waiting(question, ("candidate",), future) for question in of_host]
    read |= {"serve/batching.py _gradients": "the same", "the backward pass": "to pictures that came from the host"}
    assert not waits_of(lambda: _gradients(judge, batch), ALLOWED | read)


def test_a_reward_is_saved_from_the_device_and_read_on_the_host(tmp_path: Path):
    judge = build_reward(str(judge_folder()), RewardConfig(), DEVICE)
    judge.save(tmp_path / "reward")
    asked = questions(2)
    on_cpu = [Question(q.prompt, q.candidate.cpu(), q.reference.cpu()) for q in asked]
    again = load_reward(tmp_path / "reward", "cpu", "float32")
    torch.testing.assert_close(judge(asked).margin.detach().cpu(), again(on_cpu).margin, atol=1e-4, rtol=1e-4)
