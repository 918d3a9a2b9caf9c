"""Runs of the main job that differ in their seed alone, put together: a line for each, and one over all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rewarddance.errors import InputError
from rewarddance.evaluation.seeds import intervals_over_seeds
from rewarddance.evaluation.statistics import Interval
from rewarddance.jobs.quickstart import CONFIG, QuickstartRecipe
from rewarddance.report.formatting import Cell, Table, as_markdown, clock, figure_text
from rewarddance.report.run_folder import Summary, read_summary
from rewarddance.runtime.config import load_recipe

SAID = (
    "Base: the oracle's alignment on held-out prompts, points of 100. Best of N and ReFL: gains over the base, in "
    "points, ReFL's from the same noises. Good, same, bad: (good - bad) / all of ReFL's samples against the base's, by "
    "the oracle, in %. Diversity: % of the base's. 95 % intervals: of one seed over prompts; over seeds t intervals, "
    "never narrower than over prompts."
)


class Finished(NamedTuple):
    """A finished run."""

    folder: Path
    recipe: QuickstartRecipe
    summary: Summary


def read_finished(folders: Sequence[Path]) -> list[Finished]:
    """Runs of one recipe with different seeds, by seed.

    Raises InputError naming a folder that holds no finished run, that has the seed of another, or another's recipe.
    """
    runs: list[Finished] = []
    for folder in folders:
        summary = read_summary(folder)
        one = Finished(folder, load_recipe(QuickstartRecipe, folder / CONFIG), summary)
        for other in runs:
            if one.recipe.seed == other.recipe.seed:
                raise InputError(
                    f"{folder} and {other.folder} have the same seed, {one.recipe.seed}.", "Leave one of them out."
                )
            if one.recipe.model_copy(update={"seed": other.recipe.seed}) != other.recipe:
                raise InputError(
                    f"the recipes of {folder} and {other.folder} differ in more than their seed.",
                    "Compare their config.yaml, and put runs of one recipe together.",
                )
        runs.append(one)
    return sorted(runs, key=lambda run: run.recipe.seed)


def over_seeds(folders: Sequence[Path]) -> str:
    """Two tables as Markdown: a line a seed and one over seeds, and the categories of prompts over seeds."""
    runs = read_finished(folders)
    n, judged = runs[0].summary.n, [*runs[0].summary.judge.places()]
    head = [*(f"judge {place}" for place in judged), "untrained", "base", f"best of {n}", "ReFL"]
    head += ["good, same, bad", "diversity", "time"]
    lines = [_line(f"seed {run.recipe.seed}", [run.summary]) for run in runs]
    summaries = [run.summary for run in runs]
    if len(runs) > 1:
        lines.append(_line("all seeds", summaries))
    rows: list[list[Cell]] = []
    for kind in summaries[0].by_category:
        own = [one for one in summaries if kind in one.by_category]
        each = [one.by_category[kind] for one in own]
        arms = [[one.sft for one in each], [one.best_of_n for one in each], [one.refl for one in each]]
        better = _gsb([one for one in own if one.gsb and kind in one.gsb.by_category], kind)
        rows.append([kind.replace("_", " "), *(figure_text(intervals_over_seeds(arm)) for arm in arms), better])
    categories = ("base", f"best of {n}", "ReFL", "good, same, bad")
    return f"{SAID}\n\n{as_markdown(Table(tuple(head), lines))}\n\n{as_markdown(Table(categories, rows))}"


def _line(name: str, runs: Sequence[Summary]) -> list[Cell]:
    places = [*runs[0].judge.places()]
    kept = np.mean([run.diversity.refl.mean / run.diversity.sft.mean for run in runs])
    return [
        name,
        *(_text(runs, lambda one, place=place: one.judge.places()[place][0]) for place in places),
        _text(runs, lambda one: one.judge.untrained_id),
        _text(runs, lambda one: one.oracle.sft),
        _text(runs, lambda one: one.oracle.gain_best_of_n, "+"),
        _text(runs, lambda one: one.oracle.gain_refl, "+"),
        _gsb([one for one in runs if one.gsb]),
        f"{100 * kept:.0f} %",
        clock(float(np.mean([run.seconds for run in runs]))),
    ]


def _gsb(runs: Sequence[Summary], kind: str | None = None) -> str:
    """Good, same, bad of all prompts or of a category; empty for runs from before it was told."""

    def of(one: Summary) -> Interval:
        assert one.gsb is not None, "those without are left out"
        return one.gsb.gsb if kind is None else one.gsb.by_category[kind].gsb

    return _text(runs, of, "+") if runs else ""


def _text(runs: Sequence[Summary], figure: Callable[[Summary], Interval], sign: str = "") -> str:
    return figure_text(intervals_over_seeds([figure(one) for one in runs]), sign=sign)
