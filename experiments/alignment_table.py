"""What the comparison of ways to align found, over seeds: results.json, alignment.md and its figure alignment.svg.

Gains are paired prompt by prompt with the base's samples from the same noises. Intervals are those of
`interval_over_seeds`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from experiments.aligned_runs import Outcome
from experiments.rows import KeptRows
from experiments.rows import Row as Kept
from rewarddance.evaluation.seeds import interval_over_seeds
from rewarddance.evaluation.statistics import Interval
from rewarddance.report.charts import COLOURS, STYLE
from rewarddance.report.formatting import figure_text, number
from rewarddance.runtime.checkpoint import write_text_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PALETTE = (COLOURS["blue"], COLOURS["orange"], "#009e73", "#cc79a7", COLOURS["ink"])


class Pace(Kept):
    """What a way takes before its first step, and for each step, in seconds; as it was under the first seed."""

    row: Literal["pace"] = "pace"
    way: str
    before: float
    each: float


class Row(Outcome):
    """One finished cell."""

    row: Literal["run"] = "run"
    way: str


class Rows(KeptRows):
    """All that is done."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, Row | Pace)


class Line(NamedTuple):
    """One way over its seeds. before: seconds of its references; over_first: its gain over the first way's, None for
    that one itself and where they have no seed in common; diversity_kept: a share of the base's; alarms: how many of
    its runs rang one."""

    way: str
    seeds: list[int]
    steps: int
    seconds: float
    before: float
    base: Interval
    gain: Interval
    over_first: Interval | None
    reward_gain: Interval
    diversity_kept: float
    alarms: int


def write_tables(ways: Sequence[str], rows: Rows, total: int, folder: Path) -> str:
    """Write results.json, alignment.md and alignment.svg from the cells so far, of `total`; returns the Markdown."""
    found = lines(ways, rows)
    done = len(rows.of(Row))
    text = markdown(found, done, total)
    write_text_atomically(folder / "alignment.md", text)
    write_text_atomically(folder / "results.json", json.dumps(results(found, done, total), indent=2) + "\n")
    write_text_atomically(folder / "alignment.svg", chart(ways, rows))
    return text


def lines(ways: Sequence[str], rows: Rows) -> list[Line]:
    """The ways that have finished cells, in their order."""
    found = []
    first = {row.seed: row for row in rows.of(Row, way=ways[0])}
    for way in ways:
        own = {row.seed: row for row in rows.of(Row, way=way)}
        if not own:
            continue
        pace, each = rows.first(Pace, way=way), list(own.values())
        both = [seed for seed in own if seed in first] if way != ways[0] else []
        found.append(
            Line(
                way,
                sorted(own),
                each[0].steps,
                float(np.mean([row.seconds for row in each])),
                pace.before if pace else 0.0,
                interval_over_seeds([np.array(row.oracle_base) for row in each]),
                interval_over_seeds([row.gain for row in each]),
                interval_over_seeds([own[seed].gain - first[seed].gain for seed in both]) if both else None,
                interval_over_seeds([row.reward_gain for row in each]),
                float(np.mean([row.diversity_kept for row in each])),
                sum(bool(row.alarms) for row in each),
            )
        )
    return found


def results(found: Sequence[Line], done: int, total: int) -> dict[str, Any]:
    """Everything that was found, as it stands in results.json."""
    table = [
        {name: value._asdict() if isinstance(value, Interval) else value for name, value in line._asdict().items()}
        for line in found
    ]
    return {"cells": total, "done": done, "table": table}


def markdown(found: Sequence[Line], done: int, total: int) -> str:
    """The table with what its figures are; a line says so where cells are missing."""
    said = [f"Unfinished: {done} of {total} cells.\n"] if done < total else []
    said.append(
        "Seconds: a run's references and steps, those in which it was looked at not counted; of them before its first "
        "step. Base: the oracle's alignment of the held-out samples before, of 100. Gain: after over before, in "
        "points, from the same noises. Over the first: the gain over the first line's. P(yes): the judge's, of samples "
        "against the base's of other noises, after minus before. Diversity: % of the base's. Alarms: runs in which one "
        "rang. Means over seeds with 95 % t intervals, never narrower than over prompts; of one seed they are over its "
        "prompts.\n"
    )
    said.append("![Oracle and P(yes) over the seconds of training](alignment.svg)\n")
    heads = ["way", "seeds", "steps", "seconds", "before the first step", "base", "gain", "over the first", "P(yes)"]
    heads += ["diversity", "alarms"]
    said += [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for line in found:
        over = "" if line.over_first is None else figure_text(line.over_first, sign="+")
        cells = [line.way, ", ".join(map(str, line.seeds)), str(line.steps)]
        cells += [number(line.seconds, 1, 0), number(line.before, 1, 0), figure_text(line.base)]
        cells += [figure_text(line.gain, sign="+"), over, figure_text(line.reward_gain, 1, 3, "+")]
        cells += [f"{number(line.diversity_kept, digits=0)} %", f"{line.alarms} of {len(line.seeds)}"]
        said.append(f"| {' | '.join(cells)} |")
    return "\n".join(said) + "\n"


def chart(ways: Sequence[str], rows: Rows) -> str:
    """As SVG: the oracle's and the judge's probes over seconds; a seed thin, the mean of a way's seeds thick."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({**STYLE, "svg.fonttype": "path", "svg.hashsalt": "alignment"}):
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        for way, colour in zip(ways, PALETTE * len(ways), strict=False):
            own = rows.of(Row, way=way)
            for axes, key in ((left, "oracle"), (right, "proxy")):
                _curves(axes, own, key, colour, way)
        left.set_title("Oracle on the probe's prompts, points of 100")
        right.set_title("P(yes) against the base's other pictures, %")
        for axes in (left, right):
            axes.set_xlabel("seconds of training")
        if handles := left.get_legend_handles_labels()[0]:
            figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
        text = StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def _curves(axes: Axes, own: Sequence[Row], key: str, colour: str, way: str) -> None:
    curves = [([p.seconds for p in row.probes], [100 * getattr(p, key) for p in row.probes]) for row in own]
    for seconds, values in curves:
        axes.plot(seconds, values, color=colour, linewidth=0.8, alpha=0.4)
    if curves:
        least = min(len(seconds) for seconds, _ in curves)
        mean = [np.mean([one[i][:least] for one in curves], axis=0) for i in (0, 1)]
        axes.plot(mean[0], mean[1], color=colour, marker="o", markersize=4, label=way)
