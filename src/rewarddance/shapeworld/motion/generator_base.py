"""How the small video generator base is made: a Wan pipeline (flow matching on latents) trained from scratch.

One set of weights draws from a text alone and from a first picture too, in the way of Wan 2.2's 5B
(`expand_timesteps`): every token has its own time, and a first latent frame that is given is clean, at time 0. Half of
each batch is learned so. As the picture base it is imperfect on purpose: a share of its captions is wrong in one thing.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from torch import Tensor
from torch.nn import functional as F
from transformers import UMT5Config, UMT5EncoderModel

from rewarddance.shapeworld.eyes import Eyes, patch_labels
from rewarddance.shapeworld.motion.films import FILM_DEFECTS, Film, film_pixels, render_film, spoil_film
from rewarddance.shapeworld.motion.scripts import FRAMES, sample_script, scenes_of
from rewarddance.shapeworld.motion.specs import (
    MOTION_CATEGORIES,
    MotionSpec,
    all_motion_specs,
    motion_near_miss,
    motion_words,
    sample_motion,
)
from rewarddance.shapeworld.tokenizer import prompt_corpus, train_tokenizer

CAPTION_NOISE, CAPTION_DROP = 0.2, 0.1
"""Shares of training captions that are wrong in one thing, and that are left empty, so that guidance works."""
TEXT_LENGTH = 24
"""Tokens that a prompt is padded to, here and by whoever asks this base (`max_sequence_length`)."""
EVERY = 2
"""Frames a latent frame, after the first."""
SHARES = (0.25, 0.15, 0.15, 0.15, 0.12, 0.18)
"""Of the categories among the films, in the order of `MOTION_CATEGORIES`: one thing that moves most often."""
STILLS, VAE_STEPS, FILMS, STEPS = 700, 350, 30_000, 5_500
"""Steps of 32 frames and of 16 films, films that are drawn once, and steps of 32 of them. Chosen for some 75 minutes of
one core; nobody has yet made a base whole with them (docs/lab_log.md)."""


def build_video_pipeline(seed: int = 0) -> Any:
    """The pipeline with random weights: 1.5M parameters in the transformer, 80 tokens for 9 frames of 32x32 pixels."""
    torch.manual_seed(seed)
    tokenizer: Any = train_tokenizer(
        [*prompt_corpus(), *motion_words()],
        ["<pad>", "</s>"],
        eos="</s>",
        pad_token="<pad>",
        eos_token="</s>",
        padding_side="right",
    )
    text_encoder = UMT5EncoderModel(
        UMT5Config(vocab_size=len(tokenizer), d_model=64, d_kv=16, d_ff=128, num_layers=3, num_heads=4, pad_token_id=0)
    )
    channels = 8
    vae = AutoencoderKLWan(
        base_dim=24,
        z_dim=channels,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[True],
        latents_mean=[0.0] * channels,
        latents_std=[1.0] * channels,
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_temporal=EVERY,
        scale_factor_spatial=4,
    )
    transformer = WanTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=channels,
        out_channels=channels,
        text_dim=64,
        freq_dim=64,
        ffn_dim=320,
        num_layers=6,
        rope_max_seq_len=32,
    )
    scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=2.0)
    return WanPipeline(tokenizer, text_encoder, vae, scheduler, transformer, expand_timesteps=True)


def sample_task(rng: np.random.Generator) -> MotionSpec:
    """A random prompt, the categories in `SHARES`."""
    specs = all_motion_specs()[MOTION_CATEGORIES[int(rng.choice(len(SHARES), p=SHARES))]]
    return specs[int(rng.integers(len(specs)))]


def _film_tensor(films: list[Film]) -> Tensor:
    """Films as the VAE takes them: [N, 3, T, H, W] in [-1, 1]."""
    return torch.stack([film_pixels(film) for film in films]).transpose(1, 2) * 2 - 1


def _vae_batch(n: int, rng: np.random.Generator) -> Tensor:
    """Films [n, 3, T, H, W] in [-1, 1]; a third with a defect, so that the decoder can show bad films too."""
    films = []
    for _ in range(n):
        script = sample_script(sample_motion(rng), FRAMES, rng)
        film = render_film(script or ())
        if rng.random() < 0.33:
            film = spoil_film(
                film, FILM_DEFECTS[int(rng.integers(len(FILM_DEFECTS)))], float(rng.random()), int(rng.integers(2**31))
            )
        films.append(film)
    return _film_tensor(films)


def train_video_vae(vae: Any, stills: int, steps: int, seed: int, say: Callable[[str], None], batch: int = 16) -> None:
    """Reconstruction with a light KL; sets the latents' mean and deviation by channel.

    First single frames, `stills` batches twice as large, in L2 (in L1 the median of a dark canvas is a plateau), then
    films in L1 and L2.
    """
    rng = np.random.default_rng([seed, 21])
    torch.manual_seed(seed + 21)
    optimiser = torch.optim.AdamW(vae.parameters(), lr=3e-3, weight_decay=1e-4, betas=(0.9, 0.98))
    for step in range(1, stills + steps + 1):
        done = step / (stills + steps)
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * min(1.0, step / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        films = _vae_batch(batch, rng)
        if step <= stills:
            films = torch.cat([films[:, :, :1], films[:, :, -1:]])
        posterior = vae.encode(films).latent_dist
        error = vae.decode(posterior.sample()).sample - films
        kl = posterior.kl().mean() / posterior.mean[0, :, 0, 0].numel()
        bold = min(1.0, step / max(1, stills))
        loss = error.square().mean() + bold * error.abs().mean() + 2e-4 * kl
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        if step % 50 == 0 or step == stills + steps:
            say(f"video vae step {step} loss {loss.item():.4f} mse {error.square().mean().item():.5f}")
    with torch.no_grad():
        latents = torch.cat([vae.encode(_vae_batch(16, rng)).latent_dist.mode() for _ in range(16)])
    by_channel = latents.transpose(0, 1).flatten(1)
    vae.register_to_config(latents_mean=by_channel.mean(1).tolist(), latents_std=by_channel.std(1).tolist())


class Shown(NamedTuple):
    """Films that are learned from: what each shows, its latents [N, C, T, H, W] with mean 0 and deviation 1, and what
    each quarter of a token shows in the last of its frames, [N, tokens x 4, 4] (see `patch_labels`)."""

    specs: list[MotionSpec]
    latents: Tensor
    labels: Tensor


def draw_shown(vae: Any, n: int, seed: int, say: Callable[[str], None]) -> Shown:
    """Draw and encode `n` films once; every step of training takes some of them, with new captions and noises."""
    rng = np.random.default_rng([seed, 22])
    mean, std = (torch.tensor(v).view(-1, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
    specs, latents, labels, at_once = [], [], [], 60
    for start in range(0, n, at_once):
        films = []
        for _ in range(min(at_once, n - start)):
            spec = sample_task(rng)
            script = sample_script(spec, FRAMES, rng) or ()
            specs.append(spec)
            films.append(render_film(script))
            labels.append(_token_labels(np.stack([patch_labels(scene) for scene in scenes_of(script)[::EVERY]])))
        with torch.no_grad():
            latents.append(((vae.encode(_film_tensor(films)).latent_dist.mode() - mean) / std).half())
        if start and start % 3000 == 0:
            say(f"films drawn {start}")
    return Shown(specs, torch.cat(latents), torch.from_numpy(np.stack(labels)))


def _token_labels(labels: np.ndarray) -> np.ndarray:
    """Labels [T, 64, 4] of 4x4 patches in rows, in the order of tokens of 2x2 of them: [T x 64, 4], int8."""
    return labels.reshape(-1, 4, 2, 4, 2, 4).swapaxes(2, 3).reshape(-1, 4).astype(np.int8)


def caption_of(spec: MotionSpec, rng: np.random.Generator) -> str:
    """What a film is said to show: at times wrong in one thing, at times nothing."""
    said = motion_near_miss(spec, rng) if rng.random() < CAPTION_NOISE else spec
    return "" if rng.random() < CAPTION_DROP else said.said(rng)


def train_video_generator(
    pipeline: Any,
    shown: Shown,
    steps: int,
    seed: int,
    say: Callable[[str], None],
    snapshot: Callable[[Any, float], None] = lambda pipeline, done: None,
    learning_rate: float = 1.5e-3,
    batch: int = 32,
) -> None:
    """Flow matching: x_t = (1 - sigma) x_0 + sigma eps, the transformer learns v = eps - x_0; the EMA is kept.

    In every second film of a batch the first latent frame is clean, its tokens are told time 0, and it is no part of
    the loss. Half way up, heads that are dropped at the end name what each quarter of a token will show. The text
    encoder learns with the transformer. `snapshot` is called with the EMA pipeline every tenth of the way.
    """
    transformer, encoder = pipeline.transformer, pipeline.text_encoder
    rng = np.random.default_rng([seed, 23])
    torch.manual_seed(seed + 23)
    width = transformer.config.num_attention_heads * transformer.config.attention_head_dim
    eyes, seen = Eyes(width // 4), []
    middle = transformer.blocks[len(transformer.blocks) // 2]
    hook = middle.register_forward_hook(lambda module, inputs, outputs: seen.append(outputs))
    weights = [*transformer.parameters(), *encoder.parameters()]
    averaged = copy.deepcopy(weights)
    optimiser = torch.optim.AdamW(
        [*weights, *eyes.parameters()], lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    given = torch.arange(batch) % 2 == 1
    running = 0.0
    for step in range(1, steps + 1):
        done = step / steps
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * min(1.0, step / 200) * (0.03 + 0.97 * min(1.0, 2 * (1 - done)))
        chosen = torch.from_numpy(rng.integers(len(shown.specs), size=batch))
        x_0 = shown.latents[chosen].float()
        labels = shown.labels[chosen].long()
        captions = [caption_of(shown.specs[i], rng) for i in chosen.tolist()]
        text = pipeline.encode_prompt(captions, do_classifier_free_guidance=False, max_sequence_length=TEXT_LENGTH)[0]
        eps = torch.randn_like(x_0)
        sigma = torch.sigmoid(torch.randn(batch, 1, 1, 1, 1) * 1.2 + 0.5).expand(-1, -1, *x_0.shape[2:]).clone()
        sigma[given, :, 0] = 0.0
        x_t = (1 - sigma) * x_0 + sigma * eps
        time = 1000 * sigma[:, 0, :, ::2, ::2].flatten(1)
        v = transformer(x_t, time, text, return_dict=False)[0]
        asked = (sigma > 0).expand_as(v)
        loss = F.mse_loss(v[asked], (eps - x_0)[asked])
        hidden = seen.pop().unflatten(-1, (4, -1)).flatten(1, 2)
        optimiser.zero_grad()
        (loss + 0.3 * eyes.loss(hidden, labels)).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        with torch.no_grad():
            torch._foreach_lerp_(averaged, weights, 1 - min(0.998, (1 + step) / (10 + step)))
        running = loss.item() if step == 1 else 0.99 * running + 0.01 * loss.item()
        if step % 50 == 0:
            say(f"video step {step} loss {running:.4f} patches {eyes.accuracy(hidden, labels):.3f} done {done:.3f}")
        if step % math.ceil(steps / 10) == 0 or step == steps:
            kept = [weight.detach().clone() for weight in weights]
            with torch.no_grad():
                torch._foreach_copy_(weights, averaged)
                snapshot(pipeline, done)
                seen.clear()
                if step < steps:
                    torch._foreach_copy_(weights, kept)
    hook.remove()


def make_video_generator_base(
    folder: Path,
    stills: int = STILLS,
    vae_steps: int = VAE_STEPS,
    films: int = FILMS,
    steps: int = STEPS,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> None:
    """Make the video generator base and save it as a plain diffusers folder; ten snapshots go beside it.

    The folder is a `WanPipeline`; the option `pipeline: WanImageToVideoPipeline` begins from a picture with the same
    weights.
    """
    pipeline = build_video_pipeline(seed)
    train_video_vae(pipeline.vae, stills, vae_steps, seed, say)
    pipeline.vae.eval().requires_grad_(False)

    def snapshot(state: Any, done: float) -> None:
        state.save_pretrained(folder.with_name(f"{folder.name}-snapshots") / f"{done:.2f}")

    train_video_generator(pipeline, draw_shown(pipeline.vae, films, seed, say), steps, seed, say, snapshot)
    pipeline.transformer.half()  # half the bytes; diffusers reads them back as float32, transformers would not
    pipeline.vae.half()
    pipeline.save_pretrained(folder)
