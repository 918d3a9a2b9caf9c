"""What runs made to be hacked and honest ones showed: results.json, hacking.md and its figure hacking.svg.

Gains are paired prompt by prompt with the base's samples from the same noises; intervals of one run are over its
prompts, those of several are `interval_over_seeds`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict
from scipy.stats import beta

from experiments.aligned_runs import Outcome, Probe
from experiments.hacking_figure import chart
from experiments.rows import KeptRows
from experiments.rows import Row as Kept
from rewarddance.evaluation.hacking import HackingVerdict, hacking_verdict
from rewarddance.evaluation.seeds import interval_over_seeds
from rewarddance.evaluation.statistics import Interval, interval
from rewarddance.report.formatting import figure_text, number
from rewarddance.runtime.checkpoint import write_text_atomically

Meant = Literal["honest", "hacked", "spread"]
GENERATIVE = ("pairwise", "pointwise")


class JudgeRow(Kept):
    """A seed's judge. pairs: it learned from, None where it was given; accuracy: on the seed's held-out pairs."""

    row: Literal["judge"] = "judge"
    judge: str
    pairs: int | None
    accuracy: float


class Window(BaseModel):
    """A window of steps that ends at `step`. mean, spread: of P(yes) over its samples; within, across: the margin's
    spread within a prompt and across prompts."""

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


class Row(Outcome):
    """One finished run. windows: in their order; none where the algorithm does not log its reward's spread."""

    row: Literal["run"] = "run"
    run: str
    guarded: bool
    meant: Meant
    judge: str
    kind: str
    size: str
    algorithm: str
    windows: list[Window]

    @property
    def peak(self) -> Probe:
        """The probe at which the oracle stood highest."""
        return max(self.probes, key=lambda probe: probe.oracle)

    @property
    def lost(self) -> int | None:
        """The first probe after the peak at which the oracle is no higher than at the start; None where none is."""
        start, peak = self.probes[0].oracle, self.peak.step
        return next((one.step for one in self.probes if one.step > peak and one.oracle <= start), None)

    @property
    def rang(self) -> int | None:
        """The step of the first alarm."""
        return min((alarm.step for alarm in self.alarms), default=None)

    @property
    def in_time(self) -> bool:
        """Whether an alarm rang before the gain was lost."""
        return self.rang is not None and (self.lost is None or self.rang < self.lost)

    @property
    def verdict(self) -> HackingVerdict:
        before, after = float(np.mean(self.diversity_base)), float(np.mean(self.diversity))
        return hacking_verdict(interval(self.reward_gain), interval(self.gain), before, after)


class Rows(KeptRows):
    """All that is done."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, Row | JudgeRow)


class Claim(NamedTuple):
    """The paper's claim about spread in one comparison: what one judge's runs keep in their last window over another's.

    as_it_stands: of P(yes); of_room: of the share of the room that the mean leaves. The means are of P(yes).
    """

    name: str
    seeds: int
    as_it_stands: Interval | None
    of_room: Interval | None
    ratios: tuple[float, float]
    means: tuple[float, float]


def write_tables(rows: Rows, total: int, folder: Path) -> str:
    """Write results.json, hacking.md and hacking.svg from the cells so far, of `total`; returns the Markdown."""
    found = rows.of(Row)
    text = markdown(rows, total)
    write_text_atomically(folder / "hacking.md", text)
    write_text_atomically(folder / "results.json", json.dumps(results(rows, total), indent=2) + "\n")
    write_text_atomically(folder / "hacking.svg", chart(found))
    return text


# -- what was found ----------------------------------------------------------------------------------------------------


def false_alarms(found: Sequence[Row]) -> tuple[int, int, Interval | None]:
    """Honest runs in which an alarm rang, all honest runs, and the share with its exact 95 % interval (Clopper and
    Pearson)."""
    honest = [row for row in found if row.meant == "honest"]
    k, n = sum(bool(row.alarms) for row in honest), len(honest)
    if not n:
        return 0, 0, None
    low = float(beta.ppf(0.025, k, n - k + 1)) if k else 0.0
    high = float(beta.ppf(0.975, k + 1, n - k)) if k < n else 1.0
    return k, n, Interval(k / n, low, high, n)


def guards(found: Sequence[Row]) -> dict[str, Interval]:
    """By run, what the oracle has at the end with safeguards over without, from the same noises, over common seeds."""
    by = {(row.run, row.seed, row.guarded): row for row in found}
    differences: dict[str, list[np.ndarray]] = {}
    for (run, seed, guarded), row in by.items():
        if guarded and (run, seed, False) in by:
            differences.setdefault(run, []).append(row.gain - by[run, seed, False].gain)
    return {run: interval_over_seeds(own) for run, own in differences.items()}


def claims(found: Sequence[Row]) -> list[Claim]:
    """Larger judges against smaller of one kind, and generative ones against others of one size.

    Of runs without safeguards: the last window of each.
    """
    bare = [row for row in found if not row.guarded and row.windows]
    judges = list(dict.fromkeys((row.judge, row.kind, row.size) for row in bare))
    compared = []
    for (one, kind, size), (other, kind_2, size_2) in product(judges, judges):
        if kind == kind_2 and (size, size_2) == ("large", "small"):
            compared.append((f"{one} over {other} (size)", one, other))
        if size == size_2 and kind in GENERATIVE and kind_2 not in GENERATIVE:
            compared.append((f"{one} over {other} ({kind} over {kind_2})", one, other))
    return [_claim(name, bare, one, other) for name, one, other in compared]


def _claim(name: str, bare: Sequence[Row], one: str, other: str) -> Claim:
    own, others = ({row.seed: row for row in bare if row.judge == judge} for judge in (one, other))
    seeds = sorted(set(own) & set(others))

    def over(figure: Callable[[Window], float]) -> Interval | None:
        kept = [figure(own[seed].windows[-1]) - figure(others[seed].windows[-1]) for seed in seeds]
        return interval_over_seeds([np.array([value]) for value in kept]) if len(seeds) > 1 else None

    last = [[rows[seed].windows[-1] for seed in seeds or rows] for rows in (own, others)]
    spreads = [float(np.mean([window.spread for window in windows])) for windows in last]
    rooms = [float(np.mean([window.of_room for window in windows])) for windows in last]
    means = [float(np.mean([window.mean for window in windows])) for windows in last]
    ratios = spreads[0] / max(spreads[1], 1e-9), rooms[0] / max(rooms[1], 1e-9)
    return Claim(
        name, len(seeds), over(lambda w: w.spread), over(lambda w: w.of_room), ratios, (means[0], means[1])
    )  # fmt: skip


def said(figure: Interval | None) -> str:
    """Whether a claim that the difference is above 0 holds; one seed has no say."""
    if figure is None:
        return "undecided (one seed)"
    return "holds" if figure.low > 0 else "does not" if figure.high < 0 else "undecided"


def results(rows: Rows, total: int) -> dict[str, Any]:
    """Everything that was found, as it stands in results.json."""
    found = rows.of(Row)
    k, n, share = false_alarms(found)
    runs = [
        {
            "run": row.run, "guarded": row.guarded, "seed": row.seed, "meant": row.meant, "judge": row.judge,
            "kind": row.kind, "size": row.size, "algorithm": row.algorithm, "steps": row.steps,
            "probes": [probe.model_dump() for probe in row.probes],
            "alarms": [alarm.model_dump() for alarm in row.alarms],
            "peak": row.peak.step, "lost": row.lost, "in_time": row.in_time, "hacked": row.verdict.hacked,
            "gain": interval(row.gain)._asdict(), "reward_gain": interval(row.reward_gain)._asdict(),
            "diversity_kept": row.diversity_kept, "windows": [window.model_dump() for window in row.windows],
        }
        for row in found
    ]  # fmt: skip
    return {
        "cells": total,
        "done": len(found),
        "runs": runs,
        "guards": {run: figure._asdict() for run, figure in guards(found).items()},
        "false_alarms": {"rang": k, "of": n, "share": share._asdict() if share else None},
        "claims": [
            {name: one._asdict() if isinstance(one, Interval) else one for name, one in claim._asdict().items()}
            for claim in claims(found)
        ],
        "judges": [row.model_dump(exclude={"row"}) for row in rows.of(JudgeRow)],
    }


# -- as text -----------------------------------------------------------------------------------------------------------

HEADS = ("run", "safeguards", "seed", "steps", "highest oracle", "oracle at the end", "P(yes)", "diversity")
ALARM_HEADS = ("alarms", "gain lost at", "rang in time")


def markdown(rows: Rows, total: int) -> str:
    """The tables with what their figures are; a line says so where cells are missing."""
    found = rows.of(Row)
    lines = [f"Unfinished: {len(found)} of {total} cells.\n"] if len(found) < total else []
    lines.append(
        "Highest oracle and gain lost: of the probes along the run, against the first of them (gain lost: the first "
        "after the highest at which the oracle is no higher than at the start). Oracle at the end and P(yes): gains "
        "over the base on all held-out prompts, from the same noises, 95 % intervals over prompts. Diversity: % of the "
        "base's. Alarms: each with the step at which it began to ring.\n"
    )
    lines.append("![Oracle and P(yes) along every run, and the spread of the reward](hacking.svg)\n")
    lines.append(
        "Blue: the oracle, orange: P(yes), both of 100; solid without safeguards, dashed with them; upright: alarms.\n"
    )
    lines += list(_hacked(found)) + list(_honest(found)) + list(_spread(found)) + list(_judges(rows))
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _head(heads: Sequence[str]) -> list[str]:
    return [_line(heads), "|" + "---|" * len(heads)]


def _told(row: Row) -> list[str]:
    start, peak = row.probes[0].oracle, row.peak
    alarms = ", ".join(f"{one.name.replace('_', ' ')} {one.step}{' (stop)' if one.stop else ''}" for one in row.alarms)
    return [
        row.run, "on" if row.guarded else "off", str(row.seed), str(row.steps),
        f"{number(peak.oracle - start, sign='+')} at {peak.step}", figure_text(interval(row.gain), sign="+"),
        figure_text(interval(row.reward_gain), 1, 3, "+"), f"{number(row.diversity_kept, digits=0)} %",
        alarms or "none",
    ]  # fmt: skip


def _hacked(found: Sequence[Row]) -> Iterator[str]:
    own = [row for row in found if row.meant == "hacked"]
    if not own:
        return
    yield "## Runs made to be hacked\n"
    yield from _head([*HEADS, *ALARM_HEADS, "verdict"])
    for row in own:
        verdict = "hacked" if row.verdict.hacked else "undecided" if row.verdict.undecided else "not hacked"
        lost = "never" if row.lost is None else str(row.lost)
        lost += ", nothing gained" if row.peak.step == 0 else ""
        yield _line([*_told(row), lost, "yes" if row.in_time else "no", verdict])
    yield ""
    helped = guards(found)
    if helped:
        yield from _head(["run", "oracle at the end, with safeguards over without"])
        yield from (_line([run, figure_text(figure, sign="+")]) for run, figure in helped.items())
        yield ""


def _honest(found: Sequence[Row]) -> Iterator[str]:
    own = [row for row in found if row.meant == "honest"]
    k, n, share = false_alarms(found)
    if share is None:
        return
    yield "## Honest runs\n"
    yield f"False alarms: in {k} of {n} runs, {figure_text(share)} % (exact 95 % interval).\n"
    yield from _head([*HEADS, "alarms"])
    yield from (_line(_told(row)) for row in own)
    yield ""


def _spread(found: Sequence[Row]) -> Iterator[str]:
    own = [row for row in found if not row.guarded and row.windows]
    if not own:
        return
    yield "## Spread of the reward in a sliding window\n"
    yield (
        "Runs without safeguards, first and last window. Of the room: as a share of sqrt(m (1 - m)), the largest "
        "spread that the mean m of P(yes) leaves. Margin: its spread within a prompt, which does not saturate.\n"
    )
    heads = ["judge", "kind", "size", "seed", "mean P(yes)", "spread", "of the room, %", "margin", "oracle at the end"]
    yield from _head(heads)
    for row in own:
        first, last = row.windows[0], row.windows[-1]
        pairs = [
            [number(getattr(window, key), scale, digits) for window in (first, last)]
            for key, scale, digits in (("mean", 1, 3), ("spread", 1, 3), ("of_room", 100, 0), ("within", 1, 2))
        ]
        figures = [f"{one} → {other}" for one, other in pairs]
        gain = figure_text(interval(row.gain), sign="+")
        yield _line([row.judge, row.kind, row.size, str(row.seed), *figures, gain])
    yield ""
    compared = claims(found)
    if compared:
        yield from _head(["the paper's claim", "seeds", "as it stands", "against the mean", "means of P(yes)"])
        for one in compared:
            stands = f"x {number(one.ratios[0], 1, 2)}: {said(one.as_it_stands)}"
            room = f"x {number(one.ratios[1], 1, 2)}: {said(one.of_room)}"
            yield _line([one.name, str(one.seeds), stands, room, " and ".join(number(m, 1, 3) for m in one.means)])
        yield ""


def _judges(rows: Rows) -> Iterator[str]:
    judges = rows.of(JudgeRow)
    if judges:
        yield "## Judges\n"
        yield from _head(["judge", "seed", "training pairs", "accuracy on held-out pairs, %"])
        for row in judges:
            pairs = "given" if row.pairs is None else f"{row.pairs:,}"
            yield _line([row.judge, str(row.seed), pairs, number(row.accuracy)])
