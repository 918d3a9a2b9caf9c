"""How the small UNet base is made: a Stable Diffusion pipeline (v-prediction on latents) trained from scratch.

It learns from the captions that the flow base learns from, wrong ones included, in the same loop, and draws with the
flow base's VAE. So ReFL has a second generator of another family: convolutions, a CLIP text tower, a diffusion process.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from rewarddance.runtime.checkpoint import BUNDLED
from rewarddance.shapeworld.training.generator import (
    PICTURE_TEXT,
    Objective,
    captioned_latents,
    save_generator_base,
    train_generator,
    untrained,
)
from rewarddance.shapeworld.training.loop import snapshots_of
from rewarddance.shapeworld.training.tokenizer import prompt_corpus

STEPS = 2_400
"""Steps of 64 pictures that the bundled base was made with."""
TEXT_TOKENS = 24
"""Every prompt is padded or cut to so many tokens, the first and last of which mark its start and end."""
BASE = BUNDLED / "shapeworld-unet"
"""The bundled base, whose configuration says the architecture."""
VAE = BUNDLED / "shapeworld-generator"
"""The pipeline whose VAE is taken."""


def build_unet_pipeline(seed: int = 0, vae: Path = VAE) -> Any:
    """The pipeline with random weights but the VAE's: 2.6M parameters in the UNet, 8x8 and 4x4 latents.

    Latents at the last of the 1000 times are pure noise, and a sampler begins there: with a little of the picture left,
    as Stable Diffusion had it, the mean of what is sampled is off (2305.08891). That needs v-prediction.
    """
    torch.manual_seed(seed)
    tokenizer: Any = clip_tokenizer()
    encoder: Any = CLIPTextModel(CLIPTextConfig.from_pretrained(BASE / "text_encoder", vocab_size=len(tokenizer)))
    unet = untrained(UNet2DConditionModel, BASE / "unet")
    scheduler: Any = DDIMScheduler.from_pretrained(BASE, subfolder="scheduler")
    absent: Any = None  # no safety checker, and no image processor for it
    decoder: Any = AutoencoderKL.from_pretrained(vae, subfolder="vae", dtype=torch.float32)
    decoder.register_to_config(_name_or_path="")  # a local path does not belong in the folder
    parts = decoder, encoder, tokenizer, unet, scheduler, absent, absent
    return StableDiffusionPipeline(*parts, requires_safety_checker=False)


def clip_tokenizer(corpus: Sequence[str] = ()) -> CLIPTokenizer:
    """CLIP's tokenizer with a vocabulary of ours: each ShapeWorld word is one token, all other text can be encoded.

    corpus: texts whose words are the ones; the prompts of pictures where there are none.
    """
    backend: Any = CLIPTokenizer().backend_tokenizer  # splits words as CLIP does
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        min_frequency=1,
        initial_alphabet=letters,
        end_of_word_suffix=backend.model.end_of_word_suffix,
        show_progress=False,
    )
    backend.train_from_iterator(corpus or prompt_corpus(), trainer)
    merges: Any = [tuple(pair) for pair in json.loads(backend.to_str())["model"]["merges"]]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
    words = [*dict.fromkeys(words), "<|startoftext|>", "<|endoftext|>"]
    vocab = {word: index for index, word in enumerate(words)}
    return CLIPTokenizer(vocab, merges, model_max_length=TEXT_TOKENS)


def v_objective(pipeline: Any) -> Objective:
    """x_t = sqrt(a) x_0 + sqrt(1 - a) eps at a uniform time; the UNet learns v = sqrt(a) eps - sqrt(1 - a) x_0."""
    unet, alphas = pipeline.unet, pipeline.scheduler.alphas_cumprod

    def loss(x_0: Tensor, text: Tensor) -> Tensor:
        eps = torch.randn_like(x_0)
        time = torch.randint(len(alphas), (len(x_0),))
        alpha, sigma = (part.sqrt().view(-1, 1, 1, 1) for part in (alphas[time], 1 - alphas[time]))
        v = unet(alpha * x_0 + sigma * eps, time, text, return_dict=False)[0]
        return F.mse_loss(v, alpha * eps - sigma * x_0)

    return Objective(
        unet,
        captioned_latents(pipeline.vae),
        loss,
        unet.up_blocks[-1].attentions[0],
        lambda outputs: outputs[0].flatten(2).mT,
        unet.config.block_out_channels[0],
        PICTURE_TEXT,
    )


def make_unet_base(
    folder: Path,
    steps: int = STEPS,
    seed: int = 0,
    log: Callable[[str], None] = print,
    vae: Path = VAE,
) -> None:
    """Make the UNet base and save it as a plain diffusers folder; ten snapshots go beside it. vae: the flow base."""
    pipeline = build_unet_pipeline(seed, vae)
    snapshot = snapshots_of(folder, pipeline.save_pretrained)
    train_generator(pipeline, v_objective(pipeline), steps, seed, log=log, snapshot=snapshot)
    save_generator_base(pipeline, pipeline.unet, folder)
