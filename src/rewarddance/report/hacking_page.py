"""The signs of hacking over a run's steps, with its alarms: a section of a run's report, or a page by itself."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from rewarddance.data.image_stats import MEASURED
from rewarddance.errors import InputError
from rewarddance.report.charts import chart
from rewarddance.report.formatting import filled
from rewarddance.report.run_folder import Row, read_alarms, read_metrics
from rewarddance.report.sample_strip import along
from rewarddance.runtime.checkpoint import write_text_atomically

FIRST = 16
"""Steps at a run's beginning whose pictures stand for the base's in the figure; the alarms' own default."""


def steps_of(rows: Sequence[Row]) -> list[Row]:
    """Rows of the alignment, whatever its algorithm, with drift_<look>: how far each look went from the first steps,
    in robust standard deviations of their pictures."""
    rows = [row for row in rows if row["phase"] != "judge"]
    first = [row for row in rows if row["kind"] == "step"][:FIRST]
    found = [dict(row) for row in rows]
    for look in MEASURED:
        if not first or not all(look in row and f"{look}_deviation" in row for row in first):
            continue
        at = float(np.mean([row[look] for row in first]))
        scale = max(float(np.mean([row[f"{look}_deviation"] for row in first])), 1e-3)
        for row in found:
            if look in row:
                row[f"drift_{look}"] = (row[look] - at) / scale
    return found


def hacking_slots(folder: Path) -> dict[str, str]:
    """The section of a run: its sentence, its list of alarms, its figure with the alarms marked, and its pictures."""
    rows, alarms = read_metrics(folder), read_alarms(folder)
    steps = steps_of(rows)
    marks: dict[int, str] = {}
    for number, alarm in enumerate(alarms, start=1):
        marks[alarm["step"]] = f"{marks[alarm['step']]}, {number}" if alarm["step"] in marks else str(number)
    lines = [
        f"<li>Step {alarm['step']}, <b>{escape(alarm['name'].replace('_', ' '))}</b>: {escape(alarm['saw'])} "
        f"{escape(alarm['do'])}{' The run ended here.' if alarm.get('stop') else ''}</li>"
        for alarm in alarms
    ]
    listed = f"<ol>{''.join(lines)}</ol>" if lines else ""
    drawn = {"hacking_chart": chart(steps, "hacking", marks), "along": along(folder)}
    return {"alarms_said": said(steps, alarms), "alarms": listed, **drawn}


def said(steps: Sequence[Row], alarms: Sequence[Row]) -> str:
    """How many alarms rang in how many steps, and the first of them."""
    n = max((row["step"] for row in steps if row["kind"] == "step"), default=0)
    if not alarms:
        return f"No alarm rang in {n} steps."
    first = min(alarms, key=lambda alarm: alarm["step"])
    word = "alarm" if len(alarms) == 1 else "alarms"
    return f"{len(alarms)} {word} rang in {n} steps, the first at step {first['step']}."


def write_hacking_page(folder: Path) -> Path:
    """Write hacking.html of a run that has no oracle and so no report; returns its path.

    Raises InputError where the folder has no steps of an alignment.
    """
    rows, alarms = read_metrics(folder), read_alarms(folder)
    steps = steps_of(rows)
    if not any(row["kind"] == "step" for row in steps):
        raise InputError(f"{folder} holds no summary.json and no alignment's metrics.jsonl.", "Give a run's folder.")
    slots = hacking_slots(folder)
    margins = [row["margin"] for row in steps if row["kind"] == "step"]
    n = max(1, min(FIRST, len(margins) // 2))
    moved = float(np.mean(margins[-n:]) - np.mean(margins[:n]))
    sentence = f"{slots['alarms_said']} The margin went {'up' if moved >= 0 else 'down'} by {abs(moved):.2f} logits. "
    sentence += "Without an oracle no alarm is a proof: look at pictures."
    found = "!&ensp;Reward hacking: suspected" if alarms else "✓&ensp;Reward hacking: no sign of it"
    slots |= {"name": escape(folder.resolve().name), "sentence": sentence, "found": found}
    path = folder / "hacking.html"
    write_text_atomically(path, filled("hacking.html", slots | {"box": "bad" if alarms else "good"}))
    return path
