"""What the comparison of references found, over seeds: results.json and references.md.

Gains are paired prompt by prompt with the samples of the base from the same noises. Intervals are those of
`interval_over_seeds`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict

from rewarddance.evaluation.seeds import interval_over_seeds
from rewarddance.evaluation.statistics import Interval
from rewarddance.report.formatting import figure_text, number
from rewarddance.runtime.checkpoint import write_text_atomically
from rewarddance.runtime.config import parse_file

TABLE = "references.md"


class Row(BaseModel):
    """One finished cell. references: what the oracle says of each training prompt's references, the mean of them.

    The others are means of each held-out prompt's samples, before ReFL and after: oracle, the oracle's alignment;
    reward, P(yes) against the base's sample of another noise; diversity, the distance of two samples in pixels.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int
    arm: str
    steps: int
    references: list[float]
    oracle_base: list[float]
    oracle: list[float]
    reward_base: list[float]
    reward: list[float]
    diversity_base: list[float]
    diversity: list[float]
    seconds: float


class Line(NamedTuple):
    """One arm over its seeds. over_first: its gain over that of its generator's first arm; None for that one itself,
    and where they have no seed in common. diversity_kept: a share of the base's."""

    arm: str
    generator: str
    seeds: list[int]
    references: Interval
    base: Interval
    gain: Interval
    over_first: Interval | None
    reward_gain: Interval
    diversity_kept: float


def as_line(row: Row) -> str:
    return row.model_dump_json() + "\n"


def read_rows(path: Path) -> list[Row]:
    """The finished cells, none where there is no file. Raises InputError naming a file that cannot be read."""
    if not path.is_file():
        return []
    return parse_file(
        path,
        lambda data: [Row.model_validate_json(line) for line in data.splitlines()],
        "Restore it, or remove it to do its cells again.",
    )


def write_table(arms: Mapping[str, str], rows: Sequence[Row], total: int, folder: Path) -> str:
    """Write references.md and results.json from the cells so far, of `total`; returns the Markdown.

    arms: each one's generator.
    """
    found = lines(arms, rows)
    text = markdown(found, len(rows), total)
    write_text_atomically(folder / TABLE, text)
    write_text_atomically(folder / "results.json", json.dumps(results(found, len(rows), total), indent=2) + "\n")
    return text


def lines(arms: Mapping[str, str], rows: Sequence[Row]) -> list[Line]:
    """The arms that have finished cells, in their order."""
    found, first = [], {}
    for arm, generator in arms.items():
        own = {row.seed: row for row in rows if row.arm == arm}
        if not own:
            continue
        above = first.setdefault(generator, own)
        both = [seed for seed in own if seed in above] if above is not own else []
        each = list(own.values())
        found.append(
            Line(
                arm,
                generator,
                sorted(own),
                interval_over_seeds([np.array(row.references) for row in each]),
                interval_over_seeds([np.array(row.oracle_base) for row in each]),
                interval_over_seeds([_gain(row) for row in each]),
                interval_over_seeds([_gain(own[seed]) - _gain(above[seed]) for seed in both]) if both else None,
                interval_over_seeds([np.array(row.reward) - np.array(row.reward_base) for row in each]),
                float(np.mean([np.mean(row.diversity) / np.mean(row.diversity_base) for row in each])),
            )
        )
    return found


def _gain(row: Row) -> np.ndarray:
    return np.array(row.oracle) - np.array(row.oracle_base)


def results(found: Sequence[Line], done: int, total: int) -> dict[str, Any]:
    """Everything that was found, as it stands in results.json."""
    table = [
        {name: value._asdict() if isinstance(value, Interval) else value for name, value in line._asdict().items()}
        for line in found
    ]
    return {"cells": total, "done": done, "table": table}


def markdown(found: Sequence[Line], done: int, total: int) -> str:
    """The table with what its figures are; a line says so where cells are missing."""
    said = [f"Unfinished: {done} of {total} cells.\n"] if done < total else []
    seeds = sorted({seed for line in found for seed in line.seeds})
    said.append(
        "References: the oracle's alignment of the training prompts' references, of 100. Base: of the held-out "
        "samples before ReFL. Gain: after ReFL over before, in points, from the same noises. Over the first: the gain "
        "over that of the generator's first line. P(yes): the judge's, of samples against the base's of other noises, "
        "after minus before. Diversity: % of the base's. Means over seeds with 95 % t intervals, never narrower than "
        f"over prompts; seeds: {', '.join(map(str, seeds))}.\n"
    )
    heads = ["generator", "references", "their oracle", "base", "gain", "over the first", "P(yes)", "diversity"]
    said += [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for line in found:
        over = "" if line.over_first is None else figure_text(line.over_first, sign="+")
        reward = figure_text(line.reward_gain, scale=1, digits=3, sign="+")
        cells = [line.generator, line.arm, figure_text(line.references), figure_text(line.base)]
        cells += [figure_text(line.gain, sign="+"), over, reward, f"{number(line.diversity_kept, digits=0)} %"]
        said.append(f"| {' | '.join(cells)} |")
    return "\n".join(said) + "\n"
