"""What an import of a public preference set takes, and benchmarks by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator

from rewarddance.data.splits import parse_split
from rewarddance.runtime.config import Recipe

Benchmark = Literal["geneval", "geneval2", "tifa"]
"""Benchmarks of what is in a picture."""


class ImportRecipe(Recipe):
    """`rewarddance data import`: which set from which files is written where."""

    name: str
    """Which set, by the names above."""
    files: tuple[Path, ...]
    """Its .json, .jsonl, .csv or .parquet files, in this order."""
    output: Path
    """The .jsonl or .parquet file to write; with a split its name gets the part's."""
    media_root: Path | None = None
    """What paths of media are relative to. Default: the file's own folder."""
    split: dict[str, float] | None = None
    """train=0.9,test=0.1: by prompt, into <output>.train.jsonl and so on."""
    criterion: str | None = None
    """Keep the rows of this one only, of sets that vote by several."""
    decode: bool = True
    """Look at all media to their end, not only whether they are there."""

    @field_validator("split", mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        text = ",".join(value) if isinstance(value, list) else value
        return parse_split(text) if isinstance(text, str) else value

    @property
    def outputs(self) -> dict[str, Path]:
        """The file of each part of the split; of the one part "" where there is none."""
        if self.split is None:
            return {"": self.output}
        return {part: self.output.with_name(f"{self.output.stem}.{part}{self.output.suffix}") for part in self.split}
