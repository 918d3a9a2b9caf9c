"""Samplers, written once over the Generator protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from rewarddance.protocols import Generator
from rewarddance.types import PixelBatch, Prompt, Rollout, as_prompts


def encoded(generator: Generator, prompts: Sequence[Prompt], rows: Iterable[int] | Tensor) -> Any:
    """The conditioning of some rows of a batch."""
    return generator.encode([prompts[int(row)] for row in rows])


def merged_lora(generator: Generator) -> Any:
    """A block for forwards without a gradient, which cost less so where the generator knows how to merge its LoRA."""
    merge = getattr(generator, "merged_lora", None)
    return merge() if merge else nullcontext()


@torch.no_grad()
def rollout(generator: Generator, prompts: Sequence[str | Prompt], seeds: Sequence[int], stop: int) -> Rollout:
    """Denoise without graph from each seed's noise up to step `stop` (0 = the noise itself, S = the clean latent)."""
    prompts = as_prompts(prompts)
    condition = generator.encode(prompts)
    noise = x_t = generator.init_noise(seeds)
    with merged_lora(generator):
        for step in range(stop):
            x_t = generator.advance(x_t, generator.predict(x_t, step, condition), step)
    return Rollout(tuple(prompts), noise, x_t, stop)


@torch.no_grad()
def sample(
    generator: Generator,
    prompts: Sequence[str | Prompt],
    seeds: Sequence[int],
    batch_size: int = 64,
    tick: Callable[[int], None] = lambda n: None,
) -> PixelBatch:
    """Pictures [B, T, C, H, W] in [0, 1] of B prompts from B seeds; `tick` hears how many each batch finished."""
    return sample_with_latents(generator, prompts, seeds, batch_size, tick)[0]


@torch.no_grad()
def sample_with_latents(
    generator: Generator,
    prompts: Sequence[str | Prompt],
    seeds: Sequence[int],
    batch_size: int = 64,
    tick: Callable[[int], None] = lambda n: None,
) -> tuple[PixelBatch, Tensor]:
    """As `sample`, with the latents [B, ...] that the pictures were decoded from."""
    pictures, latents = [], []
    for part in _chunks(len(prompts), batch_size):
        latents.append(rollout(generator, prompts[part], seeds[part], generator.num_steps).x_t)
        pictures.append(generator.decode(latents[-1]))
        tick(len(pictures[-1]))
    return torch.cat(pictures), torch.cat(latents)


@torch.no_grad()
def predictions(
    generator: Generator,
    prompts: Sequence[str | Prompt],
    seeds: Sequence[int],
    stops: Sequence[int],
    batch_size: int = 64,
) -> tuple[PixelBatch, Tensor]:
    """One-step predictions of the clean picture, each taken at its own step of `stops` [B].

    Returns pixels [B, T, C, H, W] and the finished pictures of the same seeds, [B, T, C, H, W].
    """
    early, final = [], []
    for part in _chunks(len(prompts), batch_size):
        condition = generator.encode(as_prompts(prompts[part]))
        x_t, stop = generator.init_noise(seeds[part]), torch.tensor(stops[part])
        kept = torch.zeros_like(x_t)
        for step in range(generator.num_steps):
            prediction = generator.predict(x_t, step, condition)
            here = stop == step
            kept[here] = generator.predict_x0(x_t, prediction, step)[here]
            x_t = generator.advance(x_t, prediction, step)
        early.append(generator.decode(kept))
        final.append(generator.decode(x_t))
    return torch.cat(early), torch.cat(final)


def _chunks(n: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))
