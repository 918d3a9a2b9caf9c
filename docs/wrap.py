"""Wrap the prose of Markdown files at 120 characters; tables, code, headings and comments stay as they are.

python docs/wrap.py FILE...
"""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path

WIDTH = 120
_ITEM = re.compile(r"(\s*(?:[-*]|\d+\.)\s+)(.*)")
_VERBATIM = re.compile(r"\s*(\||#|<!--|!\[|\$\$|:::|>|\[[^\]]+\]:)| {4,}\S")


def wrapped(text: str) -> str:
    """The text with each paragraph and each item of a list in lines of at most WIDTH characters."""
    written: list[str] = []
    paragraph: list[str] = []
    fence = ""

    def close() -> None:
        if paragraph:
            item = _ITEM.fullmatch(paragraph[0])
            head, first = (item[1], item[2]) if item else (re.match(r"\s*", paragraph[0])[0], paragraph[0].strip())  # type: ignore[index]
            words = " ".join([first, *(line.strip() for line in paragraph[1:])])
            indent = " " * len(head)
            lines = textwrap.wrap(words, WIDTH - len(head), break_long_words=False, break_on_hyphens=False) or [""]
            written.extend((head if i == 0 else indent) + line for i, line in enumerate(lines))
            paragraph.clear()

    for line in text.splitlines():
        if fence or line.lstrip().startswith(("```", "$$")):
            close()
            written.append(line)
            mark = "$$" if line.lstrip().startswith("$$") else "```"
            fence = "" if fence and line.strip() == fence else fence or mark
        elif not line.strip() or (not paragraph and _VERBATIM.match(line)) or line.lstrip().startswith(("|", "#")):
            close()
            written.append(line)
        else:
            if _ITEM.match(line):
                close()
            paragraph.append(line)
    close()
    return "\n".join(written) + "\n"


if __name__ == "__main__":
    for name in sys.argv[1:]:
        path = Path(name)
        path.write_text(wrapped(path.read_text(encoding="utf-8")), encoding="utf-8")
