"""How the small video generator base is made: a Wan pipeline (flow matching on latents) trained from scratch.

One set of weights draws from a text alone and from a first picture, too, in the way of Wan 2.2's 5B
(`expand_timesteps`): every token has its own time, and a given first latent frame is clean, at time 0. Half of each
batch is of that kind. Like the picture base it is imperfect on purpose: a share of its captions is wrong in one thing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from torch import Tensor
from torch.nn import functional as F
from transformers import UMT5Config, UMT5EncoderModel

from rewarddance.runtime.checkpoint import BUNDLED
from rewarddance.shapeworld.motion.scripts import FRAMES, new_script, scenes_of
from rewarddance.shapeworld.motion.specs import (
    MOTION_CATEGORIES,
    MotionSpec,
    all_motion_specs,
    motion_near_miss,
    motion_words,
    sample_motion,
)
from rewarddance.shapeworld.motion.videos import VIDEO_DEFECTS, Video, render_video, spoil_video, video_pixels
from rewarddance.shapeworld.training.generator import (
    CAPTION_DROP,
    CAPTION_NOISE,
    Objective,
    save_generator_base,
    train_generator,
    untrained,
)
from rewarddance.shapeworld.training.loop import TrainingLoop, cosine, snapshots_of
from rewarddance.shapeworld.training.patch_heads import patch_labels
from rewarddance.shapeworld.training.tokenizer import prompt_corpus, train_tokenizer
from rewarddance.shapeworld.training.vae import train_vae

BASE = BUNDLED / "shapeworld-video-generator"
"""The bundled base, whose configuration says the architecture."""
TEXT_LENGTH = 24
"""Tokens that a prompt is padded to, here and by whoever samples from this base (`max_sequence_length`)."""
EVERY = 2
"""Frames that make one latent frame, after the first."""
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
    text_encoder = UMT5EncoderModel(UMT5Config.from_pretrained(BASE / "text_encoder", vocab_size=len(tokenizer)))
    vae = untrained(AutoencoderKLWan, BASE / "vae", latents_mean=[0.0] * 8, latents_std=[1.0] * 8)
    transformer = untrained(WanTransformer3DModel, BASE / "transformer")
    scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=2.0)
    return WanPipeline(tokenizer, text_encoder, vae, scheduler, transformer, expand_timesteps=True)


def sample_task(rng: np.random.Generator) -> MotionSpec:
    """A random prompt, the categories in `SHARES`."""
    specs = all_motion_specs()[MOTION_CATEGORIES[int(rng.choice(len(SHARES), p=SHARES))]]
    return specs[int(rng.integers(len(specs)))]


def _vae_pixels(videos: list[Video]) -> Tensor:
    """Videos as the VAE takes them: [N, 3, T, H, W] in [-1, 1]."""
    return torch.stack([video_pixels(video) for video in videos]).transpose(1, 2) * 2 - 1


def _vae_batch(n: int, rng: np.random.Generator) -> Tensor:
    """Videos [n, 3, T, H, W] in [-1, 1]; a third with a defect, so that the decoder can show bad videos too."""
    videos = []
    for _ in range(n):
        video = render_video(new_script(sample_motion(rng), FRAMES, rng))
        if rng.random() < 0.33:
            defect = VIDEO_DEFECTS[int(rng.integers(len(VIDEO_DEFECTS)))]
            video = spoil_video(video, defect, float(rng.random()), int(rng.integers(2**31)))
        videos.append(video)
    return _vae_pixels(videos)


def train_video_vae(
    vae: Any, stills: int, steps: int, decoder_steps: int, seed: int, log: Callable[[str], None]
) -> None:
    """Train the VAE; sets the latents' mean and deviation by channel.

    First on single frames, `stills` batches of 32, then on 16 videos a step. Then the decoder alone, on latents with up
    to a tenth of noise, as a generator's have.
    """
    rng = np.random.default_rng([seed, 21])
    torch.manual_seed(seed + 21)

    def draw(step: int) -> Tensor:
        videos = _vae_batch(16, rng)
        return torch.cat([videos[:, :, :1], videos[:, :, -1:]]) if step <= stills else videos

    train_vae(vae, draw, stills + steps, learning_rate=3e-3, log=log, l1_warm_up=max(1, stills))
    with torch.no_grad():
        latents = torch.cat([vae.encode(_vae_batch(16, rng)).latent_dist.mode() for _ in range(16)])
    mean, std = latents.transpose(0, 1).flatten(1).mean(1), latents.transpose(0, 1).flatten(1).std(1)
    vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())
    weights = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
    loop = TrainingLoop("decoder", weights, decoder_steps, rate=cosine(2e-3, 50), weight_decay=1e-4, log=log)
    for _ in loop:
        videos = _vae_batch(16, rng)
        with torch.no_grad():
            latents = vae.encode(videos).latent_dist.mode()
        noise = 0.1 * torch.rand(16, 1, 1, 1, 1) * std.view(-1, 1, 1, 1) * torch.randn_like(latents)
        error = vae.decode(latents + noise).sample - videos
        loop.learn(error.square().mean() + error.abs().mean(), mse=error.square().mean())


class EncodedVideos(NamedTuple):
    """The videos that are trained on.

    specs: what each of the N shows.
    latents: [N, C, T, H, W], of mean 0 and deviation 1.
    labels: what each quarter of a token shows in the last of its frames, [N, tokens x 4, 4] (see `patch_labels`).
    """

    specs: list[MotionSpec]
    latents: Tensor
    labels: Tensor


def encode_videos(vae: Any, n: int, seed: int, log: Callable[[str], None]) -> EncodedVideos:
    """Draw and encode `n` videos once; every step of training takes some of them, with new captions and noises."""
    rng = np.random.default_rng([seed, 22])
    mean, std = (torch.tensor(v).view(-1, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
    specs, latents, labels, batch = [], [], [], 60
    for start in range(0, n, batch):
        videos = []
        for _ in range(min(batch, n - start)):
            spec = sample_task(rng)
            script = new_script(spec, FRAMES, rng)
            specs.append(spec)
            videos.append(render_video(script))
            labels.append(token_labels(np.stack([patch_labels(scene) for scene in scenes_of(script)[::EVERY]])))
        with torch.no_grad():
            latents.append(((vae.encode(_vae_pixels(videos)).latent_dist.mode() - mean) / std).half())
        if start and start % 3000 == 0:
            log(f"videos drawn {start}")
    return EncodedVideos(specs, torch.cat(latents), torch.from_numpy(np.stack(labels)))


def token_labels(labels: np.ndarray) -> np.ndarray:
    """Labels [T, 64, 4] of 4x4 patches in rows, in the order of tokens of 2x2 of them: [T x 64, 4], int8."""
    return labels.reshape(-1, 4, 2, 4, 2, 4).swapaxes(2, 3).reshape(-1, 4).astype(np.int8)


def caption_of(spec: MotionSpec, rng: np.random.Generator) -> str:
    """The caption of a video: sometimes wrong in one thing, sometimes empty."""
    captioned = motion_near_miss(spec, rng) if rng.random() < CAPTION_NOISE else spec
    return "" if rng.random() < CAPTION_DROP else captioned.paraphrase(rng)


def video_objective(pipeline: Any, videos: EncodedVideos) -> Objective:
    """Flow matching: x_t = (1 - sigma) x_0 + sigma eps, the transformer learns v = eps - x_0.

    In every second video of a batch the first latent frame is clean, its tokens have time 0, and it is no part of the
    loss. The patch heads name what each quarter of a token will show.
    """
    transformer = pipeline.transformer

    def draw(n: int, rng: np.random.Generator) -> tuple[list[str], Tensor, Tensor]:
        chosen = torch.from_numpy(rng.integers(len(videos.specs), size=n))
        captions = [caption_of(videos.specs[i], rng) for i in chosen.tolist()]
        return captions, videos.latents[chosen].float(), videos.labels[chosen].long()

    def loss(x_0: Tensor, text: Tensor) -> Tensor:
        eps = torch.randn_like(x_0)
        sigma = torch.sigmoid(torch.randn(len(x_0), 1, 1, 1, 1) * 1.2 + 0.5)
        sigma = sigma.expand(-1, -1, *x_0.shape[2:]).clone()
        sigma[1::2, :, 0] = 0.0
        time = 1000 * sigma[:, 0, :, ::2, ::2].flatten(1)
        v = transformer((1 - sigma) * x_0 + sigma * eps, time, text, return_dict=False)[0]
        noisy = (sigma > 0).expand_as(v)
        return F.mse_loss(v[noisy], (eps - x_0)[noisy])

    quarters = 4
    return Objective(
        transformer,
        draw,
        loss,
        transformer.blocks[len(transformer.blocks) // 2],
        lambda hidden: hidden.unflatten(-1, (quarters, -1)).flatten(1, 2),
        transformer.config.num_attention_heads * transformer.config.attention_head_dim // quarters,
        {"do_classifier_free_guidance": False, "max_sequence_length": TEXT_LENGTH},
    )


def make_video_generator_base(
    folder: Path,
    *,
    stills: int = STILLS,
    vae_steps: int = VAE_STEPS,
    decoder_steps: int = DECODER_STEPS,
    videos: int = VIDEOS,
    steps: int = STEPS,
    seed: int = 0,
    log: Callable[[str], None] = print,
) -> None:
    """Make the video generator base and save it as a plain diffusers folder; ten snapshots go beside it.

    The folder is a `WanPipeline`; the option `pipeline: WanImageToVideoPipeline` begins from a picture with the same
    weights.
    """
    pipeline = build_video_pipeline(seed)
    train_video_vae(pipeline.vae, stills, vae_steps, decoder_steps, seed, log)
    pipeline.vae.eval().requires_grad_(False)
    objective = video_objective(pipeline, encode_videos(pipeline.vae, videos, seed, log))
    snapshot = snapshots_of(folder, pipeline.save_pretrained)
    train_generator(pipeline, objective, steps, seed, log=log, snapshot=snapshot, batch=32, stream=23)
    save_generator_base(pipeline, pipeline.transformer, folder)
