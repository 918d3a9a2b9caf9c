"""The paper's Table 8 on ShapeWorld: what ReFL gains with good and with bad references, on one generator or several.

A cell is one ReFL run: a generator, how its references are chosen, a seed. The cells of a seed share its judge; those
of one generator and seed share its prompts, its candidates' noises and its held-out samples. An unfinished cell goes on
from its checkpoint.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator

from experiments.aligned_runs import (
    GAIN_COLUMNS,
    Baseline,
    Outcome,
    baseline_of,
    outcome,
)
from experiments.grid import Cell, Experiment, Report, Seeds, TimedRow, check_folder_names, remove_checkpoints
from experiments.tables import OVER_SEEDS, Column, Group, listed, over_seeds, points, results, table
from experiments.trained_judges import check_given, judge_checkpoints, judge_of_seed
from rewarddance.alignment.algorithms import align_generator
from rewarddance.alignment.group_rewards import Reward
from rewarddance.alignment.references import ReferenceBank, ReferenceRecipe, References, build_references
from rewarddance.alignment.refl_recipe import ReflRecipe
from rewarddance.alignment.train import Alignment
from rewarddance.generators.adapter import PipelineGenerator
from rewarddance.generators.pipelines import load_generator
from rewarddance.jobs.quickstart import QuickstartRecipe, training_prompts
from rewarddance.jobs.quickstart_figures import means_of
from rewarddance.reward.judge import Judge
from rewarddance.reward.recipe import JudgeRecipe
from rewarddance.runtime.config import Recipe, parse_recipe
from rewarddance.runtime.tracking import Metrics
from rewarddance.shapeworld.preferences import PreferenceRecipe
from rewarddance.shapeworld.tasks import PICTURES


class GeneratorChoice(Recipe):
    """A generator that is aligned.

    name: a bundled generator, a folder or an id.
    refl: what is different in ReFL for it, in keys of `refl`.
    """

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

    seeds: each has a judge, prompts, noises and training of its own.
    generators: by name.
    arms: by the names of their lines; those of one generator are compared with its first one.
    judges: a trained reward's folder for each seed; where there is none, the seed's judge is trained as the quickstart
        trains its own, on pictures of the first generator.
    prompts, samples: held out, and pictures of each, on which every generator is evaluated before and after.
    """

    seeds: Seeds = (0, 1, 2)
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
        check_folder_names(self.arms)
        check_given(self.judges, self.seeds)
        for name, arm in self.arms.items():
            if arm.generator not in self.generators:
                raise ValueError(f"the arm {name!r} is of the generator {arm.generator!r}, which is not among them")
            if arm.references.keep_from == "bottom" and self.refl_of(arm.generator).reference_mse:
                raise ValueError(
                    f"the arm {name!r} would teach the generator its worst pictures: reference_mse denoises the "
                    "references themselves, so set it to 0 where references of the bottom are compared"
                )
        if unused := sorted(set(self.generators) - {arm.generator for arm in self.arms.values()}):
            raise ValueError(f"the generator {unused[0]!r} has no arm")
        return self

    def refl_of(self, generator: str) -> ReflRecipe:
        """ReFL's recipe for one of the generators. Raises InputError naming the key that is not right."""
        options = self.generators[generator].refl
        return parse_recipe(ReflRecipe, self.refl.model_dump() | options, f"the generator {generator!r}")

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


class ArmRun(Outcome, TimedRow):
    """One finished cell. references: the oracle's mean alignment of each training prompt's references."""

    arm: str
    references: list[float]


class ReferenceQuality(Experiment[ReferencesRecipe]):
    name, recipe_kind, row_kinds, counted = "references", ReferencesRecipe, ArmRun, ArmRun

    def checkpoints(self) -> list[str]:
        recipe = self.recipe
        generators = [choice.name for choice in recipe.generators.values()]
        return [*generators, *judge_checkpoints(recipe.judge, recipe.judges, recipe.seeds)]

    def check(self) -> None:
        super().check()
        for name, choice in self.recipe.generators.items():
            self.recipe.refl_of(name).first_grad_steps(choice.num_inference_steps)

    def cells(self) -> list[Cell]:
        """Generator by generator and seed by seed, so that an unfinished table is whole for the first of them."""
        return [
            Cell(ArmRun, {"seed": seed, "arm": name})
            for generator in self.recipe.generators
            for seed in self.recipe.seeds
            for name, arm in self.recipe.arms.items()
            if arm.generator == generator
        ]

    def group(self, cell: Cell) -> tuple[str, int]:
        return self.recipe.arms[cell.key["arm"]].generator, cell.key["seed"]

    def prepare(self, group: tuple[str, int]) -> tuple[Judge, Baseline]:
        """The judge of a seed, and what a generator draws for the held-out prompts before it is aligned."""
        (name, seed), recipe = group, self.recipe
        judge = judge_of_seed(recipe.quickstart(seed), recipe.judges, self.seed_folder(seed))
        return judge, baseline_of(recipe.generators[name].load(), seed, recipe.prompts, recipe.samples)

    def measure(self, cell: Cell, shared: tuple[Judge, Baseline]) -> ArmRun:
        """Align once, and evaluate on the held-out prompts from the noises that the base had."""
        began, (judge, baseline), arm = time.monotonic(), shared, self.recipe.arms[cell.key["arm"]]
        folder = self.seed_folder(baseline.seed) / cell.key["arm"]
        bank = self.references(arm, judge, baseline.seed, folder.parent / "references")
        generator, refl = self.recipe.generators[arm.generator].load(), self.recipe.refl_of(arm.generator)
        rewards, prompts = [Reward(judge, "references")], [references.prompt for references in bank]
        run = Alignment(generator, rewards, prompts, refl, baseline.seed, ReferenceBank(bank))
        align_generator(run, folder=folder, metrics=Metrics(folder / "metrics.jsonl"))
        scores = [PICTURES.score(torch.stack([*kept.pictures]), kept.prompt) for kept in bank]
        figures = {"steps": refl.steps, "references": means_of(scores), **outcome(generator, judge, baseline)}
        remove_checkpoints(folder)
        return ArmRun.model_validate({**cell.key, **figures, "seconds": round(time.monotonic() - began, 1)})

    def references(self, arm: Arm, judge: Judge, seed: int, folder: Path) -> list[References]:
        """An arm's references of the training prompts.

        Whole rankings are on disk, one folder for each number of candidates, so that arms which keep others of the same
        share their tournament. Candidates of a smaller number are the first of those of a larger one.
        """
        whole = arm.references.model_copy(update={"keep": arm.references.candidates, "keep_from": "top"})
        generator, prompts = (
            self.recipe.generators[arm.generator].load(),
            training_prompts(self.recipe.quickstart(seed), self.recipe.refl_prompts),
        )
        folder = folder / f"{arm.generator}-{whole.candidates}"
        rankings = build_references(generator, judge, prompts, whole, folder=folder, seed=seed)
        return [kept(ranking, arm.references) for ranking in rankings]

    # -- the table -----------------------------------------------------------------------------------------------------

    def report(self) -> Report:
        lines: list[Group[ArmRun]] = []
        first: dict[str, list[ArmRun]] = {}
        for arm in dict.fromkeys(cell.key["arm"] for cell in self.cells()):
            if rows := self.rows.of(ArmRun, arm=arm):
                lines.append(Group(arm, rows, first.setdefault(self.recipe.arms[arm].generator, rows)))
        columns: list[Column[Group[ArmRun]]] = [
            Column("generator", lambda group: self.recipe.arms[group.name].generator),
            Column("references", lambda group: group.name, key="arm"),
            Column("", lambda group: group.seeds, key="seeds"),
            Column(
                "their oracle", lambda group: over_seeds(row.references for row in group.rows), points, "references"
            ),
            *GAIN_COLUMNS,
        ]
        seeds = sorted({row.seed for row in self.rows.of(ArmRun)})
        text = (
            "References: the oracle's alignment of the training prompts' references, of 100. Base: of the held-out "
            "samples before ReFL. Gain: after ReFL over before, in points, from the same noises. Over the first: the "
            "gain over that of the generator's first line. P(yes): the judge's, of samples against the base's of other "
            f"noises, after minus before. Diversity: % of the base's. {OVER_SEEDS}; seeds: {listed(seeds)}.\n\n"
        )
        return Report(text + table(columns, lines), {"table": results(columns, lines)}, {})


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


EXPERIMENT = ReferenceQuality
