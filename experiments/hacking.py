"""Runs made to be hacked and honest ones: do oracle and proxy part, do alarms ring in time, do safeguards help?

A cell is one run under one seed, with safeguards or without; an unfinished one goes on from its last probe. The judges
of a seed learn from votes on the same pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from experiments.aligned_runs import AlignConfig, Baseline, ClockName, EvalConfig, baseline_of, run_alignment_once
from experiments.grid import Cell, Experiment, GridRecipe, Report, check_folder_names, remove_checkpoints
from experiments.hacking_table import HackingRun, JudgeAccuracy, Meant, Window, hacking_report
from experiments.trained_judges import train, with_options
from rewarddance.data.preferences import PreferenceSet, write_preferences
from rewarddance.evaluation.agreement import agreement
from rewarddance.report.run_folder import Row as Logged
from rewarddance.report.run_folder import read_metrics
from rewarddance.reward.judge import Judge
from rewarddance.reward.loading import load_reward
from rewarddance.reward.recipe import JudgeRecipe
from rewarddance.runtime.checkpoint import COMPLETE, replacing
from rewarddance.runtime.config import Recipe
from rewarddance.runtime.tracking import console
from rewarddance.shapeworld.annotators import AnnotatorRecipe
from rewarddance.shapeworld.preferences import generate, pair_up

TEST = "test"


class JudgeChoice(Recipe):
    """A reward that generators are aligned with.

    size: what it is called in the table, beside its kind.
    training: what is different from `judge`.
    annotators: who votes on its pairs, where not those of `preferences`.
    train_prompts: how many prompts' pairs it learns from, at most.
    rewards: by seed, a reward that is trained already.
    """

    size: str
    training: dict[str, Any] = Field(default_factory=dict)
    annotators: AnnotatorRecipe | None = None
    train_prompts: int | None = Field(default=None, ge=1)
    rewards: dict[int, str] = Field(default_factory=dict)


class RunChoice(Recipe):
    """A run that is made.

    judge: by name.
    meant: to be honest, to be hacked, or only to show the spread of its reward.
    bare, guarded: the method without safeguards and the one with them, where there shall be such a run.
    held_out: the judge that gates the guarded one.
    seeds: where not the recipe's.
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
            raise ValueError("a held-out judge is a safeguard: give the guarded method")
        return self


class HackingRecipe(GridRecipe):
    """What is tried, and how.

    judges, methods, runs: by name; a run names its judges and methods.
    window: steps of the sliding window in which the reward's spread is taken.
    clock, eval: as in the alignment experiment.
    """

    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    judges: dict[str, JudgeChoice] = Field(min_length=1)
    methods: dict[str, AlignConfig] = Field(min_length=1)
    runs: dict[str, RunChoice] = Field(min_length=1)
    window: int = Field(default=16, ge=2)
    clock: ClockName = "wall"
    eval: EvalConfig = EvalConfig()

    @model_validator(mode="after")
    def _is_whole(self) -> HackingRecipe:
        check_folder_names((*self.judges, *self.runs))
        if TEST in self.judges:
            raise ValueError(f"{TEST!r} is the name of the pairs that judges are tested on")
        for name in self.judges:
            self.training(name)
        for name, run in self.runs.items():
            for judge in (run.judge, run.held_out):
                if judge is not None and judge not in self.judges:
                    raise ValueError(f"the run {name!r} names the judge {judge!r}, which is not among them")
            for method in (run.bare, run.guarded):
                if method is not None and method not in self.methods:
                    raise ValueError(f"the run {name!r} names the method {method!r}, which is not among them")
            if run.held_out and self.methods[run.guarded or ""].algorithm != "refl":
                raise ValueError(f"the run {name!r} has a held-out judge, which gates ReFL alone")
        return self

    def training(self, name: str) -> JudgeRecipe:
        """How a judge is trained. Raises InputError naming the wrong key."""
        return with_options(self.judge, self.judges[name].training, f"the judge {name!r}")


class Hacking(Experiment[HackingRecipe]):
    name, recipe_kind, row_kinds, counted = "hacking", HackingRecipe, HackingRun | JudgeAccuracy, HackingRun

    def checkpoints(self) -> list[str]:
        bases = [self.recipe.training(name).base for name in self.recipe.judges]
        given = [reward for choice in self.recipe.judges.values() for reward in choice.rewards.values()]
        return [self.recipe.generator, *bases, *given]

    def cells(self) -> list[Cell]:
        """Run by run, so that an unfinished table has whole runs."""
        return [
            Cell(HackingRun, {"seed": seed, "run": name, "guarded": guarded})
            for name, run in self.recipe.runs.items()
            for seed in run.seeds or self.recipe.seeds
            for guarded, method in ((False, run.bare), (True, run.guarded))
            if method is not None
        ]

    def describe(self, cell: Cell) -> str:
        return f"{cell.key['run']}, {'guarded' if cell.key['guarded'] else 'bare'}"

    def prepare(self, group: int) -> Baseline:
        evaluation = self.recipe.eval
        return baseline_of(self.recipe.load_generator(), group, evaluation.prompts, evaluation.samples)

    def measure(self, cell: Cell, shared: Baseline) -> HackingRun:
        """Align once and evaluate, with what the run logged of its reward's spread."""
        recipe, (seed, name, guarded) = self.recipe, cell.key.values()
        run = recipe.runs[name]
        method = recipe.methods[(run.guarded if guarded else run.bare) or ""].with_probes(recipe.eval.probes)
        judge = self.judge(run.judge, seed)
        held_out = self.judge(run.held_out, seed) if run.held_out and guarded else None
        folder = self.seed_folder(seed) / "runs" / f"{name}-{'guarded' if guarded else 'bare'}"
        bank = f"{run.judge}-{method.prompts}-{method.references.candidates}"
        outcome = run_alignment_once(
            method,
            recipe.load_generator(),
            judge,
            shared,
            folder,
            clock=recipe.clock,
            evaluation=recipe.eval,
            held_out=held_out,
            references=self.seed_folder(seed) / "references" / bank,
        )
        remove_checkpoints(folder)
        content = (
            cell.key
            | outcome
            | {
                "meant": run.meant,
                "judge": run.judge,
                "kind": recipe.training(run.judge).kind,
                "size": recipe.judges[run.judge].size,
                "algorithm": method.algorithm,
                "windows": windows(read_metrics(folder), recipe.window),
            }
        )
        return HackingRun.model_validate(content)

    def report(self) -> Report:
        return hacking_report(self.rows)

    # -- judges --------------------------------------------------------------------------------------------------------

    def judge(self, name: str, seed: int) -> Judge:
        """A seed's judge, given or trained once; its accuracy on the seed's test pairs is a row."""
        folder, given = self.seed_folder(seed), self.recipe.judges[name].rewards.get(seed)
        reward = given or str(folder / "judges" / name / "reward")
        if not self.rows.of(JudgeAccuracy, seed=seed, judge=name):
            self.gather(seed)
            pairs = None
            if given is None:
                console.print(f"the judge {name}, seed {seed}", soft_wrap=True)
                training = PreferenceSet(folder / "preferences" / f"{name}.jsonl")
                pairs = len(training)
                train(self.recipe.training(name), training, folder / "judges" / name, seed)
                remove_checkpoints(folder / "judges" / name)
            test = list(PreferenceSet(folder / "preferences" / f"{TEST}.jsonl"))
            accuracy = float(agreement(load_reward(reward), test).mean())
            self.rows.add(JudgeAccuracy(seed=seed, judge=name, pairs=pairs, accuracy=accuracy))
        return load_reward(reward)

    def judges_of(self, seed: int) -> list[str]:
        """The judges that a seed's runs ask."""
        names: list[str] = []
        for cell in (cell for cell in self.cells() if cell.key["seed"] == seed):
            run = self.recipe.runs[cell.key["run"]]
            names += [run.judge, *([run.held_out] if run.held_out and cell.key["guarded"] else [])]
        return list(dict.fromkeys(names))

    def gather(self, seed: int) -> None:
        """A seed's pictures with the votes that each of its judges learns from, and the pairs that test them."""
        folder, preferences = self.seed_folder(seed) / "preferences", self.recipe.preferences
        if (folder / COMPLETE).exists():
            return
        generator = self.recipe.load_generator()
        trained = [name for name in self.judges_of(seed) if seed not in self.recipe.judges[name].rewards]
        held_out = generate(generator, "held_out", preferences.id_prompts, preferences.samples, seed)
        samples = generate(generator, "train", preferences.train_prompts, preferences.samples, seed) if trained else []
        with replacing(folder) as written:
            exact = pair_up(held_out, "held_out", preferences.test_pairs, preferences, seed, exact=True)
            write_preferences(exact, written / f"{TEST}.jsonl")
            for name in trained:
                choice = self.recipe.judges[name]
                voters = {} if choice.annotators is None else {"annotators": choice.annotators}
                voted, some = preferences.model_copy(update=voters), samples[: choice.train_prompts]
                pairs = pair_up(some, "train", preferences.pairs, voted, seed, exact=False, early="some")
                write_preferences(pairs, written / f"{name}.jsonl")


def windows(logged: Sequence[Logged], length: int) -> list[Window]:
    """The reward's spread in a sliding window of steps, moved by a quarter of its length; none where it was not logged.

    The variance of P(yes) over all samples of the window is the mean of the steps' own and that of their means.
    """
    rows = [row for row in logged if row["kind"] == "step" and "spread_of_reward" in row]
    found = []
    for end in sorted(range(len(rows), length - 1, -max(1, length // 4))):
        part = rows[end - length : end]
        rewards, spreads = (np.array([row[key] for row in part]) for key in ("reward", "spread_of_reward"))
        within, across = (float(np.mean([row[key] for row in part])) for key in ("spread_within", "spread_across"))
        spread = float(np.sqrt(np.mean(spreads**2) + np.var(rewards)))
        mean = float(rewards.mean())
        found.append(Window(step=part[-1]["step"], mean=mean, spread=spread, within=within, across=across))
    return found


EXPERIMENT = Hacking
