"""Searches told as one page: what each spent, what a held-out judge says of its winners, and the pictures."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import yaml
from pydantic import BaseModel, TypeAdapter

from rewarddance.errors import InputError
from rewarddance.evaluation.statistics import Interval, interval
from rewarddance.report.charts import COLOURS, drawn
from rewarddance.report.formatting import absent, figure, filled, number
from rewarddance.report.run_folder import read_picture
from rewarddance.runtime.checkpoint import write_text_atomically
from rewarddance.runtime.config import parse_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILE, RESULTS, CONFIG = "search.html", "results.jsonl", "config.yaml"
MOST_PROMPTS = 24
"""How many prompts are shown with their pictures."""
PALETTE = ("blue", "orange", "ink", "muted")
DASHES = ("-", "--", ":")


class Picture(BaseModel):
    """Where it is, from the search's folder, and what the judge said of it, if it was asked."""

    picture: str
    score: float | None = None


class Cost(BaseModel):
    """What one prompt took (`search.budget.Spent`)."""

    evaluations: float
    questions: float
    seconds: float
    generator_seconds: float
    judge_seconds: float


class Row(BaseModel):
    """One prompt of results.jsonl, as far as it is shown."""

    number: int
    prompt: str
    winner: Picture
    first: Picture
    judging: str
    rounds: int
    spent: Cost
    held_out: float | None = None


class Told(NamedTuple):
    """A search as the page tells it. preferred: the share of prompts whose winner the held-out judge prefers to the
    first sample, a half where it is the same picture; None where no such judge was asked."""

    name: str
    folder: Path
    config: dict[str, Any]
    rows: list[Row]
    seconds: float
    preferred: Interval | None


def is_search(folder: Path) -> bool:
    """Whether `rewarddance search` wrote it."""
    return (folder / RESULTS).is_file() and "method" in _config(folder)


def write_search_page(folders: Sequence[Path]) -> Path:
    """Write search.html into the first of these searches' folders and return its path; the others are shown beside it.

    Prompts that not all of them have found are left out. Raises InputError naming a folder that holds no search, or one
    for other prompts than the first's.
    """
    found = [(folder, _rows(folder)) for folder in folders]
    (lead, asked), *_ = found
    common = set.intersection(*(set(rows) for _, rows in found))
    for folder, rows in found:
        if not common or any(rows[number].prompt != asked[number].prompt for number in common):
            raise InputError(
                f"{folder} is a search for other prompts than {lead}.", "Give searches for one prompt file."
            )
    searches = [_told(folder, [rows[number] for number in sorted(common)]) for folder, rows in found]
    first, *others = searches
    most = max(len(rows) for _, rows in found)
    several = [
        f"<li><b>{escape(one.name)}</b>: generator {escape(str(one.config.get('generator')))}, judge "
        f"{escape(str(one.config.get('judge')))}, {escape(one.rows[0].judging)}; {escape(_options(one.config))}</li>"
        for one in searches
    ]
    slots = {
        "name": escape(first.name) + (f" and {len(others)} more" if others else ""),
        "prompts": str(len(common)),
        "left_out": f" {most - len(common)} that not all of them have are left out." if most > len(common) else "",
        "held_out_said": _held_out_said(searches),
        "rows": "\n".join(map(_line, searches)),
        "chart": _chart(searches),
        "gallery": "".join(_prompt(searches, place) for place in range(min(MOST_PROMPTS, len(common)))),
        "about": "\n".join(several),
    }
    path = first.folder / FILE
    write_text_atomically(path, filled("search.html", slots))
    return path


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    found = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    return found if isinstance(found, dict) else {}


def _rows(folder: Path) -> dict[int, Row]:
    """A search's rows by the numbers of their prompts."""
    if not is_search(folder):
        raise InputError(f"{folder} holds no search.", "Give folders that `rewarddance search` wrote.")
    path = folder / RESULTS

    def parse(content: bytes) -> list[Row]:
        return TypeAdapter(list[Row]).validate_json(b"[" + b",".join(content.splitlines()) + b"]")

    rows = parse_file(path, parse, "Let the search write it anew.")
    if not rows:
        raise InputError(f"{path} has no rows.", "Finish the search; results.jsonl.failed.jsonl says what failed.")
    return {row.number: row for row in rows}


def _told(folder: Path, rows: list[Row]) -> Told:
    wins = [0.5 * (1 + np.sign(row.held_out)) for row in rows if row.held_out is not None]
    seconds = float(np.mean([row.spent.seconds for row in rows]))
    preferred = interval(wins) if len(wins) == len(rows) else None
    return Told(folder.resolve().name, folder, _config(folder), rows, seconds, preferred)


def _options(config: dict[str, Any]) -> str:
    told = ", ".join(f"{key}={value}" for key, value in (config.get("options") or {}).items() if value is not None)
    return f"{config['method']} with {told}" if told else str(config["method"])


def _budget(config: dict[str, Any]) -> str:
    limits = config.get("budget") or {}
    return ", ".join(f"{name}={value}" for name, value in limits.items() if value is not None)


def _held_out_said(searches: Sequence[Told]) -> str:
    if all(one.preferred is None for one in searches):
        return (
            "No held-out judge was asked, so nothing here says whether the winners are better than the judge that "
            "chose them believes; rewarddance search --held-out asks one."
        )
    return (
        "Preferred: in how many of 100 prompts the held-out judge, which chose nothing, prefers the winner to the "
        "first plain sample; 50 where they are the same picture. In brackets 95 % intervals over prompts."
    )


def _line(one: Told) -> str:
    mean = {key: float(np.mean([getattr(row.spent, key) for row in one.rows])) for key in Cost.model_fields}
    plain = sum(row.rounds == 0 for row in one.rows)
    method = escape(one.config["method"]) + (f" <small>plain samples only: {plain}</small>" if plain else "")
    share = mean["judge_seconds"] / max(mean["seconds"], 1e-9)
    cells = [
        method,
        escape(_budget(one.config)),
        number(one.seconds, 1, 2),
        number(share, digits=0),
        number(mean["evaluations"], 1, 0),
        number(mean["questions"], 1, 0),
        "" if one.preferred is None else figure(one.preferred),
    ]
    return f'<tr><th scope="row">{escape(one.name)}</th>' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _chart(searches: Sequence[Told]) -> str:
    """Preferred over the seconds that a prompt took, a line for each method; a sentence where there is nothing."""
    shown = [one for one in searches if one.preferred is not None]
    if len(shown) < 2:
        return absent("Of several searches that asked a held-out judge there is a figure here, over seconds a prompt.")
    from matplotlib.ticker import LogLocator, NullLocator

    methods = list(dict.fromkeys(one.config["method"] for one in shown))

    def draw(own: Figure) -> None:
        axes = own.subplots()
        axes.set_title("Preferred by the held-out judge, of 100")
        axes.axhline(50, color=COLOURS["muted"], linewidth=1, linestyle=":")
        for place, method in enumerate(methods):
            line = sorted((one for one in shown if one.config["method"] == method), key=lambda one: one.seconds)
            figures = [one.preferred for one in line if one.preferred is not None]
            mean = [100 * each.mean for each in figures]
            low, high = ([100 * abs(each.mean - each[end]) for each in figures] for end in (1, 2))
            colour, dash = COLOURS[PALETTE[place % len(PALETTE)]], DASHES[place // len(PALETTE) % len(DASHES)]
            seconds = [one.seconds for one in line]
            axes.errorbar(seconds, mean, [low, high], None, dash, color=colour, marker="o", markersize=4, label=method)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("seconds a prompt, the judge's included")
        axes.legend(loc="lower right", bbox_to_anchor=(1, 0.99), ncols=3)

    return drawn(draw, {"wide": 320, "narrow": 300}, "search", "Preferred by the held-out judge, over seconds a prompt")


def _prompt(searches: Sequence[Told], place: int) -> str:
    """One prompt: its first plain sample, and each search's winner."""
    row = searches[0].rows[place]
    shown = [_shown(searches[0].folder, row.first, "first sample", row.prompt, "")]
    for one in searches:
        own = one.rows[place]
        said = "" if own.held_out is None else f"<br>held out {number(own.held_out, 1, 2, '+')}"
        name = "winner" if len(searches) == 1 else one.name
        shown.append(_shown(one.folder, own.winner, name, own.prompt, said))
    return f'<li><h3>{escape(row.prompt)}</h3><div class="arms">\n{"".join(shown)}</div></li>\n'


def _shown(folder: Path, one: Picture, name: str, prompt: str, said: str) -> str:
    score = "" if one.score is None else f"<br>score <b>{number(one.score, 1, 2)}</b>"
    alt = f"{escape(name)}: {escape(prompt)}"
    picture = f'<img src="{read_picture(folder, one.picture, RESULTS)}" alt="{alt}" width="96">'
    return f"<figure>{picture}<figcaption>{escape(name)}{score}{said}</figcaption></figure>\n"
