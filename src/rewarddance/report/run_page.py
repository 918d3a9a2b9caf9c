"""A run folder as one page: `write_report` makes report.html, `summary_table` the same figures for a terminal."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewarddance.report.charts import CHARTS, chart, series, smoothing_window
from rewarddance.report.formatting import figure_text, number
from rewarddance.report.hacking_page import hacking_section
from rewarddance.report.pages import write_page
from rewarddance.report.run_folder import Summary, read_metrics, read_picture, read_samples, read_summary

if TYPE_CHECKING:
    from rich.table import Table

ARMS = {"sft": "SFT base", "best_of_n": "Best of {n}", "refl": "ReFL"}


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
    if s.gsb is not None:
        counts = f"{s.gsb.good} good, {s.gsb.same} same, {s.gsb.bad} bad"
        lines.append(f"ReFL against the base: GSB {figure_text(s.gsb.gsb, sign='+')} ({counts})")
    table.caption, table.caption_justify = "\n".join(["", *lines]), "left"
    table.add_column("")
    for title in ("oracle alignment", "gain", "correct", "quality", "diversity"):
        table.add_column(title, justify="right")
    gains = ("", figure_text(s.oracle.gain_best_of_n, sign="+"), figure_text(s.oracle.gain_refl, sign="+"))
    for arm, gain in zip(ARMS, gains, strict=True):
        shares = [number(getattr(figure, arm).mean) for figure in (s.correct, s.quality)]
        diversity = getattr(s.diversity, arm, None)
        last = number(diversity.mean, 1, 3) if diversity else ""
        table.add_row(ARMS[arm].format(n=s.n), figure_text(getattr(s.oracle, arm)), gain, *shares, last)
    return table


def write_report(run_folder: Path) -> Path:
    """Write report.html into a run folder and return its path; the same run gives the same bytes.

    Needs summary.json; metrics.jsonl, samples.json and config.yaml are shown where they are there. Raises InputError
    that names a file which is missing or cannot be read, and what to do.
    """
    summary, rows = read_summary(run_folder), read_metrics(run_folder)
    refl, judge = ([row for row in rows if row["phase"] == phase] for phase in ("refl", "judge"))
    config = run_folder / "config.yaml"
    return write_page(
        "run.html",
        run_folder / "report.html",
        s=summary,
        arms={arm: name.format(n=summary.n) for arm, name in ARMS.items()},
        samples=read_samples(run_folder),
        read_picture=partial(read_picture, run_folder),
        charts={name: chart(judge if name == "judge" else refl, name) for name in CHARTS if name != "hacking"},
        window=smoothing_window(len(series(refl, "reward")[0])),
        config=config.read_text(encoding="utf-8").strip() if config.is_file() else None,
        **hacking_section(run_folder),
    )
