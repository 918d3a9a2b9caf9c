"""What the study of reward scaling measures: a row of rows.jsonl for each cell."""

from __future__ import annotations

from typing import Literal

import numpy as np

from experiments.grid import Row, TimedRow
from experiments.hacking_table import WatchedRun


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
