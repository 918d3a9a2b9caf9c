"""The votes of a store as one page, which of a comparison of two models is a report to send around."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

from rewarddance.annotate.cast import read_votes
from rewarddance.annotate.comparison import Comparison, standing
from rewarddance.annotate.figures import figures_of
from rewarddance.annotate.pages import ENVIRONMENT
from rewarddance.annotate.store import Store
from rewarddance.evaluation.statistics import Interval
from rewarddance.runtime.checkpoint import write_text_atomically

_WIDE, _HIGH = 680.0, 220.0


class Lines(NamedTuple):
    """A confidence sequence as an SVG's points, in a box of `width` by `height`, in which 0 is at `zero`."""

    width: float
    height: float
    zero: float
    band: str
    mean: str


def report_html(path: Path, linked: bool = False) -> str:
    """The page of a store. linked: its style sheet is the server's; else it is written into the page."""
    store = Store(path)
    try:
        votes = read_votes(store)
        comparison = standing(store) if store.handing_out.compare else None
        figures = figures_of(store, votes)
        sides = store.db.execute("SELECT sum(swapped), sum(straight) FROM people").fetchone()
    finally:
        store.close()
    return ENVIRONMENT.get_template("report.html").render(
        name=path.name,
        figures=figures,
        comparison=comparison,
        lines=_lines(comparison) if comparison and comparison.moments else None,
        shown=(sides[1] or 0, sides[0] or 0),
        rule=store.handing_out,
        moment=time.strftime("%Y-%m-%d %H:%M"),
        linked=linked,
    )


def write_report(path: Path, output: Path) -> dict[str, Any]:
    """Write the page of a store into a file; returns its figures, as plain numbers."""
    text = report_html(path)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(output, text)
    store = Store(path)
    try:
        summary: dict[str, Any] = {"report": str(output)}
        figures = figures_of(store, read_votes(store))
        summary |= {"votes": 0} if figures is None else _plain(figures)
        if store.handing_out.compare:
            summary["comparison"] = _decided(standing(store))
        return summary
    finally:
        store.close()


def _decided(comparison: Comparison) -> dict[str, Any]:
    last, decision = (comparison.moments[-1] if comparison.moments else None), comparison.decision
    better = None if decision is None else comparison.new if decision.low > 0 else comparison.old
    return {
        "new": comparison.new,
        "old": comparison.old,
        "planned": comparison.planned,
        "better": better,
        "decided_after": decision.n if decision else None,
        "ended": comparison.ended,
        "gsb": _plain(comparison.gsb) if comparison.gsb else None,
        "sequence": last._asdict() if last else None,
        "rule": comparison.rule,
    }


def _plain(value: Any) -> Any:
    """Records as mappings that JSON holds; figures by criterion where there are several, else alone."""
    if isinstance(value, Interval):
        return value.as_json()
    if hasattr(value, "_asdict"):
        return {name: _plain(item) for name, item in value._asdict().items()}
    if isinstance(value, dict):
        return _plain(value[""]) if set(value) == {""} else {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _lines(comparison: Comparison) -> Lines:
    moments = comparison.moments
    across = max(comparison.planned, len(moments), 2)

    def point(n: int, value: float) -> str:
        return f"{_WIDE * n / across:.1f},{_HIGH * (1 - value) / 2:.1f}"

    upper = [point(moment.n, moment.high) for moment in moments]
    lower = [point(moment.n, moment.low) for moment in reversed(moments)]
    mean = [point(moment.n, moment.mean) for moment in moments]
    return Lines(_WIDE, _HIGH, _HIGH / 2, " ".join(upper + lower), " ".join(mean))
