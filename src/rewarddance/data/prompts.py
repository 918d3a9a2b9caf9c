"""Prompt files: `.txt` with one prompt a line, or JSONL with `prompt` and any further keys (GenEval's records, ...).

`condition` is the path, from the file's folder, of the picture that the generator is given beside the text (the first
frame, in image to video); `negative_prompt` is known too, and other keys are carried along unread.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, overload

from rewarddance.data.media import read_video
from rewarddance.errors import InputError
from rewarddance.runtime.checkpoint import write_text_atomically
from rewarddance.types import Pixels, Prompt


def read_prompts(path: Path) -> list[Prompt]:
    """All prompts of a file; their pictures are decoded once, to be sure of them, and not kept.

    Raises InputError naming the file, or the line that holds no prompt or whose picture is missing or cannot be used.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the prompt file {path} cannot be read: {error}.", "Give a .txt or .jsonl file.") from error
    prompts, checked = [], set[Path]()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if path.suffix == ".txt":
            prompts.append(Prompt(line.strip()))
            continue
        try:
            row = dict(json.loads(line))
            text, negative, shown = row.pop("prompt"), row.pop("negative_prompt", ""), row.pop("condition", None)
            if not isinstance(text, str) or not isinstance(negative, str):
                raise TypeError("a prompt is text")
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"line {number} of the prompt file {path} holds no prompt ({error}).",
                'Each line is a JSON object such as {"prompt": "a red circle"}.',
            ) from None
        where = f"line {number} of the prompt file {path}"
        condition = None if shown is None else _condition(shown, path.parent, where)
        if condition is not None and condition not in checked:
            _check(condition, where)
            checked.add(condition)
        prompts.append(Prompt(text, negative, row, condition))
    if not prompts:
        raise InputError(f"the prompt file {path} is empty.", "Write one prompt a line.")
    return prompts


def keep_prompts(prompts: Sequence[Prompt], path: Path) -> None:
    """Write a run's prompts to a JSONL file, or make sure that the run being continued has these very ones.

    Raises InputError naming the first that differs: places in the list say which noises a prompt has and when its turn
    comes, so a run that went on with others would be neither the one nor the other.
    """
    now = [{"prompt": one.text, "condition": one.condition and one.condition.name} for one in prompts]
    before = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else now
    for number, (old, new) in enumerate(zip_longest(before, now), start=1):
        if old != new:
            said = "none" if old is None else repr(old["prompt"])
            raise InputError(
                f"{path.parent} holds a run whose prompt {number} was {said}, and now the prompts are others.",
                "Choose another output, or give the prompts that the run began with.",
            )
    write_text_atomically(path, "".join(json.dumps(one) + "\n" for one in now))


def _condition(value: Any, folder: Path, where: str) -> Path:
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise InputError(f"{where} has the condition {value!r}, which is no path.", "Give a picture's path, or none.")
    return folder / value


def _check(condition: Path, where: str) -> None:
    try:
        frames = len(read_video(condition, 2))
    except InputError as error:
        raise InputError(f"{where} has a condition that cannot be used: {error.what}", error.remedy) from error
    if frames > 1:
        raise InputError(
            f"{where} has a condition that cannot be used: {condition} is a video.", "Give its first frame alone."
        )


class Conditions(Sequence):
    """The pictures [1, 3, H, W] of prompts, None where one has none; each is read when it is asked for.

    One that was asked for a little while ago is the very same tensor, so that judges and generators encode it once.
    """

    def __init__(self, files: Sequence[Path | None]) -> None:
        self.files = tuple(files)

    def __len__(self) -> int:
        return len(self.files)

    @overload
    def __getitem__(self, place: int) -> Pixels | None: ...
    @overload
    def __getitem__(self, place: slice) -> Conditions: ...
    def __getitem__(self, place: int | slice) -> Pixels | Conditions | None:
        if isinstance(place, slice):
            return Conditions(self.files[place])
        file = self.files[place]
        return None if file is None else _read(file)


@functools.lru_cache(maxsize=64)
def _read(file: Path) -> Pixels:
    return read_video(file)


def conditions_of(prompts: Sequence[Prompt]) -> Conditions | None:
    """The prompts' pictures, or None where no prompt has one."""
    files = [prompt.condition for prompt in prompts]
    return Conditions(files) if any(file is not None for file in files) else None
