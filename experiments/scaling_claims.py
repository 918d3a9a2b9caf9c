"""What the rows of reward scaling say: the paper's claims by paired differences, and what foretells a gain by ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import spearmanr

from experiments.grid import Rows, select
from experiments.hacking_table import holds
from experiments.judges_table import SETS, JudgeRun
from experiments.scaling_rows import ArmRun, ChoiceRun, StressRun
from experiments.tables import common, gained, over_seeds
from rewarddance.evaluation.statistics import Interval
from rewarddance.report.formatting import figure_text

RESAMPLES = 2000


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


class Claim(NamedTuple):
    """A claim of the paper, and the difference that decides it; verdict: holds, does not, or undecided."""

    claim: str
    figure: str
    verdict: str


def claims(rows: Rows, points: Sequence[JudgePoint], sizes: Sequence[str], contexts: Sequence[str]) -> list[Claim]:
    """The paper's claims that the rows can decide, of sizes in the first context and then of contexts.

    Of sizes: what twice the parameters bring, with the smallest size and without, the largest over the smallest, and
    each over the one before, for the spread of the reward in a run's last window too (the paper's Figure 5); of
    contexts the first over each other one.
    Two seeds at least, and the same seeds on both sides.
    """
    first = contexts[0]
    at = {row.size: float(row.parameters) for row in rows.of(JudgeRun)}
    found, judges = [], rows.of(JudgeRun, cell=first)
    for name, title in SETS.items():
        found += _of_sizes(f"accuracy {title}", judges, sizes, at, lambda row, name=name: np.array(row.accuracy[name]))
    gains = {title: own for title, own in _gains(rows).items() if select(own, cell=first)}
    for title, own in gains.items():
        found += _of_sizes(f"gain of {title}", select(own, cell=first), sizes, at, lambda run: run.gain)
    watched = [run for run in rows.of(ArmRun, cell=first) if run.windows]
    for arm in dict.fromkeys(run.arm for run in watched):
        own = select(watched, arm=arm)
        spread = f"spread of the reward at the end of {arm}"
        found += _of_sizes(spread, own, sizes, at, lambda run: np.array([run.windows[-1].spread]))
        found += _of_sizes(
            f"{spread}, of what its mean allows", own, sizes, at, lambda run: np.array([run.windows[-1].of_room])
        )
    for context in contexts[1:]:
        figure = _difference(rows.of(JudgeRun), "cell", context, first, lambda row: np.array(row.accuracy["ood"]))
        found.append(_claim(f"accuracy out of domain: {first} over {context}", figure))
        for title, own in _gains(rows).items():
            figure = _difference(own, "cell", context, first, lambda run: run.gain)
            found.append(_claim(f"gain of {title}: {first} over {context}", figure))
    for gain in dict.fromkeys(name for point in points for name in point.gains):
        figure = out_over_in(points, gain)
        if figure is not None:
            told = f"accuracy out of domain foretells {gain} better than accuracy in domain"
            found.append(Claim(told, f"rho {figure_text(figure, 1, 2, '+')}", holds(figure)))
    return [claim for claim in found if claim.figure]


def _gains(rows: Rows) -> dict[str, list[Any]]:
    """The rows of every arm and way to choose, by its name."""
    found: dict[str, list[Any]] = {}
    for kind, name in ((ArmRun, "arm"), (ChoiceRun, "way")):
        for row in rows.of(kind):
            found.setdefault(getattr(row, name), []).append(row)
    return found


def _of_sizes(
    title: str,
    rows: Sequence[Any],
    sizes: Sequence[str],
    parameters: Mapping[str, float],
    figure: Callable[[Any], np.ndarray],
) -> list[Claim]:
    """The claims that a figure rises with size: over all sizes, without the smallest, and each over the one before."""
    known = [size for size in sizes if len({row.seed for row in select(rows, size=size)}) > 1]
    claimed = [_claim(f"{title}, per doubling of the parameters", _per_doubling(rows, parameters, figure))]
    larger = [row for row in rows if row.size in known[1:]]
    if slope := _per_doubling(larger, parameters, figure):
        claimed.append(_claim(f"{title}, per doubling above {known[0]}", slope))
    steps = list(pairwise(known))
    for low, high in [(known[0], known[-1]), *steps] if len(steps) > 1 else steps:
        claimed.append(_claim(f"{title}: {high} over {low}", _difference(rows, "size", low, high, figure)))
    return claimed


def _per_doubling(
    rows: Sequence[Any], parameters: Mapping[str, float], figure: Callable[[Any], np.ndarray]
) -> Interval | None:
    """What twice the parameters bring: the slope over log2(parameters) by least squares, prompt by prompt.

    Of the sizes that every seed has, so that seeds are alike; None with fewer than three of them or two seeds.
    """
    seeds = sorted({row.seed for row in rows})
    alike = set.intersection(*({row.size for row in select(rows, seed=seed)} for seed in seeds)) if seeds else set()
    if len(seeds) < 2 or len(alike) < 3:
        return None
    slopes = []
    for seed in seeds:
        own = [row for row in select(rows, seed=seed) if row.size in alike]
        slopes.append(np.polyfit(np.log2([parameters[row.size] for row in own]), [figure(row) for row in own], 1)[0])
    return over_seeds(slopes)


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


def _claim(claim: str, figure: Interval | None) -> Claim:
    return Claim(claim, "", "") if figure is None else Claim(claim, gained(figure), holds(figure))
