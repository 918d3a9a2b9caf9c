"""Pictures to compare with, by prompt, for protocols that send none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rewarddance.data.media import as_pixels
from rewarddance.data.tables import open_table
from rewarddance.errors import InputError
from rewarddance.types import Pixels


def read_references(path: Path) -> dict[str, Pixels]:
    """The reference of each prompt; a file that several prompts name is one tensor.

    path: a folder of pictures with the prompt of a.png in a.txt, a .jsonl or .parquet file of rows {"prompt",
    "reference"}, or a folder with a references.jsonl, as align leaves it, of which the best of each prompt counts.
    Raises InputError naming a row or a file that cannot be used, and a prompt that has two references.
    """
    bank = path / "references.jsonl"
    table = open_table(bank if bank.is_file() else path)
    found: dict[str, Path] = {}
    for number, row in table.rows():
        if isinstance(row, InputError):
            raise row
        prompt, name = row.get("prompt"), _file(row)
        if not isinstance(prompt, str) or not isinstance(name, str):
            raise InputError(
                f"row {number} of {table.path} has no prompt with a reference.",
                'Write {"prompt": ..., "reference": ...}.',
            )
        file = table.folder / name
        if found.setdefault(prompt, file) != file:
            raise InputError(f"the prompt {prompt!r} has two references in {table.path}.", "Keep one of them.")
    pictures = {file: as_pixels(file) for file in set(found.values())}
    return {prompt: pictures[file] for prompt, file in found.items()}


def _file(row: dict[str, Any]) -> Any:
    """A row's own key, the best of a bank's files, or the picture of a folder."""
    if row.get("files"):
        return row["files"][0]
    return row.get("reference", row.get("candidate"))
