"""Searches as one page: what each spent, what a held-out judge says of its winners, and the pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from pydantic import BaseModel, TypeAdapter

from rewarddance.errors import InputError
from rewarddance.evaluation.statistics import Interval, interval
from rewarddance.report.charts import COLOURS, draw_svg
from rewarddance.report.pages import write_page
from rewarddance.report.run_folder import read_config, read_picture
from rewarddance.runtime.config import parse_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULTS = "results.jsonl"
MOST_PROMPTS = 24
"""How many prompts are shown with their pictures."""
PALETTE = ("blue", "orange", "ink", "muted")
DASHES = ("-", "--", ":")


class Picture(BaseModel):
    picture: str  # its path from the search's folder
    score: float | None = None  # the judge's, if it was asked


class Row(BaseModel):
    """One prompt of results.jsonl, as far as it is shown."""

    number: int
    prompt: str
    winner: Picture
    first: Picture
    judging: str
    rounds: int
    spent: dict[str, float]  # `search.budget.Spent`
    held_out: float | None = None


@dataclass(frozen=True)
class Search:
    """A search and those of its rows that are compared."""

    folder: Path
    config: dict[str, Any]
    rows: list[Row]

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def mean_spent(self) -> dict[str, float]:
        return {key: float(np.mean([row.spent[key] for row in self.rows])) for key in self.rows[0].spent}

    @property
    def preferred(self) -> Interval | None:
        """The share of prompts whose winner the held-out judge prefers to the first sample, a half where they are the
        same picture; None where no such judge was asked."""
        margins = [row.held_out for row in self.rows if row.held_out is not None]
        return interval((1 + np.sign(margins)) / 2, share=True) if len(margins) == len(self.rows) else None


def is_search(folder: Path) -> bool:
    """Whether `rewarddance search` wrote it."""
    return (folder / RESULTS).is_file() and "method" in read_config(folder)


def write_search_page(folders: Sequence[Path]) -> Path:
    """Write search.html into the first of these searches' folders and return its path; the others are shown beside it.

    Prompts that not all of them have found are left out. Raises InputError naming a folder that holds no search, or one
    for other prompts than the first's.
    """
    by_number = [_read_rows(folder) for folder in folders]
    common = sorted(set.intersection(*map(set, by_number)))
    for folder, rows in zip(folders, by_number, strict=True):
        if not common or any(rows[number].prompt != by_number[0][number].prompt for number in common):
            raise InputError(
                f"{folder} is a search for other prompts than {folders[0]}.", "Give searches for one prompt file."
            )
    searches = [
        Search(folder, read_config(folder), [rows[number] for number in common])
        for folder, rows in zip(folders, by_number, strict=True)
    ]
    return write_page(
        "search.html",
        folders[0] / "search.html",
        searches=searches,
        left_out=max(map(len, by_number)) - len(common),
        chart=_chart(searches),
        most_prompts=MOST_PROMPTS,
        read_picture=lambda folder, picture: read_picture(folder, picture.picture, RESULTS),
    )


def _read_rows(folder: Path) -> dict[int, Row]:
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


def _chart(searches: Sequence[Search]) -> Markup | None:
    """Preferred over the seconds that a prompt took, a line for each method; None for fewer than two points."""
    points: dict[str, list[tuple[float, Interval]]] = {}
    for search in searches:
        if search.preferred is not None:
            points.setdefault(search.config["method"], []).append((search.mean_spent["seconds"], search.preferred))
    if sum(map(len, points.values())) < 2:
        return None
    from matplotlib.ticker import LogLocator, NullLocator

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.set_title("Preferred by the held-out judge, of 100")
        axes.axhline(50, color=COLOURS["muted"], linewidth=1, linestyle=":")
        for i, (method, line) in enumerate(points.items()):
            seconds, figures = zip(*sorted(line, key=lambda point: point[0]), strict=True)
            mean, low, high = 100 * np.array(figures)[:, :3].T
            colour, dash = COLOURS[PALETTE[i % len(PALETTE)]], DASHES[i // len(PALETTE) % len(DASHES)]
            ends = [abs(mean - low), abs(high - mean)]
            axes.errorbar(seconds, mean, ends, None, dash, color=colour, marker="o", markersize=4, label=method)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("seconds a prompt, the judge's included")
        axes.legend(loc="lower right", bbox_to_anchor=(1, 0.99), ncols=3)

    alt = "Preferred by the held-out judge, over seconds a prompt"
    return draw_svg(draw, {"wide": 320, "narrow": 300}, "search", alt)
