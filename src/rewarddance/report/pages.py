"""Pages and model cards, rendered from the Jinja2 templates in templates/.

The environment escapes every text that a page is given; nothing else but `annotate/pages.py` does. Only the SVG of
`charts.draw_svg` is passed as markup.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from rewarddance.report.formatting import as_markdown, code_text, figure_text, markdown_text, number
from rewarddance.runtime.checkpoint import write_text_atomically
from rewarddance.runtime.tracking import clock

ENVIRONMENT = Environment(
    loader=PackageLoader("rewarddance.report"),
    autoescape=select_autoescape(["html"]),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
ENVIRONMENT.filters |= {"number": number, "figure_text": figure_text, "clock": clock, "as_markdown": as_markdown}
ENVIRONMENT.filters |= {"markdown_text": markdown_text, "code_text": code_text}


def write_page(template: str, path: Path, **context: Any) -> Path:
    """Render a template into a file, atomically, and return its path."""
    write_text_atomically(path, ENVIRONMENT.get_template(template).render(context))
    return path
