"""Reward scaling as tables: each figure by size and by context, rank correlations over judges, and the claims."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from scipy.stats import spearmanr

from experiments.grid import Report, Row, Rows, TimedRow, select
from experiments.hacking_table import WatchedRun, holds
from experiments.judges_table import SETS, JudgeRun
from experiments.tables import (
    OVER_SEEDS,
    PALETTE,
    common,
    gained,
    gained_reward,
    listed,
    markdown_table,
    over_seeds,
    paired,
    percent,
    plain,
    points,
    share_over_seeds,
    svg,
)
from rewarddance.evaluation.statistics import Interval
from rewarddance.report.formatting import figure_text, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESAMPLES = 2000


class Pace(Row):
    """Seconds of the processor before an arm's first step, and of each step, with one judge."""

    row: Literal["pace"] = "pace"
    size: str
    cell: str
    arm: str
    before: float
    each: float


class ArmRun(WatchedRun):
    """One alignment with one judge. safeguards: whether the arm has any."""

    row: Literal["arm"] = "arm"
    size: str
    cell: str
    arm: str
    safeguards: bool


class ChoiceRun(TimedRow):
    """What a judge chooses among samples, or finds by a search; each held-out prompt's oracle [P].

    way: "best of N" or "paths". oracle_base: the mean of the base's samples.
    """

    row: Literal["choice"] = "choice"
    size: str
    cell: str
    way: str
    oracle_base: list[float]
    oracle: list[float]

    @property
    def gain(self) -> np.ndarray:
        return np.array(self.oracle) - np.array(self.oracle_base)


class StressRun(TimedRow):
    """The margins that a judge loses to what makes no picture better, by name; None where one cannot be had."""

    row: Literal["stress"] = "stress"
    size: str
    cell: str
    figures: dict[str, float | None]


class JudgePoint(NamedTuple):
    """What is known of one judge under one seed. figures: of the judge itself; gains: by arm or way, in shares."""

    seed: int
    size: str
    cell: str
    figures: dict[str, float]
    gains: dict[str, float]


class Correlation(NamedTuple):
    """Spearman's rank correlation over judges between a figure of a judge and a gain. n: judges."""

    figure: str
    gain: str
    rho: Interval


# -- what was measured -------------------------------------------------------------------------------------------------


def judge_points(rows: Rows) -> list[JudgePoint]:
    """Every judge that something was gained with, with all that is known of it."""
    found = []
    for judge in rows.of(JudgeRun):
        key = {"seed": judge.seed, "size": judge.size, "cell": judge.cell}
        figures = {f"accuracy {SETS[name]}": float(np.mean(own)) for name, own in judge.accuracy.items()}
        figures["parameters"] = float(np.log10(judge.parameters))
        for stressed in rows.of(StressRun, **key):
            figures |= {f"stress: {name}": value for name, value in stressed.figures.items() if value is not None}
        gains: dict[str, float] = {}
        for run in rows.of(ArmRun, **key):
            gains[run.arm] = float(run.gain.mean())
            if not run.safeguards:  # a run that never loses its gain held out longest
                last = run.probes[-1].step
                gains[f"{run.arm}: step of the loss"] = float(last + 1 if run.lost is None else run.lost)
        gains |= {run.way: float(run.gain.mean()) for run in rows.of(ChoiceRun, **key)}
        if gains:
            found.append(JudgePoint(**key, figures=figures, gains=gains))
    return found


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """0 where one of them does not vary: then it tells nothing."""
    if len(set(x)) < 2 or len(set(y)) < 2:
        return 0.0
    return float(spearmanr(x, y)[0])  # type: ignore[arg-type]


def over_judges(points: Sequence[JudgePoint], figure: Callable[[Sequence[JudgePoint]], float]) -> Interval:
    """A figure of judges with its 95 % interval: whole seeds are drawn, and judges within them (2,000 times)."""
    seeds = sorted({point.seed for point in points})
    by_seed = {seed: [point for point in points if point.seed == seed] for seed in seeds}
    rng, drawn = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        sample = []
        for seed in rng.choice(seeds, len(seeds)):
            own = by_seed[int(seed)]
            sample += [own[i] for i in rng.integers(len(own), size=len(own))]
        drawn.append(figure(sample))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(figure(points), float(low), float(high), len(points))


def correlations(points: Sequence[JudgePoint]) -> list[Correlation]:
    """Of every figure with every gain, over the judges that have both; at least six."""
    figures = dict.fromkeys(name for point in points for name in point.figures)
    gains = dict.fromkeys(name for point in points for name in point.gains)
    found = []
    for gain in gains:
        for figure in figures:
            both = [point for point in points if figure in point.figures and gain in point.gains]
            if len(both) >= 6:
                rho = over_judges(both, lambda own, f=figure, g=gain: _rho(own, f, g))
                found.append(Correlation(figure, gain, rho))
    return found


def _rho(points: Sequence[JudgePoint], figure: str, gain: str) -> float:
    return spearman([point.figures[figure] for point in points], [point.gains[gain] for point in points])


def out_over_in(points: Sequence[JudgePoint], gain: str) -> Interval | None:
    """By how much accuracy out of domain ranks judges better than accuracy in domain; None for fewer than six."""
    both = [point for point in points if gain in point.gains]
    inside, outside = f"accuracy {SETS['id']}", f"accuracy {SETS['ood']}"
    if len(both) < 6:
        return None
    return over_judges(both, lambda own: _rho(own, outside, gain) - _rho(own, inside, gain))


# -- as text -----------------------------------------------------------------------------------------------------------


class Claim(NamedTuple):
    """A claim of the paper, and the difference that decides it; verdict: holds, does not, or undecided."""

    claim: str
    figure: str
    verdict: str


def scaling_report(rows: Rows, sizes: Mapping[str, str], contexts: Mapping[str, Any]) -> Report:
    first, points = next(iter(contexts)), judge_points(rows)
    lines, found = claims(rows, points, [*sizes], [*contexts]), correlations(points)
    parts = [
        f"{OVER_SEEDS}. Accuracy: % of a prompt's test pairs that are ordered as the oracle orders them, both orders "
        "asked. Gains: of the oracle's alignment on held-out prompts, in points of 100, over the base's samples. A "
        "claim holds where the interval of its difference is above 0, does not where it is below, and is undecided "
        "otherwise.\n",
        "## The claims\n",
        markdown_table(["claim", "measured", "verdict"], lines),
        "## Judges\n",
        judges_text(rows),
    ]
    if rows.of(ArmRun) or rows.of(ChoiceRun):
        parts += ["## Gains\n", "![Accuracy and gain by size](scaling.svg)\n", gains_text(rows)]
    if watched := [run for run in rows.of(ArmRun) if run.windows]:
        parts += ["## Spread of the reward in the sliding window, first and last\n", spread_text(watched)]
    if bare := [run for run in rows.of(ArmRun) if not run.safeguards]:
        parts += ["## Without safeguards\n", bare_text(bare)]
    if found:
        text = [[own.figure, own.gain, str(own.rho.n), figure_text(own.rho, 1, 2, "+")] for own in found]
        heads = ["figure of the judge", "what it shall foretell", "judges", "Spearman's rho"]
        parts += ["## What foretells a gain\n", markdown_table(heads, text)]
    figure = svg("scaling", (10, 4.2), lambda drawn: draw(drawn, rows, [*sizes], first))
    results = {
        "judges": [row.model_dump(exclude={"accuracy", "untrained"}) for row in rows.of(JudgeRun)],
        "correlations": found,
        "claims": lines,
    }
    return Report("\n".join(parts), plain(results), {"scaling.svg": figure})


def keys_of(rows: Sequence[Any]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((row.size, row.cell) for row in rows))


def judges_text(rows: Rows) -> str:
    judges, lines = rows.of(JudgeRun), []
    for size, cell in keys_of(judges):
        own = select(judges, size=size, cell=cell)
        accuracy = [points(share_over_seeds(row.accuracy[name] for row in own)) for name in SETS]
        zero = [row.untrained["id"] for row in own if row.untrained]
        lines.append(
            [
                size,
                cell,
                f"{own[0].parameters / 1e6:.2f}M",
                listed(sorted(row.seed for row in own)),
                *accuracy,
                points(share_over_seeds(zero)) if zero else "",
                number(float(np.mean([row.training_seconds for row in own])), 1, 0),
            ]
        )
    heads = ["size", "context", "parameters", "seeds", *SETS.values(), "untrained, in domain", "seconds of training"]
    return markdown_table(heads, lines)


def gains_text(rows: Rows) -> str:
    """A line a judge and way; each size over the size before, paired prompt by prompt."""
    lines = []
    for kind, name in ((ArmRun, "arm"), (ChoiceRun, "way")):
        runs: list[Any] = rows.of(kind)
        for way in dict.fromkeys(getattr(run, name) for run in runs):
            before: list[Any] = []
            for size, cell in keys_of(select(runs, **{name: way})):
                own: list[Any] = select(runs, size=size, cell=cell, **{name: way})
                over = paired(before, own, lambda run: run.gain) if before else None
                is_arm = kind is ArmRun
                lines.append(
                    [
                        way,
                        size,
                        cell,
                        str(len(own)),
                        str(own[0].steps) if is_arm else "",
                        gained(over_seeds(run.gain for run in own)),
                        gained(over),
                        gained_reward(over_seeds(run.reward_gain for run in own)) if is_arm else "",
                        percent(float(np.mean([run.diversity_kept for run in own]))) if is_arm else "",
                        number(float(np.mean([run.seconds for run in own])), 1, 0),
                    ]
                )
                before = own
    heads = [
        "way",
        "size",
        "context",
        "seeds",
        "steps",
        "gain",
        "over the line above",
        "P(yes)",
        "diversity",
        "seconds",
    ]
    return markdown_table(heads, lines)


def spread_text(runs: Sequence[ArmRun]) -> str:
    lines = []
    for arm in dict.fromkeys(run.arm for run in runs):
        for size, cell in keys_of(select(runs, arm=arm)):
            own = select(runs, arm=arm, size=size, cell=cell)
            ends = [[run.windows[at] for run in own] for at in (0, -1)]
            spread = [figure_text(over_seeds([w.spread] for w in at), 1, 3) for at in ends]
            room = [figure_text(over_seeds([w.of_room] for w in at), 100, 0) for at in ends]
            means = [number(float(np.mean([w.mean for w in at])), 1, 3) for at in ends]
            lines.append([arm, size, cell, str(len(own)), " → ".join(means), " → ".join(spread), " → ".join(room)])
    return markdown_table(["arm", "size", "context", "seeds", "mean P(yes)", "spread", "% of the room"], lines)


def bare_text(runs: Sequence[ArmRun]) -> str:
    lines = [
        [
            run.arm,
            run.size,
            run.cell,
            str(run.seed),
            f"{number(run.peak.oracle - run.probes[0].oracle, sign='+')} at {run.peak.step}",
            str(run.lost or "never"),
            "hacked" if run.verdict.hacked else "undecided" if run.verdict.undecided else "not hacked",
            listed(f"{alarm.name} at {alarm.step}" for alarm in run.alarms) or "none",
        ]
        for run in runs
    ]
    return markdown_table(
        ["arm", "size", "context", "seed", "highest oracle", "gain lost at", "verdict", "alarms"], lines
    )


def claims(rows: Rows, points: Sequence[JudgePoint], sizes: Sequence[str], contexts: Sequence[str]) -> list[Claim]:
    """The paper's claims that the rows can decide: of sizes the largest against the smallest, of contexts the first."""
    found, first = [], contexts[0]
    judges = rows.of(JudgeRun, cell=first)
    ways = [(ArmRun, "arm"), (ChoiceRun, "way")]
    for name, title in SETS.items():
        figure = _difference(judges, "size", sizes[0], sizes[-1], lambda row, name=name: np.array(row.accuracy[name]))
        found.append(_claim(f"larger judges are more accurate {title}: {sizes[-1]} over {sizes[0]}", figure))
    for smaller, larger in pairwise(sizes):
        figure = _difference(judges, "size", smaller, larger, lambda row: np.array(row.accuracy["ood"]))
        found.append(_claim(f"accuracy out of domain: {larger} over {smaller}", figure))
    for kind, name in ways:
        runs: list[Any] = rows.of(kind, cell=first)
        for way in dict.fromkeys(getattr(run, name) for run in runs):
            own = select(runs, **{name: way})
            figure = _difference(own, "size", sizes[0], sizes[-1], lambda run: run.gain)
            found.append(_claim(f"larger judges give larger gains, {way}: {sizes[-1]} over {sizes[0]}", figure))
    for context in contexts[1:]:
        figure = _difference(rows.of(JudgeRun), "cell", first, context, lambda row: np.array(row.accuracy["ood"]))
        found.append(_claim(f"accuracy out of domain: {first} over {context}", figure, turned=True))
        for kind, name in ways:
            for way in dict.fromkeys(getattr(run, name) for run in rows.of(kind)):
                figure = _difference(rows.of(kind, **{name: way}), "cell", first, context, lambda run: run.gain)
                found.append(_claim(f"gain of {way}: {first} over {context}", figure, turned=True))
    for gain in dict.fromkeys(name for point in points for name in point.gains):
        figure = out_over_in(points, gain)
        if figure is not None:
            text = figure_text(figure, 1, 2, "+")
            told = f"accuracy out of domain foretells {gain} better than accuracy in domain"
            found.append(Claim(told, f"rho {text}", holds(figure)))
    return [claim for claim in found if claim.figure]


def _difference(
    rows: Sequence[Any], field: str, low: str, high: str, figure: Callable[[Any], np.ndarray]
) -> Interval | None:
    """The paired mean difference over the seeds, sizes and contexts that two values of a field have in common."""
    old, new = (select(rows, **{field: value}) for value in (low, high))
    other = "cell" if field == "size" else "size"
    by_seed: dict[int, list[np.ndarray]] = {}
    for value in dict.fromkeys(getattr(row, other) for row in new):
        for before, after in common(select(old, **{other: value}), select(new, **{other: value})):
            by_seed.setdefault(after.seed, []).append(figure(after) - figure(before))
    return over_seeds(np.concatenate(own) for own in by_seed.values()) if len(by_seed) > 1 else None


def _claim(claim: str, figure: Interval | None, turned: bool = False) -> Claim:
    """turned: the claim is that the first is better, and the figure is the other's over it."""
    if figure is None:
        return Claim(claim, "", "")
    if turned:
        figure = Interval(-figure.mean, -figure.high, -figure.low, figure.n)
    return Claim(claim, gained(figure), holds(figure))


# -- as a figure -------------------------------------------------------------------------------------------------------


def draw(figure: Figure, rows: Rows, sizes: Sequence[str], cell: str) -> None:
    """Left: accuracy by parameters, right: gains by parameters; means over seeds with their intervals."""
    left, right = figure.subplots(1, 2)
    judges = rows.of(JudgeRun, cell=cell)
    at = {row.size: row.parameters for row in judges}
    for (name, title), colour in zip(SETS.items(), PALETTE, strict=False):
        shares = {size: [row.accuracy[name] for row in select(judges, size=size)] for size in sizes}
        _line(left, at, {size: share_over_seeds(own) for size, own in shares.items() if own}, title, colour)
    runs = [(run.arm, run) for run in rows.of(ArmRun, cell=cell)] + [(r.way, r) for r in rows.of(ChoiceRun, cell=cell)]
    for way, colour in zip(dict.fromkeys(way for way, _ in runs), PALETTE, strict=False):
        by_size = {size: [run.gain for name, run in runs if (name, run.size) == (way, size)] for size in sizes}
        _line(right, at, {size: over_seeds(own) for size, own in by_size.items() if own}, way, colour)
    for axes, title in ((left, "Accuracy, %"), (right, "Gain of the oracle, points")):
        axes.set_title(title)
        axes.set_xscale("log")
        axes.set_xlabel("parameters of the judge")
        if axes.get_legend_handles_labels()[0]:
            axes.legend()


def _line(axes: Any, at: Mapping[str, int], figures: Mapping[str, Interval], label: str, colour: Any) -> None:
    x = [at[size] for size in figures]
    means = 100 * np.array([own.mean for own in figures.values()])
    spans = 100 * np.array([[own.mean - own.low, own.high - own.mean] for own in figures.values()])
    if len(means):
        axes.errorbar(x, means, yerr=spans.T, label=label, color=colour, marker="o", capsize=3)
