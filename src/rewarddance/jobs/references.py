"""`rewarddance references`: the reference bank of an align recipe, made before it runs, here or on many machines."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rewarddance.alignment.recipe import AlignRun
from rewarddance.alignment.references import Candidates, Row, build_references, fill_bank, make_part
from rewarddance.data.faults import FaultyRow
from rewarddance.data.prompts import keep_prompts, read_prompts
from rewarddance.errors import InputError
from rewarddance.generators.adapter import PipelineGenerator
from rewarddance.jobs.align import distinct, load_policy
from rewarddance.jobs.fleet import Fleet, absolute
from rewarddance.jobs.preflight import checked_prompts
from rewarddance.reward.loading import load_reward
from rewarddance.runtime.checkpoint import locked, writable_folder
from rewarddance.runtime.config import keep_recipe


def run_references(recipe: AlignRun, fleet: Fleet | None = None) -> dict[str, Any]:
    """Make (or finish) `output`/references; returns where it is, and how many prompts and pictures it holds.

    `rewarddance align` with the same recipe then finds it there. An interrupted run goes on. With a fleet, each worker
    loads generator and judge; prompts, order, pictures and verdicts are those of one process. `output` must be a folder
    that all workers see.

    Raises InputError where the recipe's judge is asked about no reference, or for prompts that cannot be used.
    """
    faults: list[FaultyRow] = []
    prompts = distinct(read_prompts(recipe.prompts, faults if recipe.skip_faulty else None))
    bank = recipe.output.resolve() / "references"
    parts = None
    if fleet is None:
        parts = _load(recipe, *recipe.devices())
        where, skip = recipe.prompts, recipe.skip_faulty
        prompts = checked_prompts(
            parts[0], [parts[1]], prompts, faults, source=where, skip=skip, folder=writable_folder(recipe.output)
        )
    folder = writable_folder(recipe.output)
    keep_recipe(recipe, folder / "config.yaml")
    keep_prompts(prompts, folder / "prompts.jsonl")
    with locked(folder):
        if parts is not None:
            made = build_references(*parts, prompts, recipe.references, folder=bank, seed=recipe.seed)
        else:
            assert fleet is not None
            named = {name: absolute(getattr(recipe, name)) for name in ("generator", "judge")}
            work = functools.partial(ReferenceWorker, recipe.model_copy(update=named), fleet.device, bank)
            make = functools.partial(fleet.in_order, work)
            made = fill_bank(prompts, recipe.references, make, folder=bank, seed=recipe.seed)
    return {"references": str(bank), "prompts": len(made), "pictures": sum(len(one.pictures) for one in made)}


class ReferenceWorker:
    """In a worker of a fleet: generator and judge, which make the references of a part's prompts."""

    def __init__(self, recipe: AlignRun, device: str, bank: Path) -> None:
        self.recipe, self.bank = recipe.references, bank
        self.generator, self.judge = _load(recipe, device, device)

    def __call__(self, part: Sequence[Candidates]) -> list[Row]:
        self.generator.check_prompts([candidates.prompt for candidates in part])
        return make_part(self.generator, self.judge, part, self.recipe, self.bank)


def _load(recipe: AlignRun, device: str, judge_device: str) -> tuple[PipelineGenerator, Any]:
    generator = load_policy(recipe, device)
    judge = load_reward(recipe.judge, judge_device, recipe.judge_dtype, **recipe.judge_options)
    recipe.chosen.check(generator, judge)
    if recipe.chosen.judging_of(judge) != "references":
        raise InputError(f"{recipe.algorithm} asks {recipe.judge} about no reference.", "It needs no bank: align.")
    return generator, judge
