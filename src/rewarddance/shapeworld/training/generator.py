"""How the small generator base is made: a CogView4 pipeline (flow matching on latents) trained from scratch.

It is meant to be imperfect, as a pretrained generator is: a share of its training captions is wrong in one thing, the
way web captions are, so that it draws well but does not always draw what was asked.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKL, CogView4Pipeline, CogView4Transformer2DModel, FlowMatchEulerDiscreteScheduler
from torch import Tensor
from torch.nn import functional as F
from transformers import GlmConfig, GlmModel

from rewarddance.shapeworld.render import DEFECTS, render, spoil, to_pixels
from rewarddance.shapeworld.scenes import CANVAS, PREFIXES, near_miss, random_scene, sample_scene, sample_spec
from rewarddance.shapeworld.training.patch_heads import PatchHeads, patch_labels
from rewarddance.shapeworld.training.tokenizer import prompt_corpus, train_tokenizer

CAPTION_NOISE = 0.25
"""Share of training captions that are wrong in one thing."""
CAPTION_DROP = 0.1
"""Share of training captions left empty, so that guidance works."""
VAE_STEPS, STEPS = 2_050, 4_700
"""Steps of 32 and of 64 pictures that the bundled base was made with."""


def build_pipeline(seed: int = 0) -> Any:
    """The pipeline with random weights: 1.9M parameters in the transformer, 64 picture tokens and 16 of text."""
    torch.manual_seed(seed)
    tokenizer: Any = train_tokenizer(
        prompt_corpus(), ["<pad>", "<s>"], bos="<s>", pad_token="<pad>", bos_token="<s>", padding_side="left"
    )
    text_encoder = GlmModel(
        GlmConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=16,
            max_position_embeddings=64,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=0,
        )
    )
    widths: Any = (24, 32, 48)  # diffusers annotates these as tuples of one

    def blocks(kind: str) -> Any:
        return (kind,) * len(widths)

    vae = AutoencoderKL(
        down_block_types=blocks("DownEncoderBlock2D"),
        up_block_types=blocks("UpDecoderBlock2D"),
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=8,
        sample_size=CANVAS,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    transformer = CogView4Transformer2DModel(
        patch_size=1,
        in_channels=8,
        out_channels=8,
        num_layers=6,
        attention_head_dim=32,
        num_attention_heads=4,
        text_embed_dim=64,
        time_embed_dim=64,
        condition_dim=8,
        pos_embed_max_size=8,
        sample_size=8,
        rope_axes_dim=(64, 64),
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    return CogView4Pipeline(tokenizer, text_encoder, vae, transformer, scheduler)


def _vae_batch(n: int, rng: np.random.Generator) -> Tensor:
    """Pictures [n, 3, H, W] in [-1, 1]; a third with a defect, so that the decoder can show bad pictures too."""
    pictures = []
    for _ in range(n):
        picture = render(random_scene(rng))
        if rng.random() < 0.33:
            picture = spoil(picture, DEFECTS[int(rng.integers(4))], float(rng.random()), rng)
        pictures.append(picture)
    return to_pixels(pictures)[:, 0] * 2 - 1


def train_vae(vae: Any, steps: int, seed: int, say: Callable[[str], None]) -> None:
    """Reconstruction in L1 and L2 with a light KL; sets the scaling factor so that latents have unit deviation."""
    rng = np.random.default_rng([seed, 1])
    optimiser = torch.optim.AdamW(vae.parameters(), lr=2e-3, weight_decay=1e-4, betas=(0.9, 0.98))
    for step in range(1, steps + 1):
        done = step / steps
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * min(1.0, step / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        pictures = _vae_batch(32, rng)
        posterior = vae.encode(pictures).latent_dist
        rebuilt = vae.decode(posterior.sample()).sample
        error = rebuilt - pictures
        loss = error.abs().mean() + error.square().mean() + 2e-4 * posterior.kl().mean() / 64
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        if step % 100 == 0:
            say(f"vae step {step} loss {loss.item():.4f} mse {error.square().mean().item():.5f} done {done:.2f}")
    with torch.no_grad():
        latents = vae.encode(_vae_batch(512, rng)).latent_dist.sample()
    vae.register_to_config(scaling_factor=float(1 / latents.std()))


def caption_batch(n: int, rng: np.random.Generator) -> tuple[list[str], Tensor, Tensor]:
    """`n` captions (some wrong, some empty), their pictures [n, 3, H, W] in [-1, 1] and patch labels."""
    captions, pictures, labels = [], [], []
    for _ in range(n):
        spec = sample_spec(rng)
        scene = sample_scene(spec, rng)
        pictures.append(render(scene))
        labels.append(patch_labels(scene))
        said = near_miss(spec, rng) if rng.random() < CAPTION_NOISE else spec
        dropped = rng.random() < CAPTION_DROP
        captions.append("" if dropped else PREFIXES[int(rng.integers(len(PREFIXES)))] + said.text)
    return captions, to_pixels(pictures)[:, 0] * 2 - 1, torch.from_numpy(np.stack(labels))


class Course(NamedTuple):
    """What a network is taught, and where it is asked what it sees.

    batch: captions, clean latents x_0 [N, C, ...] and the labels of their tokens (`patch_labels`). read: captions as
    the network takes them. loss: of x_0 and what was read. middle: the part half way up whose output the eyes look at,
    and `tokens`, how that output is read as tokens of `width` numbers.
    """

    network: Any
    batch: Callable[[int, np.random.Generator], tuple[list[str], Tensor, Tensor]]
    read: Callable[[list[str]], Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]
    middle: Any
    tokens: Callable[[Any], Tensor]
    width: int


def picture_batch(vae: Any) -> Callable[[int, np.random.Generator], tuple[list[str], Tensor, Tensor]]:
    """Captioned pictures of ShapeWorld, drawn anew each time, as latents of a VAE."""

    def batch(n: int, rng: np.random.Generator) -> tuple[list[str], Tensor, Tensor]:
        captions, pictures, labels = caption_batch(n, rng)
        with torch.no_grad():
            x_0 = vae.encode(pictures).latent_dist.sample() * vae.config.scaling_factor
        return captions, x_0, labels

    return batch


def reader(pipeline: Any) -> Callable[[list[str]], Tensor]:
    """Captions through a pipeline's own text encoder."""
    options = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    return lambda captions: pipeline.encode_prompt(captions, **options)[0]


def flow_course(pipeline: Any) -> Course:
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
    lesson = picture_batch(pipeline.vae), reader(pipeline), loss
    return Course(transformer, *lesson, middle, lambda outputs: outputs[0], width)


def train_generator(
    pipeline: Any,
    steps: int,
    seed: int,
    say: Callable[[str], None],
    snapshot: Callable[[Any, float], None] = lambda pipeline, done: None,
    learning_rate: float = 1.5e-3,
    batch: int = 64,
    course: Callable[[Any], Course] = flow_course,
    stream: int = 2,
) -> None:
    """Teach the pipeline's network and text encoder to draw what captions say; the EMA is kept.

    Half way up, heads that are dropped at the end name what each patch of the clean picture, or video, will show (the
    idea of REPA, arXiv 2410.06940, with exact labels in place of a vision model's features): it learns far faster so.
    `snapshot` is called with the EMA pipeline every tenth of the way. stream: of the seed's random captions.
    """
    pipeline.vae.eval()
    network, lesson, read, criterion, middle, tokens, width = course(pipeline)
    rng = np.random.default_rng([seed, stream])
    torch.manual_seed(seed)
    eyes, seen = PatchHeads(width), []
    hook = middle.register_forward_hook(lambda module, inputs, outputs: seen.append(tokens(outputs)))
    weights = [*network.parameters(), *pipeline.text_encoder.parameters()]
    averaged = copy.deepcopy(weights)
    optimiser = torch.optim.AdamW(
        [*weights, *eyes.parameters()], lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    running = 0.0
    for step in range(1, steps + 1):
        done = step / steps
        rate = learning_rate * min(1.0, step / 200) * (0.03 + 0.97 * min(1.0, 2 * (1 - done)))
        for group in optimiser.param_groups:
            group["lr"] = rate
        captions, x_0, patches = lesson(batch, rng)
        loss = criterion(x_0, read(captions))
        hidden = seen.pop()
        optimiser.zero_grad()
        (loss + 0.3 * eyes.loss(hidden, patches)).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        decay = min(0.998, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(averaged, weights, 1 - decay)
        running = loss.item() if step == 1 else 0.99 * running + 0.01 * loss.item()
        if step % 100 == 0:
            sight = eyes.accuracy(hidden, patches)
            say(f"generator step {step} seen {step * batch} loss {running:.4f} patches {sight:.3f} done {done:.3f}")
        if step % math.ceil(steps / 10) == 0 or step == steps:
            kept = [weight.detach().clone() for weight in weights]
            with torch.no_grad():
                torch._foreach_copy_(weights, averaged)
            snapshot(pipeline, done)
            seen.clear()
            if step < steps:
                with torch.no_grad():
                    torch._foreach_copy_(weights, kept)
    hook.remove()


def make_generator_base(
    folder: Path,
    vae_steps: int = VAE_STEPS,
    steps: int = STEPS,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> None:
    """Make the generator base and save it as a plain diffusers folder; ten snapshots go beside it."""
    pipeline = build_pipeline(seed)
    train_vae(pipeline.vae, vae_steps, seed, say)

    def snapshot(state: Any, done: float) -> None:
        state.save_pretrained(folder.with_name(f"{folder.name}-snapshots") / f"{done:.2f}")

    train_generator(pipeline, steps, seed, say, snapshot)
    pipeline.transformer.half()  # half the bytes; diffusers reads them back as float32, transformers would not
    pipeline.vae.half()
    pipeline.save_pretrained(folder)
