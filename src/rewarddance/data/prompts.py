"""Prompt files: `.txt` with one prompt a line, or JSONL with `prompt` and any further keys (GenEval's records, ...)."""

from __future__ import annotations

import json
from pathlib import Path

from rewarddance.errors import InputError
from rewarddance.types import Prompt


def read_prompts(path: Path) -> list[Prompt]:
    """All prompts of a file. Raises InputError naming the file, or the line that holds no prompt."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the prompt file {path} cannot be read: {error}.", "Give a .txt or .jsonl file.") from error
    prompts = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if path.suffix == ".txt":
            prompts.append(Prompt(line.strip()))
            continue
        try:
            row = dict(json.loads(line))
            text, negative = row.pop("prompt"), row.pop("negative_prompt", "")
            if not isinstance(text, str) or not isinstance(negative, str):
                raise TypeError("a prompt is text")
            prompts.append(Prompt(text, negative, row))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"line {number} of the prompt file {path} holds no prompt ({error}).",
                'Each line is a JSON object such as {"prompt": "a red circle"}.',
            ) from None
    if not prompts:
        raise InputError(f"the prompt file {path} is empty.", "Write one prompt a line.")
    return prompts
