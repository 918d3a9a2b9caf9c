"""Which pictures were made for which prompt, by where they lie.

| layout | a prompt's pictures |
|---|---|
| GenEval's folder | `00000/samples/0000.png`, beside `00000/metadata.jsonl` if it is there |
| a plain folder | `0.png` or `00000.png`, `0_0.png` and `0_1.png`, or the folder `0/` |
| a .json file | {prompt or key: path, or a list of paths}, paths from the file's folder |

Numbers are those of the prompts in their file, from 0; of TIFA the captions' ids stand in their place.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rewarddance.data.faults import FaultyRow
from rewarddance.data.media import PICTURE_SUFFIXES, media_size, natural_order, pictures_in
from rewarddance.data.object_prompts import BenchPrompt
from rewarddance.errors import InputError, shown
from rewarddance.runtime.files import parse_json, read_text

METADATA, SAMPLES = "metadata.jsonl", "samples"
"""What GenEval's folder of a prompt holds."""


class Shot(NamedTuple):
    """One picture of a prompt. sample: its place among the prompt's pictures, from 0, which is its seed's."""

    prompt: BenchPrompt
    sample: int
    path: Path


def find_shots(place: Path, prompts: Sequence[BenchPrompt], samples: int | None, faults: list[FaultyRow]) -> list[Shot]:
    """The pictures of all prompts, in the prompts' order, of each the same number.

    samples: of each the first so many; None is all that there are, as many as the prompt that has most. What is amiss
    with a prompt is added to `faults`, and its pictures are left out: none, too few, one that cannot be read, another
    prompt's. Raises InputError where the place is none of the layouts, or names one picture twice.
    """
    known = _by_json(place, prompts) if place.suffix == ".json" else _by_folder(place, prompts)
    wanted = samples or max((len(files) for files in known.values()), default=0)
    shots: list[Shot] = []
    for prompt in prompts:
        files = known.get(prompt.number, [])
        try:
            if len(files) < wanted or not files:
                what = f"{len(files)} of its {max(wanted, 1)} pictures are in {place}."
                raise InputError(what, _naming(place, prompt, len(files)))
            _check_metadata(prompt, files[0])
            for file in files[:wanted]:
                _check_picture(file)
        except InputError as error:
            faults.append(FaultyRow(prompt.where, error.what, error.remedy))
            continue
        shots += [Shot(prompt, sample, file) for sample, file in enumerate(files[:wanted])]
    return shots


def shot_path(folder: Path, prompt: BenchPrompt, sample: int) -> Path:
    """Where a picture lies in GenEval's layout."""
    return folder / _numbered(prompt) / SAMPLES / f"{sample:04d}.png"


def _numbered(prompt: BenchPrompt) -> str:
    return f"{prompt.number:05d}"


def _by_folder(place: Path, prompts: Sequence[BenchPrompt]) -> dict[int, list[Path]]:
    if not place.is_dir():
        raise InputError(f"there is no folder of pictures {place}.", "Give a folder, or a .json file of paths.")
    numbers = {prompt.key: prompt.number for prompt in prompts}
    found: dict[int, list[Path]] = {}
    taken: dict[tuple[int, str], Path] = {}
    for path in sorted(place.iterdir(), key=natural_order):
        sample = ""  # of all its pictures, or of the only one
        if path.is_dir():
            number = _number(path.name, numbers)
            folder = path / SAMPLES if (path / SAMPLES).is_dir() else path
            files = pictures_in(folder)
        elif path.suffix.lower() in PICTURE_SUFFIXES and path.name[0] != ".":
            number = _number(path.stem, numbers)
            if number is None and (parts := path.stem.rpartition("_"))[2].isdigit():
                number, sample = _number(parts[0], numbers), str(int(parts[2]))
            files = [path]
        else:
            continue
        if number is None or not files:
            continue
        if (other := taken.setdefault((number, sample), path)) != path:
            what = f"{other} and {path.name} are the same picture of the same prompt by their names."
            raise InputError(what, "Remove or rename one.")
        found.setdefault(number, []).extend(files)
    return found


def _number(name: str, numbers: dict[str, int]) -> int | None:
    """The number of the prompt that a name belongs to, leading zeros aside."""
    return numbers.get(name, numbers.get(str(int(name))) if name.isdigit() and name.isascii() else None)


def _by_json(place: Path, prompts: Sequence[BenchPrompt]) -> dict[int, list[Path]]:
    try:
        content: Any = parse_json(read_text(place))
    except (OSError, ValueError) as error:
        raise InputError(f"the list of pictures {place} cannot be read: {error}.", "Give a .json file.") from error
    if not isinstance(content, dict):
        raise InputError(f"{place} is no JSON object.", 'Write {"a prompt": "its picture.png"}.')
    found: dict[int, list[Path]] = {}
    for prompt in prompts:
        value = content.get(prompt.text, content.get(prompt.key))
        names = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(name, str) and name for name in names):
            raise InputError(f"{place} names no file for {prompt.where}: {shown(value)}.", "Give a path, or a list.")
        found[prompt.number] = [place.parent / name for name in names]
    return found


def _naming(place: Path, prompt: BenchPrompt, found: int) -> str:
    """How the next of a prompt's pictures is named, of which so many were found."""
    if place.suffix == ".json":
        return f"Write {{{json.dumps(prompt.text)}: {json.dumps(f'{prompt.key}.png')}}}, or a list of its pictures."
    if not found:
        return f"Name its first picture {prompt.key}.png or {_numbered(prompt)}/{SAMPLES}/0000.png."
    names = f"{prompt.key}_{found}.png or {_numbered(prompt)}/{SAMPLES}/{found:04d}.png"
    return f"Name the next one {names}, or give samples: {found} to take no more of any prompt."


def _check_picture(file: Path) -> None:
    """Raises InputError where a file is no picture by its header; a folder of frames is none either."""
    if file.is_dir():
        raise InputError(f"the picture {file} cannot be read: it is a folder.", "Give a picture.")
    media_size(file)


def _check_metadata(prompt: BenchPrompt, first: Path) -> None:
    """Raises InputError where the folder says that its pictures are of another prompt."""
    file = first.parent.parent / METADATA
    if first.parent.name != SAMPLES or not file.is_file():
        return
    try:
        said: Any = parse_json(read_text(file))
        text = said["prompt"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} cannot be read: {error}.", "Replace or remove it.") from error
    if text != prompt.text:
        raise InputError(f"{file} says that its pictures are of {shown(text)}.", "Give the prompts they were made of.")
