"""A run folder as one page: `write_report` makes report.html of a finished run and `write_progress` of one that goes
on; `summary_table` has the same figures for a terminal."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewarddance.report.alignment_page import first_and_last, hacking_section, on_one_axis
from rewarddance.report.charts import CHARTS, chart, series, smoothing_window
from rewarddance.report.formatting import figure_text, number
from rewarddance.report.pages import write_page
from rewarddance.report.progress import Progress
from rewarddance.report.run_folder import (
    JudgeAccuracy,
    Row,
    Summary,
    read_config,
    read_metrics,
    read_picture,
    read_samples,
    read_summary,
)

if TYPE_CHECKING:
    from rich.table import Table

ARMS = {"sft": "SFT base", "best_of_n": "Best of {n}", "refl": "ReFL", "nft": "then DiffusionNFT"}


def summary_table(summary: dict[str, Any]) -> Table:
    """The run's figures for a terminal of 80 columns; in points of 100, but for diversity."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    s = Summary.model_validate(summary)
    lines = [
        f"judge accuracy {pairs}: {figure_text(after)}, untrained {figure_text(before)}"
        for pairs, (after, before) in s.judge.places().items()
    ]
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    arms = arms_of(s)
    if s.gsb is not None:
        counts = f"{s.gsb.good} good, {s.gsb.same} same, {s.gsb.bad} bad"
        lines.append(f"{arms[s.aligned]} against the base: GSB {figure_text(s.gsb.gsb, sign='+')} ({counts})")
    for part, figures in s.parts.items():
        gains = [f"{name} {figure_text(getattr(figures, f'gain_{arm}'), sign='+')}" for arm, name in arms.items()
                 if arm != "sft"]  # fmt: skip
        lines.append(f"{part}: base {figure_text(figures.sft)}; " + ", ".join(gains))
    table.caption, table.caption_justify = "\n".join(["", *lines]), "left"
    table.add_column("")
    for title in ("oracle alignment", "gain", "correct", "quality", "diversity"):
        table.add_column(title, justify="right")
    for arm, name in arms.items():
        gain = "" if arm == "sft" else figure_text(getattr(s.oracle, f"gain_{arm}"), sign="+")
        shares = [number(getattr(figure, arm).mean) for figure in (s.correct, s.quality)]
        diversity = getattr(s.diversity, arm, None)
        last = number(diversity.mean, 1, 3) if diversity else ""
        table.add_row(name, figure_text(getattr(s.oracle, arm)), gain, *shares, last)
    return table


def arms_of(summary: Summary) -> dict[str, str]:
    """The arms of a run, by what they are called."""
    return {arm: name.format(n=summary.n) for arm, name in ARMS.items() if getattr(summary.oracle, arm) is not None}


def write_report(run_folder: Path) -> Path:
    """Write report.html into a run folder and return its path; the same run gives the same bytes.

    Needs summary.json; metrics.jsonl, samples.json and config.yaml are shown where they are there. Raises InputError
    that names a file which is missing or cannot be read, and what to do.
    """
    summary = read_summary(run_folder)
    alignment, judge = _phases(run_folder)
    return write_page(
        "run.html",
        run_folder / "report.html",
        s=summary,
        arms=arms_of(summary),
        samples=read_samples(run_folder),
        read_picture=partial(read_picture, run_folder),
        charts={name: chart(judge if name == "judge" else alignment, name) for name in CHARTS if name != "hacking"},
        window=smoothing_window(len(series(alignment, "reward")[0])),
        **_config(run_folder),
        **hacking_section(run_folder),
    )


def write_progress(run_folder: Path, progress: Progress) -> Path:
    """Write report.html of a run that is not over, from what it has left so far, and return its path."""
    alignment, judge = _phases(run_folder)
    stages = run_folder / "stages.json"
    done = json.loads(stages.read_text(encoding="utf-8")) if stages.is_file() else {}
    return write_page(
        "running.html",
        run_folder / "report.html",
        name=run_folder.resolve().name,
        progress=progress,
        judge=JudgeAccuracy.model_validate(done["judge"]["result"]) if "judge" in done else None,
        probes=[row for row in alignment if row["kind"] == "probe" and "oracle" in row],
        rewards=first_and_last(alignment, "reward"),
        charts={"progress": chart(alignment, "progress"), "judge": chart(judge, "judge")},
        **_config(run_folder),
        **hacking_section(run_folder),
    )


def _phases(run_folder: Path) -> tuple[list[Row], list[Row]]:
    """The rows of the alignment on one axis of steps, and those of the judge's training."""
    rows = read_metrics(run_folder)
    return on_one_axis(rows)[0], [row for row in rows if row["phase"] == "judge"]


def _config(run_folder: Path) -> dict[str, Any]:
    """The recipe as the page shows it, None where there is none, and what of it says what was asked."""
    path, recipe = run_folder / "config.yaml", read_config(run_folder)
    names = ("judge", "refl", "nft")
    judge, refl, nft = (part if isinstance(part, dict) else {} for part in map(recipe.get, names))
    task = recipe.get("task", "t2i")
    asked_for = {
        "task": task,
        "what": {"t2i": "pictures", "edit": "edits"}.get(task, "videos"),
        "seed": recipe.get("seed", 0),
    }
    asked_for |= {"judge": judge.get("base"), "generator": recipe.get("generator"), "steps": refl.get("steps")}
    asked_for["nft_steps"] = nft.get("steps")
    text = path.read_text(encoding="utf-8").strip() if path.is_file() else None
    return {"config": text, "asked_for": asked_for}
