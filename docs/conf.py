"""The site: Sphinx with MyST and Furo. `make docs` builds it, and `make test` builds it with warnings as errors."""

from __future__ import annotations

import re
from importlib.metadata import version as installed_version
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx

project, author = "RewardDance", "the RewardDance authors"
project_copyright = author
release = version = installed_version("rewarddance")
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "RewardDance"
html_static_path = ["static"]
html_css_files, html_js_files = ["site.css"], ["focus.js"]
html_copy_source = html_show_sourcelink = False

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
html_math_renderer = "mathml"

default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_default_options = {"members": True}
add_module_names = False
_FIELD = re.compile(r"([a-z_][\w]*(?:, [a-z_]\w*)*): (.*)")


def _fields_as_list(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Lines `name: what it is` of a docstring, with the lines that go on below them, as a list.

    A docstring's own form is for who reads the source, where a line of it is a line.
    """
    written: list[str] = []
    in_field = False
    for line in lines:
        if field := _FIELD.match(line):
            if written and written[-1].strip() and not in_field:
                written.append("")
            written.append(f"- **{field[1]}**: {field[2]}")
            in_field = True
        elif in_field and line.strip():
            written.append(f"  {line.strip()}")
        else:
            in_field = in_field and bool(line.strip())
            written.append(line)
    lines[:] = [line if "`" in line else line.replace("|", r"\|") for line in written]


def _without_settings(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Pydantic's own attribute is no key of a recipe."""
    return True if name == "model_config" else None


def _mathml(writer: Any, node: nodes.Element, *, block: bool) -> None:
    """A formula as MathML, which browsers draw themselves: no script, nothing from elsewhere."""
    markup = tex2mathml(node.astext(), as_block=block)
    writer.body.append(f'<div class="math" tabindex="0">{markup}</div>' if block else markup)
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", _fields_as_list)
    app.connect("autodoc-skip-member", _without_settings)
    app.add_html_math_renderer(
        "mathml",
        (lambda writer, node: _mathml(writer, node, block=False), None),
        (lambda writer, node: _mathml(writer, node, block=True), None),
    )
