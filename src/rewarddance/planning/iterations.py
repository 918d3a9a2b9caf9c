"""What an alignment does, counted: making the references, and a step of ReFL or of an algorithm that only asks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from rewarddance.alignment.algorithms import algorithm_of
from rewarddance.alignment.failed_groups import Part
from rewarddance.alignment.forward_process import ForwardRecipe
from rewarddance.alignment.joint import joint_judge
from rewarddance.alignment.policy import Batch, PolicyRecipe
from rewarddance.alignment.recipe import AlignRun
from rewarddance.alignment.references import ReferenceBank, candidate_seeds
from rewarddance.alignment.refl import refl_step
from rewarddance.alignment.refl_recipe import ReflRecipe
from rewarddance.alignment.safeguards import Ema
from rewarddance.alignment.train import Alignment
from rewarddance.generators.sampling import rollout
from rewarddance.planning.counting import Counting, counting
from rewarddance.planning.hardware import NOTHING, Work
from rewarddance.planning.models import Models, meta_references, with_picture
from rewarddance.planning.phases import AskedJudge, CountedGenerator, CountedJudge
from rewarddance.reward.ranking import tournament
from rewarddance.types import Prompt

_DRAWS = 32
"""Steps of a run whose levels are drawn, to see how many samples meet at one."""


def iteration(models: Models, run: AlignRun, prompts: Sequence[str], processes: int) -> Counting:
    """A step of a process's share; the steps of sampling that ReFL takes before its gradient are counted apart."""
    if run.algorithm == "refl":
        return refl_iteration(models, run.refl, prompts, processes)
    return policy_iteration(models, run, prompts, processes)


def beside_the_step(models: Models, run: AlignRun, prompts: Sequence[str], processes: int) -> list[Counting]:
    """What a run does beside its steps' own work: the sampling of ReFL, and the references where there are any."""
    if run.algorithm == "refl":
        return [refl_sampling(models, run.refl, prompts, processes), making_references(models, run, prompts)]
    judged = any(reward.judging == "references" for reward in models.rewards)
    return [making_references(models, run, prompts)] if judged else []


def _refl_share(refl: ReflRecipe, processes: int) -> ReflRecipe:
    """The recipe of one process's share of a step's samples."""
    samples = refl.prompts_per_step * refl.group_size // processes
    group_size = math.gcd(samples, refl.group_size)
    share: dict[str, Any] = {"prompts_per_step": samples // group_size, "group_size": group_size}
    if refl.reference_batch is not None:
        share["reference_batch"] = refl.reference_batch // processes
    return refl.model_copy(update=share)


def refl_iteration(models: Models, refl: ReflRecipe, prompts: Sequence[str], processes: int) -> Counting:
    """ReFL's own step, with the gradient from the first sampler step on; steps without one are counted apart.

    What a held-out judge gates is left out, for its answers have no values here; it takes nothing.
    """
    refl.first_grad_steps(models.generator.num_steps)
    share = _refl_share(refl, processes).model_copy(update={"grad_step_range": (0.0, 1e-9), "gate": False})
    bank = [meta_references(models.generator, prompts[i % len(prompts)], i) for i in range(share.prompts_per_step)]
    with counting() as counts:
        counts.exclude([*models.tensors(), *(tensor for entry in bank for tensor in (*entry.pictures, entry.latents))])
        generator: Any = CountedGenerator(models.generator, counts, refl.last_steps)
        asked = [reward._replace(judge=CountedJudge(reward.judge, counts)) for reward in models.rewards]
        held_out = CountedJudge(models.held_out[0], counts) if models.held_out else None
        refl_step(generator, joint_judge(asked), bank, share, seed=0, step=0, held_out=held_out)
    return counts


def refl_sampling(models: Models, refl: ReflRecipe, prompts: Sequence[str], processes: int) -> Counting:
    """One step of sampling of a process's samples."""
    n = refl.prompts_per_step * refl.group_size // processes
    with counting() as counts:
        counts.exclude(models.tensors())
        counts.begin("sampling")
        batch = with_picture(models.generator, [prompts[i % len(prompts)] for i in range(n)])
        rollout(models.generator, batch, list(range(n)), 1)
    return counts


def making_references(models: Models, run: AlignRun, prompts: Sequence[str]) -> Counting:
    """What `build_references` does for its first prompts: one step of sampling, decoding, and a tournament.

    One batch of pictures is drawn, where the run draws several one after the other. One tournament is held, where the
    run asks all of them together; but the pictures of all are kept as the judge has encoded them.
    """
    texts = [text for text in prompts[: run.references.prompts_at_once] for _ in range(run.references.candidates)]
    batch = with_picture(models.generator, texts[: run.references.batch_size])
    with counting() as counts, torch.no_grad():
        counts.exclude(models.tensors())
        counts.begin("references: sampling")
        latents = rollout(models.generator, batch, candidate_seeds(0, 0, len(batch)), 1).x_t
        counts.begin("references: decoding")
        pictures = models.generator.decode(latents)
        if len(batch) < len(texts):
            pictures = torch.empty(len(texts), *pictures.shape[1:], device="meta")
        counts.begin("references: encoding")
        vlms: list[Any] = [judge.vlm for judge, _ in models.judges]  # type: ignore[attr-defined]
        encoded = [vlm.encode(list(pictures)) for vlm in vlms]
        counts.begin("references: tournament")
        for vlm in vlms:
            vlm.counts = counts
        tournament(joint_judge(models.rewards), batch[:1], [list(pictures[: run.references.candidates])])
        for vlm in vlms:
            vlm.counts = None
        del encoded
    counts.multiply("references: sampling", models.generator.num_steps)
    return counts


# -- algorithms that only ask ------------------------------------------------------------------------------------------


def policy_iteration(models: Models, run: AlignRun, prompts: Sequence[str], processes: int) -> Counting:
    """An iteration of an algorithm that only asks: its whole rollout, its questions, and one part of its updates.

    The parts are alike, so the operations of the others are that one's. What an algorithm on the forward process keeps
    for the others meanwhile, their latents and texts, is left out.
    """
    recipe, generator = run.chosen, models.generator
    assert isinstance(recipe, PolicyRecipe)
    recipe = recipe.model_copy(update={"prompts_per_step": recipe.prompts_per_step // processes})
    for reward in models.rewards:
        recipe.check(generator, reward.judge)
    texts = [prompts[i % len(prompts)] for i in range(recipe.prompts_per_step)]
    bank = None
    if any(reward.judging == "references" for reward in models.rewards):
        bank = ReferenceBank([meta_references(generator, text, i) for i, text in enumerate(texts)])
    asked: list[str | Prompt] = [*with_picture(generator, texts)]
    ema, update = Ema(models.trained, recipe.ema_decay), _Update()
    with counting() as counts:
        counts.exclude([*models.tensors(), *ema.average])
        counts.exclude(t for entry in (bank.references if bank else ()) for t in (*entry.pictures, entry.latents))
        counts.begin("sampling")
        counted: Any = CountedGenerator(generator, counts)
        counted.predicting = "sampling"
        rewards = [reward._replace(judge=AskedJudge(reward.judge, counts)) for reward in models.rewards]
        share = _with_one_part(recipe, update, counted, counts)
        whole = Alignment(counted, rewards, asked, share, bank=bank)
        for _ in algorithm_of(recipe).updates(whole, 0, ema):
            pass
    for phase in [*counts.flops]:
        counts.multiply(phase, update.share, since=update.before.get(phase, NOTHING))
    return counts


class _Update:
    """before: what each phase had taken when the updates began. share: by how much all parts are more than the one."""

    def __init__(self) -> None:
        self.before: dict[str, Work] = {}
        self.share = 1.0


def _with_one_part(recipe: PolicyRecipe, update: _Update, generator: CountedGenerator, counts: Counting) -> Any:
    """The recipe, with updates of which the first part is run alone: as many samples as go through the generator
    together."""
    kind: Any = type(recipe)

    def learned(self: Any, failed: Sequence[int]) -> list[Batch]:
        batches = kind.learned(self, failed)
        rows = batches[0].parts[0].rows
        if isinstance(recipe, ForwardRecipe):
            rows = rows[: _at_one_level(recipe, len(rows), generator.num_steps)]
        samples = sum(part.count for batch in batches for part in batch.parts)
        update.before, update.share = {phase: counts.work(phase) for phase in counts.flops}, samples / len(rows)
        generator.predicting = "generator"
        return [Batch([Part(rows, len(rows))], batches[0].size)]

    def draw_levels(self: Any, n: int, num_steps: int, rng: np.random.Generator) -> np.ndarray:
        del rng  # all samples have the same ones
        return np.tile(np.arange(self.levels) % num_steps, (n, 1))

    shortened: Any = type("Shortened", (kind,), {"learned": learned, "draw_levels": draw_levels})
    return shortened.model_construct(**dict(recipe))


def _at_one_level(recipe: ForwardRecipe, n: int, num_steps: int) -> int:
    """How many of n samples a draw of levels puts at one at most, and so through the generator together."""
    together = recipe.group_size if recipe.by_group or recipe.learned_per_group < recipe.group_size else 1
    draws = [recipe.draw_levels(max(1, n // together), num_steps, np.random.default_rng(i)) for i in range(_DRAWS)]
    return min(n, together * max(int(np.unique(levels, return_counts=True)[1].max()) for levels in draws))
