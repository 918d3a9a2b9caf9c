"""Tables over seeds as Markdown and JSON, and figures as SVG."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from io import StringIO
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import numpy as np
from pydantic import BaseModel

from experiments.grid import R
from experiments.intervals import interval_over_seeds
from rewarddance.evaluation.statistics import Interval
from rewarddance.report.charts import COLOURS, STYLE
from rewarddance.report.formatting import figure_text, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

T = TypeVar("T")
PALETTE = (COLOURS["blue"], COLOURS["orange"], "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
OVER_SEEDS = "Means over seeds with 95 % t intervals (never narrower than over all prompts), all on the same contents"
"""What the intervals of `over_seeds` are."""


class Column(NamedTuple, Generic[T]):
    """A column of a table: the figure of a line, and how it is written.

    head: in Markdown; "" for a figure that stands in results.json alone.
    key: in results.json, the head where there is none.
    """

    head: str
    figure: Callable[[T], Any]
    text: Callable[[Any], str] = str
    key: str = ""


class Group(NamedTuple, Generic[R]):
    """A line over seeds. name: its own; rows: one a seed; first: those of the line that it is compared with."""

    name: str
    rows: list[R]
    first: list[R]

    @property
    def seeds(self) -> list[int]:
        return sorted(row.seed for row in self.rows)


def table(columns: Sequence[Column[T]], lines: Iterable[T]) -> str:
    """The columns as Markdown."""
    shown = [column for column in columns if column.head]
    texts = [[column.text(column.figure(line)) for column in shown] for line in lines]
    return markdown_table([column.head for column in shown], texts)


def results(columns: Sequence[Column[T]], lines: Iterable[T]) -> list[dict[str, Any]]:
    """The columns as results.json holds them."""
    return [{column.key or column.head: plain(column.figure(line)) for column in columns} for line in lines]


def markdown_table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [f"| {' | '.join(cells)} |" for cells in (heads, *lines)]
    return "\n".join([rows[0], f"|{'---|' * len(heads)}", *rows[1:]]) + "\n"


def points(figure: Interval | None) -> str:
    """A share as points of 100; empty where there is none."""
    return "" if figure is None else figure_text(figure)


def gained(figure: Interval | None) -> str:
    """A difference of shares as signed points of 100; empty where there is none."""
    return "" if figure is None else figure_text(figure, sign="+")


def gained_reward(figure: Interval) -> str:
    """A difference of P(yes)."""
    return figure_text(figure, 1, 3, "+")


def percent(share: float) -> str:
    return f"{number(share, digits=0)} %"


def whole(value: float) -> str:
    return number(value, 1, 0)


def listed(values: Iterable[Any]) -> str:
    return ", ".join(map(str, values))


def plain(value: Any) -> Any:
    """Records and intervals as the mappings that results.json holds."""
    if isinstance(value, BaseModel):
        return value.model_dump()
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


# -- over seeds --------------------------------------------------------------------------------------------------------


def over_seeds(values: Iterable[Any]) -> Interval:
    """The mean over seeds; values: each seed's prompts."""
    return interval_over_seeds([np.asarray(own) for own in values])


def share_over_seeds(values: Iterable[Any]) -> Interval:
    """The same of shares, whose interval ends at 0 and 1."""
    mean, low, high, n = over_seeds(values)
    return Interval(mean, max(0.0, low), min(1.0, high), n)


def common(before: Iterable[R], after: Iterable[R]) -> list[tuple[R, R]]:
    """The rows of both that have a seed in common."""
    old = {row.seed: row for row in before}
    return [(old[row.seed], row) for row in after if row.seed in old]


def paired(before: Iterable[R], after: Iterable[R], figure: Callable[[R], Any]) -> Interval | None:
    """The mean difference, prompt by prompt, over the common seeds; None where there are none."""
    pairs = common(before, after)
    return over_seeds(np.subtract(figure(new), figure(old)) for old, new in pairs) if pairs else None


# -- figures -----------------------------------------------------------------------------------------------------------


def svg(name: str, size: tuple[float, float], draw: Callable[[Figure], None], **style: Any) -> str:
    """What `draw` makes of a figure of `size` inches. name: of the experiment; style: matplotlib's options."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    options: dict[Any, Any] = {**STYLE, "svg.fonttype": "path", "svg.hashsalt": name, **style}
    with rc_context(options):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        text = StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()
