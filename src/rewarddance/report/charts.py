"""Charts as inline SVG: curves of metrics over steps, and any other figure that is drawn with matplotlib."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from typing import TYPE_CHECKING, Any, Literal
from xml.etree import ElementTree

import numpy as np
from markupsafe import Markup

from rewarddance.report.formatting import number
from rewarddance.report.run_folder import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"ink": "#101112", "muted": "#808182", "rule": "#d0d1d2", "blue": "#0072b2", "orange": "#d55e00"}
"""Matplotlib draws in these; in the page each becomes the CSS variable of its name, and so follows light and dark."""
WIDTHS = {"wide": 720, "narrow": 342}
"""Every chart is drawn twice, for a screen and for a phone, so that its text has the page's size on both."""
MARGINS = (52, 44, 24, 40, 30)
"""Points left of the panels for values, right for the last value, above for the title, below for steps, and between."""
LINE = 16
"""Points of a line of a legend."""
STYLE: dict[Any, Any] = {
    **dict.fromkeys(("axes.titlecolor", "legend.labelcolor"), COLOURS["ink"]),
    **dict.fromkeys(("axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), COLOURS["muted"]),
    **dict.fromkeys(("axes.edgecolor", "grid.color", "xtick.color"), COLOURS["rule"]),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "axes.spines.left", "legend.frameon"), False),
    **dict.fromkeys(("font.size", "axes.titlesize"), 11.5),
    **{"axes.titlelocation": "left", "axes.titlepad": 9, "axes.grid": True, "axes.grid.axis": "y"},
    "axes.titley": 1.0,  # else matplotlib measures every label to place a title: a fifth of the time
    "text.parse_math": False,  # a dollar in a name is no formula
    **{"legend.borderaxespad": 0, "legend.handlelength": 1.3, "legend.columnspacing": 1},
    **{"axes.axisbelow": True, "ytick.major.size": 0, "lines.linewidth": 1.8, "svg.fonttype": "none"},
}


@dataclass(frozen=True)
class Curve:
    """One key of the metrics over steps, `scale` times; with a band where the rows hold key_low and key_high too."""

    key: str
    label: str = ""
    colour: str = "blue"
    dash: str = "-"
    scale: int = 1
    kind: str = "step"  # of the rows that hold it


@dataclass(frozen=True)
class Panel:
    """Curves on one axis of values, which begins at 0 where `from_zero`: a loss of what is left is then visible."""

    title: str
    curves: tuple[Curve, ...]
    from_zero: bool = False


REWARD = Panel("Reward, P(yes)", (Curve("reward"),))
MARGIN = Panel("Margin, logits", (Curve("margin"),))
ORACLE = Panel("Oracle, points of 100", (Curve("oracle", colour="orange", scale=100, kind="probe"),))
SPREADS = Curve("spread_within", "within a prompt"), Curve("spread_across", "across prompts", "orange", "--")
ACCURACIES = (
    Curve("accuracy_id", "in domain", scale=100, kind="evaluation"),
    Curve("accuracy_ood", "out of domain", "orange", "--", 100, kind="evaluation"),
)
IMAGE_STATS = (
    Curve("drift_brightness", "brightness"),
    Curve("drift_saturation", "saturation", "orange"),
    Curve("drift_sharpness", "sharpness", "blue", "--"),
    Curve("drift_contrast", "contrast", "muted"),
    Curve("drift_high_frequencies", "high frequencies", "orange", "--"),
    Curve("drift_motion", "motion", "ink", ":"),
)
DISTANCES = Curve("diversity_within", "within a prompt"), Curve("diversity_across", "across prompts", "orange", "--")
CHARTS = {
    "hacking": (
        Panel("Proxy: margin, logits", (Curve("margin"),)),
        Panel("Proxy: P(yes)", (Curve("reward"),)),
        Panel("Held-out judge: margin, logits", (Curve("held_out_margin", colour="orange"),)),
        Panel("How far the rewards go the same way, cosine", (Curve("rewards_cosine"),)),
        ORACLE,
        Panel("Distance from the base's velocity", (Curve("velocity_mse"),), from_zero=True),
        Panel("Norm of the velocity, of the base's", (Curve("velocity_norm"),)),
        Panel("Spread of the margin", SPREADS, from_zero=True),
        Panel("Spread of P(yes)", (Curve("spread_of_reward"),), from_zero=True),
        Panel("Distance between pictures", DISTANCES, from_zero=True),
        Panel("Distance of edits from their sources", (Curve("source_distance"),), from_zero=True),
        Panel("Groups that are one picture, share", (Curve("collapsed"),), from_zero=True),
        Panel("Image statistics, in deviations of the base's", IMAGE_STATS),
    ),
    "progress": (REWARD, MARGIN, ORACLE),
    "spread": (Panel("Logits", SPREADS, from_zero=True),),
    "diversity": (Panel("Pixel distance", (Curve("diversity", kind="probe"),), from_zero=True),),
    "judge": (Panel("Training loss", (Curve("loss"),)), Panel("Accuracy", ACCURACIES)),
}


def series(rows: Sequence[Row], key: str, kind: str = "step") -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of `key`, from the rows of a kind; those that lack the figure, or have None, are left out."""
    points = [(row["step"], row[key]) for row in rows if row["kind"] == kind and isinstance(row.get(key), int | float)]
    steps, values = np.array(points, dtype=float).reshape(-1, 2).T
    return steps, values


def smoothing_window(n: int) -> int:
    """How many of `n` values the drawn mean runs over: 1 (none) for a short series, a 20th of a long one."""
    return max(5, n // 20) if n >= 60 else 1


def with_each_reward(panel: Panel, rows: Sequence[Row]) -> Panel:
    """The panel with a curve for each of several rewards (`margin/keep`) in the place of their mean."""
    (curve, *others) = panel.curves
    names = list(dict.fromkeys(key for row in rows for key in row if key.startswith(f"{curve.key}/")))
    if others or not names:
        return panel
    looks = itertools.cycle(itertools.product(("-", "--", ":"), ("blue", "orange", "ink", "muted")))
    curves = [
        replace(curve, key=key, label=key.partition("/")[2], colour=colour, dash=dash)
        for key, (dash, colour) in zip(names, looks, strict=False)
    ]
    return replace(panel, curves=tuple(curves))


def chart(rows: Sequence[Row], name: str, marks: Mapping[int, str] | None = None) -> Markup | None:
    """A chart of CHARTS as inline SVG, panels above one axis of steps; None where nothing of it was logged.

    marks: steps at which a line goes through all panels, with the label at its head.
    """
    panels = [
        with_each_reward(panel, rows)
        for panel in CHARTS[name]
        if any(len(series(rows, curve.key, curve.kind)[0]) for curve in panel.curves)
    ]
    if not panels:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        _place(figure, len(panels), lines[kind_of(figure)])
        for panel_axes, panel in zip(axes, panels, strict=True):
            _draw_panel(panel_axes, rows, panel, kind_of(figure))
            for step in marks or {}:
                panel_axes.axvline(step, color=COLOURS["ink"], linewidth=0.9, linestyle=":")
        for step, label in (marks or {}).items():
            at = {"xy": (step, 0), "xycoords": axes[-1].get_xaxis_transform(), "textcoords": "offset points"}
            axes[-1].annotate(label, xytext=(3, 4), color=COLOURS["ink"], **at)
        axes[-1].set_xlabel("step")

    alt = " · ".join(panel.title for panel in panels) + ", over steps"
    lines = {kind: max(legend_lines(panel, kind) for panel in panels) for kind in WIDTHS}
    heights = {k: LINE * lines[k] * len(panels) + (46 + 142 * len(panels) if len(panels) > 1 else 226) for k in WIDTHS}
    return draw_svg(draw, heights, name, alt, layout=None)


def kind_of(figure: Figure) -> str:
    """Which of WIDTHS a figure has."""
    return "wide" if figure.get_figwidth() > 6 else "narrow"


def legend_lines(panel: Panel, kind: str) -> int:
    """Lines that a legend takes between a panel and its title: on a phone there is no room beside the title."""
    return math.ceil(len(panel.curves) / 2) if kind == "narrow" and len(panel.curves) > 1 else 0


def _place(figure: Figure, panels: int, lines: int) -> None:
    """Panels above one another between margins of known sizes: a layout that measures every text takes twice as long.

    lines: of a legend that every panel has room for.
    """
    width, height = (72 * inches for inches in figure.get_size_inches())
    left, right, top, bottom, between = MARGINS
    top, between = top + LINE * lines, between + LINE * lines
    each = (height - top - bottom - between * (panels - 1)) / panels
    figure.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - top / height, hspace=between / each)


def draw_svg(
    draw: Callable[[Figure], None],
    heights: Mapping[str, int],
    name: str,
    alt: str,
    layout: Literal["constrained"] | None = "constrained",
) -> Markup:
    """The figure that `draw` fills, as inline SVG in each of WIDTHS.

    name: unique on the page, which makes the ids so. alt: what the figure shows, for screen readers.
    layout: None where `draw` places its panels itself.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    drawings = []
    for kind, width in WIDTHS.items():
        with rc_context({**STYLE, "svg.hashsalt": f"{name}-{kind}"}):
            figure = Figure(figsize=(width / 72, heights[kind] / 72), layout=layout)
            draw(figure)
            file = StringIO()
            figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
        drawings.append(_inline(file.getvalue(), alt, kind))
    return Markup("\n".join(drawings))


def _draw_panel(axes: Axes, rows: Sequence[Row], panel: Panel, kind: str) -> None:
    axes.set_title(panel.title, pad=STYLE["axes.titlepad"] + LINE * legend_lines(panel, kind))
    for curve in panel.curves:
        if len(series(rows, curve.key, curve.kind)[0]):
            _draw_curve(axes, rows, curve, label_end=len(panel.curves) == 1)
    if len(panel.curves) > 1:
        lines = [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")]
        columns = 3 if len(lines) > 2 and kind == "wide" else 2
        axes.legend(handles=lines, loc="lower right", bbox_to_anchor=(1, 0.99), ncols=columns)
    axes.locator_params(axis="x", nbins=6, integer=True)
    axes.locator_params(axis="y", nbins=4)
    axes.margins(x=0.01, y=0.08)
    if panel.from_zero:
        axes.set_ylim(bottom=0)


def _draw_curve(axes: Axes, rows: Sequence[Row], curve: Curve, label_end: bool) -> None:
    """Every value thin under its running mean; a short series with a mark at each value."""
    steps, values = series(rows, curve.key, curve.kind)
    values, colour, window = values * curve.scale, COLOURS[curve.colour], smoothing_window(len(steps))
    low, high = (series(rows, f"{curve.key}_{end}", curve.kind)[1] * curve.scale for end in ("low", "high"))
    if len(low) == len(high) == len(steps):
        axes.fill_between(steps, low, high, color=colour, alpha=0.16, linewidth=0)
    if window > 1:
        axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.3)
    mean = np.array([values[max(0, i + 1 - window) : i + 1].mean() for i in range(len(values))])
    marker = "o" if len(steps) <= 40 else None
    axes.plot(steps, mean, curve.dash, color=colour, label=curve.label, marker=marker, markersize=4)
    if label_end and np.isfinite(mean[-1]):
        text, at = number(mean[-1], 1, 1 if curve.scale == 100 else 3), (float(steps[-1]), float(mean[-1]))
        axes.annotate(text, at, (7, 0), textcoords="offset points", va="center", color=colour, annotation_clip=False)


def _inline(svg: str, alt: str, kind: str) -> str:
    """Matplotlib's file as an element of the page: no namespaces, style, metadata or unused ids; colours as variables.

    The style would reach beyond its own picture.
    """
    root = ElementTree.fromstring(svg)
    used = set(re.findall(r"#([\w-]+)", svg))
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        attributes = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
        element.attrib.clear()
        element.attrib.update((key, value) for key, value in attributes.items() if key != "id" or value in used)
        for child in list(element):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                element.remove(child)
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": alt, "class": kind}
    text = re.sub(r">\s+<", ">\n<", ElementTree.tostring(root, encoding="unicode"))
    for name, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    return text
