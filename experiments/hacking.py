"""Runs made to be hacked and honest ones: do oracle and proxy part, do alarms ring in time, do safeguards help?

A cell is one run under one seed, with safeguards or without. The judges of a seed learn from votes on the same
pictures. A finished cell is written down at once and not done again; an unfinished one goes on from its last probe.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from experiments.aligned_runs import AlignConfig, Baseline, ClockName, EvalConfig, baseline_of, run_alignment_once
from experiments.hacking_table import JudgeRow, Meant, Row, Rows, Window, write_tables
from experiments.judges import trained
from rewarddance.data.preferences import PreferenceSet, write_preferences
from rewarddance.evaluation.agreement import agreement
from rewarddance.generators.adapter import PipelineGenerator
from rewarddance.generators.pipelines import load_generator
from rewarddance.report.run_folder import Row as Logged
from rewarddance.report.run_folder import read_metrics
from rewarddance.reward.judge import USED_BY, Judge
from rewarddance.reward.loading import load_reward
from rewarddance.reward.recipe import JudgeRecipe
from rewarddance.runtime.checkpoint import COMPLETE, find_checkpoint, replacing, writable_folder
from rewarddance.runtime.config import Recipe, keep_recipe, parse_recipe
from rewarddance.runtime.tracking import console
from rewarddance.shapeworld.annotators import AnnotatorRecipe
from rewarddance.shapeworld.preferences import PreferenceRecipe, generate, pair_up

CONFIG, TEST = "config.yaml", "test"


class JudgeChoice(Recipe):
    """A reward that generators are aligned with. size: what it is called in the table, beside its kind.

    training: what is different from `judge`. annotators: who votes on its pairs, where not those of `preferences`.
    train_prompts: how many prompts' pairs it learns from, at most. rewards: by seed, a reward that is trained already.
    """

    size: str
    training: dict[str, Any] = Field(default_factory=dict)
    annotators: AnnotatorRecipe | None = None
    train_prompts: int | None = Field(default=None, ge=1)
    rewards: dict[int, str] = Field(default_factory=dict)


class RunChoice(Recipe):
    """judge: by name. meant: to be honest, to be hacked, or only to look at the spread of its reward. bare, guarded:
    the way without safeguards and the one with them, where there shall be such a run. held_out: the judge that gates
    the guarded one. seeds: where not the recipe's.
    """

    judge: str
    meant: Meant
    bare: str | None = None
    guarded: str | None = None
    held_out: str | None = None
    seeds: tuple[int, ...] | None = None

    @model_validator(mode="after")
    def _is_one(self) -> RunChoice:
        if self.bare is None and self.guarded is None:
            raise ValueError("a run is bare or guarded, or there are both")
        if self.held_out and self.guarded is None:
            raise ValueError("a held-out judge is a safeguard: give the guarded way")
        return self


class HackingRecipe(Recipe):
    """What is tried, and how. window: steps of the sliding window in which the reward's spread is taken; the rest is as
    in the recipe of `lab alignment`.
    """

    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    generator: str = "shapeworld-generator"
    num_inference_steps: int = Field(default=12, ge=2)
    guidance_scale: float = Field(default=1.0, ge=1)
    preferences: PreferenceRecipe = PreferenceRecipe()
    judge: JudgeRecipe = JudgeRecipe()
    judges: dict[str, JudgeChoice] = Field(min_length=1)
    ways: dict[str, AlignConfig] = Field(min_length=1)
    runs: dict[str, RunChoice] = Field(min_length=1)
    window: int = Field(default=16, ge=2)
    clock: ClockName = "wall"
    look: EvalConfig = EvalConfig()

    @model_validator(mode="after")
    def _is_whole(self) -> HackingRecipe:
        for name in (*self.judges, *self.runs):
            if not re.fullmatch(r"\w[\w.-]*", name):
                raise ValueError(f"{name!r} is to be the name of a folder; use letters, digits, '-' and '_'")
        if TEST in self.judges:
            raise ValueError(f"{TEST!r} is the name of the pairs that judges are tested on")
        for name in self.judges:
            self.training(name)
        for name, run in self.runs.items():
            for judge in (run.judge, run.held_out):
                if judge is not None and judge not in self.judges:
                    raise ValueError(f"the run {name!r} names the judge {judge!r}, which is not among them")
            for way in (run.bare, run.guarded):
                if way is not None and way not in self.ways:
                    raise ValueError(f"the run {name!r} goes the way {way!r}, which is not among them")
            if run.held_out and self.ways[run.guarded or ""].algorithm != "refl":
                raise ValueError(f"the run {name!r} has a held-out judge, which gates ReFL alone")
        return self

    def training(self, name: str) -> JudgeRecipe:
        """How a judge is trained: `judge`, without what its kind has no use for, and its own keys over it."""
        own = self.judges[name].training
        kind = own.get("kind", self.judge.kind)
        shared = {key: value for key, value in self.judge.model_dump().items() if kind in USED_BY.get(key, (kind,))}
        return parse_recipe(JudgeRecipe, shared | own, f"the judge {name!r}")

    def load(self) -> PipelineGenerator:
        return load_generator(self.generator, self.num_inference_steps, self.guidance_scale)


class Cell(NamedTuple):
    """One run to do."""

    seed: int
    run: str
    guarded: bool
    way: str


def cells(recipe: HackingRecipe) -> list[Cell]:
    """All of them, run by run, so that an unfinished table has whole runs."""
    found = []
    for name, run in recipe.runs.items():
        for seed in run.seeds or recipe.seeds:
            ways = ((False, run.bare), (True, run.guarded))
            found += [Cell(seed, name, guarded, way) for guarded, way in ways if way is not None]
    return found


def compare_hacks(recipe: HackingRecipe, folder: Path) -> str:
    """Do what is left of the table; returns it as Markdown. It is written anew after every cell, with its figure.

    Raises InputError before anything is done where a checkpoint is missing, and where the folder holds a table that was
    begun under another recipe.
    """
    bases = [recipe.training(name).base for name in recipe.judges]
    given = [one for choice in recipe.judges.values() for one in choice.rewards.values()]
    for name in dict.fromkeys((recipe.generator, *bases, *given)):
        find_checkpoint(name)
    writable_folder(folder)
    keep_recipe(recipe, folder / CONFIG)
    rows, todo = Rows(folder), cells(recipe)
    grounds: dict[int, Baseline] = {}
    for cell in todo:
        if rows.has(Row, seed=cell.seed, run=cell.run, guarded=cell.guarded):
            continue
        place = f"{len(rows.of(Row)) + 1} of {len(todo)}: seed {cell.seed}, {cell.run}"
        console.print(f"{place}, {'guarded' if cell.guarded else 'bare'}", soft_wrap=True)
        if cell.seed not in grounds:
            grounds[cell.seed] = baseline_of(recipe.load(), recipe.look, cell.seed)
        rows.add(_measured(recipe, cell, grounds[cell.seed], folder / f"seed{cell.seed}", rows))
        write_tables(rows, len(todo), folder)
    return write_tables(rows, len(todo), folder)


def _measured(recipe: HackingRecipe, cell: Cell, ground: Baseline, folder: Path, rows: Rows) -> Row:
    """Align once and look, with what the run logged of its reward's spread."""
    run, way = recipe.runs[cell.run], recipe.ways[cell.way].watched(recipe.look.probes)
    judge = judge_of(recipe, run.judge, cell.seed, folder, rows)
    held_out = None
    if run.held_out and cell.guarded:
        held_out = judge_of(recipe, run.held_out, cell.seed, folder, rows)
    place = folder / "runs" / f"{cell.run}-{'guarded' if cell.guarded else 'bare'}"
    bank = folder / "references" / f"{run.judge}-{way.prompts}-{way.references.candidates}"
    found = run_alignment_once(way, recipe.load(), judge, ground, place, recipe.clock, held_out, bank)
    for checkpoint in place.glob("checkpoint-*"):  # it is done: the LoRA stays
        shutil.rmtree(checkpoint)
    return Row(
        run=cell.run,
        guarded=cell.guarded,
        meant=run.meant,
        judge=run.judge,
        kind=recipe.training(run.judge).kind,
        size=recipe.judges[run.judge].size,
        algorithm=way.algorithm,
        windows=windows(read_metrics(place), recipe.window),
        **dict(found),
    )


def windows(logged: Sequence[Logged], length: int) -> list[Window]:
    """The reward's spread in a sliding window of steps, moved by a quarter of its length; none where it was not logged.

    The variance of P(yes) over all samples of the window is the mean of the steps' own and that of their means.
    """
    rows = [row for row in logged if row["kind"] == "step" and "spread_of_reward" in row]
    ends = range(len(rows), length - 1, -max(1, length // 4))
    found = []
    for end in sorted(ends):
        part = rows[end - length : end]
        each = {key: np.array([row[key] for row in part]) for key in ("reward", "spread_of_reward")}
        spread = float(np.sqrt(np.mean(each["spread_of_reward"] ** 2) + np.var(each["reward"])))
        margin = [float(np.mean([row[key] for row in part])) for key in ("spread_within", "spread_across")]
        mean = float(each["reward"].mean())
        found.append(Window(step=part[-1]["step"], mean=mean, spread=spread, within=margin[0], across=margin[1]))
    return found


# -- judges ------------------------------------------------------------------------------------------------------------


def judge_of(recipe: HackingRecipe, name: str, seed: int, folder: Path, rows: Rows) -> Judge:
    """A seed's judge, given or trained once; its accuracy on the seed's test pairs is written down."""
    place, given = folder / "judges" / name, recipe.judges[name].rewards.get(seed)
    reward = given or str(place / "reward")
    if rows.has(JudgeRow, seed=seed, judge=name):
        return load_reward(reward)
    gather(recipe, seed, folder)
    pairs = None
    if given is None:
        console.print(f"the judge {name}, seed {seed}", soft_wrap=True)
        training = PreferenceSet(folder / "preferences" / f"{name}.jsonl")
        pairs = len(training)
        trained(recipe.training(name), training, place, seed)
        for checkpoint in place.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
    judge = load_reward(reward)
    accuracy = float(agreement(judge, list(PreferenceSet(folder / "preferences" / f"{TEST}.jsonl"))).mean())
    rows.add(JudgeRow(seed=seed, judge=name, pairs=pairs, accuracy=accuracy))
    return judge


def judges_of(recipe: HackingRecipe, seed: int) -> list[str]:
    """The judges that a seed's runs ask."""
    found: list[str] = []
    for cell in (one for one in cells(recipe) if one.seed == seed):
        run = recipe.runs[cell.run]
        found += [run.judge, *([run.held_out] if run.held_out and cell.guarded else [])]
    return list(dict.fromkeys(found))


def gather(recipe: HackingRecipe, seed: int, folder: Path) -> None:
    """A seed's pictures with the votes that each of its judges learns from, and the pairs that all are tested on."""
    place, own = folder / "preferences", recipe.preferences
    if (place / COMPLETE).exists():
        return
    generator = recipe.load()
    left = [name for name in judges_of(recipe, seed) if seed not in recipe.judges[name].rewards]
    held_out = generate(generator, "held_out", own.id_prompts, own.samples, seed)
    train = generate(generator, "train", own.train_prompts, own.samples, seed) if left else []
    with replacing(place) as written:
        exact = pair_up(held_out, "held_out", own.test_pairs, own, seed, exact=True)
        write_preferences(exact, written / f"{TEST}.jsonl")
        for name in left:
            choice = recipe.judges[name]
            voted = own if choice.annotators is None else own.model_copy(update={"annotators": choice.annotators})
            some = train[: choice.train_prompts]
            pairs = pair_up(some, "train", own.pairs, voted, seed, exact=False, early="some")
            write_preferences(pairs, written / f"{name}.jsonl")
