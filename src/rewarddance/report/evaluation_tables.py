"""An evaluation's figures as tables, which the page shows as HTML and the model card as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import NamedTuple

from rewarddance.evaluation.findings import Sentence, SetFindings
from rewarddance.evaluation.statistics import Interval
from rewarddance.report.formatting import figure, figure_text, number, table_rows

Tests = Mapping[str, SetFindings]
DOMAINS = {"id": "in domain", "ood": "out of domain"}
"""What two names of test sets stand for, wherever this project makes them."""


class Shown(NamedTuple):
    """A figure and how it is written: times `scale`, with so many digits."""

    value: Interval
    scale: int = 100
    digits: int = 1
    sign: str = ""


Cell = str | Shown


class Table(NamedTuple):
    """heads: of all columns but the first. A row of two cells holds a sentence in place of figures."""

    heads: tuple[str, ...]
    rows: list[list[Cell]]


def title(name: str) -> str:
    """A test set's name, with what it stands for where that is known."""
    return f"{name} ({DOMAINS[name]})" if name in DOMAINS else name


def as_html(table: Table) -> str:
    width = len(table.heads)
    rows = []
    for name, *cells in table.rows:
        if len(cells) == 1 < width:
            said = f'<td class="said" colspan="{width}">{_marked(cells[0])}</td>'
            rows.append(f'<tr><th scope="row">{_marked(name)}</th>{said}</tr>')
        else:
            rows.append(table_rows([[_marked(name), *map(_marked, cells)]]))
    heads = "".join(f'<th scope="col">{escape(head)}</th>' for head in table.heads)
    body = "\n".join(rows)
    return f"<table>\n<thead><tr><th></th>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def as_markdown(table: Table) -> str:
    lines: list[Sequence[Cell]] = [["", *table.heads], ["---"] * (len(table.heads) + 1), *table.rows]
    width = len(table.heads) + 1
    return "\n".join(f"| {' | '.join([*map(_plain, line), *[''] * (width - len(line))])} |" for line in lines)


def _marked(cell: Cell) -> str:
    return escape(cell) if isinstance(cell, str) else figure(*cell)


def _plain(cell: Cell) -> str:
    text = cell if isinstance(cell, str) else figure_text(*cell)
    return " ".join(text.replace("|", r"\|").split())  # what would end the cell or the row


def _shown(value: Interval | Sentence, scale: int = 100, digits: int = 1, sign: str = "") -> Cell:
    return value if isinstance(value, str) else Shown(value, scale, digits, sign)


def _by_test(heads: tuple[str, ...], tests: Tests, cells: Callable[[SetFindings], list[Cell]]) -> Table:
    return Table(heads, [[title(name), *cells(one)] for name, one in tests.items()])


# -- the tables --------------------------------------------------------------------------------------------------------


def accuracy(tests: Tests) -> Table:
    def cells(one: SetFindings) -> list[Cell]:
        ties: Cell = one.with_ties if isinstance(one.with_ties, str) else Shown(one.with_ties.accuracy)
        return [_shown(one.accuracy), ties, f"{one.pairs:,}", f"{one.ties:,}", f"{one.prompts:,}"]

    return _by_test(("Accuracy", "With ties", "Pairs", "Ties", "Prompts"), tests, cells)


def apart(tests: Tests, key: str, most: int | None = None) -> Table:
    """Accuracy by source (key "by_source") or by criterion: a row for each, those with most pairs first."""
    found = [getattr(one, key) for one in tests.values()]
    count = {name: sum(own[name].n for own in found if name in own) for own in found for name in own}
    names = sorted(count, key=lambda name: -count[name])[:most]
    rows = [
        [name or "none named", *(_shown(own[name]) if name in own else "" for own in found), f"{count[name]:,}"]
        for name in names
    ]
    return Table((*map(title, tests), "Pairs"), rows)


def calibration(tests: Tests) -> Table:
    def cells(one: SetFindings) -> list[Cell]:
        own = one.calibration
        known: list[Cell] = [number(own.ece), number(own.nll, 1, 3), number(own.least_nll, 1, 3)]
        fitted = own.temperature
        if isinstance(fitted, str):
            return [*known, fitted, "", "", ""]
        before_after = (number(fitted.ece_before), number(fitted.ece_after))
        return [*known, number(fitted.value, 1, 2), Shown(fitted.gain, 1, 3, "+"), *before_after]

    heads = ("ECE", "NLL", "Least NLL", "Temperature", "Gain in NLL", "ECE, other half", "ECE after")
    return _by_test(heads, tests, cells)


def reliability(tests: Tests) -> Table:
    rows: list[list[Cell]] = [
        [title(name), f"{one.low:.1f} to {one.high:.1f}", number(one.said), Shown(one.votes), f"{one.votes.n:,}"]
        for name, found in tests.items()
        for one in found.calibration.bins
    ]
    return Table(("P(yes)", "Mean P(yes)", "Votes for yes", "Questions"), rows)


def order(tests: Tests) -> Table:
    def cells(one: SetFindings) -> list[Cell]:
        own = one.order
        if isinstance(own, str):
            return [own]
        shares = [Shown(own.consistent), Shown(own.yes_twice), Shown(own.no_twice)]
        return [*shares, Shown(own.pull, 1, 2, "+"), _shown(own.one_order)]

    return _by_test(("Agree", "Yes to both", "No to both", "Pull", "Accuracy of one"), tests, cells)


def circles(tests: Tests) -> Table:
    def cells(one: SetFindings) -> list[Cell]:
        own = one.transitivity
        return [own] if isinstance(own, str) else [Shown(own.cyclic), f"{own.triples:,}", f"{own.cyclic.n:,}"]

    return _by_test(("Cyclic", "Triples", "Prompts"), tests, cells)


def looks(tests: Tests) -> Table:
    rows: list[list[Cell]] = []
    for name, one in tests.items():
        for place, (look, own) in enumerate(one.bias.looks.items()):
            amount = f"{own.amount:g}" if look == "brightness" else f"{100 * own.amount:g} %"
            moved = [Shown(own.more, 1, 2, "+"), Shown(own.less, 1, 2, "+"), Shown(own.turned)]
            beyond = _shown(own.beyond_votes, 1, 2, "+")
            rows.append(["" if place else title(name), f"{look} ±{amount}", *moved, beyond])
    return Table(("Look", "More of it", "Less of it", "Answers turned", "Beyond the votes"), rows)


def spreads(tests: Tests) -> str:
    """What the moves of `looks` are to be held against."""
    told = (f"{number(one.bias.spread, 1, 2)} on {title(name)} ({one.bias.probed:,})" for name, one in tests.items())
    return f"Standard deviation of the margins of the probed pairs: {', '.join(told)}."


def length(tests: Tests) -> Table:
    rows: list[list[Cell]] = []
    for name, one in tests.items():
        own = one.bias.length
        level = _shown(own.level, 1, 2, "+")
        if isinstance(own.thirds, str):
            rows.append([title(name), own.thirds, "", level])
            continue
        for place, (low, high, right) in enumerate(own.thirds):
            words = f"{low} to {high}" if low < high else f"{low}"
            rows.append(["" if place else title(name), words, Shown(right), "" if place else level])
    return Table(("Words", "Accuracy", "Level follows length"), rows)
