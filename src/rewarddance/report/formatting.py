"""Figures as text, and tables of them: what pages, model cards and terminal tables are written with."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from rewarddance.errors import printable
from rewarddance.evaluation.statistics import Interval


def number(value: float, scale: int = 100, digits: int = 1, sign: str = "") -> str:
    """`value` times `scale`, with a true minus and never a minus zero."""
    return format(round(scale * value, digits) + 0.0, f"{sign}.{digits}f").replace("-", "−").replace("inf", "∞")


def figure_text(figure: Interval, scale: int = 100, digits: int = 1, sign: str = "") -> str:
    """A figure, a space, and its interval."""
    low, high = (number(end, scale, digits, sign) for end in (figure.low, figure.high))
    return f"{number(figure.mean, scale, digits, sign)} [{low}, {high}]"


class FigureCell(NamedTuple):
    """A figure in a table, with the arguments of `figure_text` that say how it is written."""

    value: Interval
    scale: int = 100
    digits: int = 1
    sign: str = ""


Cell = str | FigureCell


class Table(NamedTuple):
    """heads: of all columns but the first. A row of two cells holds a sentence in place of figures."""

    heads: tuple[str, ...]
    rows: Sequence[Sequence[Cell]]


_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|$!~])")


def markdown_text(text: object) -> str:
    """A text in Markdown that shows as it is: no markup, no formula, no mark of direction, no line end."""
    return _MARKDOWN.sub(r"\\\1", printable(" ".join(str(text).split())))


def code_text(text: object) -> str:
    """A text between backticks, which it may not end."""
    return printable(" ".join(str(text).split())).replace("`", "'")


def as_markdown(table: Table) -> str:
    width = len(table.heads) + 1
    lines = [["", *table.heads], ["---"] * width, *table.rows]
    return "\n".join(f"| {' | '.join([*map(_markdown_cell, line), *[''] * (width - len(line))])} |" for line in lines)


def _markdown_cell(cell: Cell) -> str:
    text = cell if isinstance(cell, str) else figure_text(*cell)
    return " ".join(text.replace("|", r"\|").split())  # a bar or a line end would end the cell or the row
