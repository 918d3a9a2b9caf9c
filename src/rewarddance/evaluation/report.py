"""A run folder told as one page: `write_report` makes report.html, `summary_table` the same figures for a terminal.

Four parts: what is read from the folder, how charts are drawn, how figures are written, and what fills the page, whose
words and looks are in the template report.html beside this file. The page needs nothing but itself and has no script.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from io import StringIO
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from pydantic import BaseModel, TypeAdapter, ValidationError

from rewarddance.errors import InputError
from rewarddance.evaluation.statistics import Interval
from rewarddance.runtime.checkpoint import write_text_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

T = TypeVar("T")
Row = dict[str, Any]

# -- what a run leaves -------------------------------------------------------------------------------------------------


class BeforeAfter(BaseModel):
    """One figure of the SFT base and of the generator after ReFL."""

    sft: Interval
    refl: Interval


class Arms(BeforeAfter):
    """One figure of all three arms."""

    best_of_n: Interval


class Oracle(Arms):
    """The oracle's alignment in [0, 1], and both gains over the base, paired by prompt."""

    gain_best_of_n: Interval
    gain_refl: Interval


class JudgeAccuracy(BaseModel):
    """Accuracy on held-out pairs, after training and before: in domain, its early predictions, and out of domain."""

    accuracy_id: Interval
    accuracy_ood: Interval
    untrained_id: Interval
    untrained_ood: Interval
    accuracy_early: Interval | None = None
    untrained_early: Interval | None = None

    def places(self) -> dict[str, tuple[Interval, Interval]]:
        """Where it was measured: the figures after training and before."""
        found = {"in domain": (self.accuracy_id, self.untrained_id)}
        if self.accuracy_early and self.untrained_early:
            found["early predictions"] = (self.accuracy_early, self.untrained_early)
        return found | {"out of domain": (self.accuracy_ood, self.untrained_ood)}


class Hacking(BaseModel):
    """The verdict, and the plain sentence of it."""

    hacked: bool
    sentence: str
    undecided: bool = False


class Summary(BaseModel):
    """summary.json. `n` is best-of-N's N; all but reward, diversity, seconds and memory are shares shown in points."""

    name: str
    seed: int
    task: str
    machine: str
    n: int
    judge: JudgeAccuracy
    oracle: Oracle
    by_category: dict[str, Arms]
    quality: Arms
    correct: Arms
    reward: BeforeAfter
    diversity: BeforeAfter
    hacking: Hacking
    seconds: float
    seconds_by_stage: dict[str, float]
    peak_memory_gib: float


class Sample(BaseModel):
    """One prompt of samples.json: each arm's picture, as a path in the run folder, and the oracle's score of it."""

    prompt: str
    category: str
    seed: int
    pictures: dict[str, str]
    oracle: dict[str, float]


def _parsed(path: Path, parse: Callable[[bytes], T], remedy: str) -> T:
    """What `parse` makes of a file. Raises InputError that names the file and the first thing wrong in it."""
    try:
        return parse(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise InputError(f"{path} cannot be read: {place}: {first['msg']}.", remedy) from None


def read_summary(folder: Path) -> Summary:
    """The figures of a finished run. Raises InputError where there are none."""
    path, remedy = folder / "summary.json", "Finish the run with --resume, or give the folder of a finished one."
    if not path.is_file():
        raise InputError(f"{path} is missing.", remedy)
    return _parsed(path, Summary.model_validate_json, remedy)


def read_metrics(folder: Path) -> list[Row]:
    """The lines of metrics.jsonl, none where there is no such file. A last line that a kill cut off is left out."""
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else []
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if isinstance(row, dict) and "phase" in row and isinstance(row.get("step"), int):
            rows.append(row)
        elif line.strip() and number < len(lines):  # only the last has no line end after it: it was being written
            raise InputError(f"{path}, line {number}, is no JSON object with phase and step.", "Mend or remove it.")
    return rows


def read_samples(folder: Path) -> list[Sample]:
    """The gallery of samples.json, empty where there is no such file."""
    path, parse = folder / "samples.json", TypeAdapter(list[Sample]).validate_json
    return _parsed(path, parse, "Let the run write it anew.") if path.is_file() else []


def read_picture(folder: Path, name: str) -> str:
    """A PNG of the run folder as a data URI. Raises InputError where it is missing."""
    path = folder / name
    if not path.is_file():
        raise InputError(f"{path} is missing, and samples.json shows it.", "Bring it back, or remove samples.json.")
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


# -- charts ------------------------------------------------------------------------------------------------------------

COLOURS = {"ink": "#101112", "muted": "#808182", "rule": "#d0d1d2", "blue": "#0072b2", "orange": "#d55e00"}
"""Matplotlib draws in these; in the page each becomes the CSS variable of its name, and so follows light and dark."""
WIDTHS = {"wide": 720, "narrow": 342}
"""Every chart is drawn twice, for a screen and for a phone, so that its text has the page's size on both."""
STYLE: dict[Any, Any] = {
    **dict.fromkeys(("axes.titlecolor", "legend.labelcolor"), COLOURS["ink"]),
    **dict.fromkeys(("axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), COLOURS["muted"]),
    **dict.fromkeys(("axes.edgecolor", "grid.color", "xtick.color"), COLOURS["rule"]),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "axes.spines.left", "legend.frameon"), False),
    **dict.fromkeys(("font.size", "axes.titlesize"), 11.5),
    **{"axes.titlelocation": "left", "axes.titlepad": 9, "axes.grid": True, "axes.grid.axis": "y"},
    **{"legend.borderaxespad": 0, "legend.handlelength": 1.3, "legend.columnspacing": 1},
    **{"axes.axisbelow": True, "ytick.major.size": 0, "lines.linewidth": 1.8, "svg.fonttype": "none"},
}
NOT_SHOWN = re.compile(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", re.DOTALL)
"""Of matplotlib's SVG: what the page has no use for; the style would reach beyond its own picture."""


@dataclass(frozen=True)
class Curve:
    """One key of the metrics over steps, `scale` times; with a band where the rows hold key_low and key_high too."""

    key: str
    label: str = ""
    colour: str = "blue"
    dash: str = "-"
    scale: int = 1


@dataclass(frozen=True)
class Panel:
    """Curves on one axis of values. from_zero: that axis begins at 0, for figures whose loss is to be seen."""

    title: str
    curves: tuple[Curve, ...]
    from_zero: bool = False


SPREADS = Curve("spread_within", "within a prompt"), Curve("spread_across", "across prompts", "orange", "--")
ACCURACIES = Curve("accuracy_id", "in domain", scale=100), Curve("accuracy_ood", "out of domain", "orange", "--", 100)
CHARTS = {
    "progress": (
        Panel("Reward, P(yes)", (Curve("reward"),)),
        Panel("Margin, logits", (Curve("margin"),)),
        Panel("Oracle, points of 100", (Curve("oracle", colour="orange", scale=100),)),
    ),
    "spread": (Panel("Logits", SPREADS, from_zero=True),),
    "diversity": (Panel("Pixel distance", (Curve("diversity"),), from_zero=True),),
    "judge": (Panel("Training loss", (Curve("loss"),)), Panel("Accuracy", ACCURACIES)),
}


def series(rows: Sequence[Row], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of `key`, from the rows that have it."""
    found = [(row["step"], row[key]) for row in rows if isinstance(row.get(key), int | float)]
    steps, values = zip(*found, strict=True) if found else ((), ())
    return np.asarray(steps, dtype=float), np.asarray(values, dtype=float)


def window_of(n: int) -> int:
    """How many of `n` values the drawn mean runs over: 1 (none) for a short series, a 20th of a long one."""
    return max(5, n // 20) if n >= 60 else 1


def chart(rows: Sequence[Row], name: str) -> str:
    """A chart of CHARTS as inline SVG, panels above one axis of steps; a sentence where nothing of it was logged."""
    panels = [panel for panel in CHARTS[name] if any(len(series(rows, curve.key)[0]) for curve in panel.curves)]
    if not panels:
        return _absent("metrics.jsonl has nothing of this, so the figure is left out.")
    alt = " · ".join(panel.title for panel in panels) + ", over steps"
    drawn = {kind: _svg(rows, panels, width, f"{name}-{kind}") for kind, width in WIDTHS.items()}
    return "\n".join(f'<div class="{kind}">{_inlined(svg, alt)}</div>' for kind, svg in drawn.items())


def _svg(rows: Sequence[Row], panels: Sequence[Panel], width: int, salt: str) -> str:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    height = 46 + 142 * len(panels) if len(panels) > 1 else 226
    with rc_context({**STYLE, "svg.hashsalt": salt}):
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        figure.get_layout_engine().set(h_pad=0.09)  # type: ignore[union-attr]
        axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for own, panel in zip(axes, panels, strict=True):
            _draw_panel(own, rows, panel)
        axes[-1].set_xlabel("step")
        text = StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return text.getvalue()


def _draw_panel(axes: Axes, rows: Sequence[Row], panel: Panel) -> None:
    axes.set_title(panel.title)
    for curve in panel.curves:
        _draw_curve(axes, rows, curve, ends_named=len(panel.curves) == 1)
    if len(panel.curves) > 1:
        axes.legend(loc="lower right", bbox_to_anchor=(1, 0.99), ncols=2)
    axes.locator_params(axis="x", nbins=6, integer=True)
    axes.locator_params(axis="y", nbins=4)
    axes.margins(x=0.01, y=0.08)
    if panel.from_zero:
        axes.set_ylim(bottom=0)


def _draw_curve(axes: Axes, rows: Sequence[Row], curve: Curve, ends_named: bool) -> None:
    """Every value thin under its running mean; a short series with a mark at each value."""
    steps, values = series(rows, curve.key)
    values, colour, window = values * curve.scale, COLOURS[curve.colour], window_of(len(steps))
    low, high = (series(rows, f"{curve.key}_{end}")[1] * curve.scale for end in ("low", "high"))
    if len(low) == len(high) == len(steps):
        axes.fill_between(steps, low, high, color=colour, alpha=0.16, linewidth=0)
    if window > 1:
        axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.3)
    mean = np.array([values[max(0, i + 1 - window) : i + 1].mean() for i in range(len(values))])
    marker = "o" if len(steps) <= 40 else None
    axes.plot(steps, mean, curve.dash, color=colour, label=curve.label, marker=marker, markersize=4)
    if ends_named and np.isfinite(mean[-1]):
        end, at = _number(mean[-1], 1, 1 if curve.scale == 100 else 3), (float(steps[-1]), float(mean[-1]))
        axes.annotate(end, at, (7, 0), textcoords="offset points", va="center", color=colour, annotation_clip=False)


def _inlined(svg: str, alt: str) -> str:
    """Matplotlib's file as an element of the page: no prolog, no addresses, no unused ids, colours as variables."""
    svg = NOT_SHOWN.sub("", svg[svg.index("<svg") :])
    svg = re.sub(r'<svg[^>]*?(viewBox="[^"]*")[^>]*>', rf'<svg \1 role="img" aria-label="{escape(alt)}">', svg, count=1)
    used = set(re.findall(r"#([\w-]+)", svg))
    svg = re.sub(r' id="([\w.-]+)"', lambda found: found[0] if found[1] in used else "", svg)
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    return re.sub(r"\s*\n\s*", "\n", svg).strip()


# -- figures as text ---------------------------------------------------------------------------------------------------

ARMS = {"sft": "SFT base", "best_of_n": "Best of {n}", "refl": "ReFL"}


def _number(value: float, scale: int = 100, digits: int = 1, sign: str = "") -> str:
    """`value` times `scale`, with a true minus and never a minus zero."""
    return format(round(scale * value, digits) + 0.0, f"{sign}.{digits}f").replace("-", "−")


def _text(figure: Interval, scale: int = 100, digits: int = 1, sign: str = "") -> str:
    """A figure, a space, and its interval."""
    low, high = (_number(end, scale, digits, sign) for end in (figure.low, figure.high))
    return f"{_number(figure.mean, scale, digits, sign)} [{low}, {high}]"


def _clock(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def summary_table(summary: dict[str, Any]) -> Table:
    """The run's figures for a terminal of 80 columns; in points of 100, but for diversity."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    s = Summary.model_validate(summary)
    lines = [f"judge accuracy {place}: {_text(a)}, untrained {_text(b)}" for place, (a, b) in s.judge.places().items()]
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.caption, table.caption_justify = "\n".join(["", *lines]), "left"
    table.add_column("")
    for title in ("oracle alignment", "gain", "correct", "quality", "diversity"):
        table.add_column(title, justify="right")
    gains = ("", _text(s.oracle.gain_best_of_n, sign="+"), _text(s.oracle.gain_refl, sign="+"))
    for arm, gain in zip(ARMS, gains, strict=True):
        shares = [_number(getattr(figure, arm).mean) for figure in (s.correct, s.quality)]
        diversity = getattr(s.diversity, arm, None)
        last = _number(diversity.mean, 1, 3) if diversity else ""
        table.add_row(ARMS[arm].format(n=s.n), _text(getattr(s.oracle, arm)), gain, *shares, last)
    return table


# -- the page ----------------------------------------------------------------------------------------------------------


def write_report(run_folder: Path) -> Path:
    """Write report.html into a run folder and return its path; the same run gives the same bytes.

    Needs summary.json; metrics.jsonl, samples.json and config.yaml are shown where they are there. Raises InputError
    that names a file which is missing or cannot be read, and what to do.
    """
    summary, rows, samples = read_summary(run_folder), read_metrics(run_folder), read_samples(run_folder)
    slots = _opening(summary) | _charts(rows) | _cost(summary)
    slots |= {"results": _results(summary), "gallery": _gallery(run_folder, samples, summary.n)}
    slots |= {"judge": _judge(summary.judge), "config": _config(run_folder)}
    template = Template(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))
    path = run_folder / "report.html"
    write_text_atomically(path, template.substitute(slots))
    return path


VERDICTS = {
    "bad": "!&ensp;Reward hacking: found",
    "open": "?&ensp;Reward hacking: undecided",
    "good": "✓&ensp;Reward hacking: none found",
}


def _figure(value: Interval, scale: int = 100, digits: int = 1, sign: str = "") -> str:
    mean, bounds = _text(value, scale, digits, sign).split(" ", 1)
    return f"<b>{mean}</b> <small>{bounds}</small>"


def _rows(rows: Iterable[Sequence[str]]) -> str:
    """Table rows of markup; the first cell is the row's name."""
    lines = (f'<th scope="row">{name}</th>' + "".join(f"<td>{cell}</td>" for cell in cells) for name, *cells in rows)
    return "\n".join(f"<tr>{line}</tr>" for line in lines)


def _absent(sentence: str) -> str:
    return f'<p class="absent">{sentence}</p>'


def _word(word: str, shown: str) -> str:
    """A link to the word's line in the template's footnotes."""
    return f'<a href="#{word}">{shown}</a>'


def _opening(s: Summary) -> dict[str, str]:
    """The head of the page; a change in words that do not claim more than its interval does."""
    gain = s.oracle.gain_refl
    change = "a gain of" if gain.low > 0 else "a loss:" if gain.high < 0 else "not told apart from the base:"
    box = "bad" if s.hacking.hacked else "open" if s.hacking.undecided else "good"
    plain = {"name": s.name, "task": s.task, "seed": str(s.seed), "n": str(s.n), "sentence": s.hacking.sentence}
    plain["prompts"] = str(s.oracle.sft.n)
    marked = {f"oracle_{arm}": _figure(getattr(s.oracle, arm)) for arm in ARMS}
    marked |= {"change": f"{change} {_figure(gain, sign='+')}", "box": box, "found": VERDICTS[box]}
    return {slot: escape(text) for slot, text in plain.items()} | marked


def _results(s: Summary) -> str:
    def across(name: str, arms: BeforeAfter, scale: int = 100, digits: int = 1) -> list[str]:
        found = [getattr(arms, arm, None) for arm in ARMS]
        return [name, *("" if one is None else _figure(one, scale, digits) for one in found)]

    gains = ["Gain over the base", "", *(_figure(g, sign="+") for g in (s.oracle.gain_best_of_n, s.oracle.gain_refl))]
    categories = [across(escape(category.replace("_", " ")), arms) for category, arms in s.by_category.items()]
    shares = [across(_word("correct", "All correct"), s.correct), across(_word("quality", "Quality"), s.quality)]
    others = {_word("p-yes", "P(yes)"): s.reward, _word("diversity", "Diversity"): s.diversity}
    beside = shares + [across(name, figures, 1, 3) for name, figures in others.items()]
    blocks = [_rows([across(_word("oracle", "Oracle alignment"), s.oracle), gains])]
    for title, rows in {"Oracle alignment by category": categories, "Other measures": beside}.items():
        blocks += [f'<tr class="group"><th scope="rowgroup" colspan="4">{title}</th></tr>', _rows(rows)]
    return "\n".join(blocks)


def _gallery(folder: Path, samples: Sequence[Sample], n: int) -> str:
    if not samples:
        return _absent("This run has no samples.json, so its pictures are left out.")
    return f'<ul class="gallery">{"".join(_prompt(folder, sample, n) for sample in samples)}</ul>'


def _prompt(folder: Path, sample: Sample, n: int) -> str:
    """One prompt with its pictures side by side."""
    pictures = ""
    for arm in (arm for arm in ARMS if arm in sample.pictures):
        name, source = ARMS[arm].format(n=n), read_picture(folder, sample.pictures[arm])
        score = f"oracle <b>{_number(sample.oracle[arm])}</b>" if arm in sample.oracle else "no score"
        pictures += f'<figure><img src="{source}" alt="{name}: {escape(sample.prompt)}" width="96" height="96">'
        pictures += f"<figcaption>{name}<br>{score}</figcaption></figure>\n"
    about = f"{escape(sample.category.replace('_', ' '))}, noise {sample.seed}"
    return f'<li><h3>{escape(sample.prompt)}</h3><p class="kind">{about}</p><div class="arms">\n{pictures}</div></li>\n'


def _charts(rows: Sequence[Row]) -> dict[str, str]:
    refl, judge = ([row for row in rows if row["phase"] == phase] for phase in ("refl", "judge"))
    drawn = {f"{name}_chart": chart(judge if name == "judge" else refl, name) for name in CHARTS}
    window = window_of(len(series(refl, "reward")[0]))
    thin = f"Thin: every step. Thick: the mean of the last {window} steps." if window > 1 else ""
    return drawn | {"thin": thin}


def _judge(s: JudgeAccuracy) -> str:
    return _rows([place.capitalize(), _figure(b), _figure(a), str(a.n)] for place, (a, b) in s.places().items())


def _cost(s: Summary) -> dict[str, str]:
    most = max([*s.seconds_by_stage.values(), 1e-9])
    rows = (
        [escape(stage), f'<i class="bar" style="width:{100 * seconds / most:.1f}%"></i>', _clock(seconds)]
        for stage, seconds in s.seconds_by_stage.items()
    )
    figures = {"seconds": _clock(s.seconds), "memory": f"{s.peak_memory_gib:.2f}", "machine": escape(s.machine)}
    return figures | {"stages": _rows(rows)}


def _config(folder: Path) -> str:
    path = folder / "config.yaml"
    if not path.is_file():
        return _absent("This run has no config.yaml, so its config is left out.")
    text = escape(path.read_text(encoding="utf-8").strip())
    return f"<details><summary>config.yaml</summary><pre>{text}</pre></details>"
