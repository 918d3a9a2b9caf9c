"""A run folder told as one page: `write_report` makes report.html, `summary_table` the same figures for a terminal.

The page's words and looks are in the template report.html beside this file and in page.css. It needs nothing but itself
and has no script.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewarddance.report.charts import CHARTS, chart, series, window_of
from rewarddance.report.formatting import absent, clock, figure, figure_text, filled, footnote, number, table_rows
from rewarddance.report.hacking_page import hacking_slots
from rewarddance.report.run_folder import (
    BeforeAfter,
    GsbFigure,
    JudgeAccuracy,
    Row,
    Sample,
    Summary,
    read_metrics,
    read_picture,
    read_samples,
    read_summary,
)
from rewarddance.runtime.checkpoint import write_text_atomically

if TYPE_CHECKING:
    from rich.table import Table

ARMS = {"sft": "SFT base", "best_of_n": "Best of {n}", "refl": "ReFL"}


def summary_table(summary: dict[str, Any]) -> Table:
    """The run's figures for a terminal of 80 columns; in points of 100, but for diversity."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    s = Summary.model_validate(summary)
    lines = [
        f"judge accuracy {place}: {figure_text(a)}, untrained {figure_text(b)}"
        for place, (a, b) in s.judge.places().items()
    ]
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    if s.gsb is not None:
        counts = f"{s.gsb.good} good, {s.gsb.same} same, {s.gsb.bad} bad"
        lines.append(f"ReFL against the base: GSB {figure_text(s.gsb.gsb, sign='+')} ({counts})")
    table.caption, table.caption_justify = "\n".join(["", *lines]), "left"
    table.add_column("")
    for title in ("oracle alignment", "gain", "correct", "quality", "diversity"):
        table.add_column(title, justify="right")
    gains = ("", figure_text(s.oracle.gain_best_of_n, sign="+"), figure_text(s.oracle.gain_refl, sign="+"))
    for arm, gain in zip(ARMS, gains, strict=True):
        shares = [number(getattr(figure, arm).mean) for figure in (s.correct, s.quality)]
        diversity = getattr(s.diversity, arm, None)
        last = number(diversity.mean, 1, 3) if diversity else ""
        table.add_row(ARMS[arm].format(n=s.n), figure_text(getattr(s.oracle, arm)), gain, *shares, last)
    return table


def write_report(run_folder: Path) -> Path:
    """Write report.html into a run folder and return its path; the same run gives the same bytes.

    Needs summary.json; metrics.jsonl, samples.json and config.yaml are shown where they are there. Raises InputError
    that names a file which is missing or cannot be read, and what to do.
    """
    summary, rows, samples = read_summary(run_folder), read_metrics(run_folder), read_samples(run_folder)
    slots = _opening(summary) | _charts(rows) | _cost(summary)
    slots |= {"results": _results(summary), "gallery": _gallery(run_folder, samples, summary.n)}
    slots |= hacking_slots(run_folder)
    slots |= {"judge": _judge(summary.judge), "config": _config(run_folder)}
    path = run_folder / "report.html"
    write_text_atomically(path, filled("run.html", slots))
    return path


VERDICTS = {
    "bad": "!&ensp;Reward hacking: found",
    "open": "?&ensp;Reward hacking: undecided",
    "good": "✓&ensp;Reward hacking: none found",
}


def _opening(s: Summary) -> dict[str, str]:
    """The head of the page; a change in words that do not claim more than its interval does."""
    gain = s.oracle.gain_refl
    change = "a gain of" if gain.low > 0 else "a loss:" if gain.high < 0 else "not told apart from the base:"
    box = "bad" if s.hacking.hacked else "open" if s.hacking.undecided else "good"
    plain = {"name": s.name, "task": s.task, "seed": str(s.seed), "n": str(s.n), "sentence": s.hacking.sentence}
    plain["prompts"] = str(s.oracle.sft.n)
    marked = {f"oracle_{arm}": figure(getattr(s.oracle, arm)) for arm in ARMS}
    marked |= {"change": f"{change} {figure(gain, sign='+')}", "box": box, "found": VERDICTS[box]}
    return {slot: escape(text) for slot, text in plain.items()} | marked


def _results(s: Summary) -> str:
    def across(name: str, arms: BeforeAfter, scale: int = 100, digits: int = 1) -> list[str]:
        found = [getattr(arms, arm, None) for arm in ARMS]
        return [name, *("" if one is None else figure(one, scale, digits) for one in found)]

    gains = ["Gain over the base", "", *(figure(g, sign="+") for g in (s.oracle.gain_best_of_n, s.oracle.gain_refl))]
    categories = [across(escape(category.replace("_", " ")), arms) for category, arms in s.by_category.items()]
    shares = [across(footnote("correct", "All correct"), s.correct), across(footnote("quality", "Quality"), s.quality)]
    others = {footnote("p-yes", "P(yes)"): s.reward, footnote("diversity", "Diversity"): s.diversity}
    beside = shares + [across(name, figures, 1, 3) for name, figures in others.items()]
    blocks = [table_rows([across(footnote("oracle", "Oracle alignment"), s.oracle), gains])]
    groups = {"Oracle alignment by category": categories, "Other measures": beside}
    if s.gsb is not None:
        of_all = ["All", "", "", _gsb(s.gsb)]
        kinds = [[escape(kind.replace("_", " ")), "", "", _gsb(one)] for kind, one in s.gsb.by_category.items()]
        groups[footnote("gsb", "Good, same, bad") + " against the base"] = [of_all, *kinds]
    for title, rows in groups.items():
        blocks += [f'<tr class="group"><th scope="rowgroup" colspan="4">{title}</th></tr>', table_rows(rows)]
    return "\n".join(blocks)


def _gsb(one: GsbFigure) -> str:
    return f"{figure(one.gsb, sign='+')} ({one.good}, {one.same}, {one.bad})"


def _gallery(folder: Path, samples: Sequence[Sample], n: int) -> str:
    if not samples:
        return absent("This run has no samples.json, so its pictures are left out.")
    return f'<ul class="gallery">{"".join(_prompt(folder, sample, n) for sample in samples)}</ul>'


def _prompt(folder: Path, sample: Sample, n: int) -> str:
    """One prompt with its pictures side by side."""
    pictures = ""
    for arm in (arm for arm in ARMS if arm in sample.pictures):
        name, source = ARMS[arm].format(n=n), read_picture(folder, sample.pictures[arm])
        score = f"oracle <b>{number(sample.oracle[arm])}</b>" if arm in sample.oracle else "no score"
        pictures += f'<figure><img src="{source}" alt="{name}: {escape(sample.prompt)}" width="96" height="96">'
        pictures += f"<figcaption>{name}<br>{score}</figcaption></figure>\n"
    about = f"{escape(sample.category.replace('_', ' '))}, noise {sample.seed}"
    return f'<li><h3>{escape(sample.prompt)}</h3><p class="kind">{about}</p><div class="arms">\n{pictures}</div></li>\n'


def _charts(rows: Sequence[Row]) -> dict[str, str]:
    refl, judge = ([row for row in rows if row["phase"] == phase] for phase in ("refl", "judge"))
    drawn = {f"{name}_chart": chart(judge if name == "judge" else refl, name) for name in CHARTS if name != "hacking"}
    window = window_of(len(series(refl, "reward")[0]))
    thin = f"Thin: every step. Thick: the mean of the last {window} steps." if window > 1 else ""
    return drawn | {"thin": thin}


def _judge(s: JudgeAccuracy) -> str:
    return table_rows([place.capitalize(), figure(b), figure(a), str(a.n)] for place, (a, b) in s.places().items())


def _cost(s: Summary) -> dict[str, str]:
    most = max([*s.seconds_by_stage.values(), 1e-9])
    rows = (
        [escape(stage), f'<i class="bar" style="width:{100 * seconds / most:.1f}%"></i>', clock(seconds)]
        for stage, seconds in s.seconds_by_stage.items()
    )
    figures = {"seconds": clock(s.seconds), "memory": f"{s.peak_memory_gib:.2f}", "machine": escape(s.machine)}
    return figures | {"stages": table_rows(rows)}


def _config(folder: Path) -> str:
    path = folder / "config.yaml"
    if not path.is_file():
        return absent("This run has no config.yaml, so its config is left out.")
    text = escape(path.read_text(encoding="utf-8").strip())
    return f"<details><summary>config.yaml</summary><pre>{text}</pre></details>"
