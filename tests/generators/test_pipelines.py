"""The bundled generator's adapter is its pipeline step for step, with gradients; how generators are loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator

import pytest
import torch
from diffusers import CogView4Pipeline, DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import generator_folder

from rewarddance.errors import InputError
from rewarddance.generators.adapter import PipelineGenerator
from rewarddance.generators.families.cogview4 import CogView4Generator
from rewarddance.generators.finetuning import LORA_FILE
from rewarddance.generators.pipelines import load_generator
from rewarddance.generators.sampling import predictions, rollout, sample

PROMPTS = ["a red circle", "two small blue crosses", "a green square left of a triangle"]
SEEDS = [3, 1, 4]
STEPS = 3


@pytest.fixture(scope="module")
def plain() -> CogView4Pipeline:
    pipeline = CogView4Pipeline.from_pretrained(generator_folder())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def generator() -> PipelineGenerator:
    return load_generator(str(generator_folder()), STEPS)


@pytest.fixture
def trained() -> Iterator[PipelineGenerator]:
    """One whose LoRA, of rank 3 and alpha 6, has moved a good way."""
    generator = load_generator(str(generator_folder()), STEPS)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in generator.add_lora(rank=3, alpha=6):
            weight.copy_(0.2 * torch.randn(weight.shape, generator=rng))
    yield generator


def test_a_prompt_has_its_own_picture_whatever_longer_text_is_drawn_beside_it(plain):
    texts = [" and ".join(PROMPTS), *PROMPTS]
    generator = load_generator(str(generator_folder()), STEPS, 3.0)
    lengths = {len(text) for text in generator.encode(texts)}
    assert len(lengths) > 1
    together = sample(generator, texts, [*SEEDS, 5])
    how = {"num_inference_steps": STEPS, "guidance_scale": 3.0, "output_type": "pt"}
    for text, seed, picture in zip(texts, [*SEEDS, 5], together, strict=True):
        alone = plain(text, latents=generator.init_noise([seed]), **how).images
        torch.testing.assert_close(picture, alone, atol=1e-4, rtol=0)


def own_call(pipeline: CogView4Pipeline, noise: torch.Tensor, steps: int, guidance: float) -> torch.Tensor:
    """The pipeline's `__call__` from the same noise, [B, C, H, W]."""
    return pipeline(
        PROMPTS, latents=noise.clone(), num_inference_steps=steps, guidance_scale=guidance, output_type="pt"
    ).images


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("steps", [2, 7])
def test_from_the_same_noise_come_the_pipelines_own_pictures(plain, guidance, steps):
    generator = load_generator(str(generator_folder()), steps, guidance)
    theirs = own_call(plain, generator.init_noise(SEEDS), steps, guidance)
    ours = sample(generator, PROMPTS, SEEDS)
    assert ours.shape == (3, 1, 3, 32, 32)
    assert theirs.std() > 0.05
    torch.testing.assert_close(ours[:, 0], theirs, atol=1e-4, rtol=0)


def test_guidance_changes_the_pictures(generator):
    guided = load_generator(str(generator_folder()), STEPS, guidance_scale=3.0)
    assert (sample(guided, PROMPTS, SEEDS) - sample(generator, PROMPTS, SEEDS)).abs().max() > 1e-2


def test_one_seed_is_one_noise_whatever_the_batch(generator):
    alone = torch.cat([generator.init_noise([seed]) for seed in SEEDS])
    assert torch.equal(generator.init_noise(SEEDS), alone)
    assert torch.equal(generator.init_noise([4, 3]), alone[[2, 0]])
    assert not torch.equal(alone[0], alone[1])
    assert generator.init_noise([2**32 - 1]).std() > 0.5


def test_one_seed_is_one_picture_whatever_the_batch(generator):
    together = sample(generator, PROMPTS, SEEDS)
    finished = []
    parts = sample(generator, PROMPTS, SEEDS, batch_size=2, tick=finished.append)
    torch.testing.assert_close(parts, together, atol=1e-5, rtol=0)
    assert finished == [2, 1]


def test_a_rollout_stops_where_it_is_told(generator):
    whole = rollout(generator, PROMPTS, SEEDS, STEPS)
    half = rollout(generator, PROMPTS, SEEDS, 1)
    assert torch.equal(half.noise, generator.init_noise(SEEDS)) and torch.equal(half.noise, whole.noise)
    assert torch.equal(rollout(generator, PROMPTS, SEEDS, 0).x_t, half.noise)
    condition, x_t = generator.encode(PROMPTS), half.x_t
    for step in range(1, STEPS):
        x_t = generator.advance(x_t, generator.predict(x_t, step, condition), step).detach()
    torch.testing.assert_close(x_t, whole.x_t)
    assert not whole.x_t.requires_grad


def test_the_last_prediction_is_the_finished_picture(generator):
    early, final = predictions(generator, PROMPTS, SEEDS, [STEPS - 1] * 3)
    torch.testing.assert_close(early, final, atol=1e-5, rtol=0)
    torch.testing.assert_close(final, sample(generator, PROMPTS, SEEDS), atol=1e-5, rtol=0)


def test_a_prediction_is_the_manual_computation_at_its_own_step(generator):
    stops = [0, 2, 1]
    early, _ = predictions(generator, PROMPTS, SEEDS, stops, batch_size=2)
    for i, stop in enumerate(stops):
        state = rollout(generator, PROMPTS[i : i + 1], SEEDS[i : i + 1], stop)
        with torch.no_grad():
            v = generator.predict(state.x_t, stop, generator.encode(state.prompts))
            expected = generator.decode(state.x_t - generator.sigmas[stop] * v)
        torch.testing.assert_close(early[i : i + 1], expected, atol=1e-5, rtol=0)


def test_the_schedule_falls_from_pure_noise_to_none(generator):
    assert generator.num_steps == STEPS == len(generator.sigmas) - 1
    assert generator.sigmas[0] == pytest.approx(1.0) and generator.sigmas[-1] == 0
    assert generator.sigmas == sorted(generator.sigmas, reverse=True)


@pytest.mark.parametrize("negative", ["", "dull", "a long list of all that must not be seen, and more"])
def test_negative_prompts_are_the_pipelines_own_whatever_their_length(plain, negative):
    """The pipeline pads without a mask: branches of one length go through the network together, others one by one."""
    generator = load_generator(str(generator_folder()), STEPS, 3.0, negative_prompt=negative)
    theirs = plain(
        PROMPTS, [negative] * 3, latents=generator.init_noise(SEEDS), num_inference_steps=STEPS, guidance_scale=3.0,
        output_type="pt",
    ).images  # fmt: skip
    torch.testing.assert_close(sample(generator, PROMPTS, SEEDS)[:, 0], theirs, atol=1e-4, rtol=0)


def test_another_size_is_drawn_as_the_pipeline_draws_it(plain):
    generator = load_generator(str(generator_folder()), STEPS, height=48, width=16)
    theirs = plain(
        PROMPTS, height=48, width=16, latents=generator.init_noise(SEEDS), num_inference_steps=STEPS,
        guidance_scale=1.0, output_type="pt",
    ).images  # fmt: skip
    ours = sample(generator, PROMPTS, SEEDS)
    assert ours.shape == (3, 1, 3, 48, 16)
    torch.testing.assert_close(ours[:, 0], theirs, atol=1e-4, rtol=0)


# -- training ----------------------------------------------------------------------------------------------------------


def test_a_new_lora_changes_nothing(generator):
    fresh = load_generator(str(generator_folder()), STEPS)
    fresh.add_lora(rank=4, alpha=4)
    assert torch.equal(sample(fresh, PROMPTS, SEEDS), sample(generator, PROMPTS, SEEDS))


def test_a_gradient_of_the_pixels_reaches_every_lora_weight_and_nothing_else(trained):
    state = rollout(trained, PROMPTS, SEEDS, 1)
    v = trained.predict(state.x_t, 1, trained.encode(PROMPTS))
    trained.decode(trained.predict_x0(state.x_t, v, 1)).square().mean().backward()
    weights = dict(trained.network.named_parameters())
    with_gradient = {name for name, weight in weights.items() if weight.grad is not None and weight.grad.any()}
    assert with_gradient and all("lora" in name for name in with_gradient)
    assert len(with_gradient) == len([name for name in weights if "lora" in name])
    assert not any(weight.requires_grad for weight in trained.pipeline.vae.parameters())


def test_as_before_training_is_the_untouched_generator_exactly(trained, generator):
    x_t, condition = generator.init_noise(SEEDS), generator.encode(PROMPTS)
    with torch.no_grad():
        untouched, moved = generator.predict(x_t, 0, condition), trained.predict(x_t, 0, condition)
        with trained.as_before_training():
            before = trained.predict(x_t, 0, condition)
        again = trained.predict(x_t, 0, condition)
    assert torch.equal(before, untouched)
    assert torch.equal(again, moved)
    assert (moved - untouched).abs().max() > 1e-2


def test_the_generator_is_trained_again_after_an_error_in_the_block(trained):
    x_t, condition = trained.init_noise(SEEDS), trained.encode(PROMPTS)
    with torch.no_grad():
        moved = trained.predict(x_t, 0, condition)
        with pytest.raises(RuntimeError), trained.as_before_training():
            raise RuntimeError
        assert torch.equal(trained.predict(x_t, 0, condition), moved)
    assert all(weight.requires_grad for name, weight in trained.network.named_parameters() if "lora" in name)


def test_a_saved_lora_gives_the_very_same_pictures_in_plain_diffusers(trained, generator, tmp_path):
    trained.save_lora(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["pytorch_lora_weights.safetensors"]
    fresh = CogView4Pipeline.from_pretrained(generator_folder())
    fresh.set_progress_bar_config(disable=True)
    fresh.load_lora_weights(tmp_path)
    ours = sample(trained, PROMPTS, SEEDS)
    torch.testing.assert_close(own_call(fresh, trained.init_noise(SEEDS), STEPS, 1.0), ours[:, 0], atol=1e-5, rtol=0)
    assert (ours - sample(generator, PROMPTS, SEEDS)).abs().max() > 1e-2


def test_a_saved_lora_gives_the_very_same_pictures_in_ours(trained, tmp_path):
    trained.save_lora(tmp_path)
    fresh = load_generator(str(generator_folder()), STEPS)
    fresh.load_lora(tmp_path)
    assert torch.equal(sample(fresh, PROMPTS, SEEDS), sample(trained, PROMPTS, SEEDS))


def test_a_merged_lora_predicts_the_same_and_leaves_no_trace(trained):
    x_t, condition = trained.init_noise(SEEDS), trained.encode(PROMPTS)
    before = {name: weight.detach().clone() for name, weight in trained.network.named_parameters()}
    with torch.no_grad():
        apart = trained.predict(x_t, 0, condition)
        with trained.merged_lora():
            merged = trained.predict(x_t, 0, condition)
        with trained.as_before_training(), trained.merged_lora():
            base = trained.predict(x_t, 0, condition)
        assert torch.equal(trained.predict(x_t, 0, condition), apart)
    torch.testing.assert_close(merged, apart, atol=1e-5, rtol=2e-5)
    assert (base - apart).abs().max() > 1e-2
    for name, weight in trained.network.named_parameters():
        assert torch.equal(weight, before[name]) and weight.requires_grad == ("lora" in name)


def test_training_goes_on_from_a_saved_lora(trained, tmp_path):
    trained.save_lora(tmp_path)
    fresh = load_generator(str(generator_folder()), STEPS)
    weights = fresh.add_lora(3, 6)
    fresh.continue_lora(tmp_path)
    assert torch.equal(sample(fresh, PROMPTS, SEEDS), sample(trained, PROMPTS, SEEDS))
    assert all(weight.requires_grad for weight in weights)


def test_a_lora_of_another_rank_or_place_is_not_gone_on_from(trained, tmp_path):
    trained.save_lora(tmp_path)
    other = load_generator(str(generator_folder()), STEPS)
    other.add_lora(7, 7)
    with pytest.raises(InputError, match=r"has the shape \(.*\), not \(.*7.*\)") as caught:
        other.continue_lora(tmp_path)
    assert "lora_rank" in caught.value.remedy
    fewer = load_generator(str(generator_folder()), STEPS)
    fewer.add_lora(2, 2, ["to_q"])
    with pytest.raises(InputError, match="is only in the LoRA of"):
        fewer.continue_lora(tmp_path)
    with pytest.raises(InputError, match="there is no LoRA in"):
        fewer.continue_lora(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("rank", "alpha", "targets", "message"),
    [
        (2, 6, [], "has the rank 3, not 2"),
        (3, 3, [], "has the alpha 6, not 3"),
        (3, 6, ["to_q"], "is only in the LoRA of"),
        (3, 6, [*CogView4Generator.lora_targets, "proj_out"], "has none in the LoRA of"),
    ],
)
def test_a_lora_is_known_to_fit_before_any_is_put_on(trained, generator, tmp_path, rank, alpha, targets, message):
    trained.save_lora(tmp_path)
    generator.check_lora_goes_on(tmp_path, 3, 6)
    with pytest.raises(InputError, match=message):
        generator.check_lora_goes_on(tmp_path, rank, alpha, targets)


def test_a_lora_that_is_cut_off_or_not_finite_is_not_gone_on_from(trained, generator, tmp_path):
    trained.save_lora(tmp_path)
    file = tmp_path / LORA_FILE
    whole = file.read_bytes()
    save_file({name: weight * torch.nan for name, weight in load_file(file).items()}, file)
    with pytest.raises(InputError, match=r"the LoRA of .* are not finite"):
        generator.check_lora_goes_on(tmp_path, 3, 6)
    file.write_bytes(whole[:500])
    with pytest.raises(InputError, match=r"the LoRA of .* cannot be read"):
        generator.check_lora_goes_on(tmp_path, 3, 6)


def test_a_generator_that_carries_a_trained_lora_gets_no_other(trained):
    with pytest.raises(InputError, match="carries a LoRA already") as caught:
        trained.check_lora([])
    assert "begin_with" in caught.value.remedy


def test_a_generator_that_carries_a_loaded_lora_gets_no_other(trained, tmp_path):
    trained.save_lora(tmp_path)
    loaded = load_generator(str(generator_folder()), STEPS)
    loaded.load_lora(tmp_path)
    assert not any(weight.requires_grad for weight in loaded.network.parameters())
    with pytest.raises(InputError, match="carries a LoRA already"):
        loaded.add_lora(2, 2)
    with pytest.raises(InputError, match="carries a LoRA already"):
        loaded.load_lora(tmp_path)


def test_a_lora_is_the_same_bytes_in_every_process_and_others_may_read_it(trained, tmp_path):
    private = tmp_path / "key"
    private.touch(0o600)
    trained.save_lora(tmp_path)
    assert private.stat().st_mode & 0o777 == 0o600
    file = tmp_path / "pytorch_lora_weights.safetensors"
    with safe_open(file, "pt") as opened:
        assert list(opened.metadata()) and len(opened.keys()) == len(load_file(file))
    header = json.loads(file.read_bytes()[8 : 8 + int.from_bytes(file.read_bytes()[:8], "little")])
    assert list(header["__metadata__"]) == ["format", "lora_adapter_metadata"]
    (tmp_path / "usual").touch()
    assert file.stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_lora_is_not_written_where_a_file_stands(trained, tmp_path):
    (tmp_path / "lora").write_text("mine")
    with pytest.raises(InputError, match="lora cannot be written"):
        trained.save_lora(tmp_path / "lora")
    assert (tmp_path / "lora").read_text() == "mine"


# -- what cannot be loaded ---------------------------------------------------------------------------------------------


def test_a_lora_that_is_not_there_is_refused_by_name(generator, tmp_path):
    with pytest.raises(InputError) as caught:
        generator.load_lora(tmp_path / "nowhere")
    assert "nowhere" in caught.value.what and "save_lora" in caught.value.remedy
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no LoRA can be loaded from .*empty"):
        generator.load_lora(tmp_path / "empty")


def test_a_lora_file_that_was_cut_off_is_refused_by_name(trained, generator, tmp_path):
    trained.save_lora(tmp_path)
    file = tmp_path / "pytorch_lora_weights.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(InputError, match="no LoRA can be loaded from"):
        generator.load_lora(tmp_path)


def test_a_pipeline_without_an_adapter_is_refused_by_its_class(tmp_path):
    unet = UNet2DModel(
        sample_size=8, block_out_channels=(4,), norm_num_groups=2, down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",), layers_per_block=1,
    )  # fmt: skip
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    with pytest.raises(InputError) as caught:
        load_generator(str(tmp_path / "ddpm"), STEPS)
    assert "is a DDPMPipeline" in caught.value.what and "CogView4Pipeline" in caught.value.remedy


def test_a_missing_generator_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match=r"no checkpoint at .*nowhere"):
        load_generator(str(tmp_path / "nowhere"), STEPS)


@pytest.mark.parametrize(
    "lost",
    [
        "model_index.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "tokenizer/tokenizer.json",
    ],
)
@pytest.mark.parametrize("cut", [False, True])
def test_a_generator_folder_with_a_lost_or_cut_file_is_refused_by_name(tmp_path, lost, cut):
    folder = tmp_path / "broken"
    shutil.copytree(generator_folder(), folder)
    file = folder / lost
    if cut:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        file.unlink()
    with pytest.raises(InputError) as caught:
        load_generator(str(folder), STEPS)
    assert str(folder) in caught.value.what and "cannot be loaded" in caught.value.what


def test_an_id_of_the_hub_that_cannot_be_had_is_refused_by_name():
    with pytest.raises(InputError, match="nobody/nothing-of-the-kind"):
        load_generator("nobody/nothing-of-the-kind", STEPS)
