"""In every family: gradients, LoRA, full fine-tuning, and what is saved gives the same pictures in plain diffusers."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
import torch
from diffusers import DiffusionPipeline
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
    plain_copy,
    prompts_of,
)
from torch import nn

from rewarddance.alignment.safeguards import Ema
from rewarddance.errors import InputError
from rewarddance.generators.adapter import PipelineGenerator
from rewarddance.generators.pipelines import load_generator
from rewarddance.generators.sampling import rollout

NAMES = ["sd15-ddim", "sdxl-euler", "sd3", "flux-dev", "flux2-klein", "qwen-image", "wan", "ltx", "z-image"]
NAMES += ["wan-i2v", "wan-2.2-i2v", "ltx-i2v"]
NAMES += ["flux-kontext", "flux2-klein-edit", "qwen-image-edit", "qwen-image-edit-plus"]
every_family = pytest.mark.parametrize("family", NAMES)


def moved(weights: Sequence[nn.Parameter], size: float) -> None:
    """Move weights a good way, as training would."""
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in weights:
            weight.add_(size * torch.randn(weight.shape, generator=rng))


def with_lora(family: str, dtype: torch.dtype | None = None) -> PipelineGenerator:
    generator = fresh(family, dtype)
    moved(generator.add_lora(rank=3, alpha=6), 0.2)
    return generator


def reached(generator: PipelineGenerator, family: str) -> dict[str, bool]:
    """Take the gradient of pictures; returns of the weights that train, which it reached. No other part has one."""
    state = rollout(generator, prompts_of(family), SEEDS, 1)
    prediction = generator.predict(state.x_t, 1, generator.encode(prompts_of(family)))
    generator.decode(generator.predict_x0(state.x_t, prediction, 1)).square().mean().backward()
    for name, part in generator.pipeline.components.items():
        if isinstance(part, nn.Module) and name != generator.component:
            assert not any(weight.requires_grad or weight.grad is not None for weight in part.parameters())
    return {
        name: weight.grad is not None and bool(weight.grad.any())
        for name, weight in generator.network.named_parameters()
        if weight.requires_grad
    }


def differ(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).abs().max() > 5e-3)


@every_family
def test_a_gradient_of_the_pixels_reaches_every_lora_weight_and_nothing_else(family):
    trained, untouched = with_lora(family), frozen(family)
    found = reached(trained, family)
    idle = {name for name in found if re.search(FAMILIES[family].idle, name)}
    assert all("lora" in name for name in found)
    assert {name for name in found if not found[name]} <= idle
    assert len(found) > 3 * len(idle)
    x_t, condition = untouched.init_noise(SEEDS), untouched.encode(prompts_of(family))
    with torch.no_grad():
        before, moved_on = untouched.predict(x_t, 0, condition), trained.predict(x_t, 0, condition)
        with trained.as_before_training():
            torch.testing.assert_close(trained.predict(x_t, 0, condition), before)
    assert differ(moved_on, before)


@every_family
def test_a_saved_lora_gives_the_same_pictures_in_plain_diffusers_and_here(family, tmp_path):
    trained, pipeline, again = with_lora(family), plain_copy(family), fresh(family)
    trained.save_lora(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["pytorch_lora_weights.safetensors"]
    ours = drawn(trained, family)
    assert differ(ours, drawn(frozen(family), family))
    pipeline.load_lora_weights(tmp_path)
    torch.testing.assert_close(own_call(pipeline, family), ours.squeeze(1), atol=1e-5, rtol=0)
    again.load_lora(tmp_path)
    torch.testing.assert_close(drawn(again, family), ours, atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", ["sd15-ddim", "flux-dev"])
def test_a_saved_average_of_the_lora_draws_the_same_in_plain_diffusers(family, tmp_path):
    trained = fresh(family)
    weights = trained.add_lora(rank=3, alpha=6)
    ema = Ema(weights, decay=0.5)
    for size in (0.4, 0.2):
        moved(weights, size)
        ema.update()
    last = drawn(trained, family)
    with ema.applied():
        trained.save_lora(tmp_path)
        averaged = drawn(trained, family)
    assert differ(averaged, last)
    pipeline = plain_copy(family)
    pipeline.load_lora_weights(tmp_path)
    torch.testing.assert_close(own_call(pipeline, family), averaged.squeeze(1), atol=1e-5, rtol=0)


@every_family
def test_all_weights_can_be_trained_and_saved_as_a_plain_diffusers_folder(family, tmp_path):
    trained = fresh(family)
    weights = trained.train_all()
    found = reached(trained, family)
    assert len(found) == len(weights) and sum(found.values()) > 0.7 * len(found)
    moved(weights, 0.05)
    ours, before = drawn(trained, family), drawn(frozen(family), family)
    assert differ(ours, before)
    with trained.as_before_training():
        torch.testing.assert_close(drawn(trained, family), before, atol=1e-6, rtol=0)
    trained.save(tmp_path)
    saved = DiffusionPipeline.from_pretrained(tmp_path, **trained.own_parts(tmp_path))
    saved.set_progress_bar_config(disable=True)
    torch.testing.assert_close(own_call(saved, family), ours.squeeze(1), atol=1e-5, rtol=0)


@every_family
def test_in_half_precision_the_trained_weights_latents_and_pictures_are_float32(family):
    generator = with_lora(family, torch.bfloat16)
    assert all(
        found for name, found in reached(generator, family).items() if not re.search(FAMILIES[family].idle, name)
    )
    weights = {weight.dtype for weight in generator.network.parameters() if weight.requires_grad}
    assert weights == {torch.float32} and generator.init_noise(SEEDS).dtype == torch.float32
    with generator.as_before_training():
        pictures = drawn(generator, family)
    assert pictures.dtype == torch.float32
    assert (pictures - drawn(frozen(family), family)).abs().mean() < 0.06  # the plain Kontext's differ by 0.055


@every_family
def test_all_weights_train_in_float32_and_compute_in_half_precision(family):
    generator = fresh(family, torch.bfloat16)
    x_t, condition = generator.init_noise(SEEDS), generator.encode(prompts_of(family))
    with torch.no_grad():
        before = generator.predict(x_t, 0, condition)
        assert {weight.dtype for weight in generator.train_all()} == {torch.float32}
        after = generator.predict(x_t, 0, condition)
    assert (after - before).abs().mean() < 0.03 * before.abs().mean()
    assert sum(reached(generator, family).values()) > 10


def test_the_vae_of_sdxl_decodes_in_float32_where_half_precision_overflows():
    name, asked = str(pipeline_folder("sdxl-euler")), options("sdxl-euler")
    assert load_generator(name, STEPS, dtype=torch.bfloat16, **asked).pipeline.vae.dtype == torch.bfloat16
    half = load_generator(name, STEPS, dtype=torch.float16, **asked)
    assert half.pipeline.vae.dtype == torch.float32 and half.network.dtype == torch.float16
    assert (drawn(half, "sdxl-euler") - drawn(frozen("sdxl-euler"), "sdxl-euler")).abs().mean() < 0.02


def test_a_lora_goes_where_it_is_told_and_nowhere_else():
    generator = fresh("sd3")
    generator.add_lora(2, 2, targets=["proj_out"])
    trained = [name for name, weight in generator.network.named_parameters() if weight.requires_grad]
    assert trained == ["proj_out.lora_A.default.weight", "proj_out.lora_B.default.weight"]
    with pytest.raises(InputError, match=r"no LoRA can be put on .*nothing_of_the_kind"):
        fresh("sd3").add_lora(2, 2, targets=["nothing_of_the_kind"])


def test_a_generator_with_a_lora_is_not_saved_as_if_it_were_whole(tmp_path):
    with pytest.raises(InputError) as caught:
        with_lora("sd3").save(tmp_path / "whole")
    assert "LoRA" in caught.value.what and "save_lora" in caught.value.remedy
    assert not (tmp_path / "whole").exists()
