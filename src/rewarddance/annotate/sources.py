"""The pairs that people are asked about: from a file of pairs, from pictures, or from test pairs with an answer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rewarddance.annotate.page_media import check_media
from rewarddance.annotate.store import Pair
from rewarddance.data.faults import FaultyRow, FaultyRows
from rewarddance.data.fields import Fault, optional_rate, optional_text, present, short, text
from rewarddance.data.preferences import PreferenceSet
from rewarddance.data.tables import open_table
from rewarddance.errors import InputError

_PICTURE = ("candidate", "picture", "media")
"""Keys of a row of one picture."""


class Made(NamedTuple):
    """A picture or video, what it was made for, and by which model ("" if unknown)."""

    prompt: str
    path: Path
    model: str = ""
    image: Path | None = None
    source: str = ""
    fps: float | None = None


def read_pairs(source: Path, pairs_per_prompt: int, seed: int) -> list[Pair]:
    """The pairs of a file or folder.

    A .jsonl or .parquet file with `media_a` and `media_b` (and `model_a`, `model_b`) holds pairs: any preferences file
    is one. With `candidate` (and `model`) it holds pictures. A folder holds pictures with their prompts in .txt files,
    or one such folder for each model. Pictures of a prompt are paired, of different models where these are known.

    Raises InputError naming the source, and FaultyRows naming every row that cannot be used.
    """
    if source.is_dir() and (models := _model_folders(source)):
        made = [picture for folder in models for picture in _pictures(folder, folder.name)]
        return pair_up(made, pairs_per_prompt, seed)
    pairs, made, faults = [], [], list[FaultyRow]()
    table = open_table(source)
    for number, content in table.rows():
        try:
            if isinstance(content, InputError):
                raise content
            if content.get("media_a") is not None:
                pairs.append(_pair(content, table.folder))
            else:
                made.append(_made(content, table.folder, ""))
        except InputError as error:
            faults.append(FaultyRow(f"line {number} of {source}", error.what, error.remedy))
    if faults:
        raise FaultyRows(faults)
    pairs += pair_up(made, pairs_per_prompt, seed)
    if not pairs:
        raise InputError(f"no two pictures of {source} have the same prompt.", "Give several of each prompt.")
    return pairs


def read_tests(path: Path) -> list[Pair]:
    """A preferences file as test pairs, whose right answer is what most votes say. Raises InputError naming it."""
    rows = PreferenceSet(path)
    tests = []
    for number in range(len(rows)):
        row = rows.row(number)
        check_media(row.media_a)
        check_media(row.media_b)
        answer = float(np.sign(row.share - 0.5) + 1) / 2
        fps = (row.fps_a, row.fps_b)
        tests.append(Pair(row.prompt, row.media_a, row.media_b, row.image, "", "", row.source, answer, fps))
    return tests


def pair_up(made: Sequence[Made], pairs_per_prompt: int, seed: int) -> list[Pair]:
    """Up to so many pairs of each prompt, drawn at random; of different models, where any two are known."""
    groups: defaultdict[tuple[str, Path | None], list[Made]] = defaultdict(list)
    for picture in made:
        groups[picture.prompt, picture.image].append(picture)
    rng, pairs = np.random.default_rng([seed, 21]), list[Pair]()
    for group in groups.values():
        possible = list(combinations(group, 2))
        known = [
            (first, second)
            for first, second in possible
            if first.model and second.model and first.model != second.model
        ]
        possible = known or possible
        for place in sorted(rng.permutation(len(possible))[:pairs_per_prompt].tolist()):
            first, second = possible[place]
            models, fps = (first.model, second.model), (first.fps, second.fps)
            pairs.append(Pair(first.prompt, first.path, second.path, first.image, *models, first.source, None, fps))
    return pairs


def compared(pairs: Iterable[Pair], models: tuple[str, str], most: int, seed: int) -> list[Pair]:
    """Up to `most` pairs of these two models, drawn at random, as evenly over the prompts as they allow.

    Raises InputError where there are none, naming the models that there are.
    """
    every = list(pairs)
    chosen = [pair for pair in every if {pair.model_a, pair.model_b} == set(models)]
    if not chosen:
        known = sorted({name for pair in every for name in (pair.model_a, pair.model_b) if name})
        remedy = f"The models are {', '.join(known)}." if known else "Name them: model_a and model_b in each row."
        raise InputError(f"no pair is of {models[0]!r} and {models[1]!r}.", remedy)
    rng = np.random.default_rng([seed, 22])
    by_prompt: defaultdict[str, list[Pair]] = defaultdict(list)
    for place in rng.permutation(len(chosen)):
        by_prompt[chosen[place].prompt].append(chosen[place])
    turns = [
        of_prompt[n]
        for n in range(max(map(len, by_prompt.values())))
        for of_prompt in by_prompt.values()
        if n < len(of_prompt)
    ]
    return turns[:most]


def _model_folders(folder: Path) -> list[Path]:
    """Folders in it that hold pictures with prompts; a folder of frames has no prompts in it."""
    folders = sorted(inner for inner in folder.iterdir() if inner.is_dir() and inner.name[0] != ".")
    return folders if len(folders) > 1 and all(any(inner.glob("*.txt")) for inner in folders) else []


def _pictures(folder: Path, model: str) -> Iterator[Made]:
    faults = []
    for number, content in open_table(folder).rows():
        try:
            if isinstance(content, InputError):
                raise content
            yield _made(content, folder, model)
        except InputError as error:
            faults.append(FaultyRow(f"picture {number} of {folder}", error.what, error.remedy))
    if faults:
        raise FaultyRows(faults)


def _made(content: Mapping[str, Any], folder: Path, model: str) -> Made:
    key, _ = present(content, *_PICTURE)
    return Made(
        text(content, "prompt"),
        _file(content, key, folder),
        model or optional_text(content, "model"),
        _file(content, "image", folder) if content.get("image") is not None else None,
        optional_text(content, "source"),
        optional_rate(content, "fps"),
    )


def _pair(content: Mapping[str, Any], folder: Path) -> Pair:
    fps = optional_rate(content, "fps")
    return Pair(
        text(content, "prompt"),
        _file(content, "media_a", folder),
        _file(content, "media_b", folder),
        _file(content, "image", folder) if content.get("image") is not None else None,
        optional_text(content, "model_a"),
        optional_text(content, "model_b"),
        optional_text(content, "source"),
        None,
        (optional_rate(content, "fps_a") or fps, optional_rate(content, "fps_b") or fps),
    )


def _file(content: Mapping[str, Any], key: str, folder: Path) -> Path:
    """The file that a row names. Raises InputError where it is not there, or the page could not show it."""
    value = present(content, key)[1]
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise Fault(key, f"is {short(value)}, which is no path")
    path = folder / value
    check_media(path)
    return path
