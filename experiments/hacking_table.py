"""Hacked and honest runs: gains and alarms, false alarms, safeguards, the spread of the reward, and the figure.

Gains are paired prompt by prompt with the base's samples from the same noises; intervals of one run are over its
prompts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict
from scipy.stats import binomtest

from experiments.aligned_runs import AlarmRecord, AlignedRun, Probe
from experiments.grid import Report, Rows
from experiments.judge_choices import JudgeAccuracy
from experiments.tables import (
    PALETTE,
    Column,
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
    svg,
    table,
)
from rewarddance.evaluation.statistics import Interval, interval
from rewarddance.report.charts import COLOURS
from rewarddance.report.formatting import number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Meant = Literal["honest", "hacked", "spread"]
GENERATIVE = ("pairwise", "pointwise")
COLUMNS = 3
"""Of panels in the figure."""


class Window(BaseModel):
    """A window of steps that ends at `step`.

    mean, spread: of P(yes) over its samples.
    within, across: the margin's spread within a prompt and across prompts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    mean: float
    spread: float
    within: float
    across: float

    @property
    def of_room(self) -> float:
        """The spread as a share of the largest that its mean leaves, sqrt(m (1 - m)): near 1 there is little room."""
        return self.spread / max(float(np.sqrt(self.mean * (1 - self.mean))), 1e-9)


class WatchedRun(AlignedRun):
    """One finished run. windows: in their order; none where the algorithm does not log its reward's spread."""

    windows: list[Window]

    @property
    def peak(self) -> Probe:
        """The probe at which the oracle stood highest."""
        return max(self.probes, key=lambda probe: probe.oracle)

    @property
    def lost(self) -> int | None:
        """The first probe after the peak at which the oracle is no higher than at the start; None where none is."""
        start, peak = self.probes[0].oracle, self.peak.step
        return next((probe.step for probe in self.probes if probe.step > peak and probe.oracle <= start), None)

    @property
    def in_time(self) -> bool:
        """Whether an alarm rang before the gain was lost."""
        first = min((alarm.step for alarm in self.alarms), default=None)
        return first is not None and (self.lost is None or first < self.lost)


class HackingRun(WatchedRun):
    """One finished run of the experiment on hacking."""

    row: Literal["run"] = "run"
    run: str
    guarded: bool
    meant: Meant
    judge: str
    kind: str
    size: str
    algorithm: str


class FalseAlarms(NamedTuple):
    """Honest runs in which an alarm rang, all honest runs, and the share; None without such runs."""

    rang: int
    of: int
    share: Interval | None


class Claim(NamedTuple):
    """The paper's claim about spread in one comparison: what one judge's runs keep in their last window over another's.

    as_it_stands: of P(yes).
    of_room: of the share of the room that the mean leaves.
    ratios: of the two spreads, as they stand and of the room.
    means: of P(yes).
    """

    name: str
    seeds: int
    as_it_stands: Interval | None
    of_room: Interval | None
    ratios: tuple[float, float]
    means: tuple[float, float]


# -- what was measured -------------------------------------------------------------------------------------------------


def false_alarms(runs: Sequence[HackingRun]) -> FalseAlarms:
    """With the exact 95 % interval (Clopper and Pearson)."""
    honest = [run for run in runs if run.meant == "honest"]
    rang, total = sum(bool(run.alarms) for run in honest), len(honest)
    if not total:
        return FalseAlarms(0, 0, None)
    bounds = binomtest(rang, total).proportion_ci(0.95, "exact")
    return FalseAlarms(rang, total, Interval(rang / total, float(bounds.low), float(bounds.high), total))


def guards(runs: Sequence[HackingRun]) -> dict[str, Interval]:
    """By run, what the oracle has at the end with safeguards over without, from the same noises, over common seeds."""
    gains = {}
    for name in dict.fromkeys(run.run for run in runs):
        bare, guarded = ([run for run in runs if (run.run, run.guarded) == (name, is_on)] for is_on in (False, True))
        if (gain := paired(bare, guarded, lambda run: run.gain)) is not None:
            gains[name] = gain
    return gains


def claims(runs: Sequence[HackingRun]) -> list[Claim]:
    """Larger judges against smaller of one kind, and generative ones against others of one size.

    Of runs without safeguards: the last window of each.
    """
    bare = [run for run in runs if not run.guarded and run.windows]
    judges = list(dict.fromkeys((run.judge, run.kind, run.size) for run in bare))
    compared = []
    for (judge, kind, size), (other, other_kind, other_size) in product(judges, judges):
        if kind == other_kind and (size, other_size) == ("large", "small"):
            compared.append((f"{judge} over {other} (size)", judge, other))
        if size == other_size and kind in GENERATIVE and other_kind not in GENERATIVE:
            compared.append((f"{judge} over {other} ({kind} over {other_kind})", judge, other))
    return [_claim(name, *([run for run in bare if run.judge == judge] for judge in pair)) for name, *pair in compared]


def _claim(name: str, runs: Sequence[HackingRun], others: Sequence[HackingRun]) -> Claim:
    pairs = common(others, runs)

    def over(figure: Callable[[Window], float]) -> Interval | None:
        kept = [figure(new.windows[-1]) - figure(old.windows[-1]) for old, new in pairs]
        return over_seeds([value] for value in kept) if len(pairs) > 1 else None

    if pairs:
        others, runs = (list(side) for side in zip(*pairs, strict=True))

    def both(figure: Callable[[Window], float]) -> tuple[float, float]:
        ours, theirs = (float(np.mean([figure(run.windows[-1]) for run in side])) for side in (runs, others))
        return ours, theirs

    spreads, rooms, means = both(lambda w: w.spread), both(lambda w: w.of_room), both(lambda w: w.mean)
    ratios = spreads[0] / max(spreads[1], 1e-9), rooms[0] / max(rooms[1], 1e-9)
    return Claim(name, len(pairs), over(lambda w: w.spread), over(lambda w: w.of_room), ratios, means)


def holds(figure: Interval | None) -> str:
    """Whether a claim that the difference is above 0 holds; one seed has no say."""
    if figure is None:
        return "undecided (one seed)"
    return "holds" if figure.low > 0 else "does not" if figure.high < 0 else "undecided"


def hacking_report(rows: Rows) -> Report:
    runs = rows.of(HackingRun)
    results = {
        "runs": [_result(run) for run in runs],
        "guards": guards(runs),
        "false_alarms": false_alarms(runs),
        "claims": claims(runs),
        "judges": [row.model_dump(exclude={"row"}) for row in rows.of(JudgeAccuracy)],
    }
    panels = max(1, len(_panels(runs)) + 2 * any(not run.guarded and run.windows for run in runs))
    size = 4 * COLUMNS, 0.6 + 3.2 * math.ceil(panels / COLUMNS)
    chart = svg("hacking", size, lambda figure: draw(figure, runs, panels))
    return Report(markdown(rows), plain(results), {"hacking.svg": chart})


def _result(run: HackingRun) -> dict[str, Any]:
    """A run as it stands in results.json."""
    names = {"run", "guarded", "seed", "meant", "judge", "kind", "size", "algorithm", "steps", "probes", "alarms"}
    derived = {"peak": run.peak.step, "lost": run.lost, "in_time": run.in_time, "hacked": run.verdict.hacked}
    derived |= {"gain": interval(run.gain), "reward_gain": interval(run.reward_gain)}
    return run.model_dump(include=names | {"windows"}) | derived | {"diversity_kept": run.diversity_kept}


# -- as text -----------------------------------------------------------------------------------------------------------

RUN: list[Column[HackingRun]] = [
    Column("run", lambda run: run.run),
    Column("safeguards", lambda run: "on" if run.guarded else "off"),
    Column("seed", lambda run: run.seed),
    Column("steps", lambda run: run.steps),
    Column(
        "highest oracle", lambda run: f"{number(run.peak.oracle - run.probes[0].oracle, sign='+')} at {run.peak.step}"
    ),
    Column("oracle at the end", lambda run: interval(run.gain), gained),
    Column("P(yes)", lambda run: interval(run.reward_gain), gained_reward),
    Column("P(yes) by others", lambda run: _watched(run)),
    Column("diversity", lambda run: run.diversity_kept, percent),
    Column("alarms", lambda run: listed(map(_alarm, run.alarms)) or "none"),
]
HACKED: list[Column[HackingRun]] = [
    Column("gain lost at", lambda run: f"{run.lost or 'never'}{', nothing gained' * (run.peak.step == 0)}"),
    Column("rang in time", lambda run: "yes" if run.in_time else "no"),
    Column(
        "verdict",
        lambda run: run.verdict,
        lambda v: "hacked" if v.hacked else "undecided" if v.undecided else "not hacked",
    ),
]
SPREAD: list[Column[HackingRun]] = [
    Column("judge", lambda run: run.judge),
    Column("kind", lambda run: run.kind),
    Column("size", lambda run: run.size),
    Column("seed", lambda run: run.seed),
    Column("mean P(yes)", lambda run: _first_and_last(run, "mean", 1, 3)),
    Column("spread", lambda run: _first_and_last(run, "spread", 1, 3)),
    Column("of the room, %", lambda run: _first_and_last(run, "of_room", 100, 0)),
    Column("margin", lambda run: _first_and_last(run, "within", 1, 2)),
    Column("oracle at the end", lambda run: interval(run.gain), gained),
]
CLAIMS: list[Column[Claim]] = [
    Column("the paper's claim", lambda claim: claim.name),
    Column("seeds", lambda claim: claim.seeds),
    Column("as it stands", lambda claim: f"x {number(claim.ratios[0], 1, 2)}: {holds(claim.as_it_stands)}"),
    Column("against the mean", lambda claim: f"x {number(claim.ratios[1], 1, 2)}: {holds(claim.of_room)}"),
    Column("means of P(yes)", lambda claim: " and ".join(number(mean, 1, 3) for mean in claim.means)),
]
JUDGES: list[Column[JudgeAccuracy]] = [
    Column("judge", lambda row: row.judge),
    Column("seed", lambda row: row.seed),
    Column("training pairs", lambda row: "given" if row.pairs is None else f"{row.pairs:,}"),
    Column("accuracy on held-out pairs, %", lambda row: number(row.accuracy)),
]


def _alarm(alarm: AlarmRecord) -> str:
    return f"{alarm.name.replace('_', ' ')} {alarm.step}{' (stop)' * alarm.stop}"


def _watched(run: HackingRun) -> str:
    """What the judges that only watched saw, from the first probe to the last."""
    first, last = run.probes[0].watchers, run.probes[-1].watchers
    return listed(f"{name} {number(last[name] - first[name], 1, 3, sign='+')}" for name in first)


def _first_and_last(run: HackingRun, name: str, scale: int, digits: int) -> str:
    return " → ".join(number(getattr(run.windows[i], name), scale, digits) for i in (0, -1))


def markdown(rows: Rows) -> str:
    """The tables with what their figures are."""
    runs = rows.of(HackingRun)
    parts = [
        "Highest oracle and gain lost: of the probes along the run, against the first of them (gain lost: the first "
        "after the highest at which the oracle is no higher than at the start). Oracle at the end and P(yes): gains "
        "over the base on all held-out prompts, from the same noises, 95 % intervals over prompts. P(yes) by others: "
        "what judges that only watched saw, from the first probe to the last. Diversity: % of the base's. Alarms: each "
        "with the step at which it began to ring.\n",
        "![Oracle and P(yes) along every run, and the spread of the reward](hacking.svg)\n",
        "Blue: the oracle, orange: P(yes), both of 100; solid without safeguards, dashed with them; upright: alarms.\n",
    ]
    if hacked := [run for run in runs if run.meant == "hacked"]:
        parts += ["## Runs made to be hacked\n", table([*RUN, *HACKED], hacked)]
    if hacked and (gains := guards(runs)):
        heads = ["run", "oracle at the end, with safeguards over without"]
        parts.append(markdown_table(heads, [[run, gained(gain)] for run, gain in gains.items()]))
    rang, total, share = false_alarms(runs)
    if share is not None:
        said = f"False alarms: in {rang} of {total} runs, {points(share)} % (exact 95 % interval).\n"
        honest = table(RUN, [run for run in runs if run.meant == "honest"])
        parts += ["## Honest runs\n", said, honest]
    if bare := [run for run in runs if not run.guarded and run.windows]:
        parts += [
            "## Spread of the reward in a sliding window\n",
            "Runs without safeguards, first and last window. Of the room: as a share of sqrt(m (1 - m)), the largest "
            "spread that the mean m of P(yes) leaves. Margin: its spread within a prompt, which does not saturate.\n",
            table(SPREAD, bare),
        ]
        if compared := claims(runs):
            parts.append(table(CLAIMS, compared))
    if judges := rows.of(JudgeAccuracy):
        parts += ["## Judges\n", table(JUDGES, judges)]
    return "\n".join(parts)


# -- as a figure -------------------------------------------------------------------------------------------------------


def _panels(runs: Sequence[HackingRun]) -> list[str]:
    return list(dict.fromkeys(run.run for run in runs if run.meant != "spread"))


def draw(figure: Figure, runs: Sequence[HackingRun], panels: int) -> None:
    """For each run a panel of its oracle and P(yes), with alarms as vertical lines; then the spread by judge.

    Without safeguards solid and with them dashed; the spread is of runs without safeguards.
    """
    names, spread = _panels(runs), [run for run in runs if not run.guarded and run.windows]
    grid = figure.subplots(math.ceil(panels / COLUMNS), COLUMNS, squeeze=False).ravel()
    for axes in grid[len(names) + 2 * bool(spread) :]:
        axes.set_visible(False)
    for axes, name in zip(grid, names, strict=False):
        axes.set_title(name)
        axes.set_xlabel("step")
        for run in (run for run in runs if run.run == name):
            dash, steps = "--" if run.guarded else "-", [probe.step for probe in run.probes]
            axes.plot(steps, [100 * probe.oracle for probe in run.probes], dash, color=COLOURS["blue"])
            axes.plot(steps, [100 * probe.proxy for probe in run.probes], dash, color=COLOURS["orange"])
            for alarm in run.alarms:
                axes.axvline(alarm.step, color=COLOURS["ink"], linewidth=0.9, linestyle=dash if run.guarded else ":")
    judges = list(dict.fromkeys(run.judge for run in spread))
    titles = {"spread": "Spread of P(yes)", "of_room": "of the room that its mean leaves"} if spread else {}
    for axes, (key, title) in zip(grid[len(names) :], titles.items(), strict=False):
        axes.set_title(title)
        for run in spread:
            label = run.judge if run is next(other for other in spread if other.judge == run.judge) else None
            steps, values = [w.step for w in run.windows], [getattr(w, key) for w in run.windows]
            axes.plot(steps, values, color=PALETTE[judges.index(run.judge) % len(PALETTE)], label=label)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("last step of the window")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=3)
