"""Search methods over seeds: the table, best of N as N grows, knockouts against tournaments, and the figures.

Oracle figures are means over prompts and seeds. A method's gain is paired prompt by prompt with the mean of the plain
samples.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from experiments.grid import Report, Row, Rows, select
from experiments.tables import PALETTE, gained, markdown_table, paired, plain, points, share_over_seeds, svg
from rewarddance.data.media import read_picture
from rewarddance.evaluation.statistics import Interval
from rewarddance.report.charts import COLOURS, STYLE
from rewarddance.report.formatting import number
from rewarddance.shapeworld.oracle import judge_pixels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BASE = "one sample"
PICTURES = "pictures"
TOP = 3
"""Among how many of the tournament's best a knockout's winner is looked for."""


class SearchRun(Row):
    """One method, one judge, one budget. oracle: of each prompt's winner; the rest are means over prompts."""

    row: Literal["cell"] = "cell"
    strength: str
    arm: str
    multiple: int
    budget: float
    oracle: list[float]
    evaluations: float
    pictures: float
    questions: float
    seconds: float
    generator_seconds: float
    judge_seconds: float
    rounds: float


class JudgeAccuracy(Row):
    """A judge's accuracy on the seed's test sets."""

    row: Literal["judge"] = "judge"
    strength: str
    kind: str
    accuracy: dict[str, float]


class Pool(Row):
    """Of each prompt's plain samples, the oracle's score and a judge's margin, [P][n]."""

    row: Literal["pool"] = "pool"
    strength: str
    oracle: list[list[float]]
    proxy: list[list[float]]


class Meeting(Row):
    """For each prompt, where in the tournament of n the winners of knockouts in random orders stand, from 0."""

    row: Literal["meeting"] = "meeting"
    strength: str
    n: int
    places: list[list[int]]


class Entry(NamedTuple):
    """One method with judges of one strength at one budget, over seeds.

    spent: seconds, in those of one plain sample.
    judge_share: of them, the judge's.
    evaluations, questions, rounds: means a prompt; see `search.run.SearchResult`.
    """

    strength: str
    arm: str
    multiple: int
    seeds: int
    oracle: Interval
    gain: Interval | None
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


class Knockouts(NamedTuple):
    """Knockouts of n against their tournaments: how often the winner is its best, and among its TOP."""

    strength: str
    n: int
    best: Interval
    top: Interval


class JudgeLine(NamedTuple):
    """A judge's mean accuracies over seeds."""

    strength: str
    kind: str
    accuracy: dict[str, float]


# -- over seeds --------------------------------------------------------------------------------------------------------


def entries(rows: Rows) -> list[Entry]:
    """The cells over their seeds, those of one strength and budget beside each other."""
    base, runs = rows.of(SearchRun, arm=BASE), [row for row in rows.of(SearchRun) if row.arm != BASE]
    units = {row.seed: row.budget for row in base}
    found = []
    for strength, multiple, arm in dict.fromkeys((row.strength, row.multiple, row.arm) for row in runs):
        own = select(runs, strength=strength, multiple=multiple, arm=arm)

        def mean(figure: Callable[[SearchRun], float], own: Sequence[SearchRun] = own) -> float:
            return float(np.mean([figure(row) for row in own]))

        found.append(
            Entry(
                strength,
                arm,
                multiple,
                len(own),
                oracle=share_over_seeds(row.oracle for row in own),
                gain=paired(base, own, lambda row: row.oracle),
                spent=mean(lambda row: row.seconds / units[row.seed]),
                judge_share=mean(lambda row: row.judge_seconds / row.seconds),
                evaluations=mean(lambda row: row.evaluations),
                questions=mean(lambda row: row.questions),
                rounds=mean(lambda row: row.rounds),
            )
        )
    return found


def expected_best(proxy: np.ndarray, values: np.ndarray, n: int) -> float:
    """The mean over all subsets of `n` of K samples of the value [K] of the sample with the largest proxy [K].

    The i-th best of K is the best of C(K - 1 - i, n - 1) of the C(K, n) subsets. Ties go to the lower index.
    """
    k = len(proxy)
    share, total = n / k, 0.0
    for i, at in enumerate(np.argsort(-proxy, kind="stable")[: k - n + 1]):
        total += share * float(values[at])
        share *= (k - n - i) / max(1, k - 1 - i)
    return total


def curve(rows: Rows) -> list[Point]:
    """Best of N for N = 1, 2, 4, ... up to the pool."""
    found = []
    for strength in dict.fromkeys(row.strength for row in rows.of(Pool)):
        pools = rows.of(Pool, strength=strength)
        k = min(len(margins) for pool in pools for margins in pool.proxy)
        for n in (2**power for power in range(k.bit_length())):
            best = np.array(
                [[_best(*group, n) for group in zip(pool.oracle, pool.proxy, strict=True)] for pool in pools]
            )
            oracle, proxy = (share_over_seeds(best[:, :, i]) for i in (0, 1))
            found.append(Point(strength, n, oracle, proxy, margin=float(best[:, :, 2].mean())))
    return found


def _best(oracle: Sequence[float], margins: Sequence[float], n: int) -> tuple[float, float, float]:
    """What is expected of the best of n by the margin: the oracle, P(yes) and the margin."""
    values, margin = np.array(oracle), np.array(margins)
    return (
        expected_best(margin, values, n),
        expected_best(margin, 1 / (1 + np.exp(-margin)), n),
        expected_best(margin, margin, n),
    )


def knockouts(rows: Rows) -> list[Knockouts]:
    found = []
    for strength in dict.fromkeys(row.strength for row in rows.of(Meeting)):
        meetings = rows.of(Meeting, strength=strength)
        best = share_over_seeds((np.array(row.places) < 1).mean(1) for row in meetings)
        top = share_over_seeds((np.array(row.places) < TOP).mean(1) for row in meetings)
        found.append(Knockouts(strength, meetings[0].n, best, top))
    return found


def judges(rows: Rows) -> list[JudgeLine]:
    lines = []
    for strength, kind in dict.fromkeys((row.strength, row.kind) for row in rows.of(JudgeAccuracy)):
        own = rows.of(JudgeAccuracy, strength=strength, kind=kind)
        accuracy = {name: float(np.mean([row.accuracy[name] for row in own])) for name in own[0].accuracy}
        lines.append(JudgeLine(strength, kind, accuracy))
    return lines


def search_report(rows: Rows, folder: Path) -> Report:
    found, points_of_n, base = entries(rows), curve(rows), rows.of(SearchRun, arm=BASE)
    one_sample = share_over_seeds(row.oracle for row in base)
    results = {
        "one_sample": {"oracle": one_sample, "seconds": [row.budget for row in base]},
        "judges": judges(rows),
        "methods": found,
        "best_of_n": points_of_n,
        "knockouts": knockouts(rows),
    }
    strengths = list(dict.fromkeys(entry.strength for entry in found))
    size = (4 + 4 * len(strengths) + 3 * bool(points_of_n), 4.6)
    chart = svg("search", size, lambda figure: draw(figure, one_sample, found, points_of_n))
    figures: dict[str, str | bytes] = {"search.svg": chart}
    if picture := gallery(folder, list(dict.fromkeys(entry.arm for entry in found))):
        figures["winners.png"] = picture
    return Report(markdown(rows, one_sample, found, points_of_n), plain(results), figures)


# -- as text -----------------------------------------------------------------------------------------------------------


def markdown(rows: Rows, one_sample: Interval, found: Sequence[Entry], points_of_n: Sequence[Point]) -> str:
    """The tables with what their figures are."""
    base = rows.of(SearchRun, arm=BASE)
    seeds = ", ".join(str(row.seed) for row in base)
    seconds = 1000 * float(np.mean([row.budget for row in base]))
    parts = [
        f"Oracle alignment of the winner, points of 100; {len(base[0].oracle)} held-out prompts of each seed "
        f"({seeds}), 95 % intervals over seeds, all on the same contents. One plain sample: "
        f"{points(one_sample)}, {number(seconds, 1)} ms without a judge; a budget of k x is k times that, "
        "the judge's time in it.\n",
        "![Oracle by budget, and as N grows](search.svg)\n",
    ]
    for strength in dict.fromkeys(entry.strength for entry in found):
        accuracies = "; ".join(
            f"{line.kind} {number(line.accuracy['id'])} % in domain, {number(line.accuracy['ood'])} % out of domain"
            for line in judges(rows)
            if line.strength == strength
        )
        parts += [f"## {strength.capitalize()} judges\n", f"Accuracy: {accuracies}.\n"]
        parts += _methods([entry for entry in found if entry.strength == strength], {e.multiple for e in found})
    if points_of_n:
        lines = [[p.strength, str(p.n), points(p.oracle), points(p.proxy), number(p.margin, 1, 2)] for p in points_of_n]
        heads = ["judge", "N", "oracle", "P(yes) of the winner", "margin"]
        parts += ["## Best of N as N grows\n", markdown_table(heads, lines)]
    if met := knockouts(rows):
        lines = [[line.strength, str(line.n), points(line.best), points(line.top)] for line in met]
        heads = ["judge", "N", "winner is the best", f"is in the top {TOP}"]
        parts += ["## Knockouts and tournaments\n", markdown_table(heads, lines)]
    parts.append("![Winners beside the first sample](winners.png)\n")
    return "\n".join(parts)


def _methods(found: Sequence[Entry], budgets: set[int]) -> list[str]:
    """The tables of one strength: what each method found, and what it took."""
    multiples, figures, took = sorted(budgets), [], []
    for arm in dict.fromkeys(entry.arm for entry in found):
        by = {entry.multiple: entry for entry in found if entry.arm == arm}
        oracle = [points(by[k].oracle) if k in by else "" for k in multiples]
        figures.append([arm, *oracle, *(gained(by[k].gain) if k in by else "" for k in multiples)])
        took.append([arm, *(_took(by[k]) if k in by else "" for k in multiples)])
    heads = ["method", *(f"{k} x" for k in multiples), *(f"gain, {k} x" for k in multiples)]
    took_heads = ["what it took", *(f"{k} x: spent, judge, evaluations, questions" for k in multiples)]
    return [markdown_table(heads, figures), markdown_table(took_heads, took)]


def _took(entry: Entry) -> str:
    spent, share = number(entry.spent, 1), number(entry.judge_share, 100, 0)
    text = f"{spent} x, {share} %, {number(entry.evaluations, 1, 0)}, {number(entry.questions, 1, 0)}"
    return text if entry.rounds else f"{text}; too little for it: plain samples"


# -- as figures --------------------------------------------------------------------------------------------------------


def draw(figure: Figure, base: Interval, found: Sequence[Entry], points_of_n: Sequence[Point]) -> None:
    """A panel of oracle by budget for each strength, and one of oracle and proxy as N grows."""
    strengths = list(dict.fromkeys(entry.strength for entry in found))
    arms = list(dict.fromkeys(entry.arm for entry in found))
    panels = figure.subplots(1, max(1, len(strengths) + bool(points_of_n)), squeeze=False)[0]
    for axes, strength in zip(panels, strengths, strict=False):
        axes.set_title(f"Oracle of the winner, {strength} judge")
        axes.axhline(100 * base.mean, color=COLOURS["muted"], linewidth=1, linestyle=":")
        for arm, colour in zip(arms, PALETTE * len(arms), strict=False):
            own = sorted((e for e in found if (e.strength, e.arm) == (strength, arm)), key=lambda e: e.multiple)
            _line(axes, [e.multiple for e in own], [e.oracle for e in own], colour, "-", arm)
        axes.set_xlabel("budget, in seconds of one sample")
    if points_of_n:
        panels[-1].set_title("Best of N: oracle, and P(yes) dashed")
        for strength, colour in zip(dict.fromkeys(p.strength for p in points_of_n), PALETTE, strict=False):
            own = [p for p in points_of_n if p.strength == strength]
            _line(panels[-1], [p.n for p in own], [p.oracle for p in own], colour, "-", f"{strength} judge")
            _line(panels[-1], [p.n for p in own], [p.proxy for p in own], colour, "--", None)
        panels[-1].set_xlabel("N")
        panels[-1].legend(loc="lower right")
    if strengths:
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=min(6, len(arms)))


def _line(axes: Axes, x: Sequence[int], figures: Sequence[Interval], colour: str, dash: str, name: str | None) -> None:
    means, low, high = ([100 * figure[i] for figure in figures] for i in range(3))
    axes.plot(x, means, dash, color=colour, marker="o", markersize=4, label=name)
    axes.fill_between(x, low, high, color=colour, alpha=0.1, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(x), [str(value) for value in x])
    axes.minorticks_off()


def gallery(folder: Path, arms: Sequence[str]) -> bytes | None:
    """As PNG: each prompt's first plain sample and each method's winner, with the oracle's points; None without."""
    path = folder / PICTURES / "prompts.json"
    names = [name for name in (BASE, *arms) if (folder / PICTURES / name).is_dir()]
    if not path.is_file() or len(names) < 2:
        return None
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    prompts = json.loads(path.read_text(encoding="utf-8"))
    with rc_context({**STYLE, "axes.titlesize": 9, "axes.titlelocation": "center"}):
        figure = Figure(figsize=(1.6 + 1.3 * len(names), 0.5 + 1.55 * len(prompts)), layout="constrained")
        grid = figure.subplots(len(prompts), 1 + len(names), squeeze=False, width_ratios=[1.2, *[1] * len(names)])
        for row, (prompt, (label, *panels)) in enumerate(zip(prompts, grid, strict=True)):
            label.text(0, 0.5, textwrap.fill(prompt, 18), fontsize=9, va="center")
            label.set_axis_off()
            for axes, name in zip(panels, names, strict=True):
                pixels = read_picture(folder / PICTURES / name / f"{row}.png")
                oracle = 100 * judge_pixels(pixels[None], [prompt])[0].alignment
                axes.imshow(np.asarray(pixels[0].permute(1, 2, 0)), interpolation="nearest")
                axes.set_axis_off()
                heading = textwrap.fill("first sample" if name == BASE else name, 14)
                axes.set_title(f"{heading}\n{oracle:.0f}" if row == 0 else f"{oracle:.0f}")
        data = BytesIO()
        figure.savefig(data, format="png", dpi=110, metadata={"Software": None})
    return data.getvalue()
