"""Figures as text and as markup: what the pages and the terminal's tables are written with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template

from rewarddance.evaluation.statistics import Interval


def number(value: float, scale: int = 100, digits: int = 1, sign: str = "") -> str:
    """`value` times `scale`, with a true minus and never a minus zero."""
    return format(round(scale * value, digits) + 0.0, f"{sign}.{digits}f").replace("-", "−")


def figure_text(figure: Interval, scale: int = 100, digits: int = 1, sign: str = "") -> str:
    """A figure, a space, and its interval."""
    low, high = (number(end, scale, digits, sign) for end in (figure.low, figure.high))
    return f"{number(figure.mean, scale, digits, sign)} [{low}, {high}]"


def clock(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def figure(value: Interval, scale: int = 100, digits: int = 1, sign: str = "") -> str:
    mean, bounds = figure_text(value, scale, digits, sign).split(" ", 1)
    return f"<b>{mean}</b> <small>{bounds}</small>"


def table_rows(rows: Iterable[Sequence[str]]) -> str:
    """Table rows of markup; the first cell is the row's name."""
    lines = (f'<th scope="row">{name}</th>' + "".join(f"<td>{cell}</td>" for cell in cells) for name, *cells in rows)
    return "\n".join(f"<tr>{line}</tr>" for line in lines)


def absent(sentence: str) -> str:
    return f'<p class="absent">{sentence}</p>'


def footnote(word: str, shown: str) -> str:
    """A link to the word's line in the template's footnotes."""
    return f'<a href="#{word}">{shown}</a>'


def filled(template: str, slots: dict[str, str]) -> str:
    """A template of `templates/` with its slots filled, and the pages' one style sheet in it."""
    text, style = (
        (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8") for name in (template, "page.css")
    )
    return Template(text).substitute(slots, style=style)
