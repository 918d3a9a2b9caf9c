"""README's two pictures, from the folders of finished runs."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from rewarddance.data.media import as_images, as_pixels
from rewarddance.errors import InputError
from rewarddance.report.alignment_page import on_one_axis
from rewarddance.report.charts import COLOURS, STYLE, series
from rewarddance.report.run_folder import Row, read_alarms, read_metrics, read_samples, read_summary
from rewarddance.runtime.checkpoint import writable_folder

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_PROMPTS = 6
BEFORE_AFTER, HACKED_GUARDED = "before_after.png", "hacked_guarded.svg"


def write_pictures(run: Path, hacked: Path | None, guarded: Path | None, output: Path) -> list[Path]:
    """before_after.png of a finished quickstart and, where both runs are given, hacked_guarded.svg of two others.

    Raises InputError naming a run that lacks what is drawn, and where only one of the two runs is given.
    """
    if (hacked is None) != (guarded is None):
        raise InputError("only one of --hacked and --guarded is given.", "Give both runs, or none.")
    output = writable_folder(output)
    written = [draw_before_after(run, output / BEFORE_AFTER)]
    if hacked is not None and guarded is not None:
        runs = {"Hacked: nothing holds it back": hacked, "The same rate, guarded": guarded}
        written.append(draw_runs(runs, output / HACKED_GUARDED))
    return written


def draw_before_after(run: Path, path: Path) -> Path:
    """One sample of each arm, a column a prompt, with the oracle's score: the prompts that the run's gallery has."""
    summary, samples = read_summary(run), read_samples(run)[:MOST_PROMPTS]
    if not samples:
        raise InputError(f"{run} has no samples.json.", "Give a finished run of the quickstart.")
    arms = {"sft": "before", summary.aligned: "aligned", "best_of_n": f"best of {summary.n}"}
    width = len(samples)
    with rc_context(STYLE):
        figure = Figure(figsize=(1.35 * width + 0.9, 5.2), layout="constrained")
        panels = figure.subplots(len(arms), width, squeeze=False)
        for row, (arm, name) in enumerate(arms.items()):
            for column, sample in enumerate(samples):
                axes = panels[row, column]
                axes.imshow(np.asarray(as_images(as_pixels(run / sample.pictures[arm]))[0]), interpolation="nearest")
                axes.set(xticks=[], yticks=[], xlabel=f"{100 * sample.oracle[arm]:.0f}")
                if row == 0:
                    axes.set_title(textwrap.fill(sample.prompt, 17), loc="center", fontsize=9)
                if column == 0:
                    axes.set_ylabel(name, color=COLOURS["ink"])
        figure.supxlabel("below each sample: the oracle, of 100", fontsize=9, color=COLOURS["muted"])
        figure.savefig(path, dpi=110, metadata={"Software": None})
    return path


def draw_runs(runs: Mapping[str, Path], path: Path) -> Path:
    """Oracle and P(yes) over the steps of each run, on the same axes, with a dotted line where its first alarm rang."""
    with rc_context({**STYLE, "svg.hashsalt": path.name}):
        figure = Figure(figsize=(8.6, 3.1), layout="constrained")
        for axes, (title, folder) in zip(
            figure.subplots(1, len(runs), sharex=True, sharey=True), runs.items(), strict=True
        ):
            rows, alarms = on_one_axis(read_metrics(folder), read_alarms(folder))
            _draw_run(axes, rows, folder)
            axes.set_title(title)
            for alarm in alarms[:1]:
                axes.axvline(alarm["step"], color=COLOURS["ink"], linewidth=1, linestyle=":")
                at = {"xycoords": axes.get_xaxis_transform(), "textcoords": "offset points"}
                words = "an alarm ends the run" if alarm["stop"] else "an alarm rings"
                axes.annotate(words, (alarm["step"], 1), xytext=(4, -10), color=COLOURS["ink"], **at)
        figure.savefig(path, format="svg", facecolor="white", metadata={"Date": None})
    return path


def _draw_run(axes: Axes, rows: Sequence[Row], folder: Path) -> None:
    """Both curves of one run; P(yes) of the probe's samples where it was asked there, else of the training samples."""
    steps, oracle = series(rows, "oracle", "probe")
    asked, reward = series(rows, "proxy", "probe")
    if not len(asked):
        asked, reward = series(rows, "reward")
        window = max(1, len(reward) // 12)
        reward = np.array([reward[max(0, i + 1 - window) : i + 1].mean() for i in range(len(reward))])
    if len(steps) < 2 or not len(asked):
        raise InputError(f"{folder} has no oracle and P(yes) over steps.", "Give a run of the quickstart.")
    for at, values, colour, name in ((steps, oracle, "orange", "oracle"), (asked, reward, "blue", "P(yes)")):
        axes.plot(at, 100 * values, color=COLOURS[colour], marker="o" if len(at) <= 40 else None, markersize=3.5)
        end = (float(at[-1]), float(100 * values[-1]))
        axes.annotate(name, end, (6, 0), textcoords="offset points", va="center", color=COLOURS[colour])
    axes.set(xlabel="step", ylim=(0, 100))
    axes.margins(x=0.16)
