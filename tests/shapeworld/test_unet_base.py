"""The recipe of the bundled UNet base, with a few steps in place of thousands, and what stands in its folder."""

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from rewarddance.generators.pipelines import load_generator
from rewarddance.generators.sampling import sample
from rewarddance.shapeworld.training.tokenizer import prompt_corpus
from rewarddance.shapeworld.training.unet import (
    TEXT_TOKENS,
    VAE,
    build_unet_pipeline,
    clip_tokenizer,
    make_unet_base,
    v_objective,
)


@pytest.fixture(scope="module")
def pipeline():
    return build_unet_pipeline()


def test_a_unet_base_is_made_in_the_folder_that_was_named(tmp_path):
    lines = []
    make_unet_base(tmp_path / "unet", steps=2, log=lines.append)
    generator = load_generator(str(tmp_path / "unet"), num_inference_steps=2)
    assert generator.init_noise([0]).shape == (1, 8, 8, 8) and generator.kind == "StableDiffusionPipeline"
    flow = load_generator(str(VAE), num_inference_steps=2)
    latents = torch.randn(1, 8, 8, 8)
    assert torch.equal(generator.decode(latents), flow.decode(latents))
    assert (tmp_path / "unet-snapshots").is_dir()


def test_every_word_of_every_prompt_is_one_token_and_all_prompts_fit():
    tokenizer = clip_tokenizer()
    words = {word for text in prompt_corpus() for word in text.split()}
    assert all(len(tokenizer.tokenize(word)) == 1 for word in words)
    assert max(len(tokenizer(text).input_ids) for text in prompt_corpus()[:-1]) <= TEXT_TOKENS


def test_text_with_letters_of_no_prompt_is_read_and_written_back():
    tokenizer = clip_tokenizer()
    ids = tokenizer("Zoë draws 2 squares").input_ids
    assert tokenizer.unk_token_id not in ids[1:-1]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "zoë draws 2 squares"


def test_what_is_learned_at_the_last_time_is_drawn_from_noise_alone(pipeline):
    """A sampler begins where training had pure noise too: nothing of the picture is left at the last of the times."""
    assert pipeline.scheduler.alphas_cumprod[-1] == 0
    generator_times = DDIMScheduler.from_config(pipeline.scheduler.config)
    generator_times.set_timesteps(12)
    assert generator_times.timesteps[0] == 999 and generator_times.config.prediction_type == "v_prediction"


def test_the_loss_is_zero_for_a_network_that_knows_v(pipeline, monkeypatch):
    """v = alpha eps - sigma x_0 of x_t = alpha x_0 + sigma eps: what the scheduler turns back into x_0."""
    alphas, seen = pipeline.scheduler.alphas_cumprod, {}
    x_0 = torch.randn(3, 8, 8, 8)

    class Knowing(torch.nn.Module):
        config, up_blocks = pipeline.unet.config, pipeline.unet.up_blocks

        def forward(self, x_t, time, text, return_dict):
            alpha, sigma = (part.sqrt().view(-1, 1, 1, 1) for part in (alphas[time], 1 - alphas[time]))
            v = (alpha * x_t - x_0) / sigma
            step = pipeline.scheduler.step(v[:1], int(time[0]), x_t[:1])
            seen["x_0"] = step.pred_original_sample
            return (v,)

    pipeline.scheduler.set_timesteps(1000)
    monkeypatch.setattr(pipeline, "unet", Knowing())
    assert v_objective(pipeline).loss(x_0, torch.zeros(3, TEXT_TOKENS, 64)) < 1e-4
    torch.testing.assert_close(seen["x_0"], x_0[:1], atol=1e-2, rtol=1e-2)


def test_plain_diffusers_draws_the_same_pictures_with_the_bundled_unet():
    plain = StableDiffusionPipeline.from_pretrained(VAE.with_name("shapeworld-unet"), dtype=torch.float32)
    plain.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(5)
    drawn = plain("a red circle", num_inference_steps=4, guidance_scale=3.0, generator=noise, output_type="pt").images
    generator = load_generator("shapeworld-unet", num_inference_steps=4, guidance_scale=3.0)
    torch.testing.assert_close(sample(generator, ["a red circle"], [5])[:, 0], drawn, atol=1e-4, rtol=0)
    assert sum(weight.numel() for weight in plain.unet.parameters()) < 3e6
