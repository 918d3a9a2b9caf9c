"""The figures of the search table: oracle by budget, oracle and proxy as N grows, winners beside the first sample."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from io import BytesIO, StringIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rewarddance.data.media import read_picture
from rewarddance.evaluation.statistics import Interval
from rewarddance.report.charts import COLOURS, STYLE
from rewarddance.shapeworld.oracle import judge_pixels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BASE = "one sample"
PICTURES = "pictures"
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")


class Entry(NamedTuple):
    """One method with judges of one strength at one budget, over seeds.

    spent: seconds, in those of one plain sample; judge_share: of them, the judge's; the rest are means a prompt.
    rounds: see `Found`.
    """

    strength: str
    arm: str
    multiple: int
    seeds: int
    oracle: Interval
    gain: Interval
    spent: float
    judge_share: float
    evaluations: float
    questions: float
    rounds: float


class Point(NamedTuple):
    """Best of N by a judge. proxy: its P(yes) of the winner; margin: its logit."""

    strength: str
    n: int
    oracle: Interval
    proxy: Interval
    margin: float


def chart(base: Interval, found: Sequence[Entry], curve: Sequence[Point]) -> str:
    """As SVG: a panel of oracle by budget for each strength, and one of oracle and proxy as N grows."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    strengths = list(dict.fromkeys(entry.strength for entry in found))
    arms = list(dict.fromkeys(entry.arm for entry in found))
    with rc_context({**STYLE, "svg.fonttype": "path", "svg.hashsalt": "searching"}):
        figure = Figure(figsize=(4 + 4 * len(strengths) + 3 * bool(curve), 4.6), layout="constrained")
        panels = figure.subplots(1, len(strengths) + bool(curve), squeeze=False)[0]
        for axes, strength in zip(panels, strengths, strict=False):
            axes.set_title(f"Oracle of the winner, {strength} judge")
            axes.axhline(100 * base.mean, color=COLOURS["muted"], linewidth=1, linestyle=":")
            for arm, colour in zip(arms, PALETTE * len(arms), strict=False):
                own = sorted((e for e in found if (e.strength, e.arm) == (strength, arm)), key=lambda e: e.multiple)
                _line(axes, [e.multiple for e in own], [e.oracle for e in own], colour, "-", arm)
            axes.set_xlabel("budget, in seconds of one sample")
        if curve:
            panels[-1].set_title("Best of N: oracle, and P(yes) dashed")
            for strength, colour in zip(dict.fromkeys(p.strength for p in curve), PALETTE, strict=False):
                own = [p for p in curve if p.strength == strength]
                _line(panels[-1], [p.n for p in own], [p.oracle for p in own], colour, "-", f"{strength} judge")
                _line(panels[-1], [p.n for p in own], [p.proxy for p in own], colour, "--", "")
            panels[-1].set_xlabel("N")
            panels[-1].legend(loc="lower right")
        if strengths:
            handles, names = panels[0].get_legend_handles_labels()
            figure.legend(handles, names, loc="outside lower center", ncols=min(6, len(arms)))
        text = StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def _line(axes: Axes, x: Sequence[int], figures: Sequence[Interval], colour: str, dash: str, name: str) -> None:
    means, low, high = ([100 * figure[i] for figure in figures] for i in range(3))
    axes.plot(x, means, dash, color=colour, marker="o", markersize=4, label=name or None)
    axes.fill_between(x, low, high, color=colour, alpha=0.1, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(x), [str(value) for value in x])
    axes.minorticks_off()


def gallery(folder: Path, arms: Sequence[str]) -> bytes | None:
    """As PNG: each prompt's first plain sample and each method's winner, with the oracle's points; None without."""
    told = folder / PICTURES / "prompts.json"
    shown = [name for name in (BASE, *arms) if (folder / PICTURES / name).is_dir()]
    if not told.is_file() or len(shown) < 2:
        return None
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    prompts = json.loads(told.read_text(encoding="utf-8"))
    with rc_context({**STYLE, "axes.titlesize": 9, "axes.titlelocation": "center"}):
        figure = Figure(figsize=(1.6 + 1.3 * len(shown), 0.5 + 1.55 * len(prompts)), layout="constrained")
        grid = figure.subplots(len(prompts), 1 + len(shown), squeeze=False, width_ratios=[1.2, *[1] * len(shown)])
        for row, (prompt, (label, *panels)) in enumerate(zip(prompts, grid, strict=True)):
            label.text(0, 0.5, textwrap.fill(prompt, 18), fontsize=9, va="center")
            label.set_axis_off()
            for axes, name in zip(panels, shown, strict=True):
                pixels = read_picture(folder / PICTURES / name / f"{row}.png")
                points = 100 * judge_pixels(pixels[None], [prompt])[0].alignment
                axes.imshow(np.asarray(pixels[0].permute(1, 2, 0)), interpolation="nearest")
                axes.set_axis_off()
                heading = textwrap.fill("first sample" if name == BASE else name, 14)
                axes.set_title(f"{heading}\n{points:.0f}" if row == 0 else f"{points:.0f}")
        data = BytesIO()
        figure.savefig(data, format="png", dpi=110, metadata={"Software": None})
    return data.getvalue()
