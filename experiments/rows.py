"""What a comparison has done, row by row in rows.jsonl: it is not done again."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter

from rewarddance.runtime.checkpoint import write_text_atomically
from rewarddance.runtime.config import parse_file

R = TypeVar("R", bound="Row")


class Row(BaseModel):
    """Something that is done under a seed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int


class KeptRows:
    """All that is done. kinds: the classes of its rows. Raises InputError naming a file that cannot be read."""

    def __init__(self, folder: Path, kinds: Any) -> None:
        self.path = folder / "rows.jsonl"
        self.all: list[Row] = []
        if self.path.is_file():
            one: TypeAdapter[Row] = TypeAdapter(kinds)
            self.all = parse_file(
                self.path,
                lambda data: [one.validate_json(line) for line in data.splitlines()],
                "Restore it, or remove it to begin anew.",
            )

    def add(self, row: Row) -> None:
        self.all.append(row)
        write_text_atomically(self.path, "".join(each.model_dump_json() + "\n" for each in self.all))

    def of(self, kind: type[R], /, **wanted: Any) -> list[R]:
        return [
            row
            for row in self.all
            if isinstance(row, kind) and all(getattr(row, name) == value for name, value in wanted.items())
        ]

    def first(self, kind: type[R], /, **wanted: Any) -> R | None:
        return next(iter(self.of(kind, **wanted)), None)

    def has(self, kind: type[R], /, **wanted: Any) -> bool:
        return self.first(kind, **wanted) is not None
