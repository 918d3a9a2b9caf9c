"""Samplers, written once over the Generator protocol."""

from __future__ import annotations

import math
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


def for_sampling(generator: Generator) -> Any:
    """A block for forwards without a gradient, which cost less so where the generator knows how to save some."""
    saving = getattr(generator, "for_sampling", None)
    return saving() if saving else nullcontext()


def merged_lora(generator: Generator) -> Any:
    """The part of `for_sampling` that changes no precision: a LoRA stands in the weights themselves."""
    merging = getattr(generator, "merged_lora", None)
    return merging() if merging else nullcontext()


@torch.no_grad()
def rollout(generator: Generator, prompts: Sequence[str | Prompt], seeds: Sequence[int], stop: int) -> Rollout:
    """Denoise without graph from each seed's noise up to step `stop` (0 = the noise itself, S = the clean latent)."""
    prompts = as_prompts(prompts)
    condition = generator.encode(prompts)
    noise = x_t = generator.init_noise(seeds)
    with for_sampling(generator):
        for step in range(stop):
            x_t = generator.advance(x_t, generator.predict(x_t, step, condition), step)
    return Rollout(tuple(prompts), noise, x_t, stop)


@torch.no_grad()
def dpm_rollout(generator: Generator, prompts: Sequence[str | Prompt], seeds: Sequence[int], forwards: int) -> Rollout:
    """Denoise without graph by DPM-Solver++(2M), which takes `forwards` of the sampler's steps, evenly spaced.

    Second-order: each step extrapolates the prediction of x_0 from the last two, in the half log signal-to-noise ratio
    l = log(alpha / sigma); the steps at the ends, where l is infinite, are of first order. Source: 2211.01095,
    algorithm 2. Not the generator's own sampler: in half as many forwards its samples are about as good.
    Raises ValueError for more forwards than the sampler has steps.
    """
    if not 1 <= forwards <= generator.num_steps:
        raise ValueError(f"forwards is {forwards}, and the sampler has {generator.num_steps} steps")
    prompts = as_prompts(prompts)
    condition = generator.encode(prompts)
    noise = x_t = generator.init_noise(seeds)
    steps = [k * generator.num_steps // forwards for k in range(forwards)] + [generator.num_steps]
    ratios = [_log_ratio(*generator.scales(step)) for step in steps]
    before: Tensor | None = None
    with for_sampling(generator):
        for k, step in enumerate(steps[:-1]):
            x_0 = generator.predict_x0(x_t, generator.predict(x_t, step, condition), step)
            (_, sigma), (alpha_next, sigma_next) = generator.scales(step), generator.scales(steps[k + 1])
            gap = ratios[k + 1] - ratios[k]
            aim = x_0
            if before is not None and math.isfinite(gap) and math.isfinite(ratios[k - 1]):
                aim = x_0 + (x_0 - before) * (gap / (ratios[k] - ratios[k - 1]) / 2)
            x_t = (sigma_next / sigma) * x_t - alpha_next * math.expm1(-gap) * aim
            before = x_0
    return Rollout(tuple(prompts), noise, x_t, generator.num_steps)


def _log_ratio(alpha: float, sigma: float) -> float:
    """log(alpha / sigma), infinite for pure noise and for clean latents."""
    if not alpha or not sigma:
        return -math.inf if sigma else math.inf
    return math.log(alpha / sigma)


@torch.no_grad()
def sample(
    generator: Generator,
    prompts: Sequence[str | Prompt],
    seeds: Sequence[int],
    batch_size: int = 64,
    tick: Callable[[int], None] = lambda n: None,
) -> PixelBatch:
    """Pictures [B, T, C, H, W] in [0, 1] of B prompts from B seeds; `tick` hears how many each batch finished."""
    return sample_with_latents(generator, prompts, seeds, batch_size, lambda pictures: tick(len(pictures)))[0]


@torch.no_grad()
def sample_with_latents(
    generator: Generator,
    prompts: Sequence[str | Prompt],
    seeds: Sequence[int],
    batch_size: int = 64,
    drawn: Callable[[PixelBatch], object] = lambda pictures: None,
    forwards: int | None = None,
) -> tuple[PixelBatch, Tensor]:
    """As `sample`, with the latents [B, ...] that the pictures were decoded from.

    drawn: is given each batch's pictures.
    forwards: by `dpm_rollout` with so many instead of the generator's own sampler.
    """
    pictures, latents = [], []
    for part in _chunks(len(prompts), batch_size):
        if forwards is None:
            done = rollout(generator, prompts[part], seeds[part], generator.num_steps)
        else:
            done = dpm_rollout(generator, prompts[part], seeds[part], forwards)
        latents.append(done.x_t)
        pictures.append(generator.decode(latents[-1]))
        drawn(pictures[-1])
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
        with for_sampling(generator):
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
