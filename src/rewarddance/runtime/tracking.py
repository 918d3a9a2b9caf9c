"""What a run leaves behind while it goes: metrics.jsonl, and bars that show rates and the time left."""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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

console = Console(stderr=True)


class Metrics:
    """Appends one JSON object a line to `metrics.jsonl`, flushed at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def log(self, phase: str, step: int, **figures: Any) -> None:
        row = {"phase": phase, "step": step}
        row |= {name: round(value, 6) if isinstance(value, float) else value for name, value in figures.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def rewind(self, phase: str, step: int) -> None:
        """Drop what `phase` logged after `step`, and a line that a kill cut off: a resumed run logs it again."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if row["phase"] != phase or row["step"] <= step:
                kept.append(line + "\n")
        scratch = self.path.with_name(self.path.name + ".partial")
        scratch.write_text("".join(kept), encoding="utf-8")
        scratch.replace(self.path)


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
