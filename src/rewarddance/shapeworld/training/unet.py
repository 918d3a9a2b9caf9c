"""How the small UNet base is made: a Stable Diffusion pipeline (v-prediction on latents) trained from scratch.

It learns from the captions that the flow base learns from, wrong ones included, in the same loop, and draws with the
flow base's VAE. So ReFL has a second generator of another family: convolutions, a CLIP text tower, a diffusion process.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from rewarddance.runtime.checkpoint import BUNDLED
from rewarddance.shapeworld.training.generator import Course, picture_batch, reader, train_generator
from rewarddance.shapeworld.training.tokenizer import prompt_corpus

STEPS = 2_400
"""Steps of 64 pictures that the bundled base was made with."""
TEXT_TOKENS = 24
"""Every prompt is padded or cut to so many tokens, the first and last of which say begin and end."""
VAE = BUNDLED / "shapeworld-generator"
"""The pipeline whose VAE is taken."""


def build_unet_pipeline(seed: int = 0, vae: Path = VAE) -> Any:
    """The pipeline with random weights but the VAE's: 2.6M parameters in the UNet, 8x8 and 4x4 latents.

    Latents at the last of the 1000 times are pure noise, and a sampler begins there: with a little of the picture left,
    as Stable Diffusion had it, the mean of what is sampled is off (2305.08891). That needs v-prediction.
    """
    torch.manual_seed(seed)
    tokenizer: Any = clip_tokenizer()
    encoder: Any = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=TEXT_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    widths: Any = (80, 80)  # diffusers annotates these as tuples of one
    down: Any = ("CrossAttnDownBlock2D",) * 2
    up: Any = ("CrossAttnUpBlock2D",) * 2
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=8,
        out_channels=8,
        block_out_channels=widths,
        down_block_types=down,
        up_block_types=up,
        layers_per_block=1,
        cross_attention_dim=64,
        attention_head_dim=4,  # diffusers' name for the number of heads
        norm_num_groups=16,
    )
    scheduler: Any = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        steps_offset=1,
        clip_sample=False,
    )
    no: Any = None  # no checker of safety, no pictures for it
    decoder: Any = AutoencoderKL.from_pretrained(vae, subfolder="vae", dtype=torch.float32)
    decoder.register_to_config(_name_or_path="")  # no path of this machine in the folder
    return StableDiffusionPipeline(decoder, encoder, tokenizer, unet, scheduler, no, no, requires_safety_checker=False)


def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's own tokenizer with a vocabulary of ours: each ShapeWorld word is one token, all other text still reads."""
    learner: Any = CLIPTokenizer().backend_tokenizer  # for its way of parting words
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        min_frequency=1,
        initial_alphabet=letters,
        end_of_word_suffix=learner.model.end_of_word_suffix,
        show_progress=False,
    )
    learner.train_from_iterator(prompt_corpus(), trainer)
    learned = json.loads(learner.to_str())["model"]
    merges: Any = [tuple(pair) for pair in learned["merges"]]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
    words = [*dict.fromkeys(words), "<|startoftext|>", "<|endoftext|>"]
    vocab = {word: place for place, word in enumerate(words)}
    return CLIPTokenizer(vocab, merges, model_max_length=TEXT_TOKENS)


def v_course(pipeline: Any) -> Course:
    """x_t = sqrt(a) x_0 + sqrt(1 - a) eps at a uniform time; the UNet learns v = sqrt(a) eps - sqrt(1 - a) x_0."""
    unet, alphas = pipeline.unet, pipeline.scheduler.alphas_cumprod

    def loss(x_0: Tensor, text: Tensor) -> Tensor:
        eps = torch.randn_like(x_0)
        time = torch.randint(len(alphas), (len(x_0),))
        alpha, sigma = (part.sqrt().view(-1, 1, 1, 1) for part in (alphas[time], 1 - alphas[time]))
        v = unet(alpha * x_0 + sigma * eps, time, text, return_dict=False)[0]
        return F.mse_loss(v, alpha * eps - sigma * x_0)

    middle = unet.up_blocks[-1].attentions[0]
    lesson = picture_batch(pipeline.vae), reader(pipeline), loss
    return Course(unet, *lesson, middle, lambda outputs: outputs[0].flatten(2).mT, unet.config.block_out_channels[0])


def make_unet_base(
    folder: Path,
    steps: int = STEPS,
    seed: int = 0,
    say: Callable[[str], None] = print,
    vae: Path = VAE,
) -> None:
    """Make the UNet base and save it as a plain diffusers folder; ten snapshots go beside it. vae: the flow base."""
    pipeline = build_unet_pipeline(seed, vae)

    def snapshot(state: Any, done: float) -> None:
        state.save_pretrained(folder.with_name(f"{folder.name}-snapshots") / f"{done:.2f}")

    train_generator(pipeline, steps, seed, say, snapshot, course=v_course)
    pipeline.unet.half()  # as the flow base is saved
    pipeline.vae.half()
    pipeline.save_pretrained(folder)
