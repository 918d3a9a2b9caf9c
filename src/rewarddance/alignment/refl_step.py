"""ReFL: the gradient of the judge's P("yes") through the decoder and one late denoising step, or the last few."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from rewarddance.alignment.references import References
from rewarddance.alignment.refl import LOSSES, denoising_mse
from rewarddance.alignment.relay import LastSteps, decoder_vjp
from rewarddance.alignment.safeguards import Ema, disagreeing, jittered
from rewarddance.alignment.train import Figures, Trainable, TrainRecipe, prompts_of_step, train
from rewarddance.data.frame_sampling import one_of_each
from rewarddance.data.image_stats import step_image_stats
from rewarddance.errors import InputError
from rewarddance.generators.sampling import encoded, rollout
from rewarddance.protocols import RewardModel
from rewarddance.reward.pixel_gradient import PixelGradient, checkpointing, pixel_gradient
from rewarddance.runtime.memory import memory_for
from rewarddance.runtime.process_group import all_gather, local_shard, rank, world_size
from rewarddance.runtime.tracking import Metrics
from rewarddance.types import OtherPixels, PixelBatch, Pixels, Prompt, Question

LEVELS = 4
"""Noise levels a step to which references are noised, so that one step is not all of one level."""

SAMPLING = "the generator, while it samples", "Lower refl.prompts_per_step or refl.group_size."
GENERATOR = "the generator", "Lower refl.generator_batch, or add generator to refl.checkpointing."
JUDGE = "the judge", "Lower refl.judge_batch, or add judge to refl.checkpointing."
"""What is said where a part runs out of memory (the decoder's is in `relay`)."""

CheckpointedPart = Literal["generator", "decoder", "judge"]


class ReflRecipe(TrainRecipe):
    """How ReFL runs (and `TrainRecipe`). The paper leaves all of this open; every default is ours.

    grad_step_range: range of the random step at which the gradient is taken, as shares of the schedule (0 pure noise,
    1 the last step). last_steps: with K > 1 the gradient goes through the last K steps of the sampler instead (DRaFT-K,
    2309.17400), and grad_step_range is left alone. loss, cap: see `refl.LOSSES`. velocity_mse: weight of the distance
    to the base's velocity. reference_mse: weight of the denoising loss on the step's references, noised anew
    (`denoise`), or of a random reference_batch of them. jitter_copies: the reward is averaged over this many copies
    of each picture, each shifted by up to jitter_shift pixels and noised by jitter_noise. frames: of a video, one at
    random out of each of so many equal stretches is decoded and judged, other ones each step, the same ones of the
    reference; by default all are, of which the judge reads those that its own `frames` says. judge_batch: pictures
    whose gradient is taken together; decode_batch: samples that go through the decoder together with a graph, by
    default all of the step's. checkpointing: parts whose layers keep their inputs only and are computed again on the
    way back: less memory, more time, the same gradient. gate: no gradient of samples on which a held-out judge
    disagrees. refresh_every: steps after which the references are made anew by the generator as it then is,
    refresh_from: by its average or by its current weights; by default those of the start stay.
    """

    grad_step_range: tuple[float, float] = (0.5, 1.0)
    last_steps: int = Field(default=1, ge=1)
    loss: Literal["linear", "hinge", "log", "margin"] = "hinge"
    cap: float = Field(default=0.9, gt=0, lt=1)
    velocity_mse: float = Field(default=0.1, ge=0)
    reference_mse: float = Field(default=0.0, ge=0)
    reference_batch: int | None = Field(default=None, ge=1)
    jitter_copies: int = Field(default=1, ge=1)
    jitter_shift: int = Field(default=0, ge=0)
    jitter_noise: float = Field(default=0.0, ge=0)
    frames: int | None = Field(default=None, ge=1)
    judge_batch: int = Field(default=16, ge=1)
    decode_batch: int | None = Field(default=None, ge=1)
    gate: bool = True
    checkpointing: tuple[CheckpointedPart, ...] = ()
    refresh_every: int | None = Field(default=None, ge=1)
    refresh_from: Literal["ema", "current"] = "ema"

    @model_validator(mode="after")
    def _late_is_a_range(self) -> ReflRecipe:
        if not 0 <= self.grad_step_range[0] < self.grad_step_range[1] <= 1:
            raise ValueError("grad_step_range must be two rising shares between 0 and 1")
        if self.last_steps > 1 and self.grad_step_range != type(self).model_fields["grad_step_range"].default:
            raise ValueError("grad_step_range says nothing where last_steps is above 1; leave one of them out")
        return self

    @model_validator(mode="after")
    def _references_are_enough(self) -> ReflRecipe:
        samples = self.prompts_per_step * self.group_size
        if self.reference_batch is not None and not self.reference_mse:
            raise ValueError("reference_batch is used with a reference_mse only")
        if self.reference_batch is not None and self.reference_batch > samples:
            raise ValueError(f"reference_batch is {self.reference_batch}, and a step has {samples} references")
        return self

    def check_processes(self, processes: int) -> None:
        """Raises InputError where the processes cannot share a step's samples, or the references that are denoised."""
        super().check_processes(processes)
        if self.reference_batch is not None and self.reference_batch % processes:
            raise InputError(
                f"{processes} processes cannot share {self.reference_batch} references equally (reference_batch).",
                f"Set it to a multiple of {processes}.",
            )

    def first_grad_steps(self, num_steps: int) -> tuple[int, int]:
        """The first and last step of a sampler of num_steps at which the gradient may begin.

        Raises InputError where last_steps are more than there are.
        """
        if self.last_steps > num_steps:
            raise InputError(
                f"refl.last_steps is {self.last_steps}, and the generator takes {num_steps} steps.", "Lower it."
            )
        if self.last_steps > 1:
            return num_steps - self.last_steps, num_steps - self.last_steps
        low, high = (round(share * (num_steps - 1)) for share in self.grad_step_range)
        return low, high


def train_refl(
    generator: Trainable,
    judge: RewardModel,
    bank: Sequence[References],
    recipe: ReflRecipe,
    folder: Path,
    metrics: Metrics,
    seed: int = 0,
    probe: Callable[[], Figures] = dict,
    held_out: RewardModel | None = None,
    redraw: Callable[[int, bool], Sequence[References]] | None = None,
) -> Path:
    """ReFL (paper, section 3): raise P("yes") of a late step's one-step prediction against the prompt's references.

    held_out: a judge that is asked beside it and gives no gradient; see `ReflRecipe.gate`. redraw: the bank of a step,
    for refresh_every; see `references.bank_refresher`. See `train` for what is returned, how a run goes on, and probe.
    """
    if not bank:
        raise InputError("the reference bank is empty.", "Give ReFL at least one prompt.")
    if recipe.refresh_every and redraw is None:
        raise InputError("refl.refresh_every is set, and nobody says how the bank is drawn.", "Give redraw.")
    recipe.first_grad_steps(generator.num_steps)
    drawn, now = 0, bank

    def updates(step: int, ema: Ema) -> Iterator[Figures]:
        nonlocal drawn, now
        due = step - step % recipe.refresh_every if recipe.refresh_every else 0
        if redraw is not None and due != drawn:
            with ema.applied() if recipe.refresh_from == "ema" else nullcontext():
                drawn, now = due, redraw(due, due == step)
        yield refl_step(generator, judge, now, recipe, seed, step, held_out)

    return train(generator, updates, recipe, folder=folder, metrics=metrics, title="ReFL", seed=seed, probe=probe)


def refl_step(
    generator: Trainable,
    judge: RewardModel,
    bank: Sequence[References],
    recipe: ReflRecipe,
    seed: int,
    step: int,
    held_out: RewardModel | None = None,
) -> dict[str, float]:
    """One step's samples, verdicts, loss and backward; the gradient is left on the weights. Returns what to log.

    Of several processes each takes its share of the samples, and the mean of their gradients is the step's; so are the
    means of their figures. Raises InputError naming the part that ran out of memory, and what to lower.
    """
    with ExitStack() as stack:
        network, decoder = ("generator" in recipe.checkpointing, "decoder" in recipe.checkpointing)
        if network or decoder:
            stack.enter_context(generator.checkpointed(network, decoder))
        if "judge" in recipe.checkpointing:
            stack.enter_context(checkpointing(judge))
        return _step(generator, judge, bank, recipe, seed, step, held_out)


def _step(
    generator: Trainable,
    judge: RewardModel,
    bank: Sequence[References],
    recipe: ReflRecipe,
    seed: int,
    step: int,
    held_out: RewardModel | None,
) -> Figures:
    draw = np.random.default_rng([seed, 2, step])
    noise_rng = torch.Generator().manual_seed(int(draw.integers(2**31)))
    chosen = [bank[i] for i in prompts_of_step(len(bank), recipe.prompts_per_step, seed, step)]
    group = [references for references in chosen for _ in range(recipe.group_size)]
    seeds = draw.integers(2**31, size=len(group)).tolist()
    low, high = recipe.first_grad_steps(generator.num_steps)
    stop = int(draw.integers(low, high + 1))
    places = [one.choose(draw, noise) for one, noise in zip(group, seeds, strict=True)]
    again = range(len(group))  # the samples whose references are denoised
    if recipe.reference_batch is not None and recipe.reference_batch < len(group):
        again = sorted(draw.permutation(len(group))[: recipe.reference_batch].tolist())
    denoised = local_shard([(group[i], places[i]) for i in again])
    group, seeds, places = local_shard(group), local_shard(seeds), local_shard(places)  # all is drawn by all alike
    prompts = [references.prompt for references in group]

    with memory_for(*SAMPLING):
        x_t = rollout(generator, prompts, seeds, stop).x_t
    parts = torch.arange(len(group)).split(recipe.generator_batch or len(group))
    conditions = [encoded(generator, prompts, rows) for rows in parts]
    tail = LastSteps(generator, conditions, parts, stop, recipe.last_steps)
    with memory_for(*GENERATOR):
        x_0 = tail.forward(x_t)
    references = [one.pictures[place] for one, place in zip(group, places, strict=True)]
    decode, references = judged_frames(generator, references, recipe.frames, draw)

    figures: Figures = {}

    def ask(pixels: PixelBatch) -> PixelGradient:
        figures.update(step_image_stats(pixels, len(chosen), all_gather))
        with memory_for(*JUDGE):
            said = judge_copies(judge, prompts, pixels, references, recipe, noise_rng)
            if held_out is not None:
                margin = said.verdict.margin.unflatten(0, (recipe.jitter_copies, len(group))).mean(0)
                figures.update(gate_gradients(held_out, prompts, pixels, references, margin, recipe.gate))
        return said

    judged, gradient = decoder_vjp(decode, x_0, ask, recipe.decode_batch or len(group))
    with memory_for(*GENERATOR):
        away = tail.backward(gradient, recipe.velocity_mse)
    if recipe.reference_mse:  # a graph of its own, after the reward's is gone
        latents = torch.stack([one.latents[place] for one, place in denoised]).to(x_t)
        of_latents = [references.prompt for references, _ in denoised]
        at_most = recipe.generator_batch or len(group)
        with memory_for(*GENERATOR), generator.without_guidance():
            told = partial(encoded, generator, of_latents)
            figures["reference_mse"] = denoise(generator, told, latents, recipe.reference_mse, draw, noise_rng, at_most)

    by_sample = all_gather(judged.verdict.margin.unflatten(0, (recipe.jitter_copies, len(group))).T)
    margin = by_sample.T.flatten()
    by_group = margin.unflatten(0, (recipe.jitter_copies, len(chosen), recipe.group_size)).mean(0)
    return figures | {
        "loss": judged.loss + recipe.velocity_mse * away + recipe.reference_mse * figures.get("reference_mse", 0.0),
        "reward": margin.sigmoid().mean().item(),
        "margin": margin.mean().item(),
        "velocity_mse": away,
        "spread_within": by_group.std(1, correction=0).mean().item(),
        "spread_across": by_group.mean(1).std(correction=0).item(),
        "spread_of_reward": by_group.sigmoid().std(correction=0).item(),
        "stop": stop,
    }


def judged_frames(
    generator: Trainable, references: Sequence[Pixels], wanted: int | None, draw: np.random.Generator
) -> tuple[Callable[[Tensor], PixelBatch], Sequence[OtherPixels]]:
    """What decodes the frames that are judged, and the same frames of the references; all of them where wanted is None.

    One out of each of `wanted` stretches: always the same, and a generator may learn to be good in these alone. Raises
    InputError where the videos have fewer.
    """
    if wanted is None:
        return generator.decode, references
    if wanted > (there := len(references[0])):
        raise InputError(f"refl.frames is {wanted}, and the videos have {there} frames.", "Lower it.")
    numbers = one_of_each(there, wanted, draw)
    return partial(some_frames, generator, numbers), only(references, numbers)


def some_frames(generator: Trainable, numbers: Sequence[int], x_0: Tensor) -> PixelBatch:
    """Some frames of what x_0 is decoded to; no more is decoded than they need, where the generator knows that."""
    decode = getattr(generator, "decode_frames", None)
    return decode(x_0, numbers) if decode else generator.decode(x_0)[:, list(numbers)]


def only(videos: Sequence[Pixels], numbers: Sequence[int]) -> list[OtherPixels]:
    """These frames of each video; one tensor for what is one, so that it is encoded once."""
    found = {id(video): video[list(numbers)] for video in videos}
    return [found[id(video)] for video in videos]


def judge_copies(
    judge: RewardModel,
    prompts: Sequence[Prompt],
    pixels: PixelBatch,
    references: Sequence[OtherPixels],
    recipe: ReflRecipe,
    noise_rng: torch.Generator,
) -> PixelGradient:
    """The loss of jittered copies of pictures [B, T, C, H, W] against their references, sent back to the pictures."""
    copies = [
        jittered(pixels, noise_rng, recipe.jitter_shift, recipe.jitter_noise) for _ in range(recipe.jitter_copies)
    ]
    questions = [
        Question(prompt, picture, reference)
        for copy in copies
        for prompt, picture, reference in zip(prompts, copy, references, strict=True)
    ]
    judged = pixel_gradient(judge, questions, partial(LOSSES[recipe.loss], cap=recipe.cap), recipe.judge_batch)
    torch.autograd.backward([question.candidate for question in questions], judged.gradients)
    return judged


@torch.no_grad()
def gate_gradients(
    held_out: RewardModel,
    prompts: Sequence[Prompt],
    pixels: PixelBatch,
    references: Sequence[OtherPixels],
    margin: Tensor,
    gate: bool,
) -> Figures:
    """Ask a held-out judge about the pictures too; with `gate`, the gradient of those it disagrees about becomes zero.

    margin [B]: what the judge in training said. Returns what to log.
    """
    asked = zip(prompts, pixels.detach(), references, strict=True)
    other = held_out([Question(prompt, picture, reference) for prompt, picture, reference in asked]).margin
    against = disagreeing(margin, other.to(margin.device))
    if gate and pixels.grad is not None:
        pixels.grad[against.to(pixels.device)] = 0
    return {"held_out_margin": other.mean().item(), "disagreeing": against.float().mean().item()}


def denoise(
    generator: Trainable,
    told: Callable[[Tensor], Any],
    x_0: Tensor,
    weight: float,
    draw: np.random.Generator,
    noise_rng: torch.Generator,
    at_most: int,
) -> float:
    """Backward of weight times the denoising loss of clean latents x_0 [B, ...]; returns the loss without the weight.

    It is the loss of the network's own prediction, as in training: a guided one is no mean of what may be there, and to
    fit it to x_0 would unlearn what guidance does.
    They are noised to LEVELS steps of the whole schedule, a part of the batch to each: what the reward's gradient does
    not reach stays as it is, too. told: the conditioning of some of their rows. at_most: latents that go through the
    generator together. x_0: this process's share; its rows are of the levels that they have among those of all.
    """
    total, b = 0.0, len(x_0)
    for of_level in torch.arange(b * world_size()).chunk(LEVELS):
        step = int(draw.integers(generator.num_steps))
        alpha, sigma = generator.scales(step)
        eps = torch.randn((len(of_level), *x_0.shape[1:]), generator=noise_rng).to(x_0)
        of_each = [of_level[(of_level >= r * b) & (of_level < (r + 1) * b)] for r in range(world_size())]
        mine = of_each[rank()] if len(of_each[rank()]) else None
        parts = (
            []
            if mine is None
            else list(zip((mine - rank() * b).split(at_most), eps[mine - of_level[0]].split(at_most), strict=True))
        )
        for k in range(max(math.ceil(len(one) / at_most) for one in of_each)):
            rows, noise = parts[k] if k < len(parts) else (torch.tensor([0]), eps[:1])
            share = len(rows) / b if k < len(parts) else 0.0  # who has none left goes along: weights may be in pieces
            x_t = alpha * x_0[rows] + sigma * noise
            prediction = generator.predict(x_t, step, told(rows))
            loss = denoising_mse(generator.predict_x0(x_t, prediction, step), x_0[rows], sigma) * share
            (weight * loss).backward()
            total += loss.item()
    return total
