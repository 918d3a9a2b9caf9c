"""A run folder told as one page: `write_report` makes report.html, `summary_table` the same figures for a terminal.

Three parts, in this order: what is read from the folder, how charts are drawn, how the page is put together.
The page needs nothing but itself: pictures and charts are inside it, and there is no script.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from pydantic import BaseModel, TypeAdapter, ValidationError

from rewarddance.errors import InputError
from rewarddance.evaluation.statistics import Interval
from rewarddance.runtime.checkpoint import write_text_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

T = TypeVar("T")
Row = dict[str, Any]

# -- what a run leaves -------------------------------------------------------------------------------------------------


class BeforeAfter(BaseModel):
    """One figure of the SFT base and of the generator after ReFL."""

    sft: Interval
    refl: Interval


class Arms(BeforeAfter):
    """One figure of all three arms."""

    best_of_n: Interval


class Oracle(Arms):
    """The oracle's alignment in [0, 1], and both gains over the base, paired by prompt."""

    gain_best_of_n: Interval
    gain_refl: Interval


class JudgeAccuracy(BaseModel):
    """Accuracy on held-out pairs, in and out of domain, after training and before."""

    accuracy_id: Interval
    accuracy_ood: Interval
    untrained_id: Interval
    untrained_ood: Interval


class Hacking(BaseModel):
    hacked: bool
    sentence: str


class Summary(BaseModel):
    """summary.json. `n` is best-of-N's N; all but reward, diversity, seconds and memory are shares shown in points."""

    name: str
    seed: int
    task: str
    machine: str
    n: int
    judge: JudgeAccuracy
    oracle: Oracle
    by_category: dict[str, Arms]
    quality: Arms
    correct: Arms
    reward: BeforeAfter
    diversity: BeforeAfter
    hacking: Hacking
    seconds: float
    seconds_by_stage: dict[str, float]
    peak_memory_gib: float


class Sample(BaseModel):
    """One prompt of samples.json: each arm's picture, as a path in the run folder, and the oracle's score of it."""

    prompt: str
    category: str
    seed: int
    pictures: dict[str, str]
    oracle: dict[str, float]


def _parsed(path: Path, kind: type[T], remedy: str) -> T:
    """The contents of a JSON file as `kind`. Raises InputError that names the file and the first thing wrong in it."""
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise InputError(f"{path} cannot be read: {place}: {first['msg']}.", remedy) from None


def read_summary(folder: Path) -> Summary:
    """The figures of a finished run. Raises InputError where there are none."""
    path, remedy = folder / "summary.json", "Finish the run with --resume, or give the folder of a finished one."
    if not path.is_file():
        raise InputError(f"{path} is missing.", remedy)
    return _parsed(path, Summary, remedy)


def read_metrics(folder: Path) -> list[Row]:
    """The lines of metrics.jsonl, none where there is no such file. A last line that a kill cut off is left out."""
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else []
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line) if line.strip() else None
        except json.JSONDecodeError as error:
            if number == len(lines):  # no line end after it: it was being written
                break
            raise InputError(f"{path}, line {number}, is no JSON: {error.msg}.", "Remove or mend that line.") from None
        if row is None:
            continue
        if not isinstance(row, dict) or "phase" not in row or not isinstance(row.get("step"), int):
            raise InputError(f"{path}, line {number}, has no phase and step.", "Remove or mend that line.")
        rows.append(row)
    return rows


def read_samples(folder: Path) -> list[Sample]:
    """The gallery of samples.json, empty where there is no such file."""
    path = folder / "samples.json"
    return _parsed(path, list[Sample], "Let the run write it anew.") if path.is_file() else []


def read_picture(folder: Path, name: str) -> str:
    """A PNG of the run folder as a data URI. Raises InputError where it is missing."""
    path = folder / name
    if not path.is_file():
        raise InputError(f"{path} is missing, and samples.json shows it.", "Bring it back, or remove samples.json.")
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


# -- charts ------------------------------------------------------------------------------------------------------------

COLOURS = {"ink": "#101112", "muted": "#808182", "rule": "#d0d1d2", "blue": "#0072b2", "orange": "#d55e00"}
"""Matplotlib draws in these; in the page each becomes the CSS variable of its name, and so follows light and dark."""

WIDTHS = {"wide": 720, "narrow": 342}
"""Every chart is drawn twice, for a screen and for a phone, so that its text has the page's size on both."""

STYLE = {
    "svg.fonttype": "none",
    "font.size": 11.5,
    "axes.titlesize": 11.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.edgecolor": COLOURS["rule"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.titlecolor": COLOURS["ink"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": COLOURS["rule"],
    "grid.linewidth": 0.8,
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["rule"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["muted"],
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.labelcolor": COLOURS["ink"],
    "lines.linewidth": 1.8,
}
SMOOTHED_FROM = 60


@dataclass(frozen=True)
class Curve:
    """One key of the metrics over steps, `scale` times; a band where the rows hold key_low and key_high too."""

    key: str
    label: str = ""
    colour: str = "blue"
    dash: str = "-"
    scale: float = 1.0


@dataclass(frozen=True)
class Panel:
    """Curves on one axis of values. from_zero: the axis begins at 0, for figures whose loss is to be seen."""

    title: str
    curves: tuple[Curve, ...]
    from_zero: bool = False


def series(rows: Sequence[Row], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of `key`, from the rows that have it."""
    found = [(row["step"], row[key]) for row in rows if isinstance(row.get(key), int | float)]
    steps, values = zip(*found, strict=True) if found else ((), ())
    return np.asarray(steps, dtype=float), np.asarray(values, dtype=float)


def window_of(n: int) -> int:
    """How many values the drawn mean runs over: 1 (none) for a short series, a 20th of a long one."""
    return max(5, n // 20) if n >= SMOOTHED_FROM else 1


def chart(rows: Sequence[Row], panels: Sequence[Panel], name: str, alt: str) -> str:
    """Panels above one axis of steps as inline SVG, in both widths. Empty where the rows have none of the keys."""
    drawn = [panel for panel in panels if any(len(series(rows, curve.key)[0]) for curve in panel.curves)]
    if not drawn:
        return ""
    return "".join(
        f'<div class="{kind}">{_svg(rows, drawn, width, f"{name}-{kind}", alt)}</div>' for kind, width in WIDTHS.items()
    )


def _svg(rows: Sequence[Row], panels: Sequence[Panel], width: int, salt: str, alt: str) -> str:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({**STYLE, "svg.hashsalt": salt}):
        height = 46 + 142 * len(panels) if len(panels) > 1 else 226
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        figure.get_layout_engine().set(hspace=0.05, h_pad=0.06)  # type: ignore[union-attr]
        for own, panel in zip(axes, panels, strict=True):
            _draw_panel(own, rows, panel)
        axes[-1].set_xlabel("step")
        text = StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return _inlined(text.getvalue(), alt)


def _draw_panel(axes: Axes, rows: Sequence[Row], panel: Panel) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(panel.title)
    for curve in panel.curves:
        _draw_curve(axes, rows, curve, named=len(panel.curves) == 1)
    if len(panel.curves) > 1:
        axes.legend(loc="lower right", bbox_to_anchor=(1, 0.97), ncols=2, borderaxespad=0, columnspacing=1.4)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.margins(x=0.01, y=0.08)
    if panel.from_zero:
        axes.set_ylim(bottom=0)


def _draw_curve(axes: Axes, rows: Sequence[Row], curve: Curve, named: bool) -> None:
    """Every value thin with its running mean on top; a short series with a mark at each value. `named`: the end's value."""
    steps, values = series(rows, curve.key)
    if not len(steps):
        return
    values, colour, window = values * curve.scale, COLOURS[curve.colour], window_of(len(steps))
    low, high = (series(rows, f"{curve.key}_{end}") for end in ("low", "high"))
    if len(low[0]) == len(high[0]) == len(steps):
        axes.fill_between(steps, low[1] * curve.scale, high[1] * curve.scale, color=colour, alpha=0.16, linewidth=0)
    if window > 1:
        axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.3)
    mean = np.array([values[max(0, i + 1 - window) : i + 1].mean() for i in range(len(values))])
    marker = "o" if window == 1 and len(steps) <= 40 else None
    axes.plot(steps, mean, curve.dash, color=colour, label=curve.label, marker=marker, markersize=4)
    if named and np.isfinite(mean[-1]):
        end = f"{mean[-1]:.1f}" if curve.scale == 100 else f"{mean[-1]:.2f}"
        place = {"xytext": (6, 0), "textcoords": "offset points", "va": "center", "annotation_clip": False}
        axes.annotate(end.replace("-", "−"), (steps[-1], mean[-1]), color=colour, **place)


def _inlined(svg: str, alt: str) -> str:
    """Matplotlib's file as an element of the page: no prolog, no addresses, no unused names, colours as variables."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<svg[^>]*?(viewBox=\"[^\"]*\")[^>]*>", rf'<svg \1 role="img" aria-label="{escape(alt)}">', svg, count=1)
    used = set(re.findall(r"#([\w-]+)", svg))
    svg = re.sub(r' id="([\w.-]+)"', lambda found: found[0] if found[1] in used else "", svg)
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    return re.sub(r"\s*\n\s*", "\n", svg).strip()


# -- figures as text ---------------------------------------------------------------------------------------------------

ARMS = ("sft", "best_of_n", "refl")


def _arm(arm: str, n: int) -> str:
    return {"sft": "SFT base", "best_of_n": f"Best of {n}", "refl": "ReFL"}[arm]


def _number(value: float, scale: float = 100, digits: int = 1, sign: str = "") -> str:
    """`value` times `scale`, with a true minus and never a minus zero."""
    return format(round(scale * value, digits) + 0.0, f"{sign}.{digits}f").replace("-", "−")


def _bounds(figure: Interval, scale: float = 100, digits: int = 1) -> str:
    return f"[{_number(figure.low, scale, digits)}, {_number(figure.high, scale, digits)}]"


def _with_bounds(figure: Interval, sign: str = "") -> str:
    return f"{_number(figure.mean, sign=sign)} {_bounds(figure)}"


def _clock(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def summary_table(summary: dict[str, Any]) -> Table:
    """The run's figures for a terminal, 80 columns wide; in points of 100, but for diversity."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    s = Summary.model_validate(summary)
    lines = [f"judge accuracy, {name}: {_with_bounds(after)}, untrained {_with_bounds(before)}" for name, after, before in (
        ("in domain", s.judge.accuracy_id, s.judge.untrained_id),
        ("out of domain", s.judge.accuracy_ood, s.judge.untrained_ood),
    )]
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), caption="\n".join(lines), caption_justify="left")
    table.add_column("")
    for title in ("oracle alignment", "gain", "correct", "quality", "diversity"):
        table.add_column(title, justify="right", no_wrap=True)
    gains = {"sft": "", "best_of_n": _with_bounds(s.oracle.gain_best_of_n, "+"), "refl": _with_bounds(s.oracle.gain_refl, "+")}
    for arm in ARMS:
        diversity = getattr(s.diversity, arm, None)
        table.add_row(
            _arm(arm, s.n),
            _with_bounds(getattr(s.oracle, arm)),
            gains[arm],
            _number(getattr(s.correct, arm).mean),
            _number(getattr(s.quality, arm).mean),
            _number(diversity.mean, 1, 3) if diversity else "",
        )
    return table


# -- the page ----------------------------------------------------------------------------------------------------------
