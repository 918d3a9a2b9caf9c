"""How the small generator base is made: a CogView4 pipeline (flow matching on latents) trained from scratch.

It is meant to be imperfect, as a pretrained generator is: a share of its training captions is wrong in one thing, the
way web captions are, so that it draws well but does not always draw what the prompt says.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKL, CogView4Pipeline, CogView4Transformer2DModel, FlowMatchEulerDiscreteScheduler
from torch import Tensor
from torch.nn import functional as F
from transformers import GlmConfig, GlmModel

from rewarddance.runtime.checkpoint import BUNDLED
from rewarddance.shapeworld.render import DEFECTS, render, spoil, to_pixels
from rewarddance.shapeworld.scenes import CANVAS, PREFIXES, near_miss, random_scene, sample_scene, sample_spec
from rewarddance.shapeworld.training.loop import TrainingLoop, snapshots_of
from rewarddance.shapeworld.training.patch_heads import PatchHeads, patch_labels
from rewarddance.shapeworld.training.tokenizer import prompt_corpus, train_tokenizer
from rewarddance.shapeworld.training.vae import train_vae

CAPTION_NOISE = 0.25
"""Share of training captions that are wrong in one thing."""
CAPTION_DROP = 0.1
"""Share of training captions left empty, so that guidance works."""
BASE = BUNDLED / "shapeworld-generator"
"""The bundled base, whose configuration says the architecture."""
VAE_STEPS, STEPS = 2_050, 4_700
"""Steps of 32 and of 64 pictures that the bundled base was made with."""
PICTURE_TEXT = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": False}

DrawBatch = Callable[[int, np.random.Generator], tuple[list[str], Tensor, Tensor]]
"""Draws N captions, their clean latents x_0 [N, C, ...], and the labels of their tokens (see `patch_labels`)."""


def build_pipeline(seed: int = 0) -> Any:
    """The pipeline with random weights: 1.9M parameters in the transformer, 64 picture tokens and 16 of text."""
    torch.manual_seed(seed)
    tokenizer: Any = train_tokenizer(
        prompt_corpus(), ["<pad>", "<s>"], bos="<s>", pad_token="<pad>", bos_token="<s>", padding_side="left"
    )
    text_encoder = GlmModel(GlmConfig.from_pretrained(BASE / "text_encoder", vocab_size=len(tokenizer)))
    vae = untrained(AutoencoderKL, BASE / "vae", scaling_factor=1.0)
    transformer = untrained(CogView4Transformer2DModel, BASE / "transformer")
    return CogView4Pipeline(tokenizer, text_encoder, vae, transformer, FlowMatchEulerDiscreteScheduler(shift=1.0))


def untrained(kind: Any, folder: Path, **changes: Any) -> Any:
    """A diffusers model of the architecture that `folder` describes, with random weights."""
    return kind.from_config(kind.load_config(folder), **changes)


def _vae_batch(n: int, rng: np.random.Generator) -> Tensor:
    """Pictures [n, 3, H, W] in [-1, 1]; a third with a defect, so that the decoder can show bad pictures too."""
    pictures = []
    for _ in range(n):
        picture = render(random_scene(rng))
        if rng.random() < 0.33:
            picture = spoil(picture, DEFECTS[int(rng.integers(4))], float(rng.random()), rng)
        pictures.append(picture)
    return to_pixels(pictures)[:, 0] * 2 - 1


def caption_batch(n: int, rng: np.random.Generator) -> tuple[list[str], Tensor, Tensor]:
    """`n` captions (some wrong, some empty), their pictures [n, 3, H, W] in [-1, 1] and patch labels."""
    captions, pictures, labels = [], [], []
    for _ in range(n):
        spec = sample_spec(rng)
        scene = sample_scene(spec, rng)
        pictures.append(render(scene))
        labels.append(patch_labels(scene))
        captioned = near_miss(spec, rng) if rng.random() < CAPTION_NOISE else spec
        dropped = rng.random() < CAPTION_DROP
        captions.append("" if dropped else PREFIXES[int(rng.integers(len(PREFIXES)))] + captioned.text)
    return captions, to_pixels(pictures)[:, 0] * 2 - 1, torch.from_numpy(np.stack(labels))


class Objective(NamedTuple):
    """What a generator's network learns, and from what.

    network: what is trained, besides the pipeline's text encoder.
    draw: the training examples.
    loss: of x_0 and the encoded captions.
    middle: the module half way up whose output the patch heads read.
    tokens: that output as tokens [N, K, D].
    width: D.
    text_options: how captions go through the pipeline's `encode_prompt`.
    """

    network: Any
    draw: DrawBatch
    loss: Callable[[Tensor, Tensor], Tensor]
    middle: Any
    tokens: Callable[[Any], Tensor]
    width: int
    text_options: dict[str, Any]


def captioned_latents(vae: Any) -> DrawBatch:
    """Captioned pictures of ShapeWorld, drawn anew each time, as latents of a VAE."""

    def draw(n: int, rng: np.random.Generator) -> tuple[list[str], Tensor, Tensor]:
        captions, pictures, labels = caption_batch(n, rng)
        with torch.no_grad():
            x_0 = vae.encode(pictures).latent_dist.sample() * vae.config.scaling_factor
        return captions, x_0, labels

    return draw


def flow_objective(pipeline: Any) -> Objective:
    """Flow matching: x_t = (1 - sigma) x_0 + sigma eps, the transformer learns v = eps - x_0."""
    transformer = pipeline.transformer

    def loss(x_0: Tensor, text: Tensor) -> Tensor:
        size, crop = torch.full((len(x_0), 2), float(CANVAS)), torch.zeros(len(x_0), 2)
        eps = torch.randn_like(x_0)
        sigma = torch.sigmoid(torch.randn(len(x_0), 1, 1, 1) * 1.2 + 0.2)
        x_t = (1 - sigma) * x_0 + sigma * eps
        v = transformer(x_t, text, 1000 * sigma.flatten(), size, size, crop, return_dict=False)[0]
        return F.mse_loss(v, eps - x_0)

    middle = transformer.transformer_blocks[len(transformer.transformer_blocks) // 2]
    width = transformer.config.num_attention_heads * transformer.config.attention_head_dim
    draw = captioned_latents(pipeline.vae)
    return Objective(transformer, draw, loss, middle, lambda outputs: outputs[0], width, PICTURE_TEXT)


def train_generator(
    pipeline: Any,
    objective: Objective,
    steps: int,
    seed: int,
    *,
    log: Callable[[str], None],
    snapshot: Callable[[float], None] | None = None,
    batch: int = 64,
    stream: int = 2,
) -> None:
    """Train the pipeline's network and text encoder to draw what captions say; the moving average is kept.

    Half way up, heads that are dropped at the end name what each patch of the clean picture, or video, will show. This
    is the idea of REPA (arXiv 2410.06940) with exact labels in place of a vision model's features; it speeds learning
    up a lot. stream: which of the seed's random streams the captions come from.
    """
    pipeline.vae.eval()
    rng = np.random.default_rng([seed, stream])
    torch.manual_seed(seed)
    heads, hidden = PatchHeads(objective.width), []
    hook = objective.middle.register_forward_hook(
        lambda module, inputs, outputs: hidden.append(objective.tokens(outputs))
    )
    loop = TrainingLoop(
        "generator",
        [*objective.network.parameters(), *pipeline.text_encoder.parameters()],
        steps,
        rate=lambda step, steps: 1.5e-3 * min(1.0, step / 200) * (0.03 + 0.97 * min(1.0, 2 * (1 - step / steps))),
        weight_decay=0.01,
        log=log,
        heads=heads.parameters(),
        averaged=True,
        snapshot=snapshot,
    )
    for _ in loop:
        captions, x_0, labels = objective.draw(batch, rng)
        hidden.clear()
        loss = objective.loss(x_0, pipeline.encode_prompt(captions, **objective.text_options)[0])
        loop.learn(loss + 0.3 * heads.loss(hidden[0], labels), loss=loss, patches=heads.accuracy(hidden[0], labels))
    hook.remove()


def make_generator_base(
    folder: Path,
    vae_steps: int = VAE_STEPS,
    steps: int = STEPS,
    seed: int = 0,
    log: Callable[[str], None] = print,
) -> None:
    """Make the generator base and save it as a plain diffusers folder; ten snapshots go beside it."""
    pipeline, rng = build_pipeline(seed), np.random.default_rng([seed, 1])
    train_vae(pipeline.vae, lambda step: _vae_batch(32, rng), vae_steps, learning_rate=2e-3, log=log)
    with torch.no_grad():
        latents = pipeline.vae.encode(_vae_batch(512, rng)).latent_dist.sample()
    pipeline.vae.register_to_config(scaling_factor=float(1 / latents.std()))  # latents of unit deviation
    snapshot = snapshots_of(folder, pipeline.save_pretrained)
    train_generator(pipeline, flow_objective(pipeline), steps, seed, log=log, snapshot=snapshot)
    save_generator_base(pipeline, pipeline.transformer, folder)


def save_generator_base(pipeline: Any, network: Any, folder: Path) -> None:
    """Write network and VAE in float16; diffusers reads them back as float32, transformers would not."""
    network.half()
    pipeline.vae.half()
    pipeline.save_pretrained(folder)
