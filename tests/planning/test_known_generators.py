"""Public generators that are planned by their name alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from rewarddance.errors import InputError
from rewarddance.generators.sampling import rollout
from rewarddance.jobs.plan import plan_recipe
from rewarddance.planning.counting import Counting, counting
from rewarddance.planning.meta_generator import known_generators, meta_generator
from rewarddance.planning.recipe import PlanOptions
from rewarddance.types import Prompt

RECIPES = Path(__file__).parents[2] / "recipes" / "generators"
STATED = {  # billions of weights of the denoising network, as the makers' pages and public code state them
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "0.86",
    "stabilityai/stable-diffusion-xl-base-1.0": "2.57",
    "stabilityai/stable-diffusion-3.5-medium": "2.24",
    "black-forest-labs/FLUX.1-dev": "11.90",
    "black-forest-labs/FLUX.1-Kontext-dev": "11.90",
    "black-forest-labs/FLUX.2-klein-base-4B": "3.88",
    "Qwen/Qwen-Image": "20.43",
    "Qwen/Qwen-Image-Edit": "20.43",
    "Qwen/Qwen-Image-Edit-2509": "20.43",
    "Tongyi-MAI/Z-Image": "6.15",
    "zai-org/CogView4-6B": "6.37",
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": "1.42",
    "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers": "16.39",
    "Lightricks/LTX-Video": "1.92",
}

CARDS = {  # GB and number; recipes that are left out here differ from one of these in nothing that costs more
    "sdxl": (80, 1),
    "sd3.5-medium": (80, 1),
    "flux.2-klein": (80, 1),
    "flux.1-kontext": (80, 2),
    "z-image": (80, 1),
    "wan2.1-1.3b": (80, 1),
    "wan2.1-i2v-14b": (141, 2),
    "ltx-video-i2v": (80, 1),
    "qwen-image-edit": (141, 2),
}


@pytest.mark.parametrize("name", known_generators())
def test_a_public_generator_has_its_weights_and_draws_its_size(name: str):
    generator = meta_generator(name, 2, torch.bfloat16)
    count = sum(weight.numel() for weight in generator.network.parameters())
    assert f"{count / 1e9:.2f}" == STATED[name]
    image = torch.zeros(1, 3, generator.height, generator.width) if generator.needs_image else None
    with counting() as counts, torch.no_grad():
        latents = rollout(generator, [Prompt("a red circle left of a blue square", image=image)], [0], 1).x_t
        pictures = generator.decode(latents)
    assert pictures.shape[2:] == (3, generator.height, generator.width)
    assert sum(counts.flops.values()) > 2 * count  # each weight is used at least once


def test_every_recipe_of_a_generator_names_one_that_is_known():
    named = {yaml.safe_load(path.read_text())["generator"] for path in RECIPES.glob("*.yaml")}
    assert named <= set(known_generators())


@pytest.mark.parametrize("name", CARDS)
def test_a_recipe_of_a_generator_fits_the_cards_of_its_head(name: str):
    memory, gpus = CARDS[name]
    assert f"{'two GPUs' if gpus == 2 else 'GPU'} of {memory} GB" in (RECIPES / f"{name}.yaml").read_text()
    gpu = {80: "h100", 141: "h200"}[memory]
    recipe = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    plan = plan_recipe(RECIPES / f"{name}.yaml", [], PlanOptions(gpu=gpu, gpus=1 if "judge_device" in recipe else gpus))
    assert plan.fits and not plan.suggestions


def test_a_recipe_is_planned_before_its_judge_is_trained():
    keys = ["refl.prompts_per_step=1", "refl.group_size=1", "references.candidates=2"]
    options = PlanOptions(judge_base="OpenGVLab/InternVL3-1B-hf", gpu="rtx4090")
    plan = plan_recipe(RECIPES / "sd15.yaml", keys, options)
    assert plan.parameters["unet"] > 859_000_000
    assert "is not here: OpenGVLab/InternVL3-1B-hf" in plan.sources["judge"]
    assert plan.fits


def test_a_generator_that_is_not_known_is_refused_with_those_that_are():
    with pytest.raises(InputError, match=r"'someone/else' is not known here.*black-forest-labs/FLUX.1-dev"):
        meta_generator("someone/else", 2)


def test_a_repeated_computation_is_counted_as_often_as_it_is_done():
    def product(x: torch.Tensor) -> torch.Tensor:
        return (x @ x) @ x

    def counted(again: bool) -> Counting:
        x = torch.empty(8, 8, device="meta")
        with counting() as counts, torch.no_grad():
            counts.exclude([x])
            kept = []
            for _ in range(3):
                counts.begin("products")
                kept.append(product(x) if again else counts.repeated(x.shape, lambda: product(x)))
        assert all(result.shape == (8, 8) for result in kept)
        return counts

    run, replayed = counted(again=True), counted(again=False)
    assert replayed.flops == run.flops and replayed.flops["products"] == 3 * 2 * 2 * 8**3
    assert replayed.peaks == run.peaks and replayed.peak == run.peak == 4 * 4 * 64
