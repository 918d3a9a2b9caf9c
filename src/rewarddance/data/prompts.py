"""Prompt files: `.txt` with one prompt a line, or JSONL with `prompt` and any further keys (GenEval's records, ...).

`image` is the path, from the file's folder, of the picture that the prompt comes with (the first frame, in image to
video); `negative_prompt` is known too, and other keys are carried along unread.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rewarddance.data.media import read_video
from rewarddance.errors import InputError
from rewarddance.runtime.checkpoint import write_text_atomically
from rewarddance.types import Pixels, Prompt


def read_prompts(path: Path) -> list[Prompt]:
    """All prompts of a file with their pictures; prompts that name one file hold the very same tensor.

    Raises InputError naming the file, or the line that holds no prompt or whose picture is missing or cannot be used.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the prompt file {path} cannot be read: {error}.", "Give a .txt or .jsonl file.") from error
    prompts: list[Prompt] = []
    images: dict[Path, Pixels] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if path.suffix == ".txt":
            prompts.append(Prompt(line.strip()))
            continue
        try:
            row = dict(json.loads(line))
            text, negative, image = row.pop("prompt"), row.pop("negative_prompt", ""), row.pop("image", None)
            if not isinstance(text, str) or not isinstance(negative, str):
                raise TypeError("a prompt is text")
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"line {number} of the prompt file {path} holds no prompt ({error}).",
                'Each line is a JSON object such as {"prompt": "a red circle"}.',
            ) from None
        where = f"line {number} of the prompt file {path}"
        file = None if image is None else _image_path(image, path.parent, where)
        if file is not None and file not in images:
            images[file] = _read_image(file, where)
        prompts.append(Prompt(text, negative, row, None if file is None else images[file], file))
    if not prompts:
        raise InputError(f"the prompt file {path} is empty.", "Write one prompt a line.")
    return prompts


def keep_prompts(prompts: Sequence[Prompt], path: Path) -> None:
    """Write a run's prompts to a JSONL file, or make sure that the run being continued has these very ones.

    Raises InputError naming the first that differs: places in the list say which noises a prompt has and when its turn
    comes, so a run that went on with others would be neither the one nor the other.
    """
    now = [{"prompt": prompt.text, "image": prompt.image_path and prompt.image_path.name} for prompt in prompts]
    before = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else now
    for number, (old, new) in enumerate(zip_longest(before, now), start=1):
        if old != new:
            before_text = "none" if old is None else repr(old["prompt"])
            raise InputError(
                f"{path.parent} holds a run whose prompt {number} was {before_text}, and now the prompts are others.",
                "Choose another output, or give the prompts that the run began with.",
            )
    write_text_atomically(path, "".join(json.dumps(row) + "\n" for row in now))


def _image_path(value: Any, folder: Path, where: str) -> Path:
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise InputError(f"{where} has the image {value!r}, which is no path.", "Give a picture's path, or none.")
    return folder / value


def _read_image(path: Path, where: str) -> Pixels:
    try:
        image = read_video(path, 2)
    except InputError as error:
        raise InputError(f"{where} has an image that cannot be used: {error.what}", error.remedy) from error
    if len(image) > 1:
        raise InputError(f"{where} has an image that cannot be used: {path} is a video.", "Give its first frame alone.")
    return image
