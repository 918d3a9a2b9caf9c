"""What the comparison of judges found, over seeds: results.json, judges.md and its figure judges.svg.

Accuracies are means over seeds; what a step brings is the mean of the differences prompt by prompt, for both judges
were asked about the same pairs under the same seed. Intervals are those of `interval_over_seeds`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict

from rewarddance.evaluation.seeds import interval_over_seeds
from rewarddance.evaluation.statistics import Interval, interval
from rewarddance.report.charts import COLOURS, STYLE
from rewarddance.report.formatting import clock, figure_text
from rewarddance.runtime.checkpoint import write_text_atomically
from rewarddance.runtime.config import parse_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LARGER = "larger judges"
SETS = {"id": "in domain", "early": "early predictions", "ood": "out of domain"}
PALETTE = (COLOURS["orange"], COLOURS["blue"], "#009e73", "#cc79a7", COLOURS["ink"])
Tables = Mapping[str, Mapping[str, str]]
"""For each table its rows' names and the cells in them."""
Shares = dict[str, list[float]]
"""For each test set, each prompt's share of pairs that were ordered rightly."""


class Row(BaseModel):
    """One finished cell. parameters: of the judge. pairs: trained on. untrained: its base, where that can be asked.

    training_seconds: interruptions and all; seconds: of the whole cell, as far as it was done in one go.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int
    size: str
    cell: str
    parameters: int
    pairs: int
    accuracy: Shares
    untrained: Shares | None
    training_seconds: float
    seconds: float


class Entry(NamedTuple):
    """One judge over its seeds."""

    cell: str
    size: str
    rows: list[Row]

    @property
    def accuracy(self) -> dict[str, Interval]:
        return _over_seeds([row.accuracy for row in self.rows])

    @property
    def untrained(self) -> dict[str, Interval]:
        """Empty where the base cannot be asked."""
        return _over_seeds([row.untrained for row in self.rows if row.untrained])

    @property
    def judge(self) -> str:
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


def as_line(row: Row) -> str:
    return row.model_dump_json() + "\n"


def read_rows(path: Path) -> list[Row]:
    """The finished cells, none where there is no file. Raises InputError naming a file that cannot be read."""
    if not path.is_file():
        return []
    return parse_file(
        path,
        lambda data: [Row.model_validate_json(line) for line in data.splitlines()],
        "Restore it, or remove it to do its cells again.",
    )


def write_tables(tables: Tables, rows: Sequence[Row], total: int, folder: Path) -> str:
    """Write results.json, judges.md and judges.svg from the cells so far, of `total`; returns the Markdown."""
    found, taken = entries(rows), steps(tables, rows)
    text = markdown(tables, found, taken, total)
    write_text_atomically(folder / "results.json", json.dumps(results(found, taken, total), indent=2) + "\n")
    write_text_atomically(folder / "judges.svg", chart(tables, found))
    write_text_atomically(folder / "judges.md", text)
    return text


# -- what was found ----------------------------------------------------------------------------------------------------


def entries(rows: Sequence[Row]) -> list[Entry]:
    """The judges in the order in which they first came, each with its seeds."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row.cell, row.size), []).append(row)
    return [Entry(cell, size, own) for (cell, size), own in found.items()]


def steps(tables: Tables, rows: Sequence[Row]) -> list[Step]:
    """Each table's rows over the row above at the same size, then, under LARGER, each cell over the size before."""
    found, taken = entries(rows), []
    for title, table in tables.items():
        for (above, old), (label, new) in pairwise(table.items()):
            for entry in (entry for entry in found if entry.cell == new):
                before = [row for row in rows if (row.cell, row.size) == (old, entry.size)]
                taken.append((title, f"{label}, over {above}", before, entry))
    for cell in dict.fromkeys(cell for table in tables.values() for cell in table.values()):
        for smaller, entry in pairwise(entry for entry in found if entry.cell == cell):
            taken.append((LARGER, f"{cell}, {entry.size} over {smaller.size}", smaller.rows, entry))
    return [
        Step(title, name, entry.judge, len(common(before, entry.rows)), gains(before, entry.rows))
        for title, name, before, entry in taken
        if common(before, entry.rows)
    ]


def common(before: Sequence[Row], after: Sequence[Row]) -> list[tuple[Row, Row]]:
    """The rows of two judges that have a seed in common."""
    old = {row.seed: row for row in before}
    return [(old[row.seed], row) for row in after if row.seed in old]


def gains(before: Sequence[Row], after: Sequence[Row]) -> dict[str, Interval]:
    """By test set, the mean over the common seeds of the differences of accuracy prompt by prompt."""
    pairs = [(old.accuracy, new.accuracy) for old, new in common(before, after)]
    return {
        name: interval_over_seeds([np.subtract(new[name], old[name]) for old, new in pairs]) for name in pairs[0][0]
    }


def _over_seeds(shares: Sequence[Shares]) -> dict[str, Interval]:
    """By test set, an accuracy over seeds; its interval ends where accuracies do."""
    found = {}
    for name in shares[0] if shares else ():
        mean, low, high, n = interval_over_seeds([np.array(own[name]) for own in shares])
        found[name] = Interval(mean, max(0.0, low), min(1.0, high), n)
    return found


def results(found: Sequence[Entry], taken: Sequence[Step], total: int) -> dict[str, Any]:
    """Everything that was found, as it stands in results.json; intervals of one seed are over its prompts."""

    def plain(figures: Mapping[str, Interval]) -> dict[str, Any]:
        return {name: figure._asdict() for name, figure in figures.items()}

    def of_seed(row: Row) -> dict[str, Any]:
        untrained = row.untrained or {}
        return {
            "accuracy": plain({name: interval(own) for name, own in row.accuracy.items()}),
            "untrained": plain({name: interval(own) for name, own in untrained.items()}),
            "training_seconds": row.training_seconds,
        }

    judges = [
        {
            "cell": entry.cell,
            "size": entry.size,
            "parameters": entry.rows[0].parameters,
            "accuracy": plain(entry.accuracy),
            "untrained": plain(entry.untrained),
            "training_seconds": float(np.mean([row.training_seconds for row in entry.rows])),
            "seeds": {row.seed: of_seed(row) for row in entry.rows},
        }
        for entry in found
    ]
    gained = [step._asdict() | {"gains": plain(step.gains)} for step in taken]
    done = sum(len(entry.rows) for entry in found)
    return {"cells": total, "done": done, "judges": judges, "steps": gained}


# -- as text -----------------------------------------------------------------------------------------------------------


def markdown(tables: Tables, found: Sequence[Entry], taken: Sequence[Step], total: int) -> str:
    """The tables with what their figures are; a line says so where cells are missing."""
    rows = [row for entry in found for row in entry.rows]
    seeds = sorted({row.seed for row in rows})
    lines = [f"Unfinished: {len(rows)} of {total} cells.\n"] if len(rows) < total else []
    if rows:
        lines.append(_told(rows[0], seeds))
    lines.append("![Accuracy of every judge, trained and zero-shot](judges.svg)\n")
    heads = ["judge", "seeds", *SETS.values()]
    more = [*(f"zero-shot, {SETS[name]}" for name in ("id", "ood")), "training"]
    for title in (*tables, LARGER):
        own = [
            _line(_figures(label, entry))
            for label, cell in tables.get(title, {}).items()
            for entry in found
            if entry.cell == cell
        ]
        gained = [_line(_gained(step)) for step in taken if step.table == title]
        lines += [f"## {title.capitalize()}\n"] if own or gained else []
        lines += [_head(["", *heads, *more]), *own, ""] if own else []
        lines += [_head(["points gained", *heads]), *gained, ""] if gained else []
    return "\n".join(lines)


def _told(row: Row, seeds: Sequence[int]) -> str:
    prompts = ", ".join(f"{len(row.accuracy[name])} {title}" for name, title in SETS.items())
    many, which = ("seeds", ", ".join(map(str, seeds))) if len(seeds) > 1 else ("seed", str(seeds[0]))
    over = "95 % t intervals over seeds, never narrower than over prompts" if len(seeds) > 1 else "95 % over prompts"
    return (
        f"{len(seeds)} {many} ({which}), each with its own {row.pairs:,} training pairs and test prompts ({prompts}). "
        f"Accuracy: % of a prompt's test pairs that are ordered as the oracle orders them, both orders asked; {over}. "
        "Zero-shot: the base before training (a regressive head has none). Points gained: paired prompt by prompt. "
        "Training: mean time of one seed.\n"
    )


def _figures(label: str, entry: Entry) -> list[str]:
    own, base = entry.accuracy, entry.untrained
    figures = [figure_text(own[name]) for name in SETS]
    figures += [figure_text(base[name]) if base else "" for name in ("id", "ood")]
    seconds = float(np.mean([row.training_seconds for row in entry.rows]))
    return [label, entry.judge, str(len(entry.rows)), *figures, clock(seconds)]


def _gained(step: Step) -> list[str]:
    return [step.name, step.judge, str(step.seeds), *(figure_text(step.gains[name], sign="+") for name in SETS)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _head(titles: Sequence[str]) -> str:
    return f"{_line(titles)}\n|{'---|' * len(titles)}"


# -- as a figure -------------------------------------------------------------------------------------------------------


def chart(tables: Tables, found: Sequence[Entry]) -> str:
    """Accuracy in and out of domain as SVG: a panel of rows for each table, filled marks trained, hollow zero-shot."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    judges = {entry.size: entry.judge for entry in found}
    colours = {size: PALETTE[number % len(PALETTE)] for number, size in enumerate(judges)}
    heights = [len(table) for table in tables.values()]
    style = {**STYLE, "axes.grid.axis": "x", "svg.fonttype": "path", "svg.hashsalt": "judges"}
    with rc_context(style):
        figure = Figure(figsize=(10, 1.3 + 0.62 * sum(heights)), layout="constrained")
        panels = figure.subplots(len(tables), 2, sharex=True, sharey="row", squeeze=False, height_ratios=heights)
        for row, (title, table) in zip(panels, tables.items(), strict=True):
            for axes, name in zip(row, ("id", "ood"), strict=True):
                axes.set_title(f"{title.capitalize()}, {SETS[name]}, %")
                _draw(axes, table, found, colours, name)
        marks = [Line2D([], [], color=colour, marker="o", label=judges[size]) for size, colour in colours.items()]
        marks += [Line2D([], [], color=COLOURS["muted"], marker="o", mfc="white", label="zero-shot")]
        figure.legend(handles=marks, loc="outside lower center", ncols=len(marks))
        text = StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def _draw(axes: Axes, table: Mapping[str, str], found: Sequence[Entry], colours: Mapping[str, str], name: str) -> None:
    axes.axvline(50, color=COLOURS["muted"], linewidth=1, linestyle=":")  # a judge that guesses
    for place, cell in enumerate(table.values()):
        own = [entry for entry in found if entry.cell == cell]
        for number, entry in enumerate(own):
            at = place + 0.26 * (number - (len(own) - 1) / 2)
            if entry.untrained:
                _mark(axes, entry.untrained[name], at, colours[entry.size], filled=False)
            _mark(axes, entry.accuracy[name], at, colours[entry.size], filled=True)
    axes.set_yticks(range(len(table)), list(table))
    axes.set_ylim(len(table) - 0.5, -0.5)


def _mark(axes: Axes, figure: Interval, at: float, colour: str, filled: bool) -> None:
    mean, low, high = (100 * value for value in figure[:3])
    axes.plot([low, high], [at, at], color=colour, linewidth=1.8 if filled else 1, alpha=1 if filled else 0.5)
    axes.plot([mean], [at], "o", color=colour, markersize=5.5, markerfacecolor=colour if filled else "white")
