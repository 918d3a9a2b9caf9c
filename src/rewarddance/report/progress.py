"""Where a run that is not over stands, and the page of it that can be looked at meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from rewarddance.errors import InputError
from rewarddance.runtime.tracking import console

LEAST_SECONDS = 20.0
"""Between two pages of a run that goes on: drawing one takes a second or two."""


class Progress(NamedTuple):
    """Where a run stands while it goes on."""

    doing: str  # what is being done
    resume: str  # the command that goes on with the run, should it be stopped
    stages: Mapping[str, float | None] = MappingProxyType({})  # seconds of the stages that are done, None of the others
    written: str = ""  # when the page was written

    def now(self) -> Progress:
        return self._replace(written=time.strftime("%Y-%m-%d %H:%M:%S"))


class ProgressPage:
    """Writes the page of a run that goes on, when it is told that something is new, and not more often than is useful.

    write: makes the page of the run's folder at a Progress.
    """

    def __init__(self, folder: Path, progress: Progress, write: Callable[[Path, Progress], Path]) -> None:
        self.folder, self.progress, self._write = folder, progress, write
        self._next = -float("inf")

    def renew(self, **changes: Any) -> None:
        """Take changes of where the run stands, and write the page if the last one is old enough.

        Pages take a twentieth of a run's time at most, and one that cannot be made does not end the run.
        """
        self.progress = self.progress._replace(**changes)
        began = time.monotonic()
        if began < self._next:
            return
        try:
            self._write(self.folder, self.progress.now())
        except InputError as error:
            console.print(f"The page of this run cannot be written now: {error}", markup=False, soft_wrap=True)
        now = time.monotonic()
        self._next = now + max(LEAST_SECONDS, 20 * (now - began))
