"""Runs an experiment cell by cell: a finished cell is a row of rows.jsonl and is not done again.

A cell is one measurement under one seed. Cells of one group share what is costly to prepare. The tables are written
anew after every cell, so an experiment that was cut off is continued by the same command.
"""

from __future__ import annotations

import json
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, NamedTuple, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter

from rewarddance.errors import InputError
from rewarddance.generators.adapter import PipelineGenerator
from rewarddance.generators.pipelines import load_generator
from rewarddance.jobs.quickstart import QuickstartRecipe
from rewarddance.reward.recipe import JudgeRecipe
from rewarddance.runtime.checkpoint import find_checkpoint, writable_folder, write_text_atomically
from rewarddance.runtime.config import GeneratorOptions, Recipe, Seed, keep_recipe, parse_file
from rewarddance.runtime.tracking import clock, console
from rewarddance.shapeworld.preferences import PreferenceRecipe

R = TypeVar("R", bound="Row")
RecipeT = TypeVar("RecipeT", bound="Recipe")


def _each_once(seeds: tuple[int, ...]) -> tuple[int, ...]:
    """Raises ValueError where one stands twice: it would count as two, and intervals over seeds would be too narrow."""
    if len(set(seeds)) < len(seeds):
        raise ValueError("a seed stands twice")
    return seeds


Seeds = Annotated[tuple[Seed, ...], Field(min_length=1), AfterValidator(_each_once)]
"""What an experiment is repeated over."""


class GridRecipe(Recipe):
    """What the experiments on one generator share.

    seeds: each has pictures, preferences, judges, prompts and noises of its own.
    generator_options: further ones of `load_generator`.
    preferences: the pairs that a seed's judges learn from and are tested on.
    judge: how judges are trained.
    """

    seeds: Seeds = (0, 1, 2)
    generator: str = "shapeworld-generator"
    num_inference_steps: int = Field(default=12, ge=2)
    guidance_scale: float = Field(default=1.0, ge=1)
    generator_options: GeneratorOptions = Field(default_factory=dict)
    preferences: PreferenceRecipe = PreferenceRecipe()
    judge: JudgeRecipe = JudgeRecipe()

    def load_generator(self) -> PipelineGenerator:
        return load_generator(self.generator, self.num_inference_steps, self.guidance_scale, **self.generator_options)

    def quickstart(self, seed: int, **changes: Any) -> QuickstartRecipe:
        """The quickstart whose preferences and judge a seed has."""
        shared = (
            "generator", "num_inference_steps", "guidance_scale", "generator_options", "preferences", "judge",
        )  # fmt: skip
        return QuickstartRecipe(seed=seed, **({name: getattr(self, name) for name in shared} | changes))


class Row(BaseModel):
    """What was measured under a seed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int


class TimedRow(Row):
    """seconds: of the whole cell, as far as it was done in one go."""

    seconds: float


class Cell(NamedTuple):
    """What is to be measured. kind: of the row that it becomes; key: the fields that name it there."""

    kind: type[Row]
    key: dict[str, Any]

    def like(self) -> dict[str, Any]:
        """The key of the same cell under any seed."""
        return {name: value for name, value in self.key.items() if name != "seed"}


class Rows:
    """The rows of a folder, in the order in which they were measured.

    kinds: the classes of its rows. before: a file of rows that a folder without any begins with. Raises InputError
    naming a file that cannot be read.
    """

    def __init__(self, folder: Path, kinds: Any, before: Path | None = None) -> None:
        self.path = folder / "rows.jsonl"
        self.all: list[Row] = []
        if before is not None and not before.is_file():
            raise InputError(
                f"there is no file of rows {before}.", "Give one, such as docs/results/rows/scaling.jsonl."
            )
        begun = self.path if self.path.is_file() else before
        if begun is not None:
            row: TypeAdapter[Row] = TypeAdapter(kinds)
            self.all = parse_file(
                begun,
                lambda data: [row.validate_json(line) for line in data.splitlines()],
                "Restore it, or remove it to begin anew." if begun == self.path else "Give another file.",
            )

    def add(self, row: Row) -> None:
        self.all.append(row)
        write_text_atomically(self.path, "".join(row.model_dump_json() + "\n" for row in self.all))

    def of(self, kind: type[R], /, **key: Any) -> list[R]:
        return select([row for row in self.all if isinstance(row, kind)], **key)

    def first(self, kind: type[R], /, **key: Any) -> R | None:
        return next(iter(self.of(kind, **key)), None)


def select(rows: Iterable[R], **key: Any) -> list[R]:
    """The rows with these values."""
    return [row for row in rows if all(getattr(row, name) == value for name, value in key.items())]


class Report(NamedTuple):
    """What is written after every cell. results: for results.json; figures: by file name, SVG as text, PNG as bytes."""

    markdown: str
    results: dict[str, Any]
    figures: dict[str, str | bytes]


class Experiment(ABC, Generic[RecipeT]):
    """An experiment under a recipe in a folder; `run` does what is left of it.

    name: of the command and of the table's file. recipe_kind: the class of its recipe. row_kinds: the classes of its
    rows. counted: the kinds of rows that progress counts. of_machine: the kinds that another machine measures anew,
    such as the seconds of a step. before: a file of rows measured under this recipe, which a
    new folder begins with.

    Raises InputError before anything is done where a checkpoint is missing, and where the folder holds an experiment
    that was begun under another recipe.
    """

    name: ClassVar[str]
    recipe_kind: ClassVar[type[Recipe]]
    row_kinds: ClassVar[Any]
    counted: ClassVar[type[Row] | tuple[type[Row], ...]]
    of_machine: ClassVar[tuple[type[Row], ...]] = ()

    def __init__(self, recipe: RecipeT, folder: Path, before: Path | None = None) -> None:
        self.recipe, self.folder = recipe, folder
        self.check()
        writable_folder(folder)
        keep_recipe(recipe, folder / "config.yaml")
        begun = (folder / "rows.jsonl").is_file()
        self.rows = Rows(folder, self.row_kinds, before)
        if before is not None and not begun:
            self._leave_out_other_rows(before)

    def _leave_out_other_rows(self, before: Path) -> None:
        """Of rows that were measured before, keep those of this recipe's cells and what belongs to them, such as the
        accuracy of their judges: others are of another study. How long a step took is another machine's, and goes."""
        cells = [(cell.kind, cell.key) for cell in self.cells()]
        whole = {(kind, *key.items()) for kind, key in cells}
        names = {kind: [*key] for kind, key in cells}
        known: dict[str, set[Any]] = {}
        for _, key in cells:
            for name, value in key.items():
                known.setdefault(name, set()).add(value)

        def is_ours(row: Row) -> bool:
            if type(row) in names:
                return (type(row), *((name, getattr(row, name)) for name in names[type(row)])) in whole
            shared = [name for name in known if hasattr(row, name)]
            return not isinstance(row, self.of_machine) and all(getattr(row, name) in known[name] for name in shared)

        kept = [row for row in self.rows.all if is_ours(row)]
        if len(kept) < len(self.rows.all):
            others = len(self.rows.all) - len(kept)
            told = f"rows of {before} that are of no cell of this recipe, or of the machine alone: {others}, left out"
            console.print(told, soft_wrap=True)
        self.rows.all = kept

    @abstractmethod
    def checkpoints(self) -> Iterable[str]:
        """The checkpoints that are loaded."""

    @abstractmethod
    def cells(self) -> Sequence[Cell]:
        """All cells in their order."""

    @abstractmethod
    def prepare(self, group: Any) -> Any:
        """What the cells of a group share."""

    @abstractmethod
    def measure(self, cell: Cell, shared: Any) -> Row:
        """Do one cell. shared: what `prepare` gave."""

    @abstractmethod
    def report(self) -> Report:
        """The tables and figures of the rows so far."""

    def check(self) -> None:
        """Raise InputError for what cannot be done."""
        for name in dict.fromkeys(self.checkpoints()):
            find_checkpoint(name)

    def group(self, cell: Cell) -> Hashable:
        """The group of a cell: its seed, unless something else is shared."""
        return cell.key["seed"]

    def is_done(self, cell: Cell) -> bool:
        return bool(self.rows.of(cell.kind, **cell.key))

    def seed_folder(self, seed: int) -> Path:
        return self.folder / f"seed{seed}"

    def run(self) -> str:
        """Do what is left; returns the tables as Markdown."""
        left = [cell for cell in self.cells() if not self.is_done(cell)]
        shared: dict[Hashable, Any] = {}
        while left:
            cell, group = left[0], self.group(left[0])
            if group not in shared:
                shared[group] = self.prepare(group)
            self.announce(cell, left)
            self.rows.add(self.measure(cell, shared[group]))
            left.pop(0)
            if group not in map(self.group, left):
                del shared[group]
            self.write()
        return self.write()

    def announce(self, cell: Cell, left: Sequence[Cell]) -> None:
        """Print which cell is next, and about how long those that are left will take."""
        place = f"{self.done + 1} of {self.total}: " if issubclass(cell.kind, self.counted) else ""
        timed = [cell for cell in left if issubclass(cell.kind, TimedRow)]
        remaining = time_left(self.rows.of(TimedRow), timed)
        console.print(f"{place}seed {cell.key['seed']}, {self.describe(cell)}{remaining}", soft_wrap=True)

    def describe(self, cell: Cell) -> str:
        return ", ".join(map(str, cell.like().values()))

    @property
    def total(self) -> int:
        return sum(issubclass(cell.kind, self.counted) for cell in self.cells())

    @property
    def done(self) -> int:
        return sum(isinstance(row, self.counted) for row in self.rows.all)

    def write(self) -> str:
        """Write the report's files; returns the Markdown, whose first line says so where cells are missing."""
        report = self.report()
        text = report.markdown
        if self.done < self.total:
            text = f"Unfinished: {self.done} of {self.total} cells.\n\n{text}"
        results = {"cells": self.total, "done": self.done, **report.results}
        write_text_atomically(self.folder / "results.json", json.dumps(results, indent=2) + "\n")
        for name, figure in report.figures.items():
            (self.folder / name).write_bytes(figure.encode() if isinstance(figure, str) else figure)
        write_text_atomically(self.folder / f"{self.name}.md", text)
        return text


def time_left(rows: Sequence[TimedRow], left: Sequence[Cell]) -> str:
    """How long cells will take, from rows of the same cell under other seeds, or of its kind, or of all; "" of none."""
    if not (rows and left):
        return ""
    alike = []
    for cell in left:
        kind = [row for row in rows if isinstance(row, cell.kind)]
        alike.append([row.seconds for row in select(kind, **cell.like()) or kind or rows])
    return f" (about {clock(sum(sum(seconds) / len(seconds) for seconds in alike))} left)"


def check_folder_names(names: Iterable[str]) -> None:
    """Raises ValueError naming one that cannot be a folder's."""
    for name in names:
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError(f"{name!r} is to be the name of a folder; use letters, digits, '-' and '_'")


def remove_checkpoints(folder: Path) -> None:
    """Of a finished run; its LoRA or reward stays."""
    for path in (*folder.glob("checkpoint-*"), folder / "unfinished"):
        shutil.rmtree(path, ignore_errors=True)
