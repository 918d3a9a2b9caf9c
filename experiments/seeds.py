"""Quickstart runs that differ in their seed alone, put together: a line for each, and one over all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.intervals import intervals_over_seeds
from experiments.tables import markdown_table, percent
from rewarddance.errors import InputError
from rewarddance.evaluation.statistics import Interval
from rewarddance.jobs.quickstart import CONFIG, QuickstartRecipe
from rewarddance.report.formatting import figure_text
from rewarddance.report.run_folder import Summary, read_summary
from rewarddance.runtime.config import load_recipe
from rewarddance.runtime.tracking import clock

EXPLANATION = (
    "Base: the oracle's alignment on held-out prompts, points of 100. The other arms: gains over the base, in points, "
    "those of aligned generators from the same noises. Good, same, bad: (good - bad) / all of the last generator's "
    "samples against the base's, by the oracle, in %. Diversity: its, in % of the base's. Alarms: those that rang. "
    "95 % intervals: of one seed over prompts; over seeds t intervals, all on the same contents, and "
    "never narrower than over all prompts."
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
    """Tables as Markdown: a line a seed and one over all; gains by layout; categories; alignment's parts; seconds.

    Layouts and parts only where the runs have them.
    """
    runs = read_runs(folders)
    summaries = [run.summary for run in runs]
    first, arms = summaries[0], arms_of(summaries[0])
    heads = ["", *(f"judge {name}" for name in first.judge.places()), "untrained", "base", *arms.values()]
    heads += ["good, same, bad", "diversity", "alarms", "time"]
    lines = [_line(f"seed {run.recipe.seed}", [run.summary]) for run in runs]
    if len(runs) > 1:
        lines.append(_line("all seeds", summaries))
    tables = [markdown_table(heads, lines)]
    if all(summary.by_layout for summary in summaries):
        tables.append(_layouts(runs))
    tables.append(_categories(summaries))
    if all(summary.parts for summary in summaries):
        tables += [_parts(summaries), _parts_by_category(summaries)]
    if all(summary.cpu_seconds_by_stage for summary in summaries):
        tables.append(_seconds(summaries))
    return "\n\n".join([EXPLANATION, *(table.rstrip() for table in tables)])


def arms_of(summary: Summary) -> dict[str, str]:
    """The arms beside the base, by what they are called."""
    arms = {"best_of_n": f"best of {summary.n}", "refl": "ReFL", "nft": "then DiffusionNFT"}
    return {arm: name for arm, name in arms.items() if getattr(summary.oracle, arm) is not None}


def _layouts(runs: Sequence[FinishedRun]) -> str:
    """What the last generator gained on prompts of one object, of two, and so on: a line a seed and one over seeds."""
    summaries = [run.summary for run in runs]
    lines = {f"seed {run.recipe.seed}": [run.summary] for run in runs} | {"all seeds": summaries}
    layouts, last = [*summaries[0].by_layout], summaries[0].aligned
    return markdown_table(
        [f"gain of {arms_of(summaries[0])[last]}", *layouts],
        [
            [name, *(_text(having, lambda run, at=at: getattr(run.by_layout[at], last), "+") for at in layouts)]
            for name, having in lines.items()
        ],
    )


def _categories(summaries: Sequence[Summary]) -> str:
    arms, lines = arms_of(summaries[0]), []
    for category in summaries[0].by_category:
        having = [summary for summary in summaries if category in summary.by_category]
        of_arms = [[getattr(one.by_category[category], arm) for one in having] for arm in ("sft", *arms)]
        gsb = _gsb([one for one in having if one.gsb and category in one.gsb.by_category], category)
        figures = [_share(arm) for arm in of_arms]
        lines.append([category.replace("_", " "), *figures, gsb])
    return markdown_table(["", "base", *arms.values(), "good, same, bad"], lines)


def _parts(summaries: Sequence[Summary]) -> str:
    """What the oracle's alignment is made of: the base and each arm's gain, over seeds."""
    arms, lines = arms_of(summaries[0]), []
    for part in summaries[0].parts:
        figures = [_text(summaries, lambda run, part=part: run.parts[part].sft)]
        for arm in arms:
            figures.append(_text(summaries, lambda run, p=part, a=arm: getattr(run.parts[p], f"gain_{a}"), "+"))
        lines.append([part, *figures])
    return markdown_table(["", "base", *(f"gain of {name}" for name in arms.values())], lines)


def _parts_by_category(summaries: Sequence[Summary]) -> str:
    """The parts of the oracle's alignment by category: the base and the arms, over seeds."""
    arms, lines = arms_of(summaries[0]), []
    for category in summaries[0].by_category:
        for part in summaries[0].parts:
            of_runs = [run.parts_by_category[part] for run in summaries]
            having = [by[category] for by in of_runs if category in by]
            if having:
                figures = [_share([getattr(one, arm) for one in having]) for arm in ("sft", *arms)]
                lines.append([f"{category.replace('_', ' ')}, {part}", *figures])
    return markdown_table(["", "base", *arms.values()], lines)


def _seconds(summaries: Sequence[Summary]) -> str:
    """The CPU seconds of each stage, means over seeds, and the machines."""
    stages = [*summaries[0].cpu_seconds_by_stage]
    means = [float(np.mean([summary.cpu_seconds_by_stage[stage] for summary in summaries])) for stage in stages]
    machines = "; ".join(dict.fromkeys(summary.machine for summary in summaries))
    heads = ["CPU seconds", *stages, "all"]
    return markdown_table(heads, [[machines, *(f"{value:.0f}" for value in (*means, sum(means)))]])


def _line(name: str, runs: Sequence[Summary]) -> list[str]:
    sets, last = [*runs[0].judge.places()], runs[0].aligned
    kept = np.mean([getattr(run.diversity, last).mean / run.diversity.sft.mean for run in runs])
    alarms = [f"{row['name']} at {row['phase']} {row['step']}" for run in runs for row in run.alarms]
    return [
        name,
        *(_text(runs, lambda run, name=name: run.judge.places()[name][0]) for name in sets),
        _text(runs, lambda run: run.judge.untrained_id),
        _text(runs, lambda run: run.oracle.sft),
        *(_text(runs, lambda run, arm=arm: getattr(run.oracle, f"gain_{arm}"), "+") for arm in arms_of(runs[0])),
        _gsb([run for run in runs if run.gsb]),
        percent(float(kept)),
        str(len(alarms)) if len(runs) > 1 else ", ".join(alarms),
        clock(float(np.mean([run.seconds for run in runs]))),
    ]


def _gsb(runs: Sequence[Summary], category: str | None = None) -> str:
    """Good, same, bad of all prompts or of a category; empty for runs that have none."""
    counts = [run.gsb if category is None else run.gsb.by_category[category] for run in runs if run.gsb]
    return figure_text(intervals_over_seeds([count.gsb for count in counts]), sign="+") if counts else ""


def _text(runs: Sequence[Summary], figure: Callable[[Summary], Interval], sign: str = "") -> str:
    """sign: of a gain; what has none is a share."""
    figures = [figure(run) for run in runs]
    return figure_text(intervals_over_seeds(figures), sign=sign) if sign else _share(figures)


def _share(figures: Sequence[Interval]) -> str:
    """A share over seeds, whose interval ends at 0 and 100."""
    mean, low, high, n = intervals_over_seeds(figures)
    return figure_text(Interval(mean, max(0.0, low), min(1.0, high), n))
