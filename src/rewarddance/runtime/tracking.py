"""A run's metrics.jsonl, and progress bars that show rates and the time left."""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from rewarddance.runtime.checkpoint import open_to_append, write_text_atomically

if TYPE_CHECKING:
    from torch import Tensor

    from rewarddance.runtime.trackers import Tracker

console = Console(stderr=True, markup=False)  # brackets in a name are no markup


class Metrics:
    """Appends one JSON object a line to `metrics.jsonl`, flushed at once, and sends the same figures to the trackers.

    Every row has its phase ("judge", "refl", ...), its step, and its kind: "step" (of one training step), "probe" (of
    the averaged generator), "evaluation" (of the judge in training), "alarm". Readers select rows by their kind.
    step: the last one that was logged, 0 before any. What a resumed run logs again is not sent to the trackers again.
    """

    def __init__(self, path: Path, trackers: Sequence[Tracker] = ()) -> None:
        self.path, self.trackers, self.step = path, trackers, 0
        self._logged_before: dict[str, int] = {}  # rows of a phase that a resumed run will log again
        path.parent.mkdir(parents=True, exist_ok=True)

    def log(self, phase: str, step: int, kind: str = "step", **figures: Any) -> None:
        row = {"phase": phase, "step": step, "kind": kind}
        row |= {name: round(value, 6) if isinstance(value, float) else value for name, value in figures.items()}
        if self._logged_before.get(phase):
            self._logged_before[phase] -= 1
        elif figures:  # trackers first: after a kill between the two they get a row twice, rather than never
            for tracker in self.trackers:
                tracker.log({f"{phase}/{name}": row[name] for name in figures}, step=step)
        with open_to_append(self.path) as file:
            file.seek(0, os.SEEK_END)
            file.write((json.dumps(row) + "\n").encode())
        self.step = step

    def show(self, phase: str, name: str, pixels: Tensor) -> None:
        """Send the trackers a picture [T, C, H, W] of the last step that was logged."""
        if not self.trackers or self._logged_before.get(phase):
            return
        from rewarddance.runtime.trackers import show_pictures  # heavy, and seldom needed

        for tracker in self.trackers:
            show_pictures(tracker, f"{phase}/{name}", self.step, pixels)

    def rewind(self, phase: str, step: int) -> None:
        """Drop what `phase` logged after `step`, and a line that a kill cut off; a resumed run logs both again."""
        if not self.path.exists():
            return
        kept = []
        self._logged_before[phase] = 0
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if row["phase"] != phase or row["step"] <= step:
                kept.append(line + "\n")
            else:
                self._logged_before[phase] += 1
        write_text_atomically(self.path, "".join(kept))


class Bar:
    """One bar: `advance()` when a unit is done, `show()` to set the figures beside it."""

    def __init__(self, progress: Progress, task: Any) -> None:
        self._progress, self._task = progress, task

    def advance(self, n: int = 1) -> None:
        self._progress.advance(self._task, n)

    def show(self, **figures: float) -> None:
        self._progress.update(self._task, figures=" ".join(f"{name} {value:.3f}" for name, value in figures.items()))


@contextmanager
def progress_bar(title: str, total: int, done: int = 0) -> Iterator[Bar]:
    """A bar on stderr with count, rate, elapsed time and time left; plain lines where stderr is no terminal."""
    columns = (
        TextColumn("{task.description:<26}"),
        BarColumn(bar_width=24),
        TaskProgressColumn(show_speed=True),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=total, completed=done, figures="")
        if not console.is_terminal:
            console.print(f"{title} ({total - done} to do)")
        yield Bar(progress, task)


def machine() -> str:
    """What the figures were measured on, in a few words."""
    import torch  # heavy, and needed here alone

    return f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"


def peak_memory_gib() -> float:
    """The process's peak resident memory in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
