"""Options as the pipelines have them; what says nothing to a family, or cannot be repeated, is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
    WanPipeline,
)
from tiny import align_recipe, command, judge_folder
from tiny_pipelines import (
    DDIM,
    FAMILIES,
    PROMPTS,
    SEEDS,
    STEPS,
    VIDEO,
    fresh,
    frozen,
    options,
    own_call,
    pipeline_folder,
    plain,
)

from rewarddance.data.media import as_pixels
from rewarddance.errors import InputError
from rewarddance.generators.adapter import GeneratorOptions
from rewarddance.generators.pipelines import load_generator
from rewarddance.generators.sampling import rollout, sample
from rewarddance.types import Prompt


@pytest.mark.parametrize(
    ("family", "size"), [("sd15-ddim", 32), ("sdxl-euler", 32), ("sd3", 32), ("flux-dev", 256), ("z-image", 1024)]
)
def test_without_a_size_it_is_the_pipelines_own(family, size):
    given = {key: value for key, value in options(family).items() if key not in ("height", "width")}
    generator = load_generator(str(pipeline_folder(family)), STEPS, **given)
    assert (generator.height, generator.width) == (size, size)


@pytest.mark.parametrize("family", [name for name in FAMILIES if not name.endswith("-v")])
def test_a_size_that_cannot_be_drawn_is_refused_with_one_that_can(family):
    with pytest.raises(InputError) as caught:
        load_generator(str(pipeline_folder(family)), STEPS, **{**options(family), "height": 33})
    width = options(family)["width"]
    assert f"height 33 and width {width}" in caught.value.what and f"32 and {width}" in caught.value.remedy


@pytest.mark.parametrize(
    ("family", "given", "told"),
    [
        ("sd15-ddim", {"true_cfg_scale": 2.0}, "StableDiffusionPipeline does not use the option 'true_cfg_scale'"),
        ("sd3", {"scheduler": "DDIMScheduler"}, "StableDiffusion3Pipeline does not use the option 'scheduler'"),
        ("sdxl-euler", {"max_sequence_length": 8}, "does not use the option 'max_sequence_length'"),
        ("flux2-klein", {"negative_prompt": "dull"}, "Flux2KleinPipeline does not use the option 'negative_prompt'"),
        ("sd3", {"negative_prompt": "dull"}, "negative_prompt says nothing without guidance. Set guidance_scale"),
        ("flux-dev", {"negative_prompt": "dull"}, "Set true_cfg_scale"),
        ("flux-dev", {"true_cfg_scale": 2.0}, "true_cfg_scale needs a negative_prompt"),
        ("flux-schnell", {"guidance_scale": 3.5}, "FluxPipeline is not told a guidance_scale"),
        ("qwen-image", {"guidance_scale": 1.0}, "not told a guidance_scale. Leave it out; true_cfg_scale"),
        ("sd3", {"guidence_scale": 1.0}, "unknown key 'guidence_scale' .* Did you mean 'guidance_scale'"),
        ("sd3", {"height": 0}, "the key 'height'"),
        ("sd3", {"num_frames": 5}, "StableDiffusion3Pipeline does not use the option 'num_frames'"),
        ("wan", {"num_frames": 6}, "no video of 6 frames. num_frames is one more than a multiple of 4, such as 5 or 9"),
        ("wan", {"num_frames": 4}, "no video of 4 frames. .* such as 1 or 5"),
        ("wan", {"frame_rate": 8}, "WanPipeline does not use the option 'frame_rate'"),
        ("wan", {"scheduler": "DDIMScheduler"}, "no use for a DDIMScheduler"),
        ("ltx", {"scheduler": "DDIMScheduler"}, "LTXPipeline does not use the option 'scheduler'"),
    ],
)
def test_an_option_that_says_nothing_is_refused_by_name(family, given, told):
    with pytest.raises(InputError, match=told):
        load_generator(str(pipeline_folder(family)), STEPS, **{**options(family), **given})


def test_guidance_of_a_distilled_klein_is_refused():
    pipeline = fresh("flux2-klein").pipeline
    pipeline.register_to_config(is_distilled=True)
    kind, asked = type(fresh("flux2-klein")), GeneratorOptions(num_inference_steps=STEPS, **options("flux2-klein"))
    assert kind(pipeline, asked).branch_scale is None
    with pytest.raises(InputError, match="distilled and has no guidance"):
        kind(pipeline, asked.model_copy(update={"guidance_scale": 4.0}))


def test_sdxl_without_a_negative_prompt_is_guided_away_from_zeros():
    generator = load_generator(str(pipeline_folder("sdxl-euler")), STEPS, 3.0, height=32, width=48)
    noise = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    theirs = plain("sdxl-euler")(
        PROMPTS, generator=noise, num_inference_steps=STEPS, guidance_scale=3.0, height=32, width=48,
        output_type="pt",
    ).images  # fmt: skip
    torch.testing.assert_close(sample(generator, PROMPTS, SEEDS)[:, 0], theirs, atol=1e-4, rtol=0)


def test_prompts_longer_than_asked_for_are_cut_as_the_pipeline_cuts_them():
    cut = {**options("flux-dev"), "max_sequence_length": 4, "cut_prompts": True}
    short = load_generator(str(pipeline_folder("flux-dev")), STEPS, **cut)
    assert short.encode(["a red circle"])["encoder_hidden_states"].shape[1] == 4


# -- schedulers --------------------------------------------------------------------------------------------------------


def with_scheduler(family: str, scheduler: Any, folder: Path) -> str:
    """The family's checkpoint with another scheduler, as a folder."""
    pipeline = fresh(family).pipeline
    pipeline.scheduler = scheduler
    pipeline.save_pretrained(folder)
    return str(folder)


def test_a_scheduler_that_remembers_is_refused_and_may_be_replaced(tmp_path):
    """Stable Diffusion 1.5 itself comes with this one."""
    settings = {key: DDIM[key] for key in ("beta_start", "beta_end", "beta_schedule", "steps_offset")}
    folder = with_scheduler("sd15-ddim", PNDMScheduler(**settings, skip_prk_steps=True), tmp_path / "pndm")
    with pytest.raises(InputError) as caught:
        load_generator(folder, STEPS, **options("sd15-ddim"))
    assert "has a PNDMScheduler" in caught.value.what
    assert "scheduler to DDIMScheduler or EulerDiscreteScheduler" in caught.value.remedy
    generator = load_generator(folder, STEPS, scheduler="DDIMScheduler", **options("sd15-ddim"))
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    pipeline.set_progress_bar_config(disable=True)
    ours = sample(generator, PROMPTS, SEEDS)
    torch.testing.assert_close(ours[:, 0], own_call(pipeline, "sd15-ddim"), atol=1e-4, rtol=0)


def test_a_scheduler_that_cuts_predictions_off_is_refused(tmp_path):
    folder = with_scheduler("sd15-ddim", DDIMScheduler(**DDIM, thresholding=True), tmp_path / "ddim")
    with pytest.raises(InputError, match=r"cuts predictions off \(thresholding\)") as caught:
        load_generator(folder, STEPS, **options("sd15-ddim"))
    assert "Set thresholding to false" in caught.value.remedy


@pytest.mark.parametrize(
    ("scheduler", "told"),
    [
        (FlowMatchHeunDiscreteScheduler(), "has a FlowMatchHeunDiscreteScheduler, whose"),
        (FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), "has a .* with stochastic_sampling, whose"),
    ],
)
def test_a_flow_scheduler_that_is_not_plain_euler_is_refused_by_name(tmp_path, scheduler, told):
    with pytest.raises(InputError, match=told):
        load_generator(with_scheduler("sd3", scheduler, tmp_path / "other"), STEPS, **options("sd3"))


def test_a_video_larger_than_its_network_has_positions_is_refused():
    with pytest.raises(InputError, match=r"32 positions along an axis, .* 81 frames of 480 x 832") as caught:
        load_generator("shapeworld-video-generator", STEPS)
    assert "num_frames" in caught.value.remedy
    assert load_generator("shapeworld-video-generator", STEPS, height=32, width=32, num_frames=9).num_frames == 9


def test_a_generator_says_how_many_frames_it_draws():
    assert load_generator(str(pipeline_folder("sd3")), STEPS, **options("sd3")).num_frames == 1
    assert load_generator(str(pipeline_folder("wan")), STEPS, **options("wan")).num_frames == VIDEO["num_frames"]


def test_wans_multi_step_scheduler_is_refused_and_may_be_replaced(tmp_path):
    """Wan comes with this one."""
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
    folder = with_scheduler("wan", scheduler, tmp_path / "unipc")
    with pytest.raises(InputError) as caught:
        load_generator(folder, STEPS, **options("wan"))
    assert "has a UniPCMultistepScheduler" in caught.value.what
    assert "scheduler to FlowMatchEulerDiscreteScheduler" in caught.value.remedy
    generator = load_generator(folder, STEPS, scheduler="FlowMatchEulerDiscreteScheduler", **options("wan"))
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    pipeline.set_progress_bar_config(disable=True)
    torch.testing.assert_close(sample(generator, PROMPTS, SEEDS), own_call(pipeline, "wan"), atol=1e-4, rtol=0)


def test_a_wan_with_two_transformers_is_refused_by_name():
    generator = fresh("wan")
    parts = {**generator.pipeline.components, "transformer_2": generator.network}
    with pytest.raises(InputError, match=r"two transformers.* Wan 2\.1"):
        type(generator)(WanPipeline(**parts, boundary_ratio=0.9), generator.options)


def test_a_unet_that_is_told_its_guidance_is_refused(tmp_path):
    pipeline = fresh("sd15-ddim").pipeline
    pipeline.unet.register_to_config(time_cond_proj_dim=8)
    with pytest.raises(InputError, match="is told its guidance"):
        type(fresh("sd15-ddim"))(pipeline, GeneratorOptions(num_inference_steps=STEPS))


# -- from the command line ---------------------------------------------------------------------------------------------


def aligning(family: str, folder: Path, **options: Any) -> Path:
    """A recipe on one prompt; options: of the generator."""
    (folder / "prompts.txt").write_text("a red circle\n")
    return align_recipe(folder, generator=str(pipeline_folder(family)), generator_options=options)


def test_align_hands_the_options_of_its_recipe_on(tmp_path):
    recipe = aligning("qwen-image", tmp_path, height=32, width=32, **FAMILIES["qwen-image"].guided)
    assert command("align", recipe).code == 0
    assert (tmp_path / "run" / "lora" / "pytorch_lora_weights.safetensors").exists()
    done = command("align", recipe, "generator_options.scheduler=DDIMScheduler")
    assert done.code == 2 and "does not use the option 'scheduler'" in " ".join(done.err.split())


def test_a_video_generator_is_aligned_and_searched_like_any_other(tmp_path):
    size = {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 16}
    recipe = aligning("wan", tmp_path, **size)
    assert command("align", recipe).code == 0
    assert as_pixels(next((tmp_path / "run" / "references").glob("000000_*_0.png"))).shape == (5, 3, 32, 32)
    found = tmp_path / "found"
    where = ["--generator", pipeline_folder("wan"), "--judge", judge_folder(), "--output", found]
    drawn = [f"--generator-options={key}={value}" for key, value in size.items()]
    asked = ["--budget", "samples=3", "--num-inference-steps", "2", "--judging", "knockout", *drawn]
    done = command("search", tmp_path / "prompts.txt", *where, *asked)
    assert done.code == 0, done.err
    assert as_pixels(found / "pictures" / "000001" / "winner.png").shape == (5, 3, 32, 32)


@pytest.mark.parametrize("family", ["sd3", "sdxl-euler"])
def test_a_prompts_own_negative_text_goes_before_the_option(family):
    with_option, asked = frozen(family, True), options(family, True)
    negative = asked.pop("negative_prompt")
    without = load_generator(str(pipeline_folder(family)), STEPS, **asked)
    mixed = sample(without, [Prompt(PROMPTS[0], negative=negative), PROMPTS[1]], SEEDS)
    torch.testing.assert_close(mixed[0], sample(with_option, PROMPTS, SEEDS)[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(mixed[1], sample(without, PROMPTS, SEEDS)[1], atol=1e-4, rtol=0)
    with pytest.raises(InputError, match="negative text, which says nothing without guidance"):
        frozen(family).encode([Prompt(PROMPTS[0], negative="blur")])


@pytest.mark.parametrize("family", ["sd3", "sd15-ddim"])
@pytest.mark.parametrize("can", [True, False])
def test_half_sampling_is_close_and_leaves_gradients_as_they_are(family, can, monkeypatch):
    monkeypatch.setattr("rewarddance.generators.adapter.multiplies_bfloat16", lambda device: can)
    whole, half = (
        fresh(family),
        load_generator(str(pipeline_folder(family)), STEPS, half_sampling=True, **options(family)),
    )
    expected, found = (rollout(each, PROMPTS, SEEDS, STEPS).x_t for each in (whole, half))
    assert torch.equal(found, expected) is not can
    torch.testing.assert_close(found, expected, atol=0.1, rtol=0.1)
    x_t, condition = half.init_noise(SEEDS), half.encode(PROMPTS)
    assert torch.equal(half.predict(x_t, 1, condition), whole.predict(x_t, 1, condition))


def test_more_steps_than_a_diffusion_has_noise_levels_are_refused_by_name():
    for steps in (1000, 1001):
        with pytest.raises(InputError, match=rf"does not take {steps} steps") as caught:
            load_generator(str(pipeline_folder("sd15-ddim")), steps)
        assert "it knows 1000 noise levels" in caught.value.remedy
