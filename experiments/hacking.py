"""Runs made to be hacked and honest ones: do oracle and proxy part, do alarms ring in time, do safeguards help?

A cell is one run under one seed, with safeguards or without; an unfinished one goes on from its last probe. The judges
of a seed learn from votes on the same pictures.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import Field, model_validator

from experiments.aligned_runs import AlignConfig, Baseline, ClockName, EvalConfig, baseline_of, outcome, train_once
from experiments.grid import Cell, Experiment, Report, Seeds, check_folder_names, remove_checkpoints
from experiments.hacking_table import HackingRun, Meant, Window, hacking_report
from experiments.judge_choices import JudgeAccuracy, JudgesRecipe, SeedJudges
from rewarddance.report.run_folder import Row as Logged
from rewarddance.report.run_folder import read_metrics
from rewarddance.runtime.config import Recipe


class RunChoice(Recipe):
    """A run that is made.

    judge: by name.
    meant: to be honest, to be hacked, or only to show the spread of its reward.
    bare, guarded: the method without safeguards and the one with them, where there shall be such a run.
    held_out: the judge that gates the guarded one.
    watchers: judges that only look at the probes.
    seeds: where not the recipe's.
    """

    judge: str
    meant: Meant
    bare: str | None = None
    guarded: str | None = None
    held_out: str | None = None
    watchers: tuple[str, ...] = ()
    seeds: Seeds | None = None

    @model_validator(mode="after")
    def _is_one(self) -> RunChoice:
        if self.bare is None and self.guarded is None:
            raise ValueError("a run is bare or guarded, or there are both")
        if self.held_out and self.guarded is None:
            raise ValueError("a held-out judge is a safeguard: give the guarded method")
        return self


class HackingRecipe(JudgesRecipe):
    """What is tried, and how.

    judges, methods, runs: by name; a run names its judges and methods.
    window: steps of the sliding window in which the reward's spread is taken.
    clock, eval: as in `AlgorithmsRecipe`.
    """

    seeds: Seeds = (0,)
    methods: dict[str, AlignConfig] = Field(min_length=1)
    runs: dict[str, RunChoice] = Field(min_length=1)
    window: int = Field(default=16, ge=2)
    clock: ClockName = "wall"
    eval: EvalConfig = EvalConfig()

    @model_validator(mode="after")
    def _is_whole(self) -> HackingRecipe:
        check_folder_names(self.runs)
        for name, run in self.runs.items():
            for judge in (run.judge, run.held_out, *run.watchers):
                if judge is not None and judge not in self.judges:
                    raise ValueError(f"the run {name!r} names the judge {judge!r}, which is not among them")
            for method in (run.bare, run.guarded):
                if method is not None and method not in self.methods:
                    raise ValueError(f"the run {name!r} names the method {method!r}, which is not among them")
            if run.held_out and self.methods[run.guarded or ""].algorithm != "refl":
                raise ValueError(f"the run {name!r} has a held-out judge, which gates ReFL alone")
        return self


class Hacking(Experiment[HackingRecipe]):
    name, recipe_kind, row_kinds, counted = "hacking", HackingRecipe, HackingRun | JudgeAccuracy, HackingRun

    def checkpoints(self) -> list[str]:
        return [self.recipe.generator, *self.recipe.judge_checkpoints()]

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

    def prepare(self, group: int) -> tuple[SeedJudges, Baseline]:
        evaluation = self.recipe.eval
        judges = SeedJudges(self.recipe, self.rows, self.seed_folder(group), group)
        return judges, baseline_of(self.recipe.load_generator(), group, evaluation.prompts, evaluation.samples)

    def measure(self, cell: Cell, shared: tuple[SeedJudges, Baseline]) -> HackingRun:
        """Align once and evaluate, with what the run logged of its reward's spread."""
        recipe, (seed, name, guarded) = self.recipe, cell.key.values()
        judges, baseline = shared
        run = recipe.runs[name]
        method = recipe.methods[(run.guarded if guarded else run.bare) or ""].with_probes(recipe.eval.probes)
        judge = judges.load(run.judge)
        held_out = judges.load(run.held_out) if run.held_out and guarded else None
        folder = self.seed_folder(seed) / "runs" / f"{name}-{'guarded' if guarded else 'bare'}"
        bank = f"{run.judge}-{method.prompts}-{method.references.candidates}"
        generator = recipe.load_generator()
        trained = train_once(
            method,
            generator,
            judge,
            baseline,
            folder,
            clock=recipe.clock,
            evaluation=recipe.eval,
            held_out=held_out,
            watchers={watcher: judges.load(watcher) for watcher in run.watchers},
            references=self.seed_folder(seed) / "references" / bank,
        )
        remove_checkpoints(folder)
        content = (
            cell.key
            | trained
            | outcome(generator, judge, baseline)
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
