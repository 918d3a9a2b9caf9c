"""How the small video generator base is made: a Wan pipeline (flow matching on latents) trained from scratch.

One set of weights draws from a text alone and from a first picture too, in the way of Wan 2.2's 5B
(`expand_timesteps`): every token has its own time, and a first latent frame that is given is clean, at time 0. Half of
each batch is learned so. As the picture base it is imperfect on purpose: a share of its captions is wrong in one thing.
"""

from __future__ import annotations

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

from rewarddance.shapeworld.motion.scripts import FRAMES, sample_script, scenes_of
from rewarddance.shapeworld.motion.specs import (
    MOTION_CATEGORIES,
    MotionSpec,
    all_motion_specs,
    motion_near_miss,
    motion_words,
    sample_motion,
)
from rewarddance.shapeworld.motion.videos import VIDEO_DEFECTS, Video, render_video, spoil_video, video_pixels
from rewarddance.shapeworld.training.generator import Course, train_generator
from rewarddance.shapeworld.training.patch_heads import patch_labels
from rewarddance.shapeworld.training.tokenizer import prompt_corpus, train_tokenizer

CAPTION_NOISE, CAPTION_DROP = 0.25, 0.1
"""Shares of training captions that are wrong in one thing, and that are left empty, so that guidance works."""
TEXT_LENGTH = 24
"""Tokens that a prompt is padded to, here and by whoever asks this base (`max_sequence_length`)."""
EVERY = 2
"""Frames a latent frame, after the first."""
SHARES = (0.25, 0.15, 0.15, 0.15, 0.12, 0.18)
"""Of the categories among the videos, in the order of `MOTION_CATEGORIES`: one thing that moves most often."""
STILLS, VAE_STEPS, DECODER_STEPS = 700, 350, 3_400
"""Steps of the VAE: of 32 frames, of 16 videos, and of 16 videos for its decoder alone."""
VIDEOS, STEPS = 90_000, 20_900
"""Videos that are drawn once, and the transformer's steps of 32 of them. The bundled base was made in legs
(docs/lab_log.md)."""


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


def _video_tensor(videos: list[Video]) -> Tensor:
    """Videos as the VAE takes them: [N, 3, T, H, W] in [-1, 1]."""
    return torch.stack([video_pixels(video) for video in videos]).transpose(1, 2) * 2 - 1


def _vae_batch(n: int, rng: np.random.Generator) -> Tensor:
    """Videos [n, 3, T, H, W] in [-1, 1]; a third with a defect, so that the decoder can show bad videos too."""
    videos = []
    for _ in range(n):
        script = sample_script(sample_motion(rng), FRAMES, rng)
        video = render_video(script or ())
        if rng.random() < 0.33:
            video = spoil_video(
                video,
                VIDEO_DEFECTS[int(rng.integers(len(VIDEO_DEFECTS)))],
                float(rng.random()),
                int(rng.integers(2**31)),
            )
        videos.append(video)
    return _video_tensor(videos)


def train_video_vae(
    vae: Any, stills: int, steps: int, decoder_steps: int, seed: int, say: Callable[[str], None], batch: int = 16
) -> None:
    """Reconstruction with a light KL; sets the latents' mean and deviation by channel.

    First single frames, `stills` batches twice as large, in L2 (in L1 the median of a dark canvas is a plateau), then
    videos in L1 and L2. Then the decoder alone, on latents with up to a tenth of noise, as a generator's have.
    """
    rng = np.random.default_rng([seed, 21])
    torch.manual_seed(seed + 21)
    optimiser = torch.optim.AdamW(vae.parameters(), lr=3e-3, weight_decay=1e-4, betas=(0.9, 0.98))
    for step in range(1, stills + steps + 1):
        _set_rate(optimiser, 3e-3, step, stills + steps)
        videos = _vae_batch(batch, rng)
        if step <= stills:
            videos = torch.cat([videos[:, :, :1], videos[:, :, -1:]])
        posterior = vae.encode(videos).latent_dist
        error = vae.decode(posterior.sample()).sample - videos
        kl = posterior.kl().mean() / posterior.mean[0, :, 0, 0].numel()
        bold = min(1.0, step / max(1, stills))
        _learn(optimiser, error.square().mean() + bold * error.abs().mean() + 2e-4 * kl)
        if step % 50 == 0 or step == stills + steps:
            say(f"video vae step {step} mse {error.square().mean().item():.5f}")
    with torch.no_grad():
        latents = torch.cat([vae.encode(_vae_batch(16, rng)).latent_dist.mode() for _ in range(16)])
    mean, std = latents.transpose(0, 1).flatten(1).mean(1), latents.transpose(0, 1).flatten(1).std(1)
    vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())
    weights = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
    optimiser = torch.optim.AdamW(weights, lr=2e-3, weight_decay=1e-4, betas=(0.9, 0.98))
    for step in range(1, decoder_steps + 1):
        _set_rate(optimiser, 2e-3, step, decoder_steps)
        videos = _vae_batch(batch, rng)
        with torch.no_grad():
            latents = vae.encode(videos).latent_dist.mode()
        noise = 0.1 * torch.rand(batch, 1, 1, 1, 1) * std.view(-1, 1, 1, 1) * torch.randn_like(latents)
        error = vae.decode(latents + noise).sample - videos
        _learn(optimiser, error.square().mean() + error.abs().mean())
        if step % 50 == 0 or step == decoder_steps:
            say(f"video decoder step {step} mse {error.square().mean().item():.5f}")


def _set_rate(optimiser: torch.optim.Optimizer, rate: float, step: int, steps: int) -> None:
    """Warm-up over 50 steps and a cosine down to a fiftieth."""
    for group in optimiser.param_groups:
        group["lr"] = rate * min(1.0, step / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def _learn(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(optimiser.param_groups[0]["params"], 1.0)
    optimiser.step()


class Shown(NamedTuple):
    """Videos that are learned from: what each shows, its latents [N, C, T, H, W] with mean 0 and deviation 1, and what
    each quarter of a token shows in the last of its frames, [N, tokens x 4, 4] (see `patch_labels`)."""

    specs: list[MotionSpec]
    latents: Tensor
    labels: Tensor


def draw_shown(vae: Any, n: int, seed: int, say: Callable[[str], None]) -> Shown:
    """Draw and encode `n` videos once; every step of training takes some of them, with new captions and noises."""
    rng = np.random.default_rng([seed, 22])
    mean, std = (torch.tensor(v).view(-1, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
    specs, latents, labels, at_once = [], [], [], 60
    for start in range(0, n, at_once):
        videos = []
        for _ in range(min(at_once, n - start)):
            spec = sample_task(rng)
            script = sample_script(spec, FRAMES, rng) or ()
            specs.append(spec)
            videos.append(render_video(script))
            labels.append(_token_labels(np.stack([patch_labels(scene) for scene in scenes_of(script)[::EVERY]])))
        with torch.no_grad():
            latents.append(((vae.encode(_video_tensor(videos)).latent_dist.mode() - mean) / std).half())
        if start and start % 3000 == 0:
            say(f"videos drawn {start}")
    return Shown(specs, torch.cat(latents), torch.from_numpy(np.stack(labels)))


def _token_labels(labels: np.ndarray) -> np.ndarray:
    """Labels [T, 64, 4] of 4x4 patches in rows, in the order of tokens of 2x2 of them: [T x 64, 4], int8."""
    return labels.reshape(-1, 4, 2, 4, 2, 4).swapaxes(2, 3).reshape(-1, 4).astype(np.int8)


def caption_of(spec: MotionSpec, rng: np.random.Generator) -> str:
    """What a video is said to show: at times wrong in one thing, at times nothing."""
    said = motion_near_miss(spec, rng) if rng.random() < CAPTION_NOISE else spec
    return "" if rng.random() < CAPTION_DROP else said.said(rng)


def video_course(shown: Shown) -> Callable[[Any], Course]:
    """Flow matching: x_t = (1 - sigma) x_0 + sigma eps, the transformer learns v = eps - x_0.

    In every second video of a batch the first latent frame is clean, its tokens are told time 0, and it is no part of
    the loss. The eyes name what each quarter of a token will show.
    """

    def course(pipeline: Any) -> Course:
        transformer = pipeline.transformer

        def batch(n: int, rng: np.random.Generator) -> tuple[list[str], Tensor, Tensor]:
            chosen = torch.from_numpy(rng.integers(len(shown.specs), size=n))
            captions = [caption_of(shown.specs[i], rng) for i in chosen.tolist()]
            return captions, shown.latents[chosen].float(), shown.labels[chosen].long()

        def read(captions: list[str]) -> Tensor:
            plain = {"do_classifier_free_guidance": False, "max_sequence_length": TEXT_LENGTH}
            return pipeline.encode_prompt(captions, **plain)[0]

        def loss(x_0: Tensor, text: Tensor) -> Tensor:
            eps = torch.randn_like(x_0)
            sigma = torch.sigmoid(torch.randn(len(x_0), 1, 1, 1, 1) * 1.2 + 0.5)
            sigma = sigma.expand(-1, -1, *x_0.shape[2:]).clone()
            sigma[1::2, :, 0] = 0.0
            time = 1000 * sigma[:, 0, :, ::2, ::2].flatten(1)
            v = transformer((1 - sigma) * x_0 + sigma * eps, time, text, return_dict=False)[0]
            asked = (sigma > 0).expand_as(v)
            return F.mse_loss(v[asked], (eps - x_0)[asked])

        middle = transformer.blocks[len(transformer.blocks) // 2]
        width = transformer.config.num_attention_heads * transformer.config.attention_head_dim
        quarters = 4
        return Course(
            transformer,
            batch,
            read,
            loss,
            middle,
            lambda hidden: hidden.unflatten(-1, (quarters, -1)).flatten(1, 2),
            width // quarters,
        )

    return course


def make_video_generator_base(
    folder: Path,
    stills: int = STILLS,
    vae_steps: int = VAE_STEPS,
    decoder_steps: int = DECODER_STEPS,
    videos: int = VIDEOS,
    steps: int = STEPS,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> None:
    """Make the video generator base and save it as a plain diffusers folder; ten snapshots go beside it.

    The folder is a `WanPipeline`; the option `pipeline: WanImageToVideoPipeline` begins from a picture with the same
    weights.
    """
    pipeline = build_video_pipeline(seed)
    train_video_vae(pipeline.vae, stills, vae_steps, decoder_steps, seed, say)
    pipeline.vae.eval().requires_grad_(False)

    def snapshot(state: Any, done: float) -> None:
        state.save_pretrained(folder.with_name(f"{folder.name}-snapshots") / f"{done:.2f}")

    course = video_course(draw_shown(pipeline.vae, videos, seed, say))
    train_generator(pipeline, steps, seed, say, snapshot, batch=32, course=course, stream=23)
    pipeline.transformer.half()  # half the bytes; diffusers reads them back as float32, transformers would not
    pipeline.vae.half()
    pipeline.save_pretrained(folder)
