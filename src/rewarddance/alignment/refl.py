"""ReFL: the gradient of the judge's P("yes") through the decoder and one late denoising step, or the last few.

Paper, section 3. First its objectives, each a pure function of tensors (cap and regulariser after 2508.21066), then a
step: draw a batch, roll it out, judge it, and send the judge's gradient back to the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from rewarddance.alignment.group_rewards import Judging
from rewarddance.alignment.references import Reference, References
from rewarddance.alignment.relay import LastSteps, decoder_vjp
from rewarddance.alignment.safeguards import Ema, disagreeing, jittered
from rewarddance.alignment.train import Alignment, Figures, Trainable, TrainRecipe, prompts_of_step
from rewarddance.data.frame_sampling import one_of_each
from rewarddance.data.image_stats import step_image_stats
from rewarddance.errors import InputError
from rewarddance.generators.sampling import encoded, rollout
from rewarddance.protocols import Generator, RewardModel
from rewarddance.reward.pixel_gradient import PixelGradient, checkpointing, pixel_gradient
from rewarddance.runtime.memory import memory_for
from rewarddance.runtime.process_group import all_gather, local_shard, rank, world_size
from rewarddance.types import OtherPixels, PixelBatch, Pixels, Prompt, Question

LEVELS = 4
"""Noise levels a step to which references are noised, so that one step is not all of one level."""

SAMPLING = "the generator, while it samples", "Lower refl.prompts_per_step or refl.group_size."
GENERATOR = "the generator", "Lower refl.generator_batch, or add generator to refl.checkpointing."
JUDGE = "the judge", "Lower refl.judge_batch, or add judge to refl.checkpointing."
"""What is said where a part runs out of memory (the decoder's is in `relay`)."""

CheckpointedPart = Literal["generator", "decoder", "judge"]


# -- objectives ------------------------------------------------------------------------------------------------------


def linear_loss(margin: Float[Tensor, " B"], cap: float = 1.0) -> Float[Tensor, ""]:
    """- mean P(yes). The cap is not used: this is the loss that a generator hacks."""
    return -margin.sigmoid().mean()


def hinge_loss(margin: Float[Tensor, " B"], cap: float) -> Float[Tensor, ""]:
    """mean max(0, cap - P(yes)): a sample that the judge already prefers with probability cap teaches nothing more."""
    return F.relu(cap - margin.sigmoid()).mean()


def log_loss(margin: Float[Tensor, " B"], cap: float) -> Float[Tensor, ""]:
    """mean max(0, log cap - log P(yes)): steep where the judge is sure of no, where the hinge is flat."""
    return F.relu(math.log(cap) - F.logsigmoid(margin)).mean()


def margin_loss(margin: Float[Tensor, " B"], cap: float) -> Float[Tensor, ""]:
    """mean max(0, logit(cap) - margin): equal slope for all samples below the cap."""
    return F.relu(math.log(cap / (1 - cap)) - margin).mean()


LOSSES = {"linear": linear_loss, "hinge": hinge_loss, "log": log_loss, "margin": margin_loss}


def denoising_mse(x_0_hat: Float[Tensor, "B ..."], x_0: Float[Tensor, "B ..."], sigma: float) -> Float[Tensor, ""]:
    """mean || (x_0_hat - x_0) / sigma ||^2 per element: a flow's velocity loss, and v-prediction's, at noise sigma.

    For a network that predicts eps it is eps' error by alpha^2, which near pure noise weighs a hundredfold.

    On the references it is the pre-training term of ImageReward's ReFL (2304.05977, algorithm 1), whose pictures come
    from a data set; that ours are the judge's own winners is our choice.
    """
    return F.mse_loss(x_0_hat / sigma, x_0 / sigma)


# -- the recipe ------------------------------------------------------------------------------------------------------


class ReflRecipe(TrainRecipe):
    """How ReFL runs (and `TrainRecipe`). The paper leaves all of this open; every default is ours.

    grad_step_range: range of the random step at which the gradient is taken, as shares of the schedule (0 pure noise,
        1 the last step).
    last_steps: with K > 1 the gradient goes through the last K steps of the sampler instead (DRaFT-K, 2309.17400), and
        grad_step_range is left alone.
    loss, cap: see `LOSSES`.
    velocity_mse: weight of the distance to the base's velocity.
    reference_mse: weight of the denoising loss on the step's references, noised anew (`denoise`), or on a random
        reference_batch of them.
    jitter_copies: the reward is averaged over this many copies of each picture, each shifted by up to jitter_shift
        pixels and noised by jitter_noise.
    frames: of a video, one at random out of each of so many equal stretches is decoded and judged, and the same ones of
        the reference; by default all are, of which the judge reads those that its own `frames` says.
    judge_batch: pictures whose gradient is taken together.
    decode_batch: samples that go through the decoder together with a graph, by default all of the step's.
    gate: no gradient of samples on which a held-out judge disagrees.
    checkpointing: parts whose layers keep their inputs only and are computed again on the way back: less memory, more
        time, the same gradient.
    refresh_every: steps after which the references are made anew by the generator as it then is, by its average or by
        its current weights (refresh_from); by default those of the start stay.
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
    def _steps_are_a_range(self) -> ReflRecipe:
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

    def check(self, generator: Generator, judge: RewardModel) -> None:
        """Raises InputError where last_steps are more than the sampler has, or the judge gives no gradient."""
        self.first_grad_steps(generator.num_steps)
        if getattr(judge, "differentiable", None) is False:
            raise InputError(
                f"ReFL follows the reward's gradient in pixels, and {judge!r} gives none.",
                "Set algorithm to grpo or nft, which only ask it.",
            )

    def judging_of(self, judge: RewardModel) -> Judging:
        return "references"


# -- a step ----------------------------------------------------------------------------------------------------------


def refl_updates(run: Alignment, step: int, ema: Ema) -> Iterator[Figures]:
    """One update a step, on references that are made anew where `refresh_every` says so."""
    assert isinstance(run.recipe, ReflRecipe) and run.bank is not None
    recipe, bank = run.recipe, run.bank
    if recipe.refresh_every and bank.redraw is None:
        raise InputError("refl.refresh_every is set, and nothing says how the bank is made anew.", "Leave it out.")
    due = step - step % recipe.refresh_every if recipe.refresh_every else 0
    if due != bank.step:
        with ema.applied() if recipe.refresh_from == "ema" else nullcontext():
            bank.move_to(due, now=due == step)
    judge = run.rewards[0].judge
    yield refl_step(run.generator, judge, bank.references, recipe, seed=run.seed, step=step, held_out=run.held_out)


def refl_step(
    generator: Trainable,
    judge: RewardModel,
    bank: Sequence[References],
    recipe: ReflRecipe,
    *,
    seed: int,
    step: int,
    held_out: RewardModel | None = None,
) -> Figures:
    """One step's samples, verdicts, loss and backward; the gradient is left on the weights. Returns what to log.

    held_out: a judge that is asked beside the first and gives no gradient; see `ReflRecipe.gate`. Of several processes
    each takes its share of the samples, and the mean of their gradients is the step's; so are the means of their
    figures. Raises InputError naming the part that ran out of memory, and what to lower.
    """
    batch = draw_batch(bank, recipe, generator.num_steps, seed, step)
    with checkpointed_parts(generator, judge, recipe.checkpointing):
        with memory_for(*SAMPLING):
            x_t = rollout(generator, batch.prompts, batch.seeds, batch.first).x_t
        parts = torch.arange(len(x_t)).split(recipe.generator_batch or len(x_t))
        conditions = [encoded(generator, batch.prompts, rows) for rows in parts]
        last_steps = LastSteps(generator, conditions, parts, batch.first, recipe.last_steps)
        with memory_for(*GENERATOR):
            x_0 = last_steps.forward(x_t)

        pictures = [reference.picture for reference in batch.references]
        decode, pictures = judged_frames(generator, pictures, recipe.frames, batch.rng)
        ask = partial(judge_batch, judge, held_out, batch, pictures, recipe)
        judged, gradient = decoder_vjp(decode, x_0, ask, recipe.decode_batch or len(x_0))
        with memory_for(*GENERATOR):
            velocity_distance = last_steps.backward(gradient, recipe.velocity_mse)
        figures = judged.figures
        if recipe.reference_mse:  # a graph of its own, after the reward's is gone
            with memory_for(*GENERATOR), generator.without_guidance():
                figures["reference_mse"] = denoise(generator, batch, recipe, like=x_t)
    loss = judged.loss + recipe.velocity_mse * velocity_distance
    loss += recipe.reference_mse * figures.get("reference_mse", 0.0)
    figures |= {"loss": loss, "velocity_mse": velocity_distance, "stop": batch.first}
    return figures | margin_figures(judged.margins, recipe.group_size)


@contextmanager
def checkpointed_parts(generator: Trainable, judge: RewardModel, parts: Sequence[CheckpointedPart]) -> Iterator[None]:
    """Within the block these parts keep their layers' inputs only."""
    network, decoder = "generator" in parts, "decoder" in parts
    with ExitStack() as stack:
        if network or decoder:
            stack.enter_context(generator.checkpointed(network, decoder))
        if "judge" in parts:
            stack.enter_context(checkpointing(judge))
        yield


@dataclass(frozen=True, eq=False)
class ReflBatch:
    """What a step draws: this process's share of its B samples. All processes draw alike.

    references, seeds: of each sample, the one it is judged against and the seed of its noise.
    denoised: references on which the denoising loss is taken.
    first: the step at which the gradient begins.
    rng, noise_rng: for what is drawn later in the step.
    """

    references: list[Reference]
    seeds: list[int]
    denoised: list[Reference]
    first: int
    rng: np.random.Generator
    noise_rng: torch.Generator

    @property
    def prompts(self) -> list[Prompt]:
        return [reference.prompt for reference in self.references]


def draw_batch(bank: Sequence[References], recipe: ReflRecipe, num_steps: int, seed: int, step: int) -> ReflBatch:
    """Prompts, noises, references and the gradient's step. All depends on (seed, step) alone."""
    rng = np.random.default_rng([seed, 2, step])
    noise_rng = torch.Generator().manual_seed(int(rng.integers(2**31)))
    chosen = [bank[i] for i in prompts_of_step(len(bank), recipe.prompts_per_step, seed, step)]
    group = [references for references in chosen for _ in range(recipe.group_size)]
    seeds = rng.integers(2**31, size=len(group)).tolist()
    low, high = recipe.first_grad_steps(num_steps)
    first = int(rng.integers(low, high + 1))
    references = [of_prompt.at(of_prompt.choose(rng, noise)) for of_prompt, noise in zip(group, seeds, strict=True)]
    denoised = references
    if recipe.reference_batch is not None and recipe.reference_batch < len(group):
        denoised = [references[i] for i in sorted(rng.permutation(len(group))[: recipe.reference_batch].tolist())]
    return ReflBatch(local_shard(references), local_shard(seeds), local_shard(denoised), first, rng, noise_rng)


def judged_frames(
    generator: Trainable, references: Sequence[Pixels], wanted: int | None, draw: np.random.Generator
) -> tuple[Callable[[Tensor], PixelBatch], Sequence[OtherPixels]]:
    """What decodes the frames that are judged, and the same frames of the references; all of them where wanted is None.

    They are one at random out of each of `wanted` equal stretches: were they always the same, a generator might learn
    to be good in these alone. Raises InputError where the videos have fewer.
    """
    if wanted is None:
        return generator.decode, references
    if wanted > (length := len(references[0])):
        raise InputError(f"refl.frames is {wanted}, and the videos have {length} frames.", "Lower it.")
    numbers = one_of_each(length, wanted, draw)
    return partial(decode_frames, generator, numbers), select_frames(references, numbers)


def decode_frames(generator: Trainable, numbers: Sequence[int], x_0: Tensor) -> PixelBatch:
    """Some frames of what x_0 is decoded to; no more is decoded than they need, where the generator knows that."""
    decode = getattr(generator, "decode_frames", None)
    return decode(x_0, numbers) if decode else generator.decode(x_0)[:, list(numbers)]


def select_frames(videos: Sequence[Pixels], numbers: Sequence[int]) -> list[OtherPixels]:
    """These frames of each video; one tensor for what is one, so that it is encoded once."""
    selected = {id(video): video[list(numbers)] for video in videos}
    return [selected[id(video)] for video in videos]


class JudgedBatch(NamedTuple):
    """loss: of this process's samples. margins [copies, B]: those of all processes. figures: of pictures and gate."""

    loss: float
    margins: Float[Tensor, "J B"]
    figures: Figures


def judge_batch(
    judge: RewardModel,
    held_out: RewardModel | None,
    batch: ReflBatch,
    references: Sequence[OtherPixels],
    recipe: ReflRecipe,
    pixels: PixelBatch,
) -> JudgedBatch:
    """Judge the decoded pictures against `references`, and leave the loss's gradient on them."""
    figures = step_image_stats(pixels, recipe.prompts_per_step, all_gather)
    with memory_for(*JUDGE):
        judged = judge_copies(judge, batch.prompts, pixels, references, recipe=recipe, noise_rng=batch.noise_rng)
        margins = judged.verdict.margin.unflatten(0, (recipe.jitter_copies, len(pixels)))
        if held_out is not None:
            figures |= gate_gradients(
                held_out, batch.prompts, pixels, references, margin=margins.mean(0), gate=recipe.gate
            )
    return JudgedBatch(judged.loss, all_gather(margins.T).T.contiguous(), figures)


def judge_copies(
    judge: RewardModel,
    prompts: Sequence[Prompt],
    pixels: PixelBatch,
    references: Sequence[OtherPixels],
    *,
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
    *,
    margin: Tensor,
    gate: bool,
) -> Figures:
    """Ask a held-out judge about the pictures too; with `gate`, the gradient of those it disagrees about becomes zero.

    margin [B]: the answer of the judge in training. Returns what to log.
    """
    triples = zip(prompts, pixels.detach(), references, strict=True)
    other = held_out([Question(prompt, picture, reference) for prompt, picture, reference in triples]).margin
    against = disagreeing(margin, other.to(margin.device))
    if gate and pixels.grad is not None:
        pixels.grad[against.to(pixels.device)] = 0
    return {"held_out_margin": other.mean().item(), "disagreeing": against.float().mean().item()}


def margin_figures(margins: Float[Tensor, "J B"], group_size: int) -> Figures:
    """What is logged of the margins of J copies of a step's B samples."""
    by_group = margins.unflatten(1, (-1, group_size)).mean(0)
    return {
        "reward": margins.sigmoid().mean().item(),
        "margin": margins.mean().item(),
        "spread_within": by_group.std(1, correction=0).mean().item(),
        "spread_across": by_group.mean(1).std(correction=0).item(),
        "spread_of_reward": by_group.sigmoid().std(correction=0).item(),
    }


def denoise(generator: Trainable, batch: ReflBatch, recipe: ReflRecipe, like: Tensor) -> float:
    """Backward of the weighted denoising loss of the batch's references; returns the loss without the weight.

    It is the loss of the network's own prediction, as in training: a guided one is no mean of what may be there, and to
    fit it to x_0 would unlearn what guidance does. The latents are noised to LEVELS steps of the whole schedule, a part
    of the batch to each: what the reward's gradient does not reach stays as it is, too. like: a tensor of the type and
    on the device that the generator computes with.
    """
    x_0 = torch.stack([reference.latent for reference in batch.denoised]).to(like)
    prompts, total = [reference.prompt for reference in batch.denoised], 0.0
    for level in torch.arange(len(x_0) * world_size()).chunk(LEVELS):
        step = int(batch.rng.integers(generator.num_steps))
        alpha, sigma = generator.scales(step)
        eps = torch.randn((len(level), *x_0.shape[1:]), generator=batch.noise_rng).to(x_0)
        for part in _local_parts(level, len(x_0), recipe.generator_batch or len(batch.seeds)):
            clean = x_0[part.rows]
            x_t = alpha * clean + sigma * eps[part.places]
            prediction = generator.predict(x_t, step, encoded(generator, prompts, part.rows))
            loss = denoising_mse(generator.predict_x0(x_t, prediction, step), clean, sigma) * part.share
            (recipe.reference_mse * loss).backward()
            total += loss.item()
    return total


class LevelPart(NamedTuple):
    """Rows of this process's batch that belong to a noise level, their places in the level, and their share of the
    batch."""

    rows: Tensor
    places: Tensor
    share: float


def _local_parts(level: Tensor, batch_size: int, at_most: int) -> Iterator[LevelPart]:
    """This process's part of a level, `at_most` rows at a time.

    level: numbers of rows among those of all processes, of which each has batch_size. A process that has no rows left
    goes along with a share of 0, for weights may be sharded.
    """
    owner = level // batch_size
    own = level[owner == rank()].split(at_most)
    for k in range(math.ceil(int(owner.bincount().max()) / at_most)):
        if k < len(own) and len(own[k]):
            yield LevelPart(own[k] - rank() * batch_size, own[k] - level[0], len(own[k]) / batch_size)
        else:
            yield LevelPart(torch.tensor([0]), torch.tensor([0]), 0.0)
