"""An evaluation as one page: evaluation.html beside evaluation.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from rewarddance.evaluation.calibration import Bin
from rewarddance.evaluation.findings import Evaluation, SetFindings
from rewarddance.report.charts import COLOURS, draw_svg
from rewarddance.report.evaluation_tables import evaluation_context, set_title
from rewarddance.report.pages import write_page

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def write_evaluation_page(evaluation: Evaluation, folder: Path, config: str = "") -> Path:
    """Write evaluation.html into a folder and return its path. config: YAML of how the judge was examined."""
    return write_page(
        "evaluation.html",
        folder / "evaluation.html",
        reliability=reliability_chart(evaluation.tests),
        config=config.strip(),
        **evaluation_context(evaluation),
    )


def reliability_chart(tests: dict[str, SetFindings]) -> Markup:
    """Share of votes for yes over P(yes), a panel for each test set, as inline SVG."""
    most_columns = min(3, len(tests))
    heights = {"wide": 40 + 236 * -(-len(tests) // most_columns), "narrow": 40 + 290 * len(tests)}

    def draw(figure: Figure) -> None:
        columns = most_columns if figure.get_figwidth() > 6 else 1
        panels = figure.subplots(-(-len(tests) // columns), columns, squeeze=False).ravel()
        for axes in panels[len(tests) :]:
            axes.set_visible(False)
        for axes, (name, test) in zip(panels, tests.items(), strict=False):
            _draw_bins(axes, name, test.calibration.bins)

    return draw_svg(draw, heights, "reliability", "Share of votes for yes over P(yes), by test set")


def _draw_bins(axes: Axes, name: str, bins: Sequence[Bin]) -> None:
    axes.set_title(set_title(name))
    axes.plot([0, 1], [0, 1], "--", color=COLOURS["muted"], linewidth=1)
    votes = [each.votes for each in bins]
    ends: Any = [[max(0.0, v.mean - v.low) for v in votes], [max(0.0, v.high - v.mean) for v in votes]]
    means = [each.p_yes for each in bins], [v.mean for v in votes]
    axes.errorbar(*means, ends, color=COLOURS["blue"], linewidth=1.4, marker="o", markersize=4)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="P(yes)", ylabel="votes for yes")
    axes.set_aspect("equal")
    axes.locator_params(nbins=5)
