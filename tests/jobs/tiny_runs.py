"""What the tests of the quickstart share: its figures, and functions that are cut off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MAY_DIFFER = ("name", "seconds", "seconds_by_stage", "cpu_seconds_by_stage", "peak_memory_gib")


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def figures(folder: Path) -> dict[str, Any]:
    """The summary without what differs from run to run."""
    return {key: value for key, value in summary_of(folder).items() if key not in MAY_DIFFER}


class Killing:
    """Stands in for a function, and is cut off the nth time."""

    def __init__(self, function: Any, at: int) -> None:
        self.function, self.left = function, at

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return self.function(*arguments, **named)
