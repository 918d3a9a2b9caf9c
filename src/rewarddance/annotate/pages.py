"""The templates of the pages. The environment escapes every text that a page is given."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

_FOLDER = Path(__file__).parent / "templates"
_STATIC = {"vote.js": "text/javascript; charset=utf-8", "votes.css": "text/css; charset=utf-8"}
_STATIC |= {"icon.svg": "image/svg+xml"}


class Static(NamedTuple):
    text: str
    kind: str


def static(name: str) -> Static | None:
    """A script or style sheet by name, or None."""
    if name not in _STATIC:
        return None
    return Static((_FOLDER / name).read_text(encoding="utf-8"), _STATIC[name])


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def figure(value: tuple[float, ...], digits: int = 2) -> str:
    """An interval as text."""
    mean, low, high = value[:3]
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]".replace("-", "−")


ENVIRONMENT = Environment(
    loader=PackageLoader("rewarddance.annotate"),
    autoescape=select_autoescape(["html"]),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
ENVIRONMENT.filters |= {"percent": percent, "figure": figure}
