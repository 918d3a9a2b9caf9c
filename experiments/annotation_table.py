"""Accuracy by votes for each policy, and how many votes a policy saves against random ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.grid import Report, TimedRow, select
from experiments.tables import (
    OVER_SEEDS,
    PALETTE,
    common,
    gained,
    markdown_table,
    over_seeds,
    plain,
    points,
    share_over_seeds,
    svg,
)
from rewarddance.evaluation.statistics import Interval
from rewarddance.report.formatting import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SETS = {"id": "in domain", "ood": "out of domain"}


class PolicyRun(TimedRow):
    """One policy under one seed.

    votes: after which a judge was tested; pairs: that these were on; wrong: the share of these pairs whose label, with
    a side, is not that of most people who look. accuracy: by test set and number of votes, each prompt's share of pairs
    that were ordered rightly.
    """

    policy: str
    votes: list[int]
    pairs: list[float]
    wrong: list[float]
    accuracy: dict[str, list[list[float]]]


def slope(rows: Sequence[PolicyRun], test: str) -> Interval | None:
    """Points of accuracy that twice the votes bring, over seeds: the least-squares line over the votes' logarithm, of
    the mean of these rows under each seed."""
    by_seed = []
    for seed in sorted({row.seed for row in rows}):
        of_seed = select(rows, seed=seed)
        doubled = np.log2(of_seed[0].votes)
        weights = (doubled - doubled.mean()) / np.square(doubled - doubled.mean()).sum()
        by_seed.append(np.mean([weights @ np.array(row.accuracy[test]) for row in of_seed], axis=0))
    return over_seeds(by_seed) if by_seed else None


def gain(random: Sequence[PolicyRun], rows: Sequence[PolicyRun], test: str) -> Interval | None:
    """How much more accurate a policy's judges are, the mean over the numbers of votes after the first, at which none
    has chosen yet; paired prompt by prompt."""
    pairs = common(random, rows)
    values = [
        np.mean(np.array(new.accuracy[test])[1:] - np.array(old.accuracy[test])[1:], axis=0) for old, new in pairs
    ]
    return over_seeds(values) if values else None


def saved(gained_points: Interval, per_doubling: Interval) -> Interval | None:
    """The share of votes that is saved at equal accuracy, 1 - 2^(-gain / slope); None where the slope is not above 0.

    The ends are those of the gain, at the slope's mean.
    """
    if per_doubling.low <= 0:
        return None
    mean, low, high = (1 - 2 ** (-value / per_doubling.mean) for value in gained_points[:3])
    return Interval(mean, low, high, gained_points.n)


def annotation_report(policies: Sequence[str], rows: Sequence[PolicyRun]) -> Report:
    votes = rows[0].votes if rows else []
    seeds = ", ".join(map(str, sorted({row.seed for row in rows})))
    parts = [
        "Accuracy: % of a prompt's test pairs that are ordered as the oracle orders them, both orders asked, of a "
        "reward fitted to so many votes. Gain: over random votes, in points, the mean over all but the first number, "
        "paired prompt by prompt. Votes saved: at equal accuracy, by what twice the votes bring. Wrong: labels on the "
        f"other side than most people who look, at the first and the last number. {OVER_SEEDS}; seeds: {seeds}.\n"
    ]
    results: dict[str, Any] = {}
    for test, title in SETS.items() if rows else ():
        random = select(rows, policy="random")
        per_doubling = slope(random, test)
        if per_doubling is None:
            continue
        lines, results[test] = [], {"slope": plain(per_doubling), "policies": {}}
        for policy in policies:
            own = select(rows, policy=policy)
            if not own:
                continue
            curve = [share_over_seeds(row.accuracy[test][k] for row in own) for k in range(len(votes))]
            better = gain(random, own, test) if policy != "random" else None
            fewer = saved(better, per_doubling) if better is not None else None
            wrong = [f"{number(float(np.mean([row.wrong[k] for row in own])))} %" for k in (0, -1)]
            cells = [points(figure) for figure in curve]
            lines.append([policy, *cells, gained(better), verdict(better, fewer), ", ".join(wrong)])
            found = {"accuracy": [plain(figure) for figure in curve], "gain": plain(better), "saved": plain(fewer)}
            results[test]["policies"][policy] = found
        heads = ["policy", *(f"{count} votes" for count in votes), "gain", "votes saved", "wrong"]
        doubling = f"Twice the random votes bring {gained(per_doubling)} points.\n\n"
        parts.append(f"## {title.capitalize()}\n\n{doubling}{markdown_table(heads, lines)}")
    figures: dict[str, str | bytes] = {"annotation.svg": figure(policies, rows)} if rows else {}
    return Report("\n".join(parts), results, figures)


def verdict(better: Interval | None, fewer: Interval | None) -> str:
    """Votes saved in words: an interval of a gain that holds 0 decides nothing."""
    if better is None:
        return ""
    if fewer is None:
        return "not told: more votes bring nothing that is sure"
    percent = f"{number(fewer.mean, digits=0)} % [{number(fewer.low, digits=0)}, "
    percent += f"{number(fewer.high, digits=0)}]"
    if better.low <= 0 <= better.high:
        return f"undecided: {percent}"
    return percent if better.mean > 0 else f"none; costs votes: {percent}"


def figure(policies: Sequence[str], rows: Sequence[PolicyRun]) -> str:
    """Accuracy over votes, a panel a test set, as SVG."""

    def draw(panels: Sequence[Axes]) -> None:
        for axes, (test, title) in zip(panels, SETS.items(), strict=True):
            for colour, policy in zip(PALETTE, policies, strict=False):
                own = select(rows, policy=policy)
                if own:
                    curve = [np.mean([np.mean(row.accuracy[test][k]) for row in own]) for k in range(len(own[0].votes))]
                    axes.plot(own[0].votes, 100 * np.array(curve), marker="o", markersize=3, color=colour, label=policy)
            axes.set(title=title, xlabel="votes", ylabel="accuracy in %")
            axes.set_xscale("log", base=2)
            axes.set_xticks(rows[0].votes, [str(count) for count in rows[0].votes])
        panels[0].legend(frameon=False, fontsize=8)

    def paint(canvas: Figure) -> None:
        draw(list(canvas.subplots(1, 2)))

    return svg("annotation", (7.4, 3.2), paint)
