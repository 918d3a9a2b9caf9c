"""What samples are compared with: one picture a prompt, from a bank, a folder, a file or a dict."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rewarddance.data.fields import short
from rewarddance.data.media import Media, as_pixels, media_size
from rewarddance.data.tables import Table, open_table
from rewarddance.errors import InputError, RewardError
from rewarddance.types import Pixels

_KEPT = 64
"""Decoded references kept in memory; questions that hold one and the same share its encoding."""


class References(Mapping[str, Pixels]):
    """The reference of each prompt, read when it is asked for; a file that several prompts name is one tensor.

    source: a bank that `rewarddance align` or `rewarddance references` made (its folder: the best of each prompt's
    references counts), a folder of pictures with each prompt in a .txt of the same name, a .jsonl or .parquet file of
    {"prompt", "reference"} with paths relative to it, or a dict from prompts to pictures.

    Raises InputError naming a row without prompt or reference, a prompt with two, or a file that is missing
    or no picture.
    """

    def __init__(self, source: Mapping[str, Media] | str | Path) -> None:
        self.source = "the references given" if isinstance(source, Mapping) else str(source)
        self._media = dict(source) if isinstance(source, Mapping) else _read(Path(source))
        self._decode = functools.lru_cache(_KEPT)(self._decoded)

    def __len__(self) -> int:
        return len(self._media)

    def __iter__(self) -> Iterator[str]:
        return iter(self._media)

    def __getitem__(self, prompt: str) -> Pixels:
        media = self._media[prompt]
        return self._decode(media if isinstance(media, Path) else prompt)

    def _decoded(self, of: Path | str) -> Pixels:
        return as_pixels(of if isinstance(of, Path) else self._media[of], f"the reference of {short(str(of))}")

    def of(self, prompt: str) -> Pixels:
        """Raises RewardError where the prompt has none: a reward against nothing is no number."""
        if prompt not in self._media:
            raise RewardError(
                f"there is no reference for the prompt {short(prompt)} among the {len(self)} of {self.source}.",
                "Add one for each prompt of the training, word for word as the trainer hands it on.",
            )
        return self[prompt]


def _read(source: Path) -> dict[str, Media]:
    bank = source / "references.jsonl"
    table = open_table(bank if bank.is_file() else source)
    media: dict[str, Media] = {}
    for number, content in table.rows():
        where = f"line {number} of {table.path}"
        if isinstance(content, InputError):
            raise InputError(f"{where} cannot be read: {content.what}", content.remedy)
        if bank.is_file() and "failed" in content:  # a prompt that the bank's maker left out
            continue
        prompt, picture = content.get("prompt"), _picture(content, table)
        if not isinstance(prompt, str) or not prompt.strip() or picture is None:
            raise InputError(
                f"{where} holds {short(content)}, no prompt with its reference.",
                'Write {"prompt": "a red circle", "reference": "red.png"}; in a folder, a .txt beside each picture.',
            )
        if media.setdefault(prompt, picture) != picture:
            raise InputError(f"{where} is a second reference for {short(prompt)}.", "Keep one for each prompt.")
        if isinstance(picture, Path):
            media_size(picture)  # its header only
    return media


def _picture(content: dict[str, Any], table: Table) -> Media | None:
    """A row's picture: `reference`, the first of a bank's `files`, a folder's `candidate`; or None."""
    files = content.get("files")
    value = files[0] if isinstance(files, list) and files else content.get("reference", content.get("candidate"))
    if isinstance(value, dict):  # datasets' Image column
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    return table.folder / value if isinstance(value, str) and value else None
