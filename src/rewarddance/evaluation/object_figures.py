"""The figures of a benchmark from its pictures' rows: overall and by category, with intervals over prompts and seeds.

An interval over prompts draws whole prompts with all of their pictures. One over seeds has the figure of each seed as
its values: the n-th pictures of all prompts are one seed's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from rewarddance.data.recipe import Benchmark
from rewarddance.evaluation.statistics import Interval, by_category, interval, interval_of_sums, numbered

Figures = dict[str, dict[str, Interval]]
"""A table's name -> its rows' names -> figures, shares of 1."""
Row = Mapping[str, Any]


def benchmark_figures(name: Benchmark, rows: Sequence[Row]) -> Figures:
    """All figures of a benchmark's rows. Raises ValueError for no rows."""
    if not rows:
        raise ValueError("a benchmark needs the row of at least one picture")
    return {"geneval": geneval_figures, "geneval2": geneval2_figures, "tifa": tifa_figures}[name](rows)


def geneval_figures(rows: Sequence[Row]) -> Figures:
    """GenEval's: the share of correct pictures by tag, and the mean of the tags' shares.

    prompts: the share of prompts of which any picture is correct.
    """
    correct, prompts = _values(rows, "correct"), numbered([row["number"] for row in rows])
    tags = [row["tag"] for row in rows]
    any_correct = np.array([correct[prompts == number].max() for number in range(prompts.max() + 1)])
    overall = {
        "overall, mean of the categories": mean_of_categories(correct, tags, prompts),
        "correct pictures": interval(correct, units=prompts, share=True),
        "prompts with a correct picture": interval(any_correct, share=True),
    }
    over_seeds = _over_seeds(
        rows, lambda chosen: mean_of_categories(correct[chosen], [tags[i] for i in chosen], prompts[chosen]).mean
    )
    if over_seeds:
        overall["overall, over seeds"] = over_seeds
    return {"all": overall, "category": by_category(correct, tags, prompts, share=True)}


def geneval2_figures(rows: Sequence[Row]) -> Figures:
    """GenEval 2's: the means of Soft-TIFA AM and GM, the atoms of AM by skill, and GM by the number of atoms."""
    prompts = numbered([row["number"] for row in rows])
    am, gm = _values(rows, "am"), _values(rows, "gm")
    overall = {
        "Soft-TIFA AM": interval(am, units=prompts, share=True),
        "Soft-TIFA GM": interval(gm, units=prompts, share=True),
    }
    if over_seeds := _over_seeds(rows, lambda chosen: float(gm[chosen].mean())):
        overall["Soft-TIFA GM, over seeds"] = over_seeds
    return {
        "all": overall,
        "skill (AM)": _of_parts(rows, "skills", "probabilities"),
        "atoms (GM)": by_category(*_sorted(gm, [row["atom_count"] for row in rows], prompts), share=True),
    }


def tifa_figures(rows: Sequence[Row]) -> Figures:
    """TIFA's: the mean of the pictures' shares of right answers, and the share of right answers by element type."""
    score, prompts = _values(rows, "score"), numbered([row["number"] for row in rows])
    overall = {"TIFA": interval(score, units=prompts, share=True)}
    if over_seeds := _over_seeds(rows, lambda chosen: float(score[chosen].mean())):
        overall["TIFA, over seeds"] = over_seeds
    return {"all": overall, "element type": _of_parts(rows, "element_types", "correct")}


def mean_of_categories(
    values: Sequence[float] | np.ndarray, categories: Sequence[str], units: Sequence[int] | np.ndarray
) -> Interval:
    """The mean of the categories' means, with its interval over units (prompts), of which each is of one category."""
    array, names = np.asarray(values, dtype=np.float64), np.asarray(categories)
    members = np.stack([names == name for name in dict.fromkeys(categories)], 1).astype(np.float64)
    k = members.shape[1]

    def figure(sums: np.ndarray) -> np.ndarray:
        total, count = sums[:, :k], sums[:, k:]
        means = np.divide(total, count, out=np.zeros_like(total), where=count > 0)
        return means.sum(1) / (count > 0).sum(1)  # a draw may hold no prompt of a small category

    return interval_of_sums(np.concatenate([members * array[:, None], members], 1), figure, units).cut(0.0, 1.0)


def _values(rows: Iterable[Row], key: str) -> np.ndarray:
    return np.array([float(row[key]) for row in rows])


def _of_parts(rows: Sequence[Row], names: str, values: str) -> dict[str, Interval]:
    """Figures by name of what each row has several of, with intervals over prompts."""
    parts = [
        (float(value), name, row["number"]) for row in rows for name, value in zip(row[names], row[values], strict=True)
    ]
    numbers, categories, prompts = zip(*parts, strict=True)
    return by_category(*_sorted(np.array(numbers), categories, numbered(prompts)), share=True)


def _sorted(
    values: np.ndarray, categories: Sequence[Any], units: np.ndarray
) -> tuple[np.ndarray, list[str], np.ndarray]:
    """The same with its categories in order, as texts."""
    order = sorted(range(len(values)), key=lambda place: categories[place])
    return values[order], [str(categories[place]) for place in order], units[order]


def _over_seeds(rows: Sequence[Row], figure: Callable[[np.ndarray], float]) -> Interval | None:
    """The interval of the figure of each seed; None where there is but one."""
    samples = np.array([row["sample"] for row in rows])
    seeds = np.unique(samples)
    if len(seeds) < 2:
        return None
    return interval([figure(np.flatnonzero(samples == seed)) for seed in seeds])
