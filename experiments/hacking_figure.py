"""The figure of runs made to be hacked and honest ones: oracle, proxy, alarms, and the spread of the reward."""

from __future__ import annotations

import math
from collections.abc import Sequence
from io import StringIO
from typing import TYPE_CHECKING

from rewarddance.report.charts import COLOURS, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from experiments.hacking_table import Row

PALETTE = (COLOURS["blue"], COLOURS["orange"], "#009e73", "#cc79a7", "#e69f00", COLOURS["ink"], COLOURS["muted"])
WIDE = 3


def chart(found: Sequence[Row]) -> str:
    """As SVG: for each run a panel of its oracle (blue) and P(yes) (orange), without safeguards solid and with them
    dashed, alarms as vertical lines; then the spread of the reward by judge, of runs without safeguards."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    runs = list(dict.fromkeys(row.run for row in found if row.meant != "spread"))
    spread = [row for row in found if not row.guarded and row.windows]
    panels = len(runs) + 2 * bool(spread)
    with rc_context({**STYLE, "svg.fonttype": "path", "svg.hashsalt": "hacking"}):
        figure = Figure(figsize=(4 * WIDE, 0.6 + 3.2 * math.ceil(max(1, panels) / WIDE)), layout="constrained")
        grid = figure.subplots(math.ceil(max(1, panels) / WIDE), WIDE, squeeze=False).ravel()
        for axes in grid[panels:]:
            axes.set_visible(False)
        for axes, run in zip(grid, runs, strict=False):
            axes.set_title(run)
            for row in (row for row in found if row.run == run):
                _run(axes, row)
            axes.set_xlabel("step")
        for axes, key in zip(grid[len(runs) : panels], ("spread", "of_room"), strict=False):
            axes.set_title("Spread of P(yes)" if key == "spread" else "of the room that its mean leaves")
            judges = list(dict.fromkeys(row.judge for row in spread))
            for row in spread:
                colour = PALETTE[judges.index(row.judge) % len(PALETTE)]
                name = row.judge if row is next(one for one in spread if one.judge == row.judge) else None
                steps, values = [w.step for w in row.windows], [getattr(w, key) for w in row.windows]
                axes.plot(steps, values, color=colour, label=name)
            axes.set_ylim(bottom=0)
            axes.set_xlabel("last step of the window")
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=3)
        text = StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def _run(axes: Axes, row: Row) -> None:
    dash = "--" if row.guarded else "-"
    steps = [probe.step for probe in row.probes]
    axes.plot(steps, [100 * probe.oracle for probe in row.probes], dash, color=COLOURS["blue"])
    axes.plot(steps, [100 * probe.proxy for probe in row.probes], dash, color=COLOURS["orange"])
    for alarm in row.alarms:
        axes.axvline(alarm.step, color=COLOURS["ink"], linewidth=0.9, linestyle=dash if row.guarded else ":")
