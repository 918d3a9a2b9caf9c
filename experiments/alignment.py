"""Ways to align at equal seconds, by the oracle: the same judge, the same prompts to be looked at, over seeds.

A cell is one way under one seed. What a way's references and steps take is measured once, and gives the number of its
steps. A finished cell is written down at once and not done again; an unfinished one goes on from its last probe.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from pydantic import Field, model_validator

from experiments.aligned_runs import AlignConfig, Baseline, ClockName, EvalConfig, baseline_of, pace, run_alignment_once
from experiments.alignment_table import Pace, Row, Rows, write_tables
from experiments.judges import judge_of_seed
from rewarddance.errors import InputError
from rewarddance.generators.adapter import PipelineGenerator
from rewarddance.generators.pipelines import load_generator
from rewarddance.jobs.quickstart import QuickstartRecipe
from rewarddance.reward.judge import Judge
from rewarddance.reward.recipe import JudgeRecipe
from rewarddance.runtime.checkpoint import find_checkpoint, writable_folder
from rewarddance.runtime.config import Recipe, keep_recipe
from rewarddance.runtime.tracking import console
from rewarddance.shapeworld.preferences import PreferenceRecipe

CONFIG = "config.yaml"


class AlignmentRecipe(Recipe):
    """What is compared, and how.

    seeds: each has a judge, prompts, noises and training of its own. judges: a trained reward's folder for each seed;
    where there is none, the seed's judge is trained as the quickstart trains its own. ways: by the names of their
    lines; all are compared with the first. seconds: that each may take, references and all; its recipe's number of
    steps gives way to it. pilot: steps from which it is known what one takes. clock: seconds by the wall, or of the
    processor (on a machine that others use too).
    """

    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)
    generator: str = "shapeworld-generator"
    num_inference_steps: int = Field(default=12, ge=2)
    guidance_scale: float = Field(default=1.0, ge=1)
    preferences: PreferenceRecipe = PreferenceRecipe()
    judge: JudgeRecipe = JudgeRecipe()
    judges: dict[int, str] = Field(default_factory=dict)
    ways: dict[str, AlignConfig] = Field(min_length=1)
    seconds: float = Field(default=180, gt=0)
    pilot: int = Field(default=3, ge=1)
    clock: ClockName = "wall"
    look: EvalConfig = EvalConfig()

    @model_validator(mode="after")
    def _is_whole(self) -> AlignmentRecipe:
        for name in self.ways:
            if not re.fullmatch(r"\w[\w.-]*", name):
                raise ValueError(f"{name!r} is to be the name of a folder; use letters, digits, '-' and '_'")
        if unknown := sorted(set(self.judges) - set(self.seeds)):
            raise ValueError(f"there is a judge for seed {unknown[0]}, which is not among the seeds")
        return self

    def quickstart(self, seed: int) -> QuickstartRecipe:
        """The run whose preferences a seed's judge learns from."""
        return QuickstartRecipe(
            seed=seed,
            generator=self.generator,
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
            preferences=self.preferences,
            judge=self.judge,
        )

    def load(self) -> PipelineGenerator:
        return load_generator(self.generator, self.num_inference_steps, self.guidance_scale)


def compare_alignments(recipe: AlignmentRecipe, folder: Path) -> str:
    """Do what is left of the table; returns it as Markdown. It is written anew after every cell, with its figure.

    Raises InputError before anything is done where a checkpoint is missing, and where the folder holds a table that was
    begun under another recipe.
    """
    trains = () if set(recipe.seeds) <= set(recipe.judges) else (recipe.judge.base,)
    for name in (recipe.generator, *trains, *recipe.judges.values()):
        find_checkpoint(name)
    writable_folder(folder)
    keep_recipe(recipe, folder / CONFIG)
    rows, total = Rows(folder), len(recipe.seeds) * len(recipe.ways)
    for seed in recipe.seeds:
        left = [name for name in recipe.ways if not rows.has(Row, seed=seed, way=name)]
        if not left:
            continue
        judge = judge_of_seed(recipe.quickstart(seed), recipe.judges, folder / f"seed{seed}")
        ground: Baseline | None = None
        for name in left:
            way = _timed(recipe, name, seed, judge, folder, rows)
            ground = ground or baseline_of(recipe.load(), recipe.look, seed)
            done = len(rows.of(Row))
            console.print(f"{done + 1} of {total}: seed {seed}, {name}, {way.loop.steps} steps", soft_wrap=True)
            place = folder / f"seed{seed}" / name
            found = run_alignment_once(way, recipe.load(), judge, ground, place, recipe.clock)
            rows.add(Row(way=name, **dict(found)))
            for checkpoint in place.glob("checkpoint-*"):  # it is done: the LoRA stays
                shutil.rmtree(checkpoint)
            write_tables([*recipe.ways], rows, total, folder)
    return write_tables([*recipe.ways], rows, total, folder)


def _timed(recipe: AlignmentRecipe, name: str, seed: int, judge: Judge, folder: Path, rows: Rows) -> AlignConfig:
    """A way with the steps that its seconds give, by what they took when it was tried the first time.

    Raises InputError where the seconds do not even give its references and one step.
    """
    way, known = recipe.ways[name], rows.first(Pace, way=name)
    if known is None:
        console.print(f"what a step of {name} takes", soft_wrap=True)
        scratch = folder / "pace" / name
        shutil.rmtree(scratch, ignore_errors=True)
        before, each = pace(way, recipe.load(), judge, scratch, seed, recipe.clock, recipe.pilot)
        shutil.rmtree(scratch, ignore_errors=True)
        known = Pace(seed=seed, way=name, before=before, each=each)
        rows.add(known)
    steps = int((recipe.seconds - known.before) / known.each)
    if steps < 1:
        raise InputError(
            f"{name} takes {known.before:.1f} seconds before its first step and {known.each:.1f} for each, and may "
            f"take {recipe.seconds:g}.",
            "Raise seconds, or lower the way's references.candidates, prompts or prompts_per_step.",
        )
    return way.with_loop(steps=steps).watched(recipe.look.probes)
