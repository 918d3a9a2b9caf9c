"""The paper's Table 8 on ShapeWorld: what ReFL gains with good and with bad references, on one generator or several.

A cell is one ReFL run: a generator, how its references are chosen, a seed. The cells of a seed share its judge; those
of one generator and seed share its prompts, its candidates' noises and its held-out samples. A finished cell is written
down at once and not done again; an unfinished one goes on from its checkpoint.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from experiments.judges import judge_of_seed
from experiments.references_table import Row, as_line, read_rows, write_table
from rewarddance.alignment.algorithms import align_generator
from rewarddance.alignment.group_rewards import Reward
from rewarddance.alignment.references import ReferenceBank, ReferenceRecipe, References, build_references
from rewarddance.alignment.refl import ReflRecipe
from rewarddance.alignment.train import Alignment
from rewarddance.evaluation.hacking import diversity
from rewarddance.generators.adapter import PipelineGenerator
from rewarddance.generators.pipelines import load_generator
from rewarddance.jobs.quickstart import QuickstartRecipe, refl_prompts
from rewarddance.jobs.quickstart_figures import proxy, sampled
from rewarddance.reward.judge import Judge
from rewarddance.reward.recipe import JudgeRecipe
from rewarddance.runtime.checkpoint import find_checkpoint, writable_folder, write_text_atomically
from rewarddance.runtime.config import Recipe, keep_recipe, parse_recipe
from rewarddance.runtime.tracking import Metrics, console
from rewarddance.shapeworld.preferences import PreferenceRecipe
from rewarddance.shapeworld.tasks import PICTURES, OracleScore
from rewarddance.types import Prompt

CONFIG, RESULTS = "config.yaml", "results.jsonl"


class GeneratorChoice(Recipe):
    """name: a bundled generator, a folder or an id. refl: what is different in ReFL for it, in keys of `refl`."""

    name: str
    num_inference_steps: int = Field(default=12, ge=2)
    guidance_scale: float = Field(default=1.0, ge=1)
    refl: dict[str, Any] = Field(default_factory=dict)

    def load(self) -> PipelineGenerator:
        return load_generator(self.name, self.num_inference_steps, self.guidance_scale)


class Arm(Recipe):
    """One line of the table: which of the generators is aligned, and how its references are chosen."""

    generator: str
    references: ReferenceRecipe = ReferenceRecipe()


class ReferencesRecipe(Recipe):
    """What is compared, and how.

    seeds: each has a judge, prompts, noises and training of its own. arms: by the names of their lines; those of one
    generator are compared with its first one. judges: a trained reward's folder for each seed; where there is none, the
    seed's judge is trained as the quickstart trains its own, on pictures of the first generator. prompts, samples: held
    out, and pictures of each, on which the oracle looks at every generator before and after.
    """

    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)
    generators: dict[str, GeneratorChoice] = Field(min_length=1)
    arms: dict[str, Arm] = Field(min_length=1)
    preferences: PreferenceRecipe = PreferenceRecipe()
    judge: JudgeRecipe = JudgeRecipe()
    judges: dict[int, str] = Field(default_factory=dict)
    refl_prompts: int = Field(default=48, ge=1)
    refl: ReflRecipe = ReflRecipe()
    prompts: int = Field(default=60, ge=6)
    samples: int = Field(default=8, ge=2)

    @model_validator(mode="after")
    def _is_whole(self) -> ReferencesRecipe:
        for name, arm in self.arms.items():
            if not re.fullmatch(r"\w[\w.-]*", name):
                raise ValueError(f"{name!r} is to be the name of a folder; use letters, digits, '-' and '_'")
            if arm.generator not in self.generators:
                raise ValueError(f"the arm {name!r} is of the generator {arm.generator!r}, which is not among them")
            if arm.references.keep_from == "bottom" and self.refl_of(arm.generator).reference_mse:
                raise ValueError(
                    f"the arm {name!r} would teach the generator its worst pictures: reference_mse denoises the "
                    "references themselves, so set it to 0 where references of the bottom are compared"
                )
        if unused := sorted(set(self.generators) - {arm.generator for arm in self.arms.values()}):
            raise ValueError(f"the generator {unused[0]!r} has no arm")
        if unknown := sorted(set(self.judges) - set(self.seeds)):
            raise ValueError(f"there is a judge for seed {unknown[0]}, which is not among the seeds")
        return self

    def refl_of(self, generator: str) -> ReflRecipe:
        """ReFL's recipe for one of the generators. Raises InputError naming the key that is not right."""
        own = self.generators[generator].refl
        return parse_recipe(ReflRecipe, self.refl.model_dump() | own, f"the generator {generator!r}")

    def quickstart(self, seed: int) -> QuickstartRecipe:
        """The run whose preferences and training prompts a seed has."""
        first = next(iter(self.generators.values()))
        return QuickstartRecipe(
            seed=seed,
            generator=first.name,
            num_inference_steps=first.num_inference_steps,
            guidance_scale=first.guidance_scale,
            preferences=self.preferences,
            judge=self.judge,
            refl_prompts=self.refl_prompts,
        )


class Cell(NamedTuple):
    """One ReFL run to do."""

    seed: int
    arm: str


class Baseline(NamedTuple):
    """What the cells of one generator and seed share. base [P, N, ...]: the held-out samples before ReFL."""

    generator: str
    seed: int
    judge: Judge
    prompts: list[Prompt]
    base: Tensor
    scores: list[list[OracleScore]]


def compare_references(recipe: ReferencesRecipe, folder: Path) -> str:
    """Do what is left of the table; returns it as Markdown. It is written anew after every cell, with its figures.

    Raises InputError before anything is done where a checkpoint is missing, and where the folder holds a table that was
    begun under another recipe.
    """
    trains = () if set(recipe.seeds) <= set(recipe.judges) else (recipe.judge.base,)
    for name in (*(one.name for one in recipe.generators.values()), *trains, *recipe.judges.values()):
        find_checkpoint(name)
    for name, choice in recipe.generators.items():
        recipe.refl_of(name).begins(choice.num_inference_steps)
    writable_folder(folder)
    keep_recipe(recipe, folder / CONFIG)
    rows, todo = read_rows(folder / RESULTS), list(cells(recipe))
    ground: Baseline | None = None
    for cell in todo:
        if any((row.seed, row.arm) == cell for row in rows):
            continue
        console.print(f"{len(rows) + 1} of {len(todo)}: seed {cell.seed}, {cell.arm}", soft_wrap=True)
        generator = recipe.arms[cell.arm].generator
        if ground is None or (ground.generator, ground.seed) != (generator, cell.seed):
            ground = common(recipe, generator, cell.seed, folder)
        rows.append(measured(recipe, cell, ground, folder / f"seed{cell.seed}"))
        write_text_atomically(folder / RESULTS, "".join(map(as_line, rows)))
        for checkpoint in (folder / f"seed{cell.seed}" / cell.arm).glob("checkpoint-*"):  # it is done: the LoRA stays
            shutil.rmtree(checkpoint)
        write_table(_arms(recipe), rows, len(todo), folder)
    return write_table(_arms(recipe), rows, len(todo), folder)


def cells(recipe: ReferencesRecipe) -> Iterator[Cell]:
    """Generator by generator and seed by seed, so that an unfinished table is whole for the first of them."""
    for generator in recipe.generators:
        for seed in recipe.seeds:
            yield from (Cell(seed, name) for name, arm in recipe.arms.items() if arm.generator == generator)


def _arms(recipe: ReferencesRecipe) -> dict[str, str]:
    """Each arm's generator, in the order of the table."""
    return {name: recipe.arms[name].generator for name in dict.fromkeys(cell.arm for cell in cells(recipe))}


def common(recipe: ReferencesRecipe, generator: str, seed: int, folder: Path) -> Baseline:
    """The judge of a seed, and what a generator draws for the held-out prompts before it is aligned."""
    prompts = PICTURES.prompts("held_out", recipe.prompts, seed)
    judge = judge_of_seed(recipe.quickstart(seed), recipe.judges, folder / f"seed{seed}")
    title = f"{generator}, before ReFL"
    pictures, scores = sampled(recipe.generators[generator].load(), prompts, recipe.samples, seed, 9, title)
    return Baseline(generator, seed, judge, prompts, pictures, scores)


def bank_of(recipe: ReferencesRecipe, arm: Arm, ground: Baseline, folder: Path) -> list[References]:
    """An arm's references of the training prompts.

    Whole rankings are on disk, one folder for each number of candidates, so that arms which keep others of the same
    share their tournament. Candidates of a smaller number are the first of those of a larger one.
    """
    whole = arm.references.model_copy(update={"keep": arm.references.candidates, "keep_from": "top"})
    place = folder / "references" / f"{ground.generator}-{whole.candidates}"
    prompts = refl_prompts(recipe.quickstart(ground.seed))
    generator = recipe.generators[ground.generator].load()
    return [kept(one, arm.references) for one in
            build_references(generator, ground.judge, prompts, whole, folder=place, seed=ground.seed)]  # fmt: skip


def kept(ranking: References, recipe: ReferenceRecipe) -> References:
    """Of a prompt's whole ranking, those that become references."""
    places = recipe.kept()
    return replace(
        ranking,
        pictures=ranking.pictures[places],
        seeds=ranking.seeds[places],
        wins=ranking.wins[places],
        latents=ranking.latents[places],
        choice=recipe.choice,
    )


def measured(recipe: ReferencesRecipe, cell: Cell, ground: Baseline, folder: Path) -> Row:
    """Align once, and look at the held-out prompts with the oracle and the judge, from the noises that the base had."""
    began = time.monotonic()
    arm, place = recipe.arms[cell.arm], folder / cell.arm
    bank = bank_of(recipe, arm, ground, folder)
    generator, refl = recipe.generators[arm.generator].load(), recipe.refl_of(arm.generator)
    rewards = [Reward(ground.judge, "references")]
    prompts = [references.prompt for references in bank]
    run = Alignment(generator, rewards, prompts, refl, cell.seed, ReferenceBank(bank))
    align_generator(run, folder=place, metrics=Metrics(place / "metrics.jsonl"))
    title = f"{cell.arm}, after ReFL"
    pictures, scores = sampled(generator, ground.prompts, recipe.samples, cell.seed, 9, title)
    reward = proxy(ground.judge, ground.prompts, {"base": ground.base, "refl": pictures}, ground.base)
    shown = [PICTURES.score(torch.stack(one.pictures), one.prompt) for one in bank]
    return Row(
        seed=cell.seed,
        arm=cell.arm,
        steps=refl.steps,
        references=_alignment(shown),
        oracle_base=_alignment(ground.scores),
        oracle=_alignment(scores),
        reward_base=reward["base"].tolist(),
        reward=reward["refl"].tolist(),
        diversity_base=diversity(ground.base).tolist(),
        diversity=diversity(pictures).tolist(),
        seconds=round(time.monotonic() - began, 1),
    )


def _alignment(scores: Sequence[Sequence[OracleScore]]) -> list[float]:
    """The oracle's alignment, each prompt's mean."""
    return [float(np.mean([score.alignment for score in row])) for row in scores]
