"""The signs of hacking over a run's steps, with its alarms: a section of a run's report, or a page by itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rewarddance.data.image_stats import MEASURED
from rewarddance.errors import InputError
from rewarddance.report.charts import chart
from rewarddance.report.pages import write_page
from rewarddance.report.run_folder import Row, read_alarms, read_metrics
from rewarddance.report.sample_strip import sample_strip

BASELINE_STEPS = 16
"""Steps at a run's beginning whose pictures stand for the base's in the figure; the alarms' own default."""


def alignment_steps(rows: Sequence[Row]) -> list[Row]:
    """Rows of the alignment, whatever its algorithm, with drift_<name> of each image statistic: how far it went from
    the first steps, in robust standard deviations of their pictures."""
    steps = [dict(row) for row in rows if row["phase"] != "judge"]
    first = [row for row in steps if row["kind"] == "step"][:BASELINE_STEPS]
    for name in MEASURED:
        if not first or not all(name in row and f"{name}_deviation" in row for row in first):
            continue
        mean = float(np.mean([row[name] for row in first]))
        scale = max(float(np.mean([row[f"{name}_deviation"] for row in first])), 1e-3)
        for row in steps:
            if name in row:
                row[f"drift_{name}"] = (row[name] - mean) / scale
    return steps


def hacking_section(folder: Path) -> dict[str, Any]:
    """What signs_of_hacking.html shows of a run: alarms, the number of steps, the chart and the strip of samples."""
    steps, alarms = alignment_steps(read_metrics(folder)), read_alarms(folder)
    training = [row for row in steps if row["kind"] == "step"]
    marks: dict[int, str] = {}
    for number, alarm in enumerate(alarms, start=1):
        marks[alarm["step"]] = f"{marks[alarm['step']]}, {number}" if alarm["step"] in marks else str(number)
    return {
        "alarms": alarms,
        "margins": [row["margin"] for row in training],
        "last_step": max((row["step"] for row in training), default=0),
        "hacking_chart": chart(steps, "hacking", marks),
        "strip": sample_strip(folder),
    }


def write_hacking_page(folder: Path) -> Path:
    """Write hacking.html of a run that has no oracle and so no report; returns its path.

    Raises InputError where the folder has no steps of an alignment.
    """
    section = hacking_section(folder)
    margins = section["margins"]
    if not margins:
        raise InputError(f"{folder} holds no summary.json and no alignment's metrics.jsonl.", "Give a run's folder.")
    n = max(1, min(BASELINE_STEPS, len(margins) // 2))
    change = float(np.mean(margins[-n:]) - np.mean(margins[:n]))
    return write_page("hacking.html", folder / "hacking.html", name=folder.resolve().name, change=change, **section)
