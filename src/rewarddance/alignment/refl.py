"""ReFL: the gradient of the judge's P("yes") through the decoder and one late denoising step, or the last few.

Paper, section 3. First its objectives, each a pure function of tensors (cap and regulariser after 2508.21066), then a
step: draw a batch, roll it out, judge it, and send the judge's gradient back to the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from rewarddance.alignment.failed_groups import FailedGroup, FailedGroups, Faults, Part, drawn_apart, each_apart
from rewarddance.alignment.group_rewards import Judging
from rewarddance.alignment.references import Reference, References
from rewarddance.alignment.relay import LastSteps, decoder_vjp
from rewarddance.alignment.safeguards import Ema, disagreeing, jittered
from rewarddance.alignment.train import Alignment, Figures, Trainable, TrainRecipe, prompts_of_step, read_together
from rewarddance.data.frame_sampling import one_of_each
from rewarddance.data.image_stats import step_image_stats
from rewarddance.errors import InputError, RewardError
from rewarddance.generators.sampling import encoded, rollout
from rewarddance.protocols import Generator, RewardModel, judging
from rewarddance.reward.pixel_gradient import PixelGradient, checkpointing, pixel_gradient
from rewarddance.runtime.devices import on_device
from rewarddance.runtime.memory import memory_for
from rewarddance.runtime.process_group import all_gather, gather_objects, local_shard, rank, world_size
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
    yield refl_step(
        run.generator,
        judge,
        bank.references,
        recipe,
        seed=run.seed,
        step=step,
        held_out=run.held_out,
        failed=run.failed,
    )


def refl_step(
    generator: Trainable,
    judge: RewardModel,
    bank: Sequence[References],
    recipe: ReflRecipe,
    *,
    seed: int,
    step: int,
    held_out: RewardModel | None = None,
    failed: FailedGroups | None = None,
) -> Figures:
    """One step's samples, verdicts, loss and backward; the gradient is left on the weights. Returns what to log.

    held_out: a judge that is asked beside the first and gives no gradient; see `ReflRecipe.gate`. failed: takes down
    the groups that have no verdict, of which there is no gradient. Of several processes each takes its share of the
    samples, and the mean of their gradients is the step's; so are the means of their figures. Raises InputError naming
    the part that ran out of memory, and what to lower; for failed groups see `FailedGroups.add`.
    """
    batch = draw_batch(bank, recipe, generator.num_steps, seed, step)
    with checkpointed_parts(generator, judge, recipe.checkpointing):
        with memory_for(*SAMPLING):
            x_t, drawn, unread = sampled(generator, batch, bank, check_first=recipe.sharded)
        parts = torch.arange(len(x_t)).split(recipe.generator_batch or len(x_t))
        conditions = [encoded(generator, drawn.prompts, rows) for rows in parts]
        last_steps = LastSteps(generator, conditions, parts, batch.first, recipe.last_steps)
        with memory_for(*GENERATOR):
            x_0 = last_steps.forward(x_t)

        pictures = [reference.picture for reference in batch.references]
        decode, pictures = judged_frames(generator, pictures, recipe.frames, batch.rng)
        take_down = partial((failed or FailedGroups()).add, step)
        ask = partial(judge_batch, judge, held_out, batch, pictures, recipe, unread=unread, take_down=take_down)
        decoding = getattr(generator, "decoding", nullcontext)
        judged, gradient = decoder_vjp(decode, x_0, ask, recipe.decode_batch or len(x_0), decoding)
        if judged.kept is not None:
            kept = int(judged.kept.everywhere.nonzero()[0]) // recipe.group_size
            instead = bank[prompts_of_step(len(bank), recipe.prompts_per_step, seed, step)[kept]].prompt
            leave_out(last_steps, generator, drawn.prompts, judged.kept, instead)
            gradient[~judged.kept.local.to(gradient.device)] = 0  # their pictures may not be finite
        with memory_for(*GENERATOR):
            velocity_distance = last_steps.backward(gradient, recipe.velocity_mse)
        figures = judged.figures
        if recipe.reference_mse:  # a graph of its own, after the reward's is gone
            with memory_for(*GENERATOR), generator.without_guidance():
                figures["reference_mse"] = denoise(generator, drawn, recipe, like=x_t)
    loss = judged.loss + recipe.velocity_mse * velocity_distance
    loss += recipe.reference_mse * figures.get("reference_mse", 0.0)
    figures |= {"loss": loss, "velocity_mse": velocity_distance, "stop": batch.first}
    return figures | margin_figures(judged.margins, recipe.group_size)


def sampled(
    generator: Trainable, batch: ReflBatch, bank: Sequence[References], *, check_first: bool
) -> tuple[Tensor, ReflBatch, Faults]:
    """The batch's latents where its gradient begins, the batch as it was drawn, and which samples are of no use.

    Those are of prompts that the generator cannot read: another prompt with a reference of its own stands there.
    """

    def draw(prompts: list[Prompt]) -> Tensor:
        return rollout(generator, prompts, batch.seeds, batch.first).x_t

    spare = (references.prompt for references in bank)
    x_t, prompts, faults = drawn_apart(generator, batch.prompts, draw, spare=spare, check_first=check_first)
    if not faults:
        return x_t, batch, faults
    instead = next(references.at(0) for references in bank if references.prompt is prompts[next(iter(faults))])
    unread = {id(batch.references[number].prompt) for number in faults}

    def readable(references: Iterable[Reference]) -> list[Reference]:
        return [instead if id(reference.prompt) in unread else reference for reference in references]

    return x_t, replace(batch, references=readable(batch.references), denoised=readable(batch.denoised)), faults


def leave_out(
    last_steps: LastSteps, generator: Trainable, prompts: Sequence[Prompt], kept: Kept, instead: Prompt
) -> None:
    """Go back through the samples that are left alone. instead: a prompt of theirs, where one goes along (`Part`)."""
    prompts = [prompt if own else instead for prompt, own in zip(prompts, kept.local.tolist(), strict=True)]
    parts = [Part.of(rows, kept.local) for rows in last_steps.parts]
    conditions = [encoded(generator, prompts, part.rows) for part in parts]
    shares = [part.count * kept.weight for part in parts]
    last_steps.replace_parts([part.rows for part in parts], conditions, shares, without=~kept.local)


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


@dataclass(frozen=True, eq=False)
class Kept:
    """The samples that are left of a step of which groups failed.

    local [b]: which of this process's. everywhere [B]: which of all processes'.
    """

    local: Tensor
    everywhere: Tensor

    @property
    def weight(self) -> float:
        """Of a sample in this process's sum; the mean of the processes' sums is then the mean of all that are left."""
        return world_size() / int(self.everywhere.sum())

    def groups(self, recipe: ReflRecipe) -> int:
        """How many groups are left."""
        return int(self.everywhere.sum()) // recipe.group_size

    def all_gather(self, rows: Tensor) -> Tensor:
        return all_gather(rows)[self.everywhere.to(rows.device)]


class JudgedBatch(NamedTuple):
    """loss: of this process's samples. margins [copies, B]: those of all processes. figures: of pictures and gate.

    kept: where groups failed, which samples are left; margins are of these.
    """

    loss: float
    margins: Float[Tensor, "J B"]
    figures: Figures
    kept: Kept | None = None


def judge_batch(
    judge: RewardModel,
    held_out: RewardModel | None,
    batch: ReflBatch,
    references: Sequence[OtherPixels],
    recipe: ReflRecipe,
    pixels: PixelBatch,
    *,
    unread: Faults,
    take_down: Callable[[list[FailedGroup], int], None],
) -> JudgedBatch:
    """Judge the decoded pictures against `references`, and leave the loss's gradient on them; none on failed groups.

    unread: samples that are not of their prompts. take_down: is told the failed groups, and of how many.
    """
    asked = [number for number in range(len(pixels)) if number not in unread]
    with memory_for(*JUDGE):
        with judging(judge):
            judged = judge_copies(
                judge, batch.prompts, pixels, references, recipe=recipe, noise_rng=batch.noise_rng, asked=asked
            )
        faults, other = judged.faults | unread, None
        if held_out is not None:
            with judging(held_out):
                other, unanswered = held_out_margins(held_out, batch.prompts, pixels, references, asked)
            faults |= unanswered
    kept = _kept(batch, faults, recipe, take_down)
    margins, loss, share, gather = judged.margins, judged.loss, 1.0, all_gather
    if kept is not None:
        rows, gather = kept.local, kept.all_gather
        margins, other, share = margins[:, rows], None if other is None else other[rows], int(rows.sum()) * kept.weight
        loss = _objective(recipe)(margins.flatten()).item() * share if share else 0.0
        assert pixels.grad is not None
        pixels.grad *= len(pixels) * kept.weight
        pixels.grad[~rows] = 0
    figures = step_image_stats(pixels, recipe.prompts_per_step if kept is None else kept.groups(recipe), gather)
    if other is not None:
        against = disagreeing(margins.mean(0), other.to(margins.device)).to(pixels.device)
        if recipe.gate and pixels.grad is not None:
            of_kept = torch.arange(len(pixels)) if kept is None else kept.local.nonzero().flatten()
            pixels.grad[of_kept.to(pixels.device)[against]] = 0
        figures |= {"held_out_margin": _mean(other) * share, "disagreeing": _mean(against.float()) * share}
    if kept is not None:
        figures["failed_groups"] = recipe.prompts_per_step - kept.groups(recipe)
    of_own = judged.margins.T
    if world_size() > 1:  # where nobody answered, no judge has said on which device
        of_own = of_own.float().cpu()
    return JudgedBatch(loss, gather(of_own).T.contiguous(), figures, kept)


def _mean(values: Tensor) -> float:
    return values.mean().item() if len(values) else 0.0


def _objective(recipe: ReflRecipe) -> Callable[[Tensor], Tensor]:
    return partial(LOSSES[recipe.loss], cap=recipe.cap)


def _kept(
    batch: ReflBatch, faults: Faults, recipe: ReflRecipe, take_down: Callable[[list[FailedGroup], int], None]
) -> Kept | None:
    """What all processes have left of the step, or None where nothing failed. faults: of this process's samples."""
    n, size = len(batch.prompts), recipe.group_size
    own: dict[int, FailedGroup] = {}
    for row, fault in sorted(faults.items()):
        group = (rank() * n + row) // size
        own.setdefault(group, FailedGroup(group, batch.prompts[row].text, fault.what, fault.remedy))
    failed = {number: group for of_process in gather_objects(own) for number, group in of_process.items()}
    if not failed:
        return None
    take_down([failed[number] for number in sorted(failed)], recipe.prompts_per_step)
    everywhere = torch.ones(recipe.prompts_per_step, size, dtype=torch.bool)
    everywhere[list(failed)] = False
    return Kept(local_shard(everywhere.flatten()), everywhere.flatten())


class JudgedCopies(NamedTuple):
    """loss: the mean over all copies. margins [J, B]. Both are NaN where a picture has no answer.

    faults: why it has none, by its number.
    """

    loss: float
    margins: Float[Tensor, "J B"]
    faults: Faults


def judge_copies(
    judge: RewardModel,
    prompts: Sequence[Prompt],
    pixels: PixelBatch,
    references: Sequence[OtherPixels],
    *,
    recipe: ReflRecipe,
    noise_rng: torch.Generator,
    asked: Sequence[int] | None = None,
) -> JudgedCopies:
    """The loss of jittered copies of pictures [B, T, C, H, W] against their references, sent back to the pictures.

    asked: numbers of the pictures that are asked about; by default all. Those without an answer get no gradient.
    """
    copies = [
        jittered(pixels, noise_rng, recipe.jitter_shift, recipe.jitter_noise) for _ in range(recipe.jitter_copies)
    ]
    pictures = [list(copy) for copy in copies]

    def ask(numbers: list[int]) -> PixelGradient:
        questions = [Question(prompts[i], copy[i], references[i]) for copy in pictures for i in numbers]
        return pixel_gradient(judge, questions, _objective(recipe), recipe.judge_batch)

    answers, faults = each_apart(ask, range(len(pixels)) if asked is None else asked)
    if len(answers) == 1 and len(answers[0][0]) == len(pixels):
        loss, verdict, gradients = answers[0][1]
        torch.autograd.backward([picture for copy in pictures for picture in copy], gradients)
        return JudgedCopies(loss, verdict.margin.unflatten(0, (recipe.jitter_copies, len(pixels))), faults)
    margins = torch.full((recipe.jitter_copies, len(pixels)), torch.nan)
    gradients = [[torch.zeros_like(picture) for picture in copy] for copy in pictures]
    for numbers, judged in answers:
        share = len(numbers) / len(pixels)
        margins[:, numbers] = judged.verdict.margin.unflatten(0, (-1, len(numbers))).to(margins)
        own = iter(judged.gradients)
        for of_copy in gradients:
            for i in numbers:
                of_copy[i] = next(own) * share
    torch.autograd.backward([p for copy in pictures for p in copy], [g for of_copy in gradients for g in of_copy])
    return JudgedCopies(math.nan, margins, faults)


@torch.no_grad()
def held_out_margins(
    held_out: RewardModel,
    prompts: Sequence[Prompt],
    pixels: PixelBatch,
    references: Sequence[OtherPixels],
    asked: Sequence[int],
) -> tuple[Float[Tensor, " B"], Faults]:
    """A held-out judge's margins of the pictures, which gate the gradient; NaN, and why, where it has none."""
    shown = pixels.detach()

    def ask(numbers: list[int]) -> Tensor:
        margin = held_out([Question(prompts[i], shown[i], references[i]) for i in numbers]).margin
        if not torch.isfinite(margin).all():
            raise RewardError("the held-out judge gave a score that is not finite.", "Look at its pictures.")
        return margin

    answers, faults = each_apart(ask, asked)
    if len(answers) == 1 and len(answers[0][0]) == len(pixels):
        return answers[0][1], faults
    margins = torch.full((len(pixels),), torch.nan)
    for numbers, margin in answers:
        margins[numbers] = margin.to(margins)
    return margins, faults


def margin_figures(margins: Float[Tensor, "J B"], group_size: int) -> Figures:
    """What is logged of the margins of J copies of a step's B samples."""
    by_group = margins.unflatten(1, (-1, group_size)).mean(0)
    figures = {
        "reward": margins.sigmoid().mean(),
        "margin": margins.mean(),
        "spread_within": by_group.std(1, correction=0).mean(),
        "spread_across": by_group.mean(1).std(correction=0),
        "spread_of_reward": by_group.sigmoid().std(correction=0),
    }
    return read_together(figures)


def denoise(generator: Trainable, batch: ReflBatch, recipe: ReflRecipe, like: Tensor) -> float:
    """Backward of the weighted denoising loss of the batch's references; returns the loss without the weight.

    It is the loss of the network's own prediction, as in training: a guided one is no mean of what may be there, and to
    fit it to x_0 would unlearn what guidance does. The latents are noised to LEVELS steps of the whole schedule, a part
    of the batch to each: what the reward's gradient does not reach stays as it is, too. like: a tensor of the type and
    on the device that the generator computes with.
    """
    x_0 = on_device(torch.stack([reference.latent for reference in batch.denoised]), like.device).to(like.dtype)
    prompts, losses = [reference.prompt for reference in batch.denoised], []
    for level in torch.arange(len(x_0) * world_size()).chunk(LEVELS):
        step = int(batch.rng.integers(generator.num_steps))
        alpha, sigma = generator.scales(step)
        eps = on_device(torch.randn((len(level), *x_0.shape[1:]), generator=batch.noise_rng), x_0.device).to(x_0.dtype)
        for part in _local_parts(level, len(x_0), recipe.generator_batch or len(batch.seeds)):
            clean = x_0[on_device(part.rows, x_0.device)]
            x_t = alpha * clean + sigma * eps[on_device(part.places, x_0.device)]
            prediction = generator.predict(x_t, step, encoded(generator, prompts, part.rows))
            loss = denoising_mse(generator.predict_x0(x_t, prediction, step), clean, sigma) * part.share
            (recipe.reference_mse * loss).backward()
            losses.append(loss.detach())
    return torch.stack(losses).sum().item()


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
