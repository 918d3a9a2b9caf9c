"""Judges over seeds: accuracies, what each step gains, and their figure.

A gain is the mean of the differences prompt by prompt: both judges were asked about the same pairs under the same seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from experiments.grid import Report, TimedRow, select
from experiments.tables import PALETTE, common, gained, markdown_table, over_seeds, plain, points, share_over_seeds, svg
from rewarddance.evaluation.statistics import Interval, interval
from rewarddance.report.charts import COLOURS
from rewarddance.runtime.tracking import clock

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LARGER = "larger judges"
SETS = {"id": "in domain", "early": "early predictions", "ood": "out of domain"}
Tables = Mapping[str, Mapping[str, str]]
"""For each table its rows' names and the cells in them."""
Shares = dict[str, list[float]]
"""For each test set, each prompt's share of pairs that were ordered rightly."""


class JudgeRun(TimedRow):
    """One trained judge.

    parameters: of the judge.
    pairs: trained on.
    untrained: the shares of its base, where that can be asked.
    training_seconds: with those before an interruption.
    """

    size: str
    cell: str
    parameters: int
    pairs: int
    accuracy: Shares
    untrained: Shares | None
    training_seconds: float


class Judge(NamedTuple):
    """One judge over its seeds."""

    cell: str
    size: str
    rows: list[JudgeRun]

    @property
    def accuracy(self) -> dict[str, Interval]:
        return {name: share_over_seeds(row.accuracy[name] for row in self.rows) for name in self.rows[0].accuracy}

    @property
    def untrained(self) -> dict[str, Interval]:
        """Empty where the base cannot be asked."""
        shares = [row.untrained for row in self.rows if row.untrained]
        return {name: share_over_seeds(own[name] for own in shares) for name in (shares[0] if shares else ())}

    @property
    def training_seconds(self) -> float:
        return float(np.mean([row.training_seconds for row in self.rows]))

    @property
    def label(self) -> str:
        """Its size, and how many weights it has."""
        count = self.rows[0].parameters
        return f"{self.size} ({count / 1e9:.1f}B)" if count >= 1e9 else f"{self.size} ({count / 1e6:.1f}M)"


class Step(NamedTuple):
    """What one judge has over another, by test set. table: the title of the one that it belongs to."""

    table: str
    name: str
    judge: str
    seeds: int
    gains: dict[str, Interval]


def judges_of(rows: Sequence[JudgeRun]) -> list[Judge]:
    """The judges in the order in which they first came, each with its seeds."""
    keys = dict.fromkeys((row.cell, row.size) for row in rows)
    return [Judge(cell, size, select(rows, cell=cell, size=size)) for cell, size in keys]


def gains(before: Sequence[JudgeRun], after: Sequence[JudgeRun]) -> dict[str, Interval]:
    """The gain over the common seeds by test set; empty where there are none."""
    pairs = [(old.accuracy, new.accuracy) for old, new in common(before, after)]
    names = pairs[0][0] if pairs else ()
    return {name: over_seeds(np.subtract(new[name], old[name]) for old, new in pairs) for name in names}


def steps(tables: Tables, rows: Sequence[JudgeRun]) -> list[Step]:
    """Each table's rows over the row above at the same size, then, under LARGER, each cell over the size before."""
    judges, taken = judges_of(rows), []
    for title, table in tables.items():
        for (above, old), (label, new) in pairwise(table.items()):
            for judge in (judge for judge in judges if judge.cell == new):
                taken.append((title, f"{label}, over {above}", select(rows, cell=old, size=judge.size), judge))
    for cell in dict.fromkeys(cell for table in tables.values() for cell in table.values()):
        for smaller, judge in pairwise(judge for judge in judges if judge.cell == cell):
            taken.append((LARGER, f"{cell}, {judge.size} over {smaller.size}", smaller.rows, judge))
    return [
        Step(title, name, judge.label, len(common(before, judge.rows)), gains(before, judge.rows))
        for title, name, before, judge in taken
        if common(before, judge.rows)
    ]


def judges_report(tables: Tables, rows: Sequence[JudgeRun]) -> Report:
    judges, taken = judges_of(rows), steps(tables, rows)
    height = 1.3 + 0.62 * sum(map(len, tables.values()))
    chart = svg("judges", (10, height), lambda figure: draw(figure, tables, judges), **{"axes.grid.axis": "x"})
    results = {"judges": [_result(judge) for judge in judges], "steps": plain(taken)}
    return Report(markdown(tables, judges, taken), results, {"judges.svg": chart})


def _result(judge: Judge) -> dict[str, Any]:
    """A judge as it stands in results.json; intervals of one seed are over its prompts."""
    seeds = {
        row.seed: {
            "accuracy": {name: interval(shares, share=True) for name, shares in row.accuracy.items()},
            "untrained": {name: interval(shares, share=True) for name, shares in (row.untrained or {}).items()},
            "training_seconds": row.training_seconds,
        }
        for row in judge.rows
    }
    own = {name: getattr(judge, name) for name in ("cell", "size", "accuracy", "untrained", "training_seconds")}
    return plain(own | {"parameters": judge.rows[0].parameters, "seeds": seeds})


def markdown(tables: Tables, judges: Sequence[Judge], taken: Sequence[Step]) -> str:
    """The tables with what their figures are."""
    parts = [_explained([row for judge in judges for row in judge.rows])] if judges else []
    parts.append("![Accuracy of every judge, trained and zero-shot](judges.svg)\n")
    heads = ["judge", "seeds", *SETS.values()]
    more = ["zero-shot, in domain", "zero-shot, out of domain", "training"]
    for title in (*tables, LARGER):
        lines = [
            [label, judge.label, str(len(judge.rows)), *map(points, judge.accuracy.values()), *_zero_shot(judge)]
            for label, cell in tables.get(title, {}).items()
            for judge in judges
            if judge.cell == cell
        ]
        gain_lines = [
            [step.name, step.judge, str(step.seeds), *(gained(step.gains[name]) for name in SETS)]
            for step in taken
            if step.table == title
        ]
        parts += [f"## {title.capitalize()}\n"] if lines or gain_lines else []
        parts += [markdown_table(["", *heads, *more], lines)] if lines else []
        parts += [markdown_table(["points gained", *heads], gain_lines)] if gain_lines else []
    return "\n".join(parts)


def _zero_shot(judge: Judge) -> list[str]:
    return [*(points(judge.untrained.get(name)) for name in ("id", "ood")), clock(judge.training_seconds)]


def _explained(rows: Sequence[JudgeRun]) -> str:
    seeds = sorted({row.seed for row in rows})
    prompts = ", ".join(f"{len(rows[0].accuracy[name])} {title}" for name, title in SETS.items())
    many, which = ("seeds", ", ".join(map(str, seeds))) if len(seeds) > 1 else ("seed", str(seeds[0]))
    over = "95 % t intervals over seeds, all on the same contents" if len(seeds) > 1 else "95 % over prompts"
    return (
        f"{len(seeds)} {many} ({which}), each with its own {rows[0].pairs:,} training pairs and test prompts "
        f"({prompts}). Accuracy: % of a prompt's test pairs that are ordered as the oracle orders them, both orders "
        f"asked; {over}. Zero-shot: the base before training (a regressive head has none). Points gained: paired "
        "prompt by prompt. Training: mean time of one seed.\n"
    )


# -- as a figure -------------------------------------------------------------------------------------------------------


def draw(figure: Figure, tables: Tables, judges: Sequence[Judge]) -> None:
    """Accuracy in and out of domain: a panel of rows for each table, filled marks trained, hollow zero-shot."""
    from matplotlib.lines import Line2D

    labels = {judge.size: judge.label for judge in judges}
    colours = {size: PALETTE[number % len(PALETTE)] for number, size in enumerate(labels)}
    heights = [len(table) for table in tables.values()]
    panels = figure.subplots(len(tables), 2, sharex=True, sharey="row", squeeze=False, height_ratios=heights)
    for row, (title, table) in zip(panels, tables.items(), strict=True):
        for axes, name in zip(row, ("id", "ood"), strict=True):
            axes.set_title(f"{title.capitalize()}, {SETS[name]}, %")
            _draw_table(axes, table, judges, colours, name)
    marks = [Line2D([], [], color=colour, marker="o", label=labels[size]) for size, colour in colours.items()]
    marks += [Line2D([], [], color=COLOURS["muted"], marker="o", mfc="white", label="zero-shot")]
    figure.legend(handles=marks, loc="outside lower center", ncols=len(marks))


def _draw_table(
    axes: Axes, table: Mapping[str, str], judges: Sequence[Judge], colours: Mapping[str, str], name: str
) -> None:
    axes.axvline(50, color=COLOURS["muted"], linewidth=1, linestyle=":")  # a judge that guesses
    for place, cell in enumerate(table.values()):
        of_cell = [judge for judge in judges if judge.cell == cell]
        for number, judge in enumerate(of_cell):
            height, colour = place + 0.26 * (number - (len(of_cell) - 1) / 2), colours[judge.size]
            if judge.untrained:
                _draw_interval(axes, judge.untrained[name], height, colour, filled=False)
            _draw_interval(axes, judge.accuracy[name], height, colour, filled=True)
    axes.set_yticks(range(len(table)), list(table))
    axes.set_ylim(len(table) - 0.5, -0.5)


def _draw_interval(axes: Axes, figure: Interval, height: float, colour: str, filled: bool) -> None:
    mean, low, high = (100 * value for value in figure[:3])
    axes.plot([low, high], [height, height], color=colour, linewidth=1.8 if filled else 1, alpha=1 if filled else 0.5)
    axes.plot([mean], [height], "o", color=colour, markersize=5.5, markerfacecolor=colour if filled else "white")
