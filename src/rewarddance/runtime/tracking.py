"""A run's metrics.jsonl, and what is said while it goes on: how far it is, and how long it will still take."""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
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
LINE_SECONDS = 30.0
"""Between two lines on work that goes on, where stderr is no terminal."""


class Metrics:
    """Appends one JSON object a line to `metrics.jsonl`, flushed at once, and sends the same figures to the trackers.

    Every row has its phase ("judge", "refl", ...), its step, and its kind: "step" (of one training step), "probe" (of
    the averaged generator), "evaluation" (of the judge in training), "alarm", "failed" (a step of which no group had a
    reward). Readers select rows by their kind.
    step: the last one that was logged, 0 before any. What a resumed run logs again is not sent to the trackers again.
    watch: called once a row is written that is not of a training step: a page of the run may be made then.
    """

    def __init__(self, path: Path, trackers: Sequence[Tracker] = (), watch: Callable[[], None] | None = None) -> None:
        self.path, self.trackers, self.watch, self.step = path, trackers, watch, 0
        self._logged_before: dict[str, int] = {}  # rows of a phase that a resumed run will log again
        path.parent.mkdir(parents=True, exist_ok=True)

    def log(self, phase: str, step: int, kind: str = "step", **figures: Any) -> None:
        row = {"phase": phase, "step": step, "kind": kind}
        row |= {name: _rounded(value) if isinstance(value, float) else value for name, value in figures.items()}
        if self._logged_before.get(phase):
            self._logged_before[phase] -= 1
        elif figures:  # trackers first: after a kill between the two they get a row twice, rather than never
            for tracker in self.trackers:
                tracker.log({f"{phase}/{name}": row[name] for name in figures}, step=step)
        with open_to_append(self.path) as file:
            file.seek(0, os.SEEK_END)
            file.write((json.dumps(row) + "\n").encode())
        self.step = step
        if self.watch is not None and kind != "step":
            self.watch()

    def show(self, phase: str, name: str, pixels: Tensor) -> None:
        """Send the trackers a picture [T, C, H, W] of the last step that was logged."""
        if not self.trackers or self._logged_before.get(phase):
            return
        from rewarddance.runtime.trackers import show_pictures  # heavy, and seldom needed

        for tracker in self.trackers:
            show_pictures(tracker, f"{phase}/{name}", self.step, pixels)

    def rewind(self, phase: str, step: int) -> None:
        """Drop what `phase` logged after `step`, which a resumed run logs again, and lines that are no rows, such as
        one that a kill cut off."""
        if not self.path.exists():
            return
        kept = []
        self._logged_before[phase] = 0
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if not isinstance(row, dict) or not {"phase", "step"} <= row.keys():
                continue
            if row["phase"] != phase or row["step"] <= step:
                kept.append(line + "\n")
            else:
                self._logged_before[phase] += 1
        write_text_atomically(self.path, "".join(kept))


def _rounded(value: float) -> float:
    """To six decimals, and where it is below 1 to six digits: a small figure is not 0."""
    return round(value, 6) if abs(value) >= 1 else float(f"{value:.6g}")


class Bar:
    """A piece of work: `advance()` when a unit is done, `show()` to set the figures beside it."""

    def __init__(self, title: str, total: int | None, done: int = 0, changed: Callable[[Bar], None] | None = None):
        self.title, self.total, self.done, self.figures = title, total, done, ""
        self._began, self._done_before, self._changed = time.monotonic(), done, changed

    def advance(self, n: int = 1) -> None:
        self.done += n
        if self._changed:
            self._changed(self)

    def show(self, **figures: float) -> None:
        self.figures = " ".join(f"{name} {value:.3f}" for name, value in figures.items())
        if self._changed:
            self._changed(self)

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._began

    def line(self) -> str:
        """What is done, how far it is, how long it will still take, and the latest figures."""
        if self.total is None:
            return f"{self.title}: {clock(self.seconds)} so far"
        done_here = self.done - self._done_before
        left = f"about {clock(self.seconds / done_here * (self.total - self.done))} left" if done_here else "just begun"
        figures = f"; {self.figures}" if self.figures else ""
        return f"{self.title}: {self.done} of {self.total}, {clock(self.seconds)} so far, {left}{figures}"


class _PlainLines:
    """Where stderr is no terminal: says every half minute how far the innermost open piece of work is."""

    def __init__(self) -> None:
        self._open: list[Bar] = []
        self._closed = threading.Event()
        self._lock = threading.Lock()

    @contextmanager
    def following(self, bar: Bar) -> Iterator[None]:
        with self._lock:
            self._open.append(bar)
            if len(self._open) == 1:
                self._closed = threading.Event()
                threading.Thread(target=self._speak, args=(self._closed,), daemon=True).start()
        try:
            yield
        finally:
            with self._lock:
                self._open.remove(bar)
                if not self._open:
                    self._closed.set()

    def _speak(self, closed: threading.Event) -> None:
        while not closed.wait(LINE_SECONDS):
            with self._lock:
                line = self._open[-1].line() if self._open else None
            if line:
                _say(line)


_lines = _PlainLines()


def _say(line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def progress_bar(title: str, total: int, done: int = 0) -> Iterator[Bar]:
    """A bar on stderr with count, rate, elapsed time and time left; where stderr is no terminal, a line when the work
    begins and every half minute."""
    if not console.is_terminal:
        bar = Bar(title, total, done)
        _say(f"{title} ({total - done} to do)")
        with _lines.following(bar):
            yield bar
        return
    columns = (
        TextColumn("{task.description:<26}"),
        BarColumn(bar_width=24),
        TaskProgressColumn(show_speed=True),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=total, completed=done, figures="")
        yield Bar(title, total, done, lambda bar: progress.update(task, completed=bar.done, figures=bar.figures))


@contextmanager
def stage_lines(title: str, name: str) -> Iterator[None]:
    """A long stretch of work with bars of its own in it: `title` is said when it begins, and how long it took at its
    end; where stderr is no terminal, also every half minute in which no bar is open."""
    bar = Bar(name, None)
    _say(title)
    if console.is_terminal:
        yield
    else:
        with _lines.following(bar):
            yield
    _say(f"{name}: done in {clock(bar.seconds)}")


def clock(seconds: float) -> str:
    """A length of time in words: 8.2 s, 3 min 05 s, 1 h 02 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def machine() -> str:
    """What the figures were measured on, in a few words."""
    import torch  # heavy, and needed here alone

    return f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"


def peak_memory_gib() -> float:
    """The process's peak resident memory in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
