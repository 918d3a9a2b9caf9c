"""What the comparison of search methods found, over seeds: results.json, searching.md, searching.svg, winners.png.

Oracle figures are means over prompts and seeds, in points of 100. What a method gains is paired prompt by prompt with
the mean of the plain samples. Intervals are those of `interval_over_seeds`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from experiments.rows import KeptRows, Row
from experiments.search_figures import BASE, Entry, Point, chart, gallery
from rewarddance.evaluation.seeds import interval_over_seeds
from rewarddance.evaluation.statistics import Interval
from rewarddance.report.formatting import figure_text, number
from rewarddance.runtime.checkpoint import write_text_atomically
from rewarddance.search.budget import Spent

TOP = 3
"""Among how many of the tournament's best a knockout's winner is looked for."""


class Cell(Row):
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


def means(spent: Sequence[Spent]) -> dict[str, Any]:
    """What prompts took, on average, by the names of `Cell`."""
    return {name: float(np.mean([getattr(one, name) for one in spent])) for name in Spent._fields}


class JudgeRow(Row):
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


class Rows(KeptRows):
    """All that is done."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, Cell | JudgeRow | Pool | Meeting)


def write_tables(rows: Rows, total: int, folder: Path) -> str:
    """Write results.json, searching.md, searching.svg and winners.png from what is done; returns the Markdown."""
    found, curve, met = entries(rows), points(rows), meetings(rows)
    text = markdown(rows, found, curve, met, total)
    write_text_atomically(folder / "results.json", json.dumps(results(rows, found, curve, met, total), indent=2) + "\n")
    write_text_atomically(folder / "searching.svg", chart(_one_sample(rows), found, curve))
    if picture := gallery(folder, list(dict.fromkeys(entry.arm for entry in found))):
        (folder / "winners.png").write_bytes(picture)
    write_text_atomically(folder / "searching.md", text)
    return text


# -- what was found ----------------------------------------------------------------------------------------------------


def entries(rows: Rows) -> list[Entry]:
    """The cells over their seeds, those of one strength and budget beside each other."""
    base = {row.seed: row for row in rows.of(Cell, arm=BASE)}
    found: dict[tuple[str, int, str], list[Cell]] = {}
    for row in rows.of(Cell):
        if row.arm != BASE:
            found.setdefault((row.strength, row.multiple, row.arm), []).append(row)
    return [
        Entry(
            strength,
            arm,
            multiple,
            len(own),
            _bounded(interval_over_seeds([np.array(row.oracle) for row in own])),
            interval_over_seeds([np.subtract(row.oracle, base[row.seed].oracle) for row in own]),
            float(np.mean([row.seconds / base[row.seed].budget for row in own])),
            float(np.mean([row.judge_seconds / row.seconds for row in own])),
            float(np.mean([row.evaluations for row in own])),
            float(np.mean([row.questions for row in own])),
            float(np.mean([row.rounds for row in own])),
        )
        for (strength, multiple, arm), own in found.items()
    ]


def _one_sample(rows: Rows) -> Interval:
    return _bounded(interval_over_seeds([np.array(row.oracle) for row in rows.of(Cell, arm=BASE)]))


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


def points(rows: Rows) -> list[Point]:
    """The curves of best of N for N = 1, 2, 4, ... up to the pool."""
    found = []
    for strength in dict.fromkeys(row.strength for row in rows.of(Pool)):
        own = rows.of(Pool, strength=strength)
        k = min(len(each) for row in own for each in row.proxy)
        for n in (2**power for power in range(k.bit_length())):
            chosen = [
                [_best(np.array(o), np.array(p), n) for o, p in zip(row.oracle, row.proxy, strict=True)] for row in own
            ]
            oracle, proxy, margin = ([np.array([each[i] for each in seed]) for seed in chosen] for i in range(3))
            mean = float(np.mean([own.mean() for own in margin]))
            figures = (_bounded(interval_over_seeds(values)) for values in (oracle, proxy))
            found.append(Point(strength, n, next(figures), next(figures), mean))
    return found


def _best(oracle: np.ndarray, proxy: np.ndarray, n: int) -> tuple[float, float, float]:
    return (
        expected_best(proxy, oracle, n),
        expected_best(proxy, 1 / (1 + np.exp(-proxy)), n),
        expected_best(proxy, proxy, n),
    )


class Met(NamedTuple):
    """Knockouts of n against their tournaments: how often the winner is its best, and among its TOP."""

    strength: str
    n: int
    best: Interval
    top: Interval


def meetings(rows: Rows) -> list[Met]:
    found = []
    for strength in dict.fromkeys(row.strength for row in rows.of(Meeting)):
        own = rows.of(Meeting, strength=strength)
        best, top = (
            _bounded(interval_over_seeds([(np.array(row.places) < below).mean(1) for row in own])) for below in (1, TOP)
        )
        found.append(Met(strength, own[0].n, best, top))
    return found


def _bounded(figure: Interval) -> Interval:
    """A share's interval ends where shares do."""
    return figure._replace(low=max(0.0, figure.low), high=min(1.0, figure.high))


def judges(rows: Rows) -> Iterator[tuple[str, str, dict[str, float]]]:
    """Strength, kind, and mean accuracies over seeds."""
    for strength, kind in dict.fromkeys((row.strength, row.kind) for row in rows.of(JudgeRow)):
        own = rows.of(JudgeRow, strength=strength, kind=kind)
        yield strength, kind, {name: float(np.mean([row.accuracy[name] for row in own])) for name in own[0].accuracy}


def results(
    rows: Rows, found: Sequence[Entry], curve: Sequence[Point], met: Sequence[Met], total: int
) -> dict[str, Any]:
    """Everything that was found, as it stands in results.json."""

    def plain(one: Any) -> dict[str, Any]:
        return {name: each._asdict() if isinstance(each, Interval) else each for name, each in one._asdict().items()}

    base = rows.of(Cell, arm=BASE)
    return {
        "cells": total,
        "done": len(rows.of(Cell)),
        "one_sample": {
            "oracle": _one_sample(rows)._asdict(),
            "seconds": [row.budget for row in base],
        },
        "judges": [{"strength": s, "kind": k, "accuracy": accuracy} for s, k, accuracy in judges(rows)],
        "methods": [plain(entry) for entry in found],
        "best_of_n": [plain(point) for point in curve],
        "knockouts": [plain(one) for one in met],
    }


# -- as text -----------------------------------------------------------------------------------------------------------


def markdown(rows: Rows, found: Sequence[Entry], curve: Sequence[Point], met: Sequence[Met], total: int) -> str:
    """The tables with what their figures are; a line says so where cells are missing."""
    base = rows.of(Cell, arm=BASE)
    done = len(rows.of(Cell))
    seeds = ", ".join(str(row.seed) for row in base)
    one = _one_sample(rows)
    seconds = 1000 * float(np.mean([row.budget for row in base]))
    lines = [f"Unfinished: {done} of {total} cells.\n"] if done < total else []
    lines.append(
        f"Oracle alignment of the winner, points of 100; {len(base[0].oracle)} held-out prompts of each seed "
        f"({seeds}), 95 % intervals over seeds, never narrower than over prompts. One plain sample: "
        f"{figure_text(one)}, {number(seconds, 1)} ms without a judge; a budget of k x is k times that, "
        "the judge's time in it.\n"
    )
    lines.append("![Oracle by budget, and as N grows](searching.svg)\n")
    multiples = sorted({entry.multiple for entry in found})
    for strength in dict.fromkeys(entry.strength for entry in found):
        told = "; ".join(
            f"{kind} {number(accuracy['id'])} % in domain, {number(accuracy['ood'])} % out of domain"
            for at, kind, accuracy in judges(rows)
            if at == strength
        )
        lines += [f"## {strength.capitalize()} judges\n", f"Accuracy: {told}.\n"]
        lines.append(_table(["method", *(f"{k} x" for k in multiples), *(f"gain, {k} x" for k in multiples)]))
        own = [entry for entry in found if entry.strength == strength]
        for arm in dict.fromkeys(entry.arm for entry in own):
            by = {entry.multiple: entry for entry in own if entry.arm == arm}
            figures = [figure_text(by[k].oracle) if k in by else "" for k in multiples]
            gains = [figure_text(by[k].gain, sign="+") if k in by else "" for k in multiples]
            lines.append(_line([arm, *figures, *gains]))
        lines += ["", _table(["what it took", *(f"{k} x: spent, judge, evaluations, questions" for k in multiples)])]
        for arm in dict.fromkeys(entry.arm for entry in own):
            by = {entry.multiple: entry for entry in own if entry.arm == arm}
            lines.append(_line([arm, *(_took(by[k]) if k in by else "" for k in multiples)]))
        lines.append("")
    if curve:
        lines += ["## Best of N as N grows\n", _table(["judge", "N", "oracle", "P(yes) of the winner", "margin"])]
        lines += [
            _line([p.strength, str(p.n), figure_text(p.oracle), figure_text(p.proxy), number(p.margin, 1, 2)])
            for p in curve
        ]
        lines.append("")
    if met:
        lines += [
            "## Knockouts and tournaments\n",
            _table(["judge", "N", "winner is the best", f"is in the top {TOP}"]),
        ]
        lines += [_line([one.strength, str(one.n), figure_text(one.best), figure_text(one.top)]) for one in met]
        lines.append("")
    lines.append("![Winners beside the first sample](winners.png)\n")
    return "\n".join(lines)


def _took(entry: Entry) -> str:
    spent, share = number(entry.spent, 1), number(entry.judge_share, 100, 0)
    told = f"{spent} x, {share} %, {number(entry.evaluations, 1, 0)}, {number(entry.questions, 1, 0)}"
    return told if entry.rounds else f"{told}; too little for it: plain samples"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _table(titles: Sequence[str]) -> str:
    return f"{_line(titles)}\n|{'---|' * len(titles)}"
