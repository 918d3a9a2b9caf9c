"""Quickstart runs that differ in their seed alone, put together: a line for each, and one over all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.tables import markdown_table, percent
from rewarddance.errors import InputError
from rewarddance.evaluation.seeds import intervals_over_seeds
from rewarddance.evaluation.statistics import Interval
from rewarddance.jobs.quickstart import CONFIG, QuickstartRecipe
from rewarddance.report.formatting import clock, figure_text
from rewarddance.report.run_folder import Summary, read_summary
from rewarddance.runtime.config import load_recipe

EXPLANATION = (
    "Base: the oracle's alignment on held-out prompts, points of 100. Best of N and ReFL: gains over the base, in "
    "points, ReFL's from the same noises. Good, same, bad: (good - bad) / all of ReFL's samples against the base's, by "
    "the oracle, in %. Diversity: % of the base's. 95 % intervals: of one seed over prompts; over seeds t intervals, "
    "never narrower than over prompts."
)


class FinishedRun(NamedTuple):
    folder: Path
    recipe: QuickstartRecipe
    summary: Summary


def read_runs(folders: Sequence[Path]) -> list[FinishedRun]:
    """Runs of one recipe with different seeds, by seed.

    Raises InputError naming a folder that holds no finished run, that has the seed of another, or another's recipe.
    """
    runs: list[FinishedRun] = []
    for folder in folders:
        summary = read_summary(folder)
        run = FinishedRun(folder, load_recipe(QuickstartRecipe, folder / CONFIG), summary)
        for other in runs:
            if run.recipe.seed == other.recipe.seed:
                raise InputError(
                    f"{folder} and {other.folder} have the same seed, {run.recipe.seed}.", "Leave one of them out."
                )
            if run.recipe.model_copy(update={"seed": other.recipe.seed}) != other.recipe:
                raise InputError(
                    f"the recipes of {folder} and {other.folder} differ in more than their seed.",
                    "Compare their config.yaml, and put runs of one recipe together.",
                )
        runs.append(run)
    return sorted(runs, key=lambda run: run.recipe.seed)


def over_seeds(folders: Sequence[Path]) -> str:
    """Two tables as Markdown: a line a seed and one over seeds, and the categories of prompts over seeds."""
    runs = read_runs(folders)
    summaries = [run.summary for run in runs]
    best, sets = f"best of {summaries[0].n}", [*summaries[0].judge.places()]
    heads = ["", *(f"judge {name}" for name in sets), "untrained", "base", best, "ReFL"]
    heads += ["good, same, bad", "diversity", "time"]
    lines = [_line(f"seed {run.recipe.seed}", [run.summary]) for run in runs]
    if len(runs) > 1:
        lines.append(_line("all seeds", summaries))
    categories = []
    for category in summaries[0].by_category:
        having = [summary for summary in summaries if category in summary.by_category]
        arms = [[getattr(one.by_category[category], arm) for one in having] for arm in ("sft", "best_of_n", "refl")]
        gsb = _gsb([one for one in having if one.gsb and category in one.gsb.by_category], category)
        figures = [figure_text(intervals_over_seeds(arm)) for arm in arms]
        categories.append([category.replace("_", " "), *figures, gsb])
    by_category = markdown_table(["", "base", best, "ReFL", "good, same, bad"], categories)
    return f"{EXPLANATION}\n\n{markdown_table(heads, lines)}\n{by_category.rstrip()}"


def _line(name: str, runs: Sequence[Summary]) -> list[str]:
    sets = [*runs[0].judge.places()]
    kept = np.mean([run.diversity.refl.mean / run.diversity.sft.mean for run in runs])
    return [
        name,
        *(_text(runs, lambda run, name=name: run.judge.places()[name][0]) for name in sets),
        _text(runs, lambda run: run.judge.untrained_id),
        _text(runs, lambda run: run.oracle.sft),
        _text(runs, lambda run: run.oracle.gain_best_of_n, "+"),
        _text(runs, lambda run: run.oracle.gain_refl, "+"),
        _gsb([run for run in runs if run.gsb]),
        percent(float(kept)),
        clock(float(np.mean([run.seconds for run in runs]))),
    ]


def _gsb(runs: Sequence[Summary], category: str | None = None) -> str:
    """Good, same, bad of all prompts or of a category; empty for runs that have none."""
    counts = [run.gsb if category is None else run.gsb.by_category[category] for run in runs if run.gsb]
    return figure_text(intervals_over_seeds([count.gsb for count in counts]), sign="+") if counts else ""


def _text(runs: Sequence[Summary], figure: Callable[[Summary], Interval], sign: str = "") -> str:
    return figure_text(intervals_over_seeds([figure(run) for run in runs]), sign=sign)
