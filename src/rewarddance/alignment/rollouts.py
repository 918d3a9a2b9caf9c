"""Groups of samples for policy gradients: drawn without a graph, and what an update needs of them kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rewarddance.alignment.grpo import STEPS, Step, log_prob
from rewarddance.errors import InputError
from rewarddance.generators.sampling import encoded
from rewarddance.protocols import Generator
from rewarddance.runtime.process_group import local_shard, world_size
from rewarddance.types import PixelBatch, Prompt, Scales, as_prompts


@dataclass(frozen=True)
class Noising:
    """Which steps of a rollout are random, and how: `kind` of `grpo.STEPS` at noise_level, from `start`, `length` long.

    shared_prefix: the samples of a group begin from one noise and part ways at `start`.
    """

    kind: str
    noise_level: float
    start: int
    length: int
    shared_prefix: bool

    def step(self, generator: Generator, x_t: Tensor, step: int, prediction: Tensor) -> Step:
        """The distribution of the latent after `step`, in float32."""
        x_0_hat = generator.predict_x0(x_t, prediction, step).float()
        now, after = generator.scales(step), generator.scales(step + 1)
        return STEPS[self.kind](x_t.float(), x_0_hat, now, after, self.noise_level)


@dataclass(frozen=True, eq=False)
class Rollouts:
    """B = P * G samples. x: the latents before each random step and after the last [W + 1, B, ...]; log_prob: of
    each random step [W, B]; pixels: the finished pictures [B, T, C, H, W]; x_0: what they were decoded from. told: the
    conditioning of each part; steps: each random step's distribution of each part [W][parts], if its graph was kept.
    """

    prompts: tuple[Prompt, ...]
    x: Tensor
    log_prob: Tensor
    pixels: PixelBatch
    x_0: Tensor
    told: Sequence[Any]
    steps: list[list[Step]]


def refuse_kind(generator: Generator, kind: str) -> None:
    """Raises InputError where steps of this kind are not the generator's."""
    middle: Scales = generator.scales(generator.num_steps // 2)
    if kind == "flow" and abs(middle.alpha + middle.sigma - 1) > 1e-4:
        raise InputError("the generator is no flow, so Flow-GRPO's steps do not fit it.", "Set kind to ddim.")


@torch.no_grad()
def sde_rollouts(
    generator: Generator,
    prompts: Sequence[str | Prompt],
    seeds: Sequence[Sequence[int]],
    noising: Noising,
    noise_rng: torch.Generator,
    parts: Sequence[Tensor],
    updates: int = 1,
    keep_graph: bool = False,
) -> Rollouts:
    """Sample G pictures for each of P prompts; the steps of the window are random, the others the sampler's own.

    seeds [P][G]: of the first noises; with a shared prefix each prompt's first one is used. parts: rows of the B
    samples, in order, that go through the generator together, in the rollout as in the update, so that both compute
    the same. All this is a process's share of the step;
    updates: of how many equal parts of it (see `process_group.local_shard`). keep_graph: of the random steps.
    """
    group, at_once = len(seeds[0]), max(map(len, parts))
    prompts = as_prompts(prompts)
    flat = [prompt for prompt in prompts for _ in range(group)]
    if noising.shared_prefix:
        x_t = generator.init_noise([own[0] for own in seeds])
        few = torch.arange(len(prompts)).split(at_once)
        conditions = [encoded(generator, prompts, rows) for rows in few]
        x_t = _sampled(generator, x_t, few, conditions, range(noising.start))
        x_t = x_t.repeat_interleave(group, 0)
        told = [encoded(generator, flat, rows) for rows in parts]
    else:
        told = [encoded(generator, flat, rows) for rows in parts]
        x_t = generator.init_noise([seed for own in seeds for seed in own])
        x_t = _sampled(generator, x_t, parts, told, range(noising.start))
    kept, log_probs, steps = [x_t], [], []
    for step in range(noising.start, noising.start + noising.length):
        noise = local_shard(torch.randn((len(x_t) * world_size(), *x_t.shape[1:]), generator=noise_rng), updates).to(
            x_t
        )
        after, likely = torch.empty_like(x_t), torch.empty(len(x_t), device=x_t.device)
        steps.append([])
        for rows, condition in zip(parts, told, strict=True):
            with torch.set_grad_enabled(keep_graph):
                found = noising.step(generator, x_t[rows], step, generator.predict(x_t[rows], step, condition))
            after[rows] = (found.mean + found.deviation * noise[rows]).to(after)
            likely[rows] = log_prob(after[rows], found)
            steps[-1] += [found] if keep_graph else []
        x_t = after
        kept.append(x_t)
        log_probs.append(likely)
    rest = range(noising.start + noising.length, generator.num_steps)
    x_t = _sampled(generator, x_t, parts, told, rest)
    pixels = torch.cat([generator.decode(x_t[rows]) for rows in parts])
    return Rollouts(tuple(flat), torch.stack(kept), torch.stack(log_probs), pixels, x_t, told, steps)


def _sampled(
    generator: Generator, x_t: Tensor, parts: Sequence[Tensor], conditions: Sequence[Any], steps: Sequence[int]
) -> Tensor:
    """The sampler's own steps, part by part."""
    for step in steps:
        after = torch.empty_like(x_t)
        for rows, condition in zip(parts, conditions, strict=True):
            after[rows] = generator.advance(x_t[rows], generator.predict(x_t[rows], step, condition), step)
        x_t = after
    return x_t
