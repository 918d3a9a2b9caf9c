"""The code of README and docs: where it stands, in which language, and what it takes to run it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^```([^`\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MARK = re.compile(r"^<!-- checked, not run: (.+?) -->\n\Z", re.MULTILINE)


class Snippet(NamedTuple):
    """A fenced block. reason: why it is not run but checked, "" where it is run."""

    page: str
    line: int
    language: str
    text: str
    reason: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    """README, CONTRIBUTING and the pages of docs, by their paths from the root; not the log of what was tried."""
    found = [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    return sorted(str(page.relative_to(ROOT)) for page in found if page.name != "lab_log.md")


def snippets(page: str) -> list[Snippet]:
    """The blocks of a page in order; Sphinx's own directives are not among them."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = []
    for fence in _FENCE.finditer(text):
        mark = _MARK.search(text, 0, fence.start())
        if fence[1].startswith("{"):
            continue
        line = text.count("\n", 0, fence.start()) + 2
        found.append(Snippet(page, line, fence[1], fence[2], mark[1] if mark else ""))
    return found


def command_lines(text: str) -> list[list[str]]:
    """The words of each command of a shell snippet, comments left out and broken lines put together."""
    joined = text.replace("\\\n", " ")
    lines = [shlex.split(line, comments=True) for line in joined.splitlines()]
    return [words for words in lines if words]
