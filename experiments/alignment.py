"""Algorithms at equal seconds, by the oracle: the same judge and the same held-out prompts, over seeds.

A cell is one method under one seed; an unfinished one goes on from its last probe. The seconds of a method's references
and of its steps are measured once, and give the number of its steps.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from experiments.aligned_runs import (
    GAIN_COLUMNS,
    AlignConfig,
    AlignedRun,
    Baseline,
    ClockName,
    EvalConfig,
    baseline_of,
    run_alignment_once,
    seconds_of_steps,
)
from experiments.grid import Cell, Experiment, GridRecipe, Report, Row, check_folder_names, remove_checkpoints
from experiments.tables import OVER_SEEDS, PALETTE, Column, Group, listed, results, svg, table, whole
from experiments.trained_judges import check_given, judge_checkpoints, judge_of_seed
from rewarddance.errors import InputError
from rewarddance.reward.judge import Judge
from rewarddance.runtime.tracking import console

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class AlignmentRecipe(GridRecipe):
    """Which methods are compared, and how.

    judges: a trained reward's folder for each seed; where there is none, the seed's judge is trained as the quickstart
        trains its own.
    methods: by the names of their lines; all are compared with the first.
    seconds: that each may take, references and all; its recipe's number of steps gives way to it.
    pilot: steps from which the seconds of one are known.
    clock: seconds by the wall, or of the processor (on a machine that others use too).
    """

    judges: dict[int, str] = Field(default_factory=dict)
    methods: dict[str, AlignConfig] = Field(min_length=1)
    seconds: float = Field(default=180, gt=0)
    pilot: int = Field(default=3, ge=1)
    clock: ClockName = "wall"
    eval: EvalConfig = EvalConfig()

    @model_validator(mode="after")
    def _is_whole(self) -> AlignmentRecipe:
        check_folder_names(self.methods)
        check_given(self.judges, self.seeds)
        return self


class Pace(Row):
    """The seconds before a method's first step, and of each step; as they were under the first seed."""

    row: Literal["pace"] = "pace"
    method: str
    before: float
    each: float


class MethodRun(AlignedRun):
    """One finished cell."""

    row: Literal["run"] = "run"
    method: str


class Alignment(Experiment[AlignmentRecipe]):
    name, recipe_kind, row_kinds, counted = "alignment", AlignmentRecipe, MethodRun | Pace, MethodRun

    def checkpoints(self) -> list[str]:
        recipe = self.recipe
        return [recipe.generator, *judge_checkpoints(recipe.judge, recipe.judges, recipe.seeds)]

    def cells(self) -> list[Cell]:
        names = self.recipe.methods
        return [Cell(MethodRun, {"seed": seed, "method": name}) for seed in self.recipe.seeds for name in names]

    def prepare(self, group: int) -> tuple[Judge, Baseline]:
        recipe, evaluation = self.recipe, self.recipe.eval
        judge = judge_of_seed(recipe.quickstart(group), recipe.judges, self.seed_folder(group))
        return judge, baseline_of(recipe.load_generator(), group, evaluation.prompts, evaluation.samples)

    def measure(self, cell: Cell, shared: tuple[Judge, Baseline]) -> MethodRun:
        (judge, baseline), recipe, method = shared, self.recipe, cell.key["method"]
        folder = self.seed_folder(baseline.seed) / method
        config = self.with_steps(method, baseline.seed, judge)
        run = run_alignment_once(
            config,
            recipe.load_generator(),
            judge,
            baseline,
            folder,
            clock=recipe.clock,
            evaluation=recipe.eval,
        )
        remove_checkpoints(folder)
        return MethodRun.model_validate(cell.key | run)

    def with_steps(self, method: str, seed: int, judge: Judge) -> AlignConfig:
        """A method with the steps that its seconds give.

        Raises InputError where the seconds do not even give its references and one step.
        """
        recipe, config = self.recipe, self.recipe.methods[method]
        pace = self.rows.first(Pace, method=method)
        if pace is None:
            console.print(f"the seconds of a step of {method}", soft_wrap=True)
            scratch = self.folder / "pace" / method
            shutil.rmtree(scratch, ignore_errors=True)
            generator = recipe.load_generator()
            before, each = seconds_of_steps(
                config, generator, judge, scratch, seed, clock=recipe.clock, pilot=recipe.pilot
            )
            shutil.rmtree(scratch, ignore_errors=True)
            pace = Pace(seed=seed, method=method, before=before, each=each)
            self.rows.add(pace)
        steps = int((recipe.seconds - pace.before) / pace.each)
        if steps < 1:
            raise InputError(
                f"{method} takes {pace.before:.1f} seconds before its first step and {pace.each:.1f} for each, and may "
                f"take {recipe.seconds:g}.",
                "Raise seconds, or lower the method's references.candidates, prompts or prompts_per_step.",
            )
        return config.with_loop(steps=steps).with_probes(recipe.eval.probes)

    # -- the table -----------------------------------------------------------------------------------------------------

    def report(self) -> Report:
        runs = {method: self.rows.of(MethodRun, method=method) for method in self.recipe.methods}
        first = next(iter(runs.values()))
        lines = [Group(method, rows, first) for method, rows in runs.items() if rows]
        pace = {row.method: row.before for row in self.rows.of(Pace)}
        columns: list[Column[Group[MethodRun]]] = [
            Column("method", lambda group: group.name),
            Column("seeds", lambda group: group.seeds, listed),
            Column("steps", lambda group: group.rows[0].steps),
            Column("seconds", lambda group: float(np.mean([row.seconds for row in group.rows])), whole),
            Column("before the first step", lambda group: pace.get(group.name, 0.0), whole, "before"),
            *GAIN_COLUMNS,
            Column("alarms", lambda group: [bool(row.alarms) for row in group.rows], lambda r: f"{sum(r)} of {len(r)}"),
        ]
        text = (
            "Seconds: a run's references and steps, probes not counted; of them before its first step. Base: the "
            "oracle's alignment of the held-out samples before, of 100. Gain: after over before, in points, from the "
            "same noises. Over the first: the gain over the first line's. P(yes): the judge's, of samples against the "
            "base's of other noises, after minus before. Diversity: % of the base's. Alarms: runs in which one rang. "
            f"{OVER_SEEDS}; of one seed they are over its prompts.\n\n"
            "![Oracle and P(yes) over the seconds of training](alignment.svg)\n\n"
        )
        chart = svg("alignment", (10, 4.2), self.draw)
        return Report(text + table(columns, lines), {"table": results(columns, lines)}, {"alignment.svg": chart})

    def draw(self, figure: Figure) -> None:
        """The oracle's and the judge's probes over seconds; a seed thin, the mean of a method's seeds thick."""
        left, right = figure.subplots(1, 2)
        for method, colour in zip(self.recipe.methods, PALETTE * len(self.recipe.methods), strict=False):
            rows = self.rows.of(MethodRun, method=method)
            for axes, key in ((left, "oracle"), (right, "proxy")):
                _curves(axes, rows, key, colour, method)
        left.set_title("Oracle on the probe's prompts, points of 100")
        right.set_title("P(yes) against the base's other pictures, %")
        for axes in (left, right):
            axes.set_xlabel("seconds of training")
        if handles := left.get_legend_handles_labels()[0]:
            figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))


def _curves(axes: Axes, rows: Sequence[MethodRun], key: str, colour: Any, label: str) -> None:
    curves = [([p.seconds for p in row.probes], [100 * getattr(p, key) for p in row.probes]) for row in rows]
    for seconds, values in curves:
        axes.plot(seconds, values, color=colour, linewidth=0.8, alpha=0.4)
    if curves:
        least = min(len(seconds) for seconds, _ in curves)
        mean = [np.mean([curve[i][:least] for curve in curves], axis=0) for i in (0, 1)]
        axes.plot(mean[0], mean[1], color=colour, marker="o", markersize=4, label=label)


EXPERIMENT = Alignment
