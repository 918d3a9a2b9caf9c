"""An alignment without an oracle as one page: what the reward did over its steps, and the signs of hacking."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rewarddance.data.image_stats import MEASURED
from rewarddance.errors import InputError
from rewarddance.report.charts import chart
from rewarddance.report.pages import write_page
from rewarddance.report.progress import Progress
from rewarddance.report.run_folder import Row, read_alarms, read_config, read_metrics
from rewarddance.report.sample_strip import sample_strip

BASELINE_STEPS = 16
"""Steps at a run's beginning whose pictures stand for the base's in the figure; the alarms' own default."""
ALGORITHMS = {"refl": "ReFL", "grpo": "Flow-GRPO", "nft": "DiffusionNFT", "awm": "AWM", "dgpo": "DGPO", "crd": "CRD"}
ALGORITHMS |= {"online_dpo": "Online DPO", "dpo": "Diffusion-DPO"}


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


def on_one_axis(rows: Sequence[Row], alarms: Sequence[Row] = ()) -> tuple[list[Row], list[Row]]:
    """Rows and alarms of the alignment with the steps of an algorithm that goes on from another counted on from its
    end; without the judge's own training."""
    last: dict[str, int] = {}
    for row in rows:
        if row["phase"] != "judge":
            last[row["phase"]] = max(last.get(row["phase"], 0), row["step"])
    before = {phase: sum(list(last.values())[:i]) for i, phase in enumerate(last)}

    def moved(some: Sequence[Row]) -> list[Row]:
        return [row | {"step": row["step"] + before.get(row["phase"], 0)} for row in some if row["phase"] != "judge"]

    return moved(rows), moved(alarms)


def hacking_section(folder: Path) -> dict[str, Any]:
    """What signs_of_hacking.html shows of a run: alarms, the number of steps, the chart and the strip of samples."""
    rows, alarms = on_one_axis(read_metrics(folder), read_alarms(folder))
    steps = alignment_steps(rows)
    training = [row for row in steps if row["kind"] == "step"]
    marks: dict[int, str] = {}
    for number, alarm in enumerate(alarms, start=1):
        marks[alarm["step"]] = f"{marks[alarm['step']]}, {number}" if alarm["step"] in marks else str(number)
    return {
        "alarms": alarms,
        "last_step": max((row["step"] for row in training), default=0),
        "hacking_chart": chart(steps, "hacking", marks),
        "strip": sample_strip(folder),
    }


def first_and_last(rows: Sequence[Row], key: str) -> tuple[float, float] | None:
    """The means of a figure over the first and the last training steps; None where it was not logged.

    They are of BASELINE_STEPS each, of a short run of the half.
    """
    values = [row[key] for row in rows if row["kind"] == "step" and isinstance(row.get(key), int | float)]
    n = max(1, min(BASELINE_STEPS, len(values) // 2))
    return (float(np.mean(values[:n])), float(np.mean(values[-n:]))) if values else None


def each_reward(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Of each of several rewards its name, and what it was at first and at the end. preferred: at the last probe."""
    keys = dict.fromkeys(key for row in rows if row["kind"] == "step" for key in row if key.startswith("margin/"))
    rewards = []
    for name in (key.partition("/")[2] for key in keys):
        preferred = [row[f"preferred_to_base/{name}"] for row in rows if f"preferred_to_base/{name}" in row]
        rewards.append(
            {
                "name": name,
                "margins": first_and_last(rows, f"margin/{name}"),
                "rewards": first_and_last(rows, f"reward/{name}"),
                "spreads": first_and_last(rows, f"spread_within/{name}"),
                "preferred": preferred[-1] if preferred else None,
            }
        )
    return rewards


def write_alignment_page(folder: Path, progress: Progress | None = None) -> Path:
    """Write report.html of a run that has no oracle; returns its path.

    progress: where the run stands while it goes on. Raises InputError where the folder has no steps of an alignment
    and no run goes on there.
    """
    rows = [row for row in read_metrics(folder) if row["phase"] != "judge"]
    margins = first_and_last(rows, "margin")
    if margins is None and progress is None:
        raise InputError(f"{folder} holds no summary.json and no alignment's metrics.jsonl.", "Give a run's folder.")
    config = read_config(folder)
    algorithm = config.get("algorithm", rows[0]["phase"] if rows else "")
    preferred = [row["preferred_to_base"] for row in rows if row["kind"] == "probe" and "preferred_to_base" in row]
    return write_page(
        "alignment.html",
        folder / "report.html",
        name=folder.resolve().name,
        config=config,
        algorithm=ALGORITHMS.get(algorithm, algorithm),
        steps=(config.get(algorithm) or {}).get("steps"),
        margins=margins,
        rewards=first_and_last(rows, "reward"),
        several=each_reward(rows),
        preferred=preferred[-1] if preferred else None,
        held_out=first_and_last(rows, "held_out_margin"),
        progress=progress,
        **hacking_section(folder),
    )
