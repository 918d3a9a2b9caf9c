"""The table of judges: every kind of reward and every context at every size, trained and zero-shot, over seeds.

One cell of it is one reward trained under one seed. The cells of a seed share its preferences. A finished cell is
written down at once and not done again; an unfinished one goes on from its checkpoint.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, model_validator

from experiments.judges_table import Row, as_line, read_rows, write_tables
from rewarddance.data.preferences import PreferenceSet
from rewarddance.evaluation.agreement import agreement
from rewarddance.jobs.quickstart import QuickstartRecipe, Run, gather_preferences
from rewarddance.protocols import RewardModel
from rewarddance.report.formatting import clock
from rewarddance.report.run_folder import read_metrics
from rewarddance.reward.instructions import load_instruction
from rewarddance.reward.judge import USED_BY, Judge, RewardConfig, RewardOptions
from rewarddance.reward.loading import build_reward, load_reward
from rewarddance.reward.recipe import JudgeRecipe
from rewarddance.reward.regressive import has_head
from rewarddance.reward.train import train_judge
from rewarddance.runtime.checkpoint import find_checkpoint, writable_folder, write_text_atomically
from rewarddance.runtime.config import Recipe, keep_recipe, parse_recipe
from rewarddance.runtime.tracking import Metrics, console
from rewarddance.shapeworld.preferences import PreferenceRecipe
from rewarddance.types import Preference

CONFIG, RESULTS = "config.yaml", "results.jsonl"
Sets = Mapping[str, Sequence[Preference]]
"""A seed's preferences: train, and the test sets id, early and ood."""


class JudgesRecipe(Recipe):
    """Which rewards are compared, and how.

    seeds: each has preferences, test prompts and training of its own. sizes: a name and a checkpoint for each judge
    size, small ones first. judge: how all rewards are trained. cells: a name and what is different for each reward,
    in keys of `judge`; one with a `base` of its own stands beside the sizes and is trained once a seed. tables: for
    each table its rows' names and the cells in them; each row is also compared with the one above it.
    """

    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)
    sizes: dict[str, str] = Field(min_length=1)
    generator: str = "shapeworld-generator"
    num_inference_steps: int = Field(default=12, ge=2)
    guidance_scale: float = Field(default=1.0, ge=1)
    preferences: PreferenceRecipe = PreferenceRecipe(reasons=True)
    judge: JudgeRecipe = JudgeRecipe()
    cells: dict[str, dict[str, Any]] = Field(min_length=1)
    tables: dict[str, dict[str, str]] = Field(min_length=1)

    @model_validator(mode="after")
    def _is_whole(self) -> JudgesRecipe:
        for name in (*self.sizes, *self.cells):
            if not re.fullmatch(r"\w[\w.-]*", name):
                raise ValueError(f"{name!r} is to be the name of a folder; use letters, digits, '-' and '_'")
        for title, rows in self.tables.items():
            unknown = [cell for cell in rows.values() if cell not in self.cells]
            if unknown or not rows:
                what = f"has the cell {unknown[0]!r}, which is not among the cells" if unknown else "has no rows"
                raise ValueError(f"the table {title!r} {what}")
        for cell in self.cells:
            if not any(cell in rows.values() for rows in self.tables.values()):
                raise ValueError(f"the cell {cell!r} stands in no table")
            chosen = self.training(cell)
            if chosen.kind in USED_BY["instruction"]:
                load_instruction(chosen.instruction)
            if chosen.reasoning != "none" and not self.preferences.reasons:
                raise ValueError(f"the cell {cell!r} learns reasons, but preferences.reasons is false")
        return self

    def training(self, cell: str, base: str | None = None) -> JudgeRecipe:
        """How a cell is trained, from `base` where it has none of its own: `judge`, without what its kind has no use
        for, and the cell's own keys over it. Raises InputError naming the cell and the key that is not right.
        """
        own = self.cells[cell]
        kind = own.get("kind", self.judge.kind)
        shared = {name: v for name, v in self.judge.model_dump().items() if kind in USED_BY.get(name, (kind,))}
        based = {"base": base} if base else {}
        return parse_recipe(JudgeRecipe, shared | based | own, f"the cell {cell!r}")


class Job(NamedTuple):
    """One cell to do. size: one of the recipe's, or the name of the cell's own base."""

    seed: int
    size: str
    cell: str
    base: str


def jobs(recipe: JudgesRecipe) -> list[Job]:
    """All cells, seed by seed, so that an unfinished table is whole for the first seeds."""
    alone = [(Path(own["base"]).name, cell, own["base"]) for cell, own in recipe.cells.items() if "base" in own]
    sized = [
        (size, cell, base)
        for size, base in recipe.sizes.items()
        for cell, own in recipe.cells.items()
        if "base" not in own
    ]
    return [Job(seed, *each) for seed in recipe.seeds for each in alone + sized]


def compare_judges(recipe: JudgesRecipe, folder: Path) -> str:
    """Do what is left of the table; returns it as Markdown. It is written anew after every cell, with its figure.

    Raises InputError before anything is trained where a checkpoint is missing, and where the folder holds a table
    that was begun under another recipe.
    """
    todo = jobs(recipe)
    for name in dict.fromkeys((recipe.generator, *(job.base for job in todo))):
        find_checkpoint(name)
    writable_folder(folder)
    keep_recipe(recipe, folder / CONFIG)
    rows = read_rows(folder / RESULTS)
    done = {(row.seed, row.size, row.cell) for row in rows}
    left = [job for job in todo if (job.seed, job.size, job.cell) not in done]
    for seed in recipe.seeds:
        own = [job for job in left if job.seed == seed]
        sets = seed_preferences(recipe, seed, folder / f"seed{seed}") if own else {}
        for job in own:
            place = f"{len(rows) + 1} of {len(todo)}: seed {job.seed}, {job.size}, {job.cell}"
            console.print(f"{place}{time_left(rows, left)}", soft_wrap=True)
            cell_folder = folder / f"seed{seed}" / job.size / job.cell
            rows.append(measured(job, recipe.training(job.cell, job.base), sets, cell_folder))
            left.remove(job)
            write_text_atomically(folder / RESULTS, "".join(map(as_line, rows)))
            for passing in (*cell_folder.glob("checkpoint-*"), cell_folder / "unfinished"):  # the reward stays
                shutil.rmtree(passing, ignore_errors=True)
            write_tables(recipe.tables, rows, len(todo), folder)
    return write_tables(recipe.tables, rows, len(todo), folder)


def seed_preferences(recipe: JudgesRecipe, seed: int, folder: Path) -> Sets:
    """A seed's preferences, gather_full_tensors once as the quickstart gathers them, and read."""
    own = QuickstartRecipe(
        seed=seed,
        generator=recipe.generator,
        num_inference_steps=recipe.num_inference_steps,
        guidance_scale=recipe.guidance_scale,
        preferences=recipe.preferences,
    )
    run = Run(folder, own)
    counts = run.stage("preferences", lambda: gather_preferences(run))
    return {name: list(PreferenceSet(folder / "preferences" / f"{name}.jsonl")) for name in counts}


def measured(job: Job, chosen: JudgeRecipe, sets: Sets, folder: Path) -> Row:
    """Train one reward, and ask it and its untrained base about the test sets."""
    began = time.monotonic()
    judge, seconds = trained(chosen, sets["train"], folder, job.seed)
    tests = {name: pairs for name, pairs in sets.items() if name != "train"}
    accuracy = {name: by_prompt(judge, pairs) for name, pairs in tests.items()}
    untrained = None
    if chosen.kind != "regressive" or has_head(find_checkpoint(chosen.base)):  # a new head says nothing yet
        options = chosen.model_dump(include=set(RewardOptions.model_fields))
        base = build_reward(chosen.base, RewardConfig(**options)).freeze()
        untrained = {name: by_prompt(base, pairs) for name, pairs in tests.items()}
    return Row(
        seed=job.seed,
        size=job.size,
        cell=job.cell,
        parameters=sum(weight.numel() for weight in judge.model.parameters()),
        pairs=len(sets["train"]),
        accuracy=accuracy,
        untrained=untrained,
        training_seconds=round(seconds, 1),
        seconds=round(time.monotonic() - began, 1),
    )


def trained(chosen: JudgeRecipe, pairs: Sequence[Preference], folder: Path, seed: int) -> tuple[Judge, float]:
    """The reward and the seconds that its training took, those before an interruption too."""
    logged = [row["seconds"] for row in read_metrics(folder) if row["kind"] == "evaluation"]
    before, began = (logged[-1] if logged else 0.0), time.monotonic()

    def spent(_: RewardModel) -> dict[str, float]:
        return {"seconds": before + time.monotonic() - began}

    judge = train_judge(chosen, pairs, folder, Metrics(folder / "metrics.jsonl"), seed, spent)
    return judge, spent(judge)["seconds"]


def judge_of_seed(recipe: QuickstartRecipe, given: dict[int, str], folder: Path) -> Judge:
    """The reward that is `given` for a seed, or one trained in `folder`, once, as the run would train its own."""
    if recipe.seed in given:
        return load_reward(given[recipe.seed])
    if not (folder / "judge" / "reward").exists():
        run = Run(writable_folder(folder), recipe)
        run.stage("preferences", lambda: gather_preferences(run))
        trained(recipe.judge, PreferenceSet(folder / "preferences" / "train.jsonl"), folder / "judge", recipe.seed)
        for checkpoint in (folder / "judge").glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
    return load_reward(str(folder / "judge" / "reward"))


def by_prompt(judge: RewardModel, pairs: Sequence[Preference]) -> list[float]:
    """Each prompt's share of pairs that the judge orders rightly, in the order in which the prompts come.

    Pairs of one prompt show the same few pictures: the prompts, not the pairs, are independent.
    """
    found: dict[str, list[float]] = {}
    for pair, right in zip(pairs, agreement(judge, pairs).tolist(), strict=True):
        found.setdefault(pair.prompt.text, []).append(right)
    return [sum(own) / len(own) for own in found.values()]


def time_left(rows: Sequence[Row], left: Sequence[Job]) -> str:
    """About how long the cells that are left will take, from those of the same kind or else from all; "" at first."""
    if not rows:
        return ""
    every = [row.seconds for row in rows]
    alike = [[row.seconds for row in rows if (row.size, row.cell) == (job.size, job.cell)] or every for job in left]
    return f" (about {clock(sum(sum(own) / len(own) for own in alike))} left)"
