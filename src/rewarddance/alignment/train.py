"""Align a generator with a judge: sample, ask, score, loss, step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from pydantic import Field, model_validator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rewarddance.alignment.references import References
from rewarddance.alignment.refl import LOSSES, denoising_mse, velocity_mse
from rewarddance.alignment.relay import through_decoder
from rewarddance.alignment.safeguards import Ema, jittered
from rewarddance.errors import InputError, RewardError
from rewarddance.generators.sampling import rollout
from rewarddance.protocols import Generator, RewardModel
from rewarddance.reward.gradient import PixelGradient, pixel_gradient
from rewarddance.runtime.checkpoint import newest_complete, replacing
from rewarddance.runtime.config import Recipe
from rewarddance.runtime.tracking import Metrics, progress_bar
from rewarddance.types import PixelBatch, Pixels, Question

LEVELS = 4
"""Noise levels a step to which references are noised, so that one step is not all of one level."""


class ReflRecipe(Recipe):
    """How ReFL runs. The paper leaves all of this open; every default is ours.

    prompts_per_step, group_size: P prompts with G samples each make a step. warmup, cooldown: shares of the steps over
    which the learning rate rises from zero, and falls to it at the end. lora_rank: 0 trains all weights. lora_targets:
    ends of the names of the layers that get a LoRA; by default the generator's family says. late: range of the random
    step at which the gradient is taken, as shares of the schedule (0 pure noise, 1 the last step). loss, cap: see
    `refl.LOSSES`. velocity_mse: weight of the distance to the base's velocity. reference_mse: weight of the denoising
    loss on the step's references, noised anew (`denoise`). jitter_copies: the reward is averaged over this many copies
    of each picture, each shifted by up to jitter_shift pixels and noised by jitter_noise. judge_batch: pictures whose
    gradient is taken together; decode_batch, generator_batch: samples that go through decoder and generator together
    with a graph, by default all of the step's, fewer where memory is short. ema_decay: of the weights that are
    delivered. probe_every, save_every: steps between probes and between checkpoints.
    """

    steps: int = Field(default=100, ge=1)
    prompts_per_step: int = Field(default=8, ge=1)
    group_size: int = Field(default=4, ge=1)
    learning_rate: float = Field(default=1e-5, gt=0)
    warmup: float = Field(default=0.05, ge=0, lt=1)
    cooldown: float = Field(default=0.0, ge=0, le=1)
    max_grad_norm: float = Field(default=1.0, gt=0)
    lora_rank: int = Field(default=16, ge=0)
    lora_alpha: int = Field(default=16, ge=1)
    lora_targets: tuple[str, ...] = ()
    late: tuple[float, float] = (0.5, 1.0)
    loss: Literal["linear", "hinge", "log", "margin"] = "hinge"
    cap: float = Field(default=0.9, gt=0, lt=1)
    velocity_mse: float = Field(default=0.1, ge=0)
    reference_mse: float = Field(default=0.0, ge=0)
    jitter_copies: int = Field(default=1, ge=1)
    jitter_shift: int = Field(default=0, ge=0)
    jitter_noise: float = Field(default=0.0, ge=0)
    judge_batch: int = Field(default=16, ge=1)
    decode_batch: int | None = Field(default=None, ge=1)
    generator_batch: int | None = Field(default=None, ge=1)
    ema_decay: float = Field(default=0.95, ge=0, lt=1)
    probe_every: int = Field(default=20, ge=1)
    save_every: int = Field(default=20, ge=1)

    @model_validator(mode="after")
    def _late_is_a_range(self) -> ReflRecipe:
        if not 0 <= self.late[0] < self.late[1] <= 1:
            raise ValueError("late must be two rising shares between 0 and 1")
        return self

    @model_validator(mode="after")
    def _targets_get_a_lora(self) -> ReflRecipe:
        if self.lora_targets and not self.lora_rank:
            raise ValueError("lora_targets are used with a lora_rank only")
        return self


class Trainable(Generator, Protocol):
    """A generator that can be trained, with LoRA or all of it, and can step back to what it was."""

    def add_lora(self, rank: int, alpha: int, targets: Sequence[str] = ()) -> list[nn.Parameter]: ...
    def train_all(self) -> list[nn.Parameter]: ...
    def as_before_training(self) -> Any: ...
    def save_lora(self, folder: Path) -> None: ...
    def save(self, folder: Path) -> None: ...


def train_refl(
    generator: Trainable,
    judge: RewardModel,
    bank: Sequence[References],
    recipe: ReflRecipe,
    folder: Path,
    metrics: Metrics,
    seed: int = 0,
    probe: Callable[[], dict[str, float]] = dict,
) -> Path:
    """ReFL (paper, section 3): raise P("yes") of a late step's one-step prediction against the prompt's references.

    On return `generator` carries the average of its trained weights. Returns where it is on disk, too: `folder`/lora,
    or `folder`/generator, a plain diffusers folder, where all weights were trained. Continues from the newest
    checkpoint in `folder`; every random draw depends on (seed, step) alone, so the result does not depend on where a
    run was interrupted. probe: figures of the EMA generator, measured every probe_every steps and logged.
    """
    if not bank:
        raise InputError("the reference bank is empty.", "Give ReFL at least one prompt.")
    if recipe.lora_rank:
        weights = generator.add_lora(recipe.lora_rank, recipe.lora_alpha, recipe.lora_targets)
        _reset_lora(weights, seed)
    else:
        weights = generator.train_all()
    optimiser = torch.optim.AdamW(weights, lr=recipe.learning_rate, weight_decay=0.0)
    ema = Ema(weights, recipe.ema_decay)
    first = _resume(folder, weights, optimiser, ema)
    metrics.rewind("refl", first or -1)  # without a checkpoint the first probe comes again too
    with progress_bar("ReFL", recipe.steps, first) as bar:
        for step in range(first, recipe.steps + 1):
            new = step > first or step == 0  # a resumed run's first step was probed before its checkpoint
            if new and (step % recipe.probe_every == 0 or step == recipe.steps):
                with ema.applied():
                    metrics.log("refl", step, **probe())
            if step % recipe.save_every == 0 and step > first:
                _save(folder, step, weights, optimiser, ema)
            if step == recipe.steps:
                break
            try:
                figures = refl_step(generator, judge, bank, recipe, seed, step)
            except RewardError as error:
                raise RewardError(f"ReFL stopped at step {step}: {error.what}", error.remedy) from error
            norm = torch.nn.utils.clip_grad_norm_(weights, recipe.max_grad_norm)
            if not torch.isfinite(norm):
                raise RewardError(f"the gradient of step {step} is not finite.", "Lower learning_rate or raise jitter.")
            for group in optimiser.param_groups:
                group["lr"] = recipe.learning_rate * _rate(step, recipe)
            optimiser.step()
            optimiser.zero_grad()
            ema.update()
            metrics.log("refl", step + 1, gradient_norm=float(norm), **figures)
            bar.advance()
            bar.show(reward=figures["reward"], margin=figures["margin"])
    ema.deliver()
    if recipe.lora_rank:
        generator.save_lora(folder / "lora")
        return folder / "lora"
    with replacing(folder / "generator") as place:
        generator.save(place)
    return folder / "generator"


def refl_step(
    generator: Trainable,
    judge: RewardModel,
    bank: Sequence[References],
    recipe: ReflRecipe,
    seed: int,
    step: int,
) -> dict[str, float]:
    """One step's samples, verdicts, loss and backward; the gradient is left on the weights. Returns what to log."""
    draw = np.random.default_rng([seed, 2, step])
    noise_rng = torch.Generator().manual_seed(int(draw.integers(2**31)))
    chosen = [bank[i] for i in _prompts_of_step(len(bank), recipe.prompts_per_step, seed, step)]
    group = [references for references in chosen for _ in range(recipe.group_size)]
    prompts, seeds = [one.prompt for one in group], draw.integers(2**31, size=len(group)).tolist()
    low, high = (round(share * (generator.num_steps - 1)) for share in recipe.late)
    stop = int(draw.integers(low, high + 1))

    x_t = rollout(generator, prompts, seeds, stop).x_t
    parts = torch.arange(len(group)).split(recipe.generator_batch or len(group))
    conditions = [generator.encode([prompts[int(row)] for row in rows]) for rows in parts]
    at_once = len(parts) == 1  # then one forward is enough: its graph waits for the judge and the decoder

    def velocity(part: int) -> Tensor:
        return generator.predict(x_t[parts[part]], stop, conditions[part])

    with torch.set_grad_enabled(at_once):
        velocities = [velocity(part) for part in range(len(parts))]
    x_0 = generator.clean(x_t, torch.cat(velocities).detach(), stop)
    places = [one.choose(draw, own) for one, own in zip(group, seeds, strict=True)]
    references = [one.pictures[place] for one, place in zip(group, places, strict=True)]

    def ask(pixels: PixelBatch) -> PixelGradient:
        return judge_copies(judge, prompts, pixels, references, recipe, noise_rng)

    judged, gradient = through_decoder(generator.decode, x_0, ask, recipe.decode_batch or len(group))
    away = 0.0
    for part, rows in enumerate(parts):
        v = velocities[part] if at_once else velocity(part)
        with generator.as_before_training(), torch.no_grad():
            v_base = velocity(part)
        far = velocity_mse(v, v_base) * (len(rows) / len(group))
        torch.autograd.backward(
            [generator.clean(x_t[rows], v, stop), recipe.velocity_mse * far], [gradient[rows], None]
        )
        away += far.item()
    figures = {}
    if recipe.reference_mse:  # a graph of its own, after the reward's is gone
        x_0 = torch.stack([one.latents[place] for one, place in zip(group, places, strict=True)]).to(x_t)
        at_most = recipe.generator_batch or len(group)
        figures["reference_mse"] = denoise(generator, prompts, x_0, recipe.reference_mse, draw, noise_rng, at_most)

    margin = judged.verdict.margin
    by_group = margin.unflatten(0, (recipe.jitter_copies, len(chosen), recipe.group_size)).mean(0)
    return figures | {
        "loss": judged.loss + recipe.velocity_mse * away + recipe.reference_mse * figures.get("reference_mse", 0.0),
        "reward": margin.sigmoid().mean().item(),
        "margin": margin.mean().item(),
        "velocity_mse": away,
        "spread_within": by_group.std(1, correction=0).mean().item(),
        "spread_across": by_group.mean(1).std(correction=0).item(),
        "stop": stop,
    }


def judge_copies(
    judge: RewardModel,
    prompts: Sequence[str],
    pixels: PixelBatch,
    references: Sequence[Pixels],
    recipe: ReflRecipe,
    noise_rng: torch.Generator,
) -> PixelGradient:
    """The loss of jittered copies of pictures [B, T, C, H, W] against their references, sent back to the pictures."""
    copies = [
        jittered(pixels, noise_rng, recipe.jitter_shift, recipe.jitter_noise) for _ in range(recipe.jitter_copies)
    ]
    questions = [Question(*one) for copy in copies for one in zip(prompts, copy, references, strict=True)]
    judged = pixel_gradient(judge, questions, partial(LOSSES[recipe.loss], cap=recipe.cap), recipe.judge_batch)
    torch.autograd.backward([question.candidate for question in questions], judged.gradients)
    return judged


def denoise(
    generator: Trainable,
    prompts: Sequence[str],
    x_0: Tensor,
    weight: float,
    draw: np.random.Generator,
    noise_rng: torch.Generator,
    at_most: int,
) -> float:
    """Backward of weight times the denoising loss of clean latents x_0 [B, ...]; returns the loss without the weight.

    They are noised to LEVELS steps of the whole schedule, a part of the batch to each: what the reward's gradient does
    not reach stays as it is, too. at_most: latents that go through the generator together.
    """
    total = 0.0
    for of_level in torch.arange(len(x_0)).chunk(LEVELS):
        step = int(draw.integers(generator.num_steps))
        alpha, sigma = generator.scales(step)
        eps = torch.randn(x_0[of_level].shape, generator=noise_rng).to(x_0)
        for rows, noise in zip(of_level.split(at_most), eps.split(at_most), strict=True):
            x_t = alpha * x_0[rows] + sigma * noise
            prediction = generator.predict(x_t, step, generator.encode([prompts[int(row)] for row in rows]))
            loss = denoising_mse(generator.clean(x_t, prediction, step), x_0[rows], sigma) * (len(rows) / len(x_0))
            (weight * loss).backward()
            total += loss.item()
    return total


def _prompts_of_step(n: int, k: int, seed: int, step: int) -> list[int]:
    """Prompts in a random order, every prompt once before any comes again."""
    return [
        int(np.random.default_rng([seed, 3, at // n]).permutation(n)[at % n]) for at in range(step * k, (step + 1) * k)
    ]


def _rate(step: int, recipe: ReflRecipe) -> float:
    """Linear warm-up, constant, and linearly towards zero over the last `cooldown` of the steps."""
    rise = (step + 1) / max(1, math.ceil(recipe.warmup * recipe.steps))
    fall = (recipe.steps - step) / max(1, math.ceil(recipe.cooldown * recipe.steps))
    return min(1.0, rise, fall)


def _reset_lora(weights: Sequence[nn.Parameter], seed: int) -> None:
    """LoRA's first factor from the run's seed (the second stays zero), so that a run repeats itself."""
    rng = torch.Generator().manual_seed(seed)
    for weight in weights:
        if weight.detach().any():
            bound = 1 / math.sqrt(weight.shape[1])
            with torch.no_grad():
                weight.copy_((torch.rand(weight.shape, generator=rng) * 2 - 1) * bound)


def _save(folder: Path, step: int, weights: Sequence[Tensor], optimiser: torch.optim.Optimizer, ema: Ema) -> None:
    with replacing(folder / f"checkpoint-{step}") as place:
        save_file(
            {str(i): weight.detach().contiguous() for i, weight in enumerate(weights)}, place / "weights.safetensors"
        )
        save_file({str(i): weight.contiguous() for i, weight in enumerate(ema.average)}, place / "ema.safetensors")
        torch.save(optimiser.state_dict(), place / "optimiser.pt")


def _resume(folder: Path, weights: Sequence[nn.Parameter], optimiser: torch.optim.Optimizer, ema: Ema) -> int:
    """Load the newest complete checkpoint; returns the step to go on from."""
    newest = newest_complete(folder)
    if newest is None:
        return 0
    saved, average = load_file(newest / "weights.safetensors"), load_file(newest / "ema.safetensors")
    with torch.no_grad():
        for i, weight in enumerate(weights):
            weight.copy_(saved[str(i)])
    ema.load([average[str(i)] for i in range(len(weights))])
    optimiser.load_state_dict(torch.load(newest / "optimiser.pt", weights_only=True))
    return int(newest.name.rpartition("-")[2])
