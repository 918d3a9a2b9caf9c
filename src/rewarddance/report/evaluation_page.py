"""An evaluation told as one page: evaluation.html beside evaluation.json. Words and looks are in its template."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewarddance.evaluation.consistency import CHANCE
from rewarddance.evaluation.findings import BinFindings, Evaluation, SetFindings
from rewarddance.report import evaluation_tables as tables
from rewarddance.report.charts import COLOURS, drawn
from rewarddance.report.evaluation_tables import title
from rewarddance.report.formatting import absent, clock, figure, filled, number
from rewarddance.report.limits import limits_of
from rewarddance.runtime.checkpoint import write_text_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FILE = "evaluation.html"
MOST_ROWS = 30


def write_page(evaluation: Evaluation, folder: Path, config: str = "") -> Path:
    """Write evaluation.html into a folder and return its path. config: YAML of how the judge was examined."""
    tests = evaluation.tests
    made = {
        "accuracy": tables.accuracy,
        "calibration": tables.calibration,
        "order": tables.order,
        "circles": tables.circles,
        "looks": tables.looks,
        "length": tables.length,
    }
    slots = _opening(evaluation) | {name: tables.as_html(make(tests)) for name, make in made.items()}
    slots |= {
        "failed": _failed(tests),
        "limits": "\n".join(f"<li>{_marked(line)}</li>" for line in limits_of(evaluation)),
        "apart": _apart(tests, "by_source", "source") + _apart(tests, "by_criterion", "criterion"),
        "reliability": reliability_chart(tests),
        "chance": number(CHANCE, digits=0),
        "spreads": escape(tables.spreads(tests)),
        "config": f"<details><summary>evaluation.yaml</summary><pre>{escape(config.strip())}</pre></details>",
    }
    path = folder / FILE
    write_text_atomically(path, filled("evaluation.html", slots))
    return path


def _opening(found: Evaluation) -> dict[str, str]:
    said = []
    for name, one in found.tests.items():
        accuracy = one.accuracy
        share = f"none: {escape(accuracy)}" if isinstance(accuracy, str) else f"in {figure(accuracy)} of 100 pairs"
        said.append(f"on {escape(title(name))} {share}")
    facts = found.judge
    asked = f", instruction {facts.instruction} (version {facts.instruction_version})" if facts.instruction else ""
    plain = {
        "name": facts.name,
        "kind": f"{facts.kind} judge{asked}" + (f", from {facts.base}" if facts.base else ""),
        "machine": found.machine,
        "version": found.version,
        "seed": str(found.seed),
        "seconds": clock(found.seconds),
    }
    return {slot: escape(text) for slot, text in plain.items()} | {"lead": "; ".join(said)}


def _marked(line: str) -> str:
    """A sentence with what stands in backticks as code."""
    return re.sub("`([^`]*)`", r"<code>\1</code>", escape(line))


def _failed(tests: dict[str, SetFindings]) -> str:
    failed = {name: one.failed for name, one in tests.items() if one.failed}
    if not failed:
        return ""
    said = ", ".join(f"{count} of {escape(name)}" for name, count in failed.items())
    return absent(f"Pairs that could not be judged and are in no figure: {said}. evaluation.failed.jsonl says why.")


def _apart(tests: dict[str, SetFindings], key: str, word: str) -> str:
    table = tables.apart(tests, key, MOST_ROWS)
    if not table.rows:
        return ""
    rest = len({name for one in tests.values() for name in getattr(one, key)}) - len(table.rows)
    more = absent(f"{rest} more of fewer pairs are in evaluation.json.") if rest else ""
    return f"<h3>By {word}</h3>\n" + tables.as_html(table) + more


def reliability_chart(tests: dict[str, SetFindings]) -> str:
    """Share of votes for yes over P(yes), a panel for each test set, as inline SVG."""
    wide = min(3, len(tests))
    heights = {"wide": 40 + 236 * -(-len(tests) // wide), "narrow": 40 + 290 * len(tests)}

    def draw(own: Figure) -> None:
        columns = wide if own.get_figwidth() > 6 else 1
        panels = own.subplots(-(-len(tests) // columns), columns, squeeze=False).ravel()
        for axes in panels:
            axes.set_visible(False)
        for axes, (name, one) in zip(panels, tests.items(), strict=False):
            axes.set_visible(True)
            _draw_bins(axes, name, one.calibration.bins)

    return drawn(draw, heights, "reliability", "Share of votes for yes over P(yes), by test set")


def _draw_bins(axes: Axes, name: str, bins: Sequence[BinFindings]) -> None:
    axes.set_title(title(name))
    axes.plot([0, 1], [0, 1], "--", color=COLOURS["muted"], linewidth=1)
    said, votes = [one.said for one in bins], [one.votes for one in bins]
    ends: Any = [[max(0.0, v.mean - v.low) for v in votes], [max(0.0, v.high - v.mean) for v in votes]]
    axes.errorbar(said, [v.mean for v in votes], ends, color=COLOURS["blue"], linewidth=1.4, marker="o", markersize=4)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="P(yes)", ylabel="votes for yes")
    axes.set_aspect("equal")
    axes.locator_params(nbins=5)
