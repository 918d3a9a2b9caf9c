"""What the policy gradients share: how a step's prompts are split into updates, judged, and summed up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from rewarddance.alignment.early_answers import EarlyAnswers
from rewarddance.alignment.failed_groups import FailedGroup, Faults, Part, drawn_apart, each_apart
from rewarddance.alignment.group_rewards import (
    Advantages,
    Judging,
    Reward,
    Scores,
    advantages,
    combine,
    joint_figures,
    judging_of,
    preferred,
    scores_apart,
    scores_of_all,
)
from rewarddance.alignment.joint import mean_cosine, pair_cosines
from rewarddance.alignment.references import ReadAhead, References
from rewarddance.alignment.train import Alignment, Figures, Trainable, TrainRecipe, prompts_of_step
from rewarddance.data.image_stats import step_image_stats
from rewarddance.errors import InputError, RewardError, shown
from rewarddance.generators.sampling import sample
from rewarddance.protocols import RewardModel, judging
from rewarddance.runtime.config import MOST
from rewarddance.runtime.memory import memory_for
from rewarddance.runtime.process_group import all_gather, gather_objects, is_main_process, local_shard, world_size
from rewarddance.runtime.tracking import console
from rewarddance.types import PixelBatch, Prompt, as_prompts


class PolicyRecipe(TrainRecipe):
    """What policy gradients have in common. See `TrainRecipe` for the loop's keys.

    group_size: at least 2, for a sample is compared with the others of its prompt.
    updates: optimiser steps an iteration, each on its share of the prompts.
    judging: how the judge is asked, "alone", "group" (every sample against every other, the win rate) or "references";
        by default what suits it.
    spread: advantages are divided by the standard deviation of the prompt's scores, or of all (global).
    advantage_clip: their largest size.
    probe_prompts: how many prompts the averaged generator draws for `against_base`; 0 for none.
    checkpointing: as in ReFL; a gradient goes through the generator alone.
    """

    group_size: int = Field(default=8, ge=2, le=MOST)
    learning_rate: float = Field(default=1e-4, gt=0)
    updates: int = Field(default=1, ge=1)
    judging: Judging | None = None
    spread: Literal["prompt", "global"] = "prompt"
    advantage_clip: float = Field(default=5.0, gt=0)
    probe_prompts: int = Field(default=16, ge=0)
    checkpointing: tuple[Literal["generator"], ...] = ()

    @model_validator(mode="after")
    def _every_update_has_a_prompt(self) -> PolicyRecipe:
        if self.updates > self.prompts_per_step:
            raise ValueError(
                f"updates is {self.updates}, and each needs a prompt of the {self.prompts_per_step} a step"
            )
        return self

    @property
    def clips_advantages(self) -> bool:
        """Does the loss use the size of an advantage, and not only the order?"""
        return True

    def check_processes(self, processes: int) -> None:
        """Raises InputError where the processes cannot share each update's prompts: a group stays on one of them."""
        super().check_processes(processes)
        shares = self.updates * processes
        if processes > 1 and self.prompts_per_step % shares:
            raise InputError(
                f"{processes} processes cannot share {self.prompts_per_step} prompts equally in each of "
                f"{self.updates} updates (prompts_per_step, updates).",
                f"Set prompts_per_step to a multiple of {shares}.",
            )

    def judging_of(self, judge: RewardModel) -> Judging:
        return judging_of(judge, self.judging)

    @contextmanager
    def learning(self, generator: Trainable) -> Iterator[None]:
        """Within the block layers keep their inputs only, if `checkpointing` says so.

        Raises InputError where memory runs out, naming what to lower.
        """
        layers = generator.checkpointed(decoder=False) if self.checkpointing else nullcontext()
        with memory_for("the generator", "Lower generator_batch, or add generator to checkpointing."), layers:
            yield

    def batches(self, p: int) -> list[list[Tensor]]:
        """Rows of the P * G samples by update, and within an update by what goes through the generator together."""
        groups = torch.arange(p * self.group_size).view(p, self.group_size).tensor_split(self.updates)
        at_once = self.generator_batch or p * self.group_size
        return [list(rows.flatten().split(at_once)) for rows in groups]

    def learned(self, failed: Sequence[int]) -> list[Batch]:
        """`batches` of this process's samples but for those of failed groups; updates of which none is left drop out.

        failed: the groups' numbers among the step's prompts.
        """
        groups = torch.ones(self.prompts_per_step, dtype=torch.bool)
        groups[list(failed)] = False
        counts = [int(of_update.sum()) for of_update in groups.tensor_split(self.updates)]
        local_groups = local_shard(groups, self.updates)
        kept = local_groups.repeat_interleave(self.group_size)
        batches = zip(self.batches(len(local_groups)), counts, strict=True)
        return [
            Batch([Part.of(rows, kept) for rows in parts], count * self.group_size / world_size())
            for parts, count in batches
            if count
        ]


class Batch(NamedTuple):
    """An update's parts, and over how many samples of this process its mean is taken: of all processes', its share."""

    parts: list[Part]
    size: float


class Draws(NamedTuple):
    """A step's random draws, alike in all processes.

    rng, noise_rng: for what is drawn later in the step.
    chosen: numbers of its prompts [P].
    seeds: of their samples' first noises [P][G].
    """

    rng: np.random.Generator
    noise_rng: torch.Generator
    chosen: list[int]
    seeds: list[list[int]]


def sample_step(step: int, n_prompts: int, recipe: PolicyRecipe, seed: int) -> Draws:
    """All depends on (seed, step) alone, as in ReFL."""
    rng = np.random.default_rng([seed, 2, step])
    noise_rng = torch.Generator().manual_seed(int(rng.integers(2**31)))
    chosen = prompts_of_step(n_prompts, recipe.prompts_per_step, seed, step)
    return Draws(rng, noise_rng, chosen, rng.integers(2**31, size=(len(chosen), recipe.group_size)).tolist())


class ScoredRollouts(NamedTuple):
    """A step's samples, judged.

    advantages: [P, G], clipped where the algorithm uses their size; 0 in the groups that failed.
    rewards: that were asked. scores, of_rewards: of each, and its own advantages, of the groups that did not fail.
    image_stats: figures of their pictures.
    failed: numbers of the groups that failed among the step's P.
    """

    advantages: Advantages
    rewards: Sequence[Reward]
    scores: tuple[Scores, ...]
    of_rewards: tuple[Advantages, ...]
    image_stats: Figures
    failed: tuple[int, ...] = ()

    def failed_rows(self, recipe: PolicyRecipe) -> Tensor:
        """Which of this process's samples are of failed groups [B]."""
        groups = torch.zeros(recipe.prompts_per_step, dtype=torch.bool)
        groups[list(self.failed)] = True
        return local_shard(groups, recipe.updates).repeat_interleave(recipe.group_size)


@contextmanager
def early_answers(run: Alignment, draws: Draws) -> Iterator[EarlyAnswers]:
    """Within the block a step's samples are drawn and scored. Their references are chosen here, by `draws.rng`, and
    read meanwhile."""
    recipe = run.recipe
    assert isinstance(recipe, PolicyRecipe)
    prompts = as_prompts(run.prompts[i] for i in local_shard(draws.chosen, recipe.updates))
    references = None if run.bank is None else _choose_references(run.bank.references, draws, recipe.updates)
    early = EarlyAnswers(run.rewards, prompts, references, recipe.group_size)
    try:
        yield early
    finally:
        early.close()


def score_rollouts(
    run: Alignment, pixels: PixelBatch, draws: Draws, step: int, early: EarlyAnswers, unread: Faults | None = None
) -> ScoredRollouts:
    """Ask every reward about a step's samples [P * G, T, C, H, W], and combine their advantages.

    pixels: of this process's share of the prompts; what is returned is of all of them, the same in all processes.
    early: what rewards elsewhere were asked already, and the samples' prompts and references. unread: this process's
    samples whose prompts the generator could not read. Their groups fail, and so do those that have no reward: see
    `FailedGroups.add` for what is raised.
    """
    recipe = run.recipe
    assert isinstance(recipe, PolicyRecipe)
    gather = partial(all_gather, parts=recipe.updates)
    prompts, p = early.prompts, len(early.prompts)
    faults = {row // recipe.group_size: fault for row, fault in (unread or {}).items()}
    of_groups = pixels.unflatten(0, (p, recipe.group_size))
    asked = {k: list(group) for k, group in enumerate(of_groups) if k not in faults}
    local = []
    for number, reward in enumerate(run.rewards):
        answers = early.of(number) or scores_apart(reward, prompts, asked, early.references)
        faults |= {k: fault for k, fault in answers.faults.items() if k in asked}
        local.append(scores_of_all(answers.scores, p, recipe.group_size, reward.judging))
    failed = _failed_groups(recipe, prompts, faults)
    run.failed.add(step, failed, len(draws.chosen))
    kept = sorted({*range(len(draws.chosen))} - {group.number for group in failed})

    def of_kept(groups: Tensor) -> Tensor:
        return gather(groups)[kept] if failed else gather(groups)

    scores = tuple(Scores(of_kept(values), of_kept(margins)) for values, margins in local)
    of_rewards = tuple(advantages(of_reward.values, recipe.spread) for of_reward in scores)
    combined = combine(of_rewards, [reward.weight for reward in run.rewards])
    clipped = combined.values
    if recipe.clips_advantages:
        clipped = clipped.clamp(-recipe.advantage_clip, recipe.advantage_clip)
    if failed:
        clipped = clipped.new_zeros(len(draws.chosen), recipe.group_size).index_copy(0, torch.tensor(kept), clipped)

    def samples_of_kept(samples: Tensor) -> Tensor:
        return of_kept(samples.unflatten(0, (p, -1))).flatten(0, 1)

    sources = [prompt.image for prompt in prompts for _ in range(recipe.group_size)]
    image_stats = step_image_stats(pixels, len(kept), samples_of_kept, sources)
    numbers = tuple(group.number for group in failed)
    total = Advantages(clipped, combined.zero_std_groups)
    return ScoredRollouts(total, run.rewards, scores, of_rewards, image_stats, numbers)


def with_stand_ins(run: Alignment, draws: Draws, scored: ScoredRollouts, prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts of this process's samples, in failed groups one of another group, which the generator can read: a
    sample may have to go along (`Part`)."""
    assert isinstance(run.recipe, PolicyRecipe)
    kept = next(k for k in range(len(draws.chosen)) if k not in scored.failed)
    (instead,) = as_prompts([run.prompts[draws.chosen[kept]]])
    failed = scored.failed_rows(run.recipe).tolist()
    return [instead if of_failed else prompt for prompt, of_failed in zip(prompts, failed, strict=True)]


def _failed_groups(recipe: PolicyRecipe, prompts: Sequence[Prompt], faults: Faults) -> list[FailedGroup]:
    """Those of all processes, in the order of the step; faults: of this one's prompts."""
    numbers = local_shard(list(range(recipe.prompts_per_step)), recipe.updates)
    local_failures = [FailedGroup(numbers[k], prompts[k].text, fault.what, fault.remedy) for k, fault in faults.items()]
    return sorted(group for of_process in gather_objects(local_failures) for group in of_process)


def _choose_references(bank: Sequence[References], draws: Draws, updates: int) -> ReadAhead:
    """A reference for each of this process's samples [P * G]; chosen for all samples, alike in all processes."""
    chosen = []
    for number, seeds in zip(draws.chosen, draws.seeds, strict=True):
        references = bank[number]
        chosen.append([references.at(references.choose(draws.rng, seed)) for seed in seeds])
    return ReadAhead([reference for group in local_shard(chosen, updates) for reference in group])


def reward_figures(scored: ScoredRollouts) -> Figures:
    """What is logged of the pictures and of the rewards; of several also how far their advantages go the same way."""
    each = [_figures_of(*of_reward) for of_reward in zip(scored.scores, scored.of_rewards, strict=True)]
    figures = scored.image_stats | joint_figures(scored.rewards, each)
    figures["zero_std_groups"] = scored.advantages.zero_std_groups
    if len(each) > 1:
        figures["rewards_cosine"] = mean_cosine(pair_cosines([values for values, _ in scored.of_rewards]))
    return figures | ({"failed_groups": len(scored.failed)} if scored.failed else {})


def _figures_of(scores: Scores, advantages: Advantages) -> Figures:
    """What is logged of one reward."""
    values, margins = scores
    compared = margins.ndim == 3  # in the group: P and margin are of all pairs, which are even by construction
    figures = {
        "reward": values.mean().item() if compared else margins.sigmoid().mean().item(),
        "margin": margins.mean().item(),
        "spread_within": values.std(1, correction=0).mean().item(),
        "zero_std_groups": advantages.zero_std_groups,
    }
    if not compared:  # the mean win rate of every group is a half
        figures["spread_across"] = values.mean(1).std(correction=0).item()
        figures["spread_of_reward"] = margins.sigmoid().std(correction=0).item()
    return figures


def add_share(totals: dict[str, Tensor], figures: Mapping[str, Tensor], share: float) -> None:
    """Add a part's figures to a mean, weighted with the part's share of the whole."""
    for name, value in figures.items():
        totals[name] = totals[name] + share * value if name in totals else share * value


def against_base(run: Alignment) -> Callable[[], Figures]:
    """A probe: how likely the judge prefers the generator's pictures to those of before training, from the same noises.

    The one figure that can rise where samples are only compared with each other. A half at the start. Of several
    rewards each is asked. Prompts whose pictures get no answer of one are left out, counted, and said the first time.
    Raises RewardError where they are most of them.
    """
    recipe = run.recipe
    assert isinstance(recipe, PolicyRecipe)
    prompts = as_prompts(run.prompts[: recipe.probe_prompts])
    seeds = np.random.SeedSequence([run.seed, 4]).generate_state(len(prompts)).tolist()
    before: list[PixelBatch] = []
    said: set[int] = set()

    def draw() -> tuple[PixelBatch, Faults]:
        def of(texts: list[Prompt]) -> PixelBatch:
            return sample(run.generator, texts, seeds, recipe.generator_batch or len(prompts))

        spare = as_prompts(run.prompts)
        pictures, _, unread = drawn_apart(run.generator, prompts, of, spare=spare, check_first=recipe.sharded)
        return pictures, unread

    def probe() -> Figures:
        if not prompts:
            return {}
        if not before:
            with run.generator.as_before_training():
                before.append(draw()[0])
        pictures, faults = draw()
        pairs = [list(pair) for pair in zip(pictures, before[0], strict=True)]

        def ask(reward: Reward, numbers: list[int]) -> Tensor:
            return preferred(reward, [prompts[k] for k in numbers], [pairs[k] for k in numbers])

        answers: list[Tensor] = []
        for reward in run.rewards:
            of_prompts = torch.full((len(prompts),), torch.nan)
            with judging(reward.judge):
                found, unanswered = each_apart(
                    partial(ask, reward), [k for k in range(len(prompts)) if k not in faults]
                )
            for numbers, answer in found:
                of_prompts[numbers] = answer.to(of_prompts)
            answers.append(of_prompts)
            faults |= unanswered
        if faults:
            first = next(iter(faults))
            if 2 * len(faults) > len(prompts):
                raise RewardError(
                    f"{len(faults)} of the probe's {len(prompts)} prompts have no answer; "
                    f"{shown(prompts[first].text)}: {faults[first].what}",
                    faults[first].remedy,
                )
            for k in [k for k in faults if k not in said and is_main_process()]:
                said.add(k)
                text = f"probes leave out {shown(prompts[k].text)}: {faults[k].what} {faults[k].remedy}"
                console.print(text, highlight=False, soft_wrap=True)
        kept = [k for k in range(len(prompts)) if k not in faults]
        each = [{"preferred_to_base": answer[kept].mean().item()} for answer in answers]
        figures = joint_figures(run.rewards, each)
        return figures | ({"failed_prompts": len(faults)} if faults else {})

    return probe
