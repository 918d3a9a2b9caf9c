"""What the judge says of ReFL's pictures: the loss, its gradient left on the pixels, and what is logged of margins."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from rewarddance.alignment.failed_groups import FailedGroup, Faults, Kept, each_apart
from rewarddance.alignment.group_rewards import Reward
from rewarddance.alignment.joint import blend, mean_cosine, mean_size, pair_cosines, rewards_of
from rewarddance.alignment.refl_batch import ReflBatch
from rewarddance.alignment.refl_losses import LOSSES
from rewarddance.alignment.refl_recipe import ReflRecipe
from rewarddance.alignment.safeguards import disagreeing, jittered
from rewarddance.alignment.train import Figures, read_together
from rewarddance.data.image_stats import step_image_stats
from rewarddance.errors import RewardError
from rewarddance.protocols import RewardModel, judging
from rewarddance.reward.averages import mean_probability
from rewarddance.reward.pixel_gradient import PixelGradient, pixel_gradient
from rewarddance.runtime.memory import memory_for
from rewarddance.runtime.process_group import all_gather, gather_objects, local_shard, rank, world_size
from rewarddance.types import OtherPixels, PixelBatch, Prompt, Question

JUDGE = "the judge", "Lower refl.judge_batch, or add judge to refl.checkpointing."
"""What is said where the judge runs out of memory."""


class JudgedBatch(NamedTuple):
    """loss: of this process's samples, the weighted mean over the rewards. margins [copies, B] of each reward: those of
    all processes. figures: of pictures, gate and, where there are several rewards, how their gradients compare.

    kept: where groups failed, which samples are left; margins are of these.
    """

    loss: float
    margins: tuple[Float[Tensor, "J B"], ...]
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

    judge: of a `JointReward` each part is asked by itself about the same copies, and their gradients are blended.
    unread: samples that are not of their prompts. take_down: is told the failed groups, and of how many.
    """
    rewards = rewards_of(judge)
    weights = [reward.weight for reward in rewards]
    answers = _ask(rewards, held_out, batch, references, recipe, pixels, unread=unread)
    kept = _kept(batch, answers.faults, recipe, take_down)
    margins, losses = [judged.margins for judged in answers.of_rewards], [judged.loss for judged in answers.of_rewards]
    other, share, gather = answers.held_out, 1.0, all_gather
    if kept is not None:
        rows, gather = kept.local, kept.all_gather
        share, other = int(rows.sum()) * kept.weight, None if other is None else other[rows]
        margins = [of_reward[:, rows] for of_reward in margins]
        losses = [_objective(recipe)(left.flatten()).item() * share if share else 0.0 for left in margins]
        for gradient in answers.gradients:
            gradient *= len(pixels) * kept.weight
            gradient[~rows] = 0
    groups = recipe.prompts_per_step if kept is None else kept.groups(recipe.group_size)
    figures = step_image_stats(pixels, groups, gather, [prompt.image for prompt in batch.prompts])
    pixels.grad, compared = _one_gradient(rewards, answers.gradients, 1 / len(pixels) if kept is None else kept.weight)
    figures |= compared
    if other is not None:
        against = _against_held_out(margins, weights, other).to(pixels.device)
        if recipe.gate and pixels.grad is not None:
            of_kept = torch.arange(len(pixels)) if kept is None else kept.local.nonzero().flatten()
            pixels.grad[of_kept.to(pixels.device)[against]] = 0
        figures |= {"held_out_margin": _mean(other) * share, "disagreeing": _mean(against.float()) * share}
    if kept is not None:
        figures["failed_groups"] = recipe.prompts_per_step - groups
    loss = sum(weight * of_reward for weight, of_reward in zip(weights, losses, strict=True)) / sum(weights)
    return JudgedBatch(loss, tuple(_of_all(judged.margins, gather) for judged in answers.of_rewards), figures, kept)


class _Answers(NamedTuple):
    """What this process's samples were answered.

    of_rewards, gradients: of each reward, the latter on the pixels. held_out: margins, None without such a judge.
    faults: the samples that have no answer of all.
    """

    of_rewards: list[JudgedCopies]
    gradients: list[Tensor]
    held_out: Tensor | None
    faults: Faults


def _ask(
    rewards: Sequence[Reward],
    held_out: RewardModel | None,
    batch: ReflBatch,
    references: Sequence[OtherPixels],
    recipe: ReflRecipe,
    pixels: PixelBatch,
    *,
    unread: Faults,
) -> _Answers:
    """Ask every reward about the same jittered copies, one after the other, and then the held-out judge."""
    asked = [number for number in range(len(pixels)) if number not in unread]
    jitter, answers = batch.noise_rng.get_state(), _Answers([], [], None, unread)
    with memory_for(*JUDGE):
        for reward in rewards:
            batch.noise_rng.set_state(jitter)
            with judging(reward.judge):
                judged = judge_copies(
                    reward.judge, batch.prompts, pixels, references,
                    recipe=recipe, noise_rng=batch.noise_rng, asked=asked,
                )  # fmt: skip
            assert pixels.grad is not None
            answers.of_rewards.append(judged)
            answers.gradients.append(pixels.grad)
            pixels.grad, answers = None, answers._replace(faults=answers.faults | judged.faults)
        if held_out is not None:
            with judging(held_out):
                other, unanswered = held_out_margins(held_out, batch.prompts, pixels, references, asked)
            answers = answers._replace(held_out=other, faults=answers.faults | unanswered)
    return answers


def _against_held_out(margins: Sequence[Tensor], weights: Sequence[float], held_out: Tensor) -> Tensor:
    """Which samples the rewards [copies, B] together and the held-out judge [B] see differently."""
    on_one = torch.stack([of_reward.mean(0).to(held_out.device) for of_reward in margins])
    return disagreeing(
        on_one[0] if len(margins) == 1 else mean_probability(on_one, on_one.new_tensor(weights)), held_out
    )


def _of_all(margins: Tensor, gather: Callable[[Tensor], Tensor]) -> Tensor:
    """The margins [copies, B] of all processes' samples."""
    by_sample = margins.T
    if world_size() > 1:  # where nobody answered, no judge has said on which device
        by_sample = by_sample.float().cpu()
    return gather(by_sample).T.contiguous()


def _one_gradient(rewards: Sequence[Reward], gradients: Sequence[Tensor], weight: float) -> tuple[Tensor, Figures]:
    """The gradient in pixels that several rewards give together, normalised over all processes' samples; and each one's
    size, and how far they go the same way.

    weight: of a sample in the gradients; the sizes are of a sample's own loss.
    """
    if len(rewards) == 1:
        return gradients[0], {}
    sizes = [mean_size(all_gather(gradient.flatten(1).norm(dim=1).float().cpu())) for gradient in gradients]
    figures = {f"gradient_size/{reward.name}": size / weight for reward, size in zip(rewards, sizes, strict=True)}
    figures["rewards_cosine"] = mean_cosine(all_gather(pair_cosines(gradients).cpu()))
    return blend(gradients, sizes, [reward.weight for reward in rewards]), figures


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
        part_gradients = iter(judged.gradients)
        for of_copy in gradients:
            for i in numbers:
                of_copy[i] = next(part_gradients) * share
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
    detached = pixels.detach()

    def ask(numbers: list[int]) -> Tensor:
        margin = held_out([Question(prompts[i], detached[i], references[i]) for i in numbers]).margin
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
