"""Each family's adapter is its pipeline step for step, on a tiny random checkpoint of the real classes."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_pipelines import (
    FAMILIES,
    SEEDS,
    STEPS,
    drawn,
    fresh,
    frozen,
    options,
    own_call,
    pipeline_folder,
    plain,
    prompts_of,
)
from torch import Tensor

from rewarddance.generators.adapter import PipelineGenerator
from rewarddance.generators.pipelines import ADAPTERS
from rewarddance.generators.sampling import sample

every_family = pytest.mark.parametrize("family", FAMILIES)


def test_every_family_that_is_listed_is_tested():
    tested = {json.loads((pipeline_folder(f) / "model_index.json").read_text())["_class_name"] for f in FAMILIES}
    assert tested | {"CogView4Pipeline"} == set(ADAPTERS)


@every_family
@pytest.mark.parametrize("guided", [False, True])
def test_from_the_same_seeds_come_the_pipelines_own_pictures(family, guided):
    theirs = own_call(plain(family), family, guided)
    ours = drawn(frozen(family, guided), family)
    asked = options(family)
    assert ours.shape == (2, asked.get("num_frames", 1), 3, asked["height"], asked["width"])
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.reshape(theirs.shape), theirs, atol=1e-4, rtol=0)
    assert theirs.std() > 0.05
    if guided:
        assert (ours - drawn(frozen(family), family)).abs().max() > 5e-3
    else:
        same_noise = drawn(frozen(family), family, seeds=[3, 3], frames=[0, 0])
        assert (same_noise[0] - same_noise[1]).abs().max() > 5e-3, "the prompt does not matter"


@every_family
def test_one_seed_is_one_noise_and_one_picture_whatever_the_batch(family):
    generator = frozen(family, True)
    assert torch.equal(generator.init_noise([1, 3, 4]), torch.cat([generator.init_noise([seed]) for seed in (1, 3, 4)]))
    together = drawn(generator, family)
    alone = sample(generator, prompts_of(family)[1:], SEEDS[1:])
    torch.testing.assert_close(alone, together[1:], atol=1e-5, rtol=0)


@every_family
def test_both_branches_of_guidance_are_one_batch(family):
    generator, sizes = frozen(family, True), []
    hook = generator.network.register_forward_pre_hook(
        lambda _, args, given: sizes.append(len((args or [given["hidden_states"]])[0])), with_kwargs=True
    )
    with torch.no_grad():
        generator.predict(generator.init_noise(SEEDS), 0, generator.encode(prompts_of(family)))
    hook.remove()
    assert sizes == [4]


def predicted(generator: PipelineGenerator, step: int, x_0: Tensor, eps: Tensor) -> Tensor:
    """What a network that knew x_0 and eps would say."""
    kind = generator.pipeline.scheduler.config.get("prediction_type", "flow")
    alpha, sigma = generator.scales(step)
    return {"flow": eps - x_0, "epsilon": eps, "v_prediction": alpha * eps - sigma * x_0}[kind]


@every_family
@pytest.mark.parametrize("step", range(STEPS))
def test_the_one_step_prediction_of_a_gaussian_is_its_posterior_mean(family, step):
    """x_0 is N(2, 0.5^2) in every value; what is predicted are the exact conditional means."""
    generator = frozen(family)
    alpha, sigma = generator.scales(step)
    x_t = generator.init_noise(SEEDS).double() * 0.7 + 0.3
    away = (x_t - alpha * 2) / (alpha**2 * 0.25 + sigma**2)
    x_0, eps = 2 + alpha * 0.25 * away, sigma * away
    clean = generator.predict_x0(x_t, predicted(generator, step, x_0, eps), step)
    torch.testing.assert_close(clean.double(), x_0, atol=1e-4, rtol=1e-4)


@every_family
def test_a_step_with_the_true_prediction_goes_to_the_next_noise_level(family):
    generator = frozen(family)
    x_0, eps = 1 + generator.init_noise([5]), generator.init_noise([6])
    for step in range(STEPS - 1):
        (alpha, sigma), (alpha_next, sigma_next) = generator.scales(step), generator.scales(step + 1)
        x_t = alpha * x_0 + sigma * eps
        after = generator.advance(x_t, predicted(generator, step, x_0, eps), step)
        torch.testing.assert_close(after, alpha_next * x_0 + sigma_next * eps, atol=1e-4, rtol=1e-4)
    assert tuple(generator.scales(STEPS)) == (1, 0)


@every_family
def test_the_scales_are_those_that_the_pipelines_scheduler_noises_with(family):
    generator, scheduler = frozen(family), frozen(family)._scheduler
    scheduler._step_index = None
    x_0, eps = torch.ones(1, 3), torch.tensor([[0.0, 1.0, -1.0]])
    for step, time in enumerate(scheduler.timesteps):
        alpha, sigma = generator.scales(step)
        if hasattr(scheduler, "add_noise"):
            x_t = scheduler.add_noise(x_0, eps, time[None])
        else:
            x_t = scheduler.scale_noise(x_0, time[None], eps)
        if "euler" in family:
            x_t = x_t * alpha  # its own scale is x_0 + sigma eps
        torch.testing.assert_close(alpha * x_0 + sigma * eps, x_t, atol=1e-5, rtol=1e-5)


def test_calling_the_pipeline_itself_does_not_move_the_generator():
    generator = fresh("sdxl-euler")
    before = drawn(generator, "sdxl-euler")
    own_call(generator.pipeline, "sdxl-euler", steps=5)
    assert torch.equal(drawn(generator, "sdxl-euler"), before)
