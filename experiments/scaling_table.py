"""Reward scaling as tables and a figure: by size and by context, over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.grid import Report, Rows, select
from experiments.judges_table import SETS, JudgeRun
from experiments.scaling_claims import claims, correlations, judge_points
from experiments.scaling_rows import ArmRun, ChoiceRun
from experiments.tables import (
    OVER_SEEDS,
    PALETTE,
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


def scaling_report(rows: Rows, sizes: Mapping[str, str], contexts: Mapping[str, Any]) -> Report:
    first, judged = next(iter(contexts)), judge_points(rows)
    lines, found = claims(rows, judged, [*sizes], [*contexts]), correlations(judged)
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
        parts += ["## Gains\n", "![Accuracy and gain by size](scaling.svg)\n", gains_text(rows, first)]
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
    """(size, context) of the rows, by context; else in the order in which they were measured."""
    keys = list(dict.fromkeys((row.size, row.cell) for row in rows))
    contexts = list(dict.fromkeys(context for _, context in keys))
    return sorted(keys, key=lambda key: contexts.index(key[1]))


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


def gains_text(rows: Rows, first: str) -> str:
    """A line a judge and way; each size over the size before, other contexts over the first one of that size, paired
    prompt by prompt."""
    lines = []
    for kind, name in ((ArmRun, "arm"), (ChoiceRun, "way")):
        runs: list[Any] = rows.of(kind)
        for way in dict.fromkeys(getattr(run, name) for run in runs):
            before: list[Any] = []
            for size, cell in keys_of(select(runs, **{name: way})):
                own: list[Any] = select(runs, size=size, cell=cell, **{name: way})
                if cell != first:
                    before = select(runs, size=size, cell=first, **{name: way})
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
        f"over the smaller, or over {first}",
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


# -- as a figure -------------------------------------------------------------------------------------------------------


def draw(figure: Figure, rows: Rows, sizes: Sequence[str], cell: str) -> None:
    """Left: accuracy by parameters, right: gains by parameters; means over seeds with their intervals.

    Runs without safeguards have a table of their own: they would press the others flat.
    """
    left, right = figure.subplots(1, 2)
    judges = rows.of(JudgeRun, cell=cell)
    at = {row.size: row.parameters for row in judges}
    for (name, title), colour in zip(SETS.items(), PALETTE, strict=False):
        shares = {size: [row.accuracy[name] for row in select(judges, size=size)] for size in sizes}
        _line(left, at, {size: share_over_seeds(own) for size, own in shares.items() if own}, title, colour)
    runs = [(run.arm, run) for run in rows.of(ArmRun, cell=cell) if run.safeguards]
    runs += [(choice.way, choice) for choice in rows.of(ChoiceRun, cell=cell)]
    for way, colour in zip(dict.fromkeys(way for way, _ in runs), PALETTE, strict=False):
        by_size = {size: [run.gain for name, run in runs if (name, run.size) == (way, size)] for size in sizes}
        _line(right, at, {size: over_seeds(own) for size, own in by_size.items() if own}, way, colour)
    for axes, title in ((left, "Accuracy, %"), (right, "Gain of the oracle, points")):
        axes.set_title(title)
        axes.set_xscale("log")
        axes.set_xticks(list(at.values()), list(at))
        axes.minorticks_off()
        axes.set_xlabel("parameters of the judge")
        if axes.get_legend_handles_labels()[0]:
            axes.legend()


def _line(axes: Any, at: Mapping[str, int], figures: Mapping[str, Interval], label: str, colour: Any) -> None:
    x = [at[size] for size in figures]
    means = 100 * np.array([own.mean for own in figures.values()])
    spans = 100 * np.array([[own.mean - own.low, own.high - own.mean] for own in figures.values()])
    if len(means):
        axes.errorbar(x, means, yerr=spans.T, label=label, color=colour, marker="o", capsize=3)
