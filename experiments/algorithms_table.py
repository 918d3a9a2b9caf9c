"""Every way to align as tables: gains by judge and budget, what was tuned, and the figures of what a gain costs.

Gains are paired prompt by prompt with the base's samples from the same noises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from experiments.aligned_runs import GAIN_COLUMNS, AlignedRun
from experiments.grid import Report, Row, Rows, select
from experiments.hacking_table import JUDGES
from experiments.judge_choices import JudgeAccuracy
from experiments.tables import (
    OVER_SEEDS,
    PALETTE,
    Column,
    Group,
    gained,
    listed,
    markdown_table,
    over_seeds,
    plain,
    results,
    svg,
    table,
    whole,
)
from rewarddance.evaluation.statistics import Interval
from rewarddance.report.formatting import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = "osD^v*"
TWO_OBJECTS = "two objects"


class Pace(Row):
    """The seconds before a method's first step with a judge, and of each step; as they were under the first seed."""

    row: Literal["pace"] = "pace"
    method: str
    judge: str
    before: float
    each: float


class MethodRun(AlignedRun):
    """One finished run of a method.

    learning_rate: that it had.
    layouts: of each held-out prompt [P], what it asks for: one object, two objects and others.
    distance: mean squared distance of the velocity from the base's (`algorithms.distance_from_base`).
    memory: GiB that the process held at most while it trained, with Python, generator and judge.
    """

    method: str
    learning_rate: float
    layouts: list[str]
    distance: float
    memory: float

    @property
    def gain_of_two(self) -> np.ndarray:
        """The gain on prompts of two objects."""
        return self.gain[np.array(self.layouts) == TWO_OBJECTS]


class AlgorithmRun(MethodRun):
    """One cell. budget: seconds that it might take."""

    row: Literal["run"] = "run"
    judge: str
    budget: float


class TuningRun(MethodRun):
    """One run on a development seed. factor: what the method's learning rate was multiplied with."""

    row: Literal["tuning"] = "tuning"
    factor: float


class BrokenRun(Row):
    """A run that could not go on, such as one whose gradient was not finite. what: the error.

    factor: of a tuning run; judge and budget: of another.
    """

    row: Literal["broken"] = "broken"
    method: str
    factor: float | None = None
    judge: str | None = None
    budget: float | None = None
    what: str


class Point(NamedTuple):
    """What a method gained with a judge and a budget, over seeds. front: nothing gained as much for as little."""

    judge: str
    budget: float
    method: str
    gain: Interval
    seconds: float
    reward_gain: float
    front_of_seconds: bool
    front_of_reward: bool


# -- what was measured -------------------------------------------------------------------------------------------------


def best_factors(rows: Rows) -> dict[str, float]:
    """By method, the factor whose runs gained most over all tuning seeds; of equal ones that nearest to 1."""
    runs, best = rows.of(TuningRun), dict[str, float]()
    for method in dict.fromkeys(run.method for run in runs):
        own = select(runs, method=method)
        gains = {run.factor: mean_gain(select(own, factor=run.factor)) for run in own}
        best[method] = max(gains, key=lambda factor: (gains[factor], -abs(np.log(factor))))
    return best


def mean_gain(runs: Iterable[MethodRun]) -> float:
    return float(np.mean([run.gain.mean() for run in runs]))


def front(costs: Sequence[float], gains: Sequence[float]) -> list[bool]:
    """Which points are on the Pareto front: no other gains as much for less, or more for as much."""
    points = list(zip(costs, gains, strict=True))
    return [not any(c <= cost and g >= gain and (c, g) != (cost, gain) for c, g in points) for cost, gain in points]


def points_of(rows: Rows) -> list[Point]:
    """A point for each method, judge and budget; the fronts are of all methods and budgets with one judge."""
    runs, found = rows.of(AlgorithmRun), list[Point]()
    for judge in dict.fromkeys(run.judge for run in runs):
        keys = dict.fromkeys((run.budget, run.method) for run in select(runs, judge=judge))
        groups = {key: select(runs, judge=judge, budget=key[0], method=key[1]) for key in keys}
        seconds = [float(np.mean([run.seconds for run in own])) for own in groups.values()]
        rewards = [float(np.mean([run.reward_gain.mean() for run in own])) for own in groups.values()]
        gains = [over_seeds(run.gain for run in own) for own in groups.values()]
        means = [gain.mean for gain in gains]
        fronts = zip(front(seconds, means), front(rewards, means), strict=True)
        for (budget, method), gain, cost, reward, of in zip(keys, gains, seconds, rewards, fronts, strict=True):
            found.append(Point(judge, budget, method, gain, cost, reward, *of))
    return found


# -- as text -----------------------------------------------------------------------------------------------------------


def _count(runs: Sequence[AlgorithmRun], holds: Callable[[AlgorithmRun], bool]) -> str:
    return f"{sum(holds(run) for run in runs)} of {len(runs)}"


def _mean(figure: Callable[[AlgorithmRun], float]) -> Callable[[Group[AlgorithmRun]], float]:
    return lambda group: float(np.mean([figure(run) for run in group.rows]))


COLUMNS: list[Column[Group[AlgorithmRun]]] = [
    Column("method", lambda group: group.name),
    Column("seeds", lambda group: group.seeds, listed),
    Column("rate", lambda group: group.rows[0].learning_rate, lambda rate: f"{rate:.2g}"),
    Column("steps", lambda group: [*dict.fromkeys(run.steps for run in group.rows)], listed),
    Column("seconds", _mean(lambda run: run.seconds), whole),
    *GAIN_COLUMNS,
    Column(TWO_OBJECTS, lambda group: over_seeds(run.gain_of_two for run in group.rows), gained, "gain_of_two"),
    Column("distance", _mean(lambda run: run.distance), lambda value: number(value, 1, 3)),
    Column("GiB", _mean(lambda run: run.memory), lambda value: number(value, 1, 2)),
    Column("hacked", lambda group: _count(group.rows, lambda run: run.verdict.hacked)),
    Column("alarms", lambda group: _count(group.rows, lambda run: bool(run.alarms))),
]
BROKEN: list[Column[BrokenRun]] = [
    Column("method", lambda run: run.method),
    Column("seed", lambda run: run.seed),
    Column("of", lambda run: f"rate x {run.factor:g}" if run.factor else f"{run.judge}, {run.budget:g} seconds"),
    Column("what happened", lambda run: run.what.replace("|", "/")),
]
TEXT = (
    "Rate: the learning rate. Seconds: a run's references and steps, probes not counted. Base: the oracle's alignment "
    "of the held-out samples before, of 100. Gain: after over before, in points, from the same noises; over the first: "
    "over the first line's. P(yes): the judge's, of samples against the base's of other noises, after minus before. "
    "Diversity: % of the base's. Distance: mean squared, of the velocity from the base's along the base's own way. "
    "GiB: that the process held at most. Hacked: runs whose P(yes) surely rose while the oracle surely fell, or whose "
    f"diversity halved. Alarms: runs in which one rang. {OVER_SEEDS}; of one seed they are over its prompts.\n"
)


def algorithms_report(rows: Rows, methods: Sequence[str], judges: Sequence[str]) -> Report:
    """methods, judges: in the recipe's order."""
    parts, tables = [TEXT], list[dict[str, Any]]()
    runs, points = rows.of(AlgorithmRun), points_of(rows)
    if points:
        parts.append("![What a gain costs, in seconds and in P(yes)](algorithms.svg)\n")
    for judge in judges:
        for budget in sorted({run.budget for run in select(runs, judge=judge)}):
            own = {name: select(runs, judge=judge, budget=budget, method=name) for name in methods}
            lines = [Group(name, group, own[methods[0]]) for name, group in own.items() if group]
            parts += [f"## The judge {judge}, {budget:g} seconds\n", table(COLUMNS, lines)]
            tables += [{"judge": judge, "budget": budget, **line} for line in results(COLUMNS, lines)]
    if tuned := rows.of(TuningRun):
        parts += ["## The tuning\n", tuning_text(tuned, best_factors(rows), methods)]
    if broken := rows.of(BrokenRun):
        parts += ["## Runs that broke\n", table(BROKEN, broken)]
    if tested := rows.of(JudgeAccuracy):
        parts += ["## The judges\n", table(JUDGES, tested)]
    tuning = [_tuned(run) for run in tuned]
    content = {"table": tables, "points": points, "tuning": tuning, "judges": tested, "broken": broken}
    figures: dict[str, str | bytes] = {}
    if points:
        names = [name for name in methods if any(point.method == name for point in points)]
        shown = [judge for judge in judges if any(point.judge == judge for point in points)]
        size = (11, 1.2 + 3.6 * len(shown))
        figures["algorithms.svg"] = svg("algorithms", size, lambda figure: draw(figure, points, names, shown))
    return Report("\n".join(parts), plain(content), figures)


def _tuned(run: TuningRun) -> dict[str, Any]:
    names = {"seed", "method", "factor", "learning_rate", "steps", "seconds"}
    return run.model_dump(include=names) | {"gain": float(run.gain.mean())}


def tuning_text(runs: Sequence[TuningRun], best: Mapping[str, float], methods: Sequence[str]) -> str:
    """A line a method: the gain at each learning rate, and which was taken."""
    factors = sorted({run.factor for run in runs})
    lines = []
    for method in methods:
        own = select(runs, method=method)
        if not own:
            continue
        one = own[0]
        cells = [
            gained(over_seeds(r.gain for r in select(own, factor=f))) if select(own, factor=f) else "" for f in factors
        ]
        taken = best[method] * one.learning_rate / one.factor
        lines.append([method, str(one.steps), *cells, f"{taken:.2g}"])
    return markdown_table(["method", "steps", *(f"rate x {factor:g}" for factor in factors), "taken"], lines)


# -- as a figure -------------------------------------------------------------------------------------------------------


def draw(figure: Figure, points: Sequence[Point], methods: Sequence[str], judges: Sequence[str]) -> None:
    """A row a judge; left the gain by seconds, right by P(yes) won; the larger points are on the Pareto front."""
    grid = figure.subplots(len(judges), 2, squeeze=False)
    for (left, right), judge in zip(grid, judges, strict=True):
        left.set_title(f"The judge {judge}: gain of the oracle, points")
        own = [point for point in points if point.judge == judge]
        for number_, method in enumerate(methods):
            of_method = sorted((point for point in own if point.method == method), key=lambda point: point.budget)
            look = {
                "color": PALETTE[number_ % len(PALETTE)],
                "marker": MARKERS[number_ // len(PALETTE) % len(MARKERS)],
                "label": method,
            }
            _curve(left, of_method, [p.seconds for p in of_method], [p.front_of_seconds for p in of_method], look)
            _curve(right, of_method, [p.reward_gain for p in of_method], [p.front_of_reward for p in of_method], look)
        left.set_xlabel("seconds")
        right.set_xlabel("P(yes) won")
        for axes in (left, right):
            axes.axhline(0, color="#808182", linewidth=0.8)
    handles = {label: handle for handle, label in zip(*grid[0][0].get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5)


def _curve(axes: Axes, points: Sequence[Point], x: Sequence[float], on_front: Sequence[bool], look: dict) -> None:
    if not points:
        return
    means = 100 * np.array([point.gain.mean for point in points])
    spans = 100 * np.array([[point.gain.mean - point.gain.low, point.gain.high - point.gain.mean] for point in points])
    axes.plot(x, means, linewidth=1, markersize=5, **look)
    axes.errorbar(x, means, yerr=spans.T, fmt="none", ecolor=look["color"], elinewidth=0.6, alpha=0.5)
    best = [(at, mean) for at, mean, is_on in zip(x, means, on_front, strict=True) if is_on]
    if best:
        axes.plot(*zip(*best, strict=True), look["marker"], color=look["color"], markersize=9)
