"""Kinds of reward and contexts at every judge size, trained and zero-shot, over seeds.

A cell is one reward trained under one seed; the cells of a seed share its preferences. An unfinished cell goes on from
its checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from experiments.grid import Cell, Experiment, GridRecipe, Report, check_folder_names, remove_checkpoints
from experiments.judges_table import JudgeRun, judges_report
from experiments.trained_judges import by_prompt, seed_preferences, train, with_options
from rewarddance.reward.instructions import load_instruction
from rewarddance.reward.judge import USED_BY, RewardConfig, RewardOptions
from rewarddance.reward.loading import build_reward
from rewarddance.reward.recipe import JudgeRecipe
from rewarddance.reward.regressive import has_head
from rewarddance.runtime.checkpoint import find_checkpoint
from rewarddance.shapeworld.preferences import PreferenceRecipe
from rewarddance.types import Preference

Sets = Mapping[str, Sequence[Preference]]
"""A seed's preferences: train, and the test sets id, early and ood."""


class JudgesRecipe(GridRecipe):
    """Which rewards are compared, and how.

    sizes: a name and a checkpoint for each judge size, small ones first.
    cells: a name and what is different for each reward, in keys of `judge`; one with a `base` of its own stands beside
        the sizes and is trained once a seed.
    tables: for each table its rows' names and the cells in them; each row is also compared with the one above it.
    """

    sizes: dict[str, str] = Field(min_length=1)
    preferences: PreferenceRecipe = PreferenceRecipe(reasons=True)
    cells: dict[str, dict[str, Any]] = Field(min_length=1)
    tables: dict[str, dict[str, str]] = Field(min_length=1)

    @model_validator(mode="after")
    def _is_whole(self) -> JudgesRecipe:
        check_folder_names((*self.sizes, *self.cells))
        for title, rows in self.tables.items():
            unknown = [cell for cell in rows.values() if cell not in self.cells]
            if unknown or not rows:
                what = f"has the cell {unknown[0]!r}, which is not among the cells" if unknown else "has no rows"
                raise ValueError(f"the table {title!r} {what}")
        for cell in self.cells:
            if not any(cell in rows.values() for rows in self.tables.values()):
                raise ValueError(f"the cell {cell!r} stands in no table")
            judge = self.training(cell)
            if judge.kind in USED_BY["instruction"]:
                load_instruction(judge.instruction)
            if judge.reasoning != "none" and not self.preferences.reasons:
                raise ValueError(f"the cell {cell!r} learns reasons, but preferences.reasons is false")
        return self

    def training(self, cell: str, base: str | None = None) -> JudgeRecipe:
        """How a cell is trained, from `base` where it has none of its own. Raises InputError naming the wrong key."""
        return with_options(self.judge, self.cells[cell], f"the cell {cell!r}", base)

    def bases(self) -> dict[tuple[str, str], str]:
        """The checkpoint of each size and cell; the size of a cell with a base of its own is that base's name."""
        alone = {(Path(own["base"]).name, cell): own["base"] for cell, own in self.cells.items() if "base" in own}
        sized = [cell for cell, own in self.cells.items() if "base" not in own]
        return alone | {(size, cell): base for size, base in self.sizes.items() for cell in sized}


class Judges(Experiment[JudgesRecipe]):
    name, recipe_kind, row_kinds, counted = "judges", JudgesRecipe, JudgeRun, JudgeRun

    def checkpoints(self) -> list[str]:
        return [self.recipe.generator, *self.recipe.bases().values()]

    def cells(self) -> list[Cell]:
        """Seed by seed, so that an unfinished table is whole for the first seeds."""
        return [
            Cell(JudgeRun, {"seed": seed, "size": size, "cell": cell})
            for seed in self.recipe.seeds
            for size, cell in self.recipe.bases()
        ]

    def prepare(self, group: int) -> Sets:
        quickstart = self.recipe.quickstart(group, judge=JudgeRecipe())
        return {name: list(pairs) for name, pairs in seed_preferences(quickstart, self.seed_folder(group)).items()}

    def measure(self, cell: Cell, shared: Sets) -> JudgeRun:
        """Train one reward, and ask it and its untrained base about the test sets."""
        seed, size, name = cell.key.values()
        recipe = self.recipe.training(name, self.recipe.bases()[size, name])
        folder = self.seed_folder(seed) / size / name
        row = measure_judge(cell, recipe, shared, folder, zero_shot=True)
        remove_checkpoints(folder)
        return row

    def report(self) -> Report:
        return judges_report(self.recipe.tables, self.rows.of(JudgeRun))


def measure_judge(cell: Cell, recipe: JudgeRecipe, sets: Sets, folder: Path, zero_shot: bool) -> JudgeRun:
    """Train a judge on `train`, and ask it about the other sets; with zero_shot, ask its base where it can answer."""
    began = time.monotonic()
    judge, seconds = train(recipe, sets["train"], folder, cell.key["seed"])
    tests = {name: pairs for name, pairs in sets.items() if name != "train"}
    accuracy = {name: by_prompt(judge, pairs) for name, pairs in tests.items()}
    untrained = None
    if zero_shot and (recipe.kind != "regressive" or has_head(find_checkpoint(recipe.base))):  # a new head is random
        options = recipe.model_dump(include=set(RewardOptions.model_fields))
        base = build_reward(recipe.base, RewardConfig(**options)).freeze()
        untrained = {name: by_prompt(base, pairs) for name, pairs in tests.items()}
    return JudgeRun(
        **cell.key,
        parameters=sum(weight.numel() for weight in judge.model.parameters()),
        pairs=len(sets["train"]),
        accuracy=accuracy,
        untrained=untrained,
        training_seconds=round(seconds, 1),
        seconds=round(time.monotonic() - began, 1),
    )


EXPERIMENT = Judges
