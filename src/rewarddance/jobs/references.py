"""`rewarddance references`: the reference bank of an align recipe, made before it runs, here or on many machines."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rewarddance.alignment.algorithms import as_rewards
from rewarddance.alignment.joint import joint_judge
from rewarddance.alignment.judges import load_judges
from rewarddance.alignment.recipe import AlignRun
from rewarddance.alignment.references import Candidates, Row, build_references, fill_bank, make_part
from rewarddance.data.faults import FaultyRow, list_faulty, skipped
from rewarddance.data.prompts import KEPT, check_not_replaced, keep_prompts, read_prompts
from rewarddance.errors import InputError
from rewarddance.generators.adapter import PipelineGenerator
from rewarddance.jobs.align import INPUTS, MAY_CHANGE, Parts, distinct, keep_inputs, load_policy
from rewarddance.jobs.fleet import Fleet, absolute
from rewarddance.jobs.preflight import FAULTY, checked_prompts
from rewarddance.reward.loading import load_reward
from rewarddance.reward.sharded import load_sharded
from rewarddance.runtime import process_group
from rewarddance.runtime.checkpoint import check_output, writable_folder
from rewarddance.runtime.config import keep_recipe
from rewarddance.runtime.lock import locked
from rewarddance.runtime.process_group import init_process_group
from rewarddance.types import Prompt

_MAY_BE_FILES = ("instruction", "criteria")
"""Options of a judge that are names or files."""


def run_references(recipe: AlignRun, fleet: Fleet | None = None) -> dict[str, Any] | None:
    """Make (or finish) `output`/references; returns where it is, and how many prompts and pictures it holds.

    `rewarddance align` with the same recipe then finds it there. An interrupted run goes on. With a fleet, each worker
    loads generator and judge; prompts, order, pictures and verdicts are those of one process. `output` must be a folder
    that all workers see. Several processes of torchrun share the prompts, and hold the judge together where the recipe
    says `judge_sharded`; all but the first return None.

    Raises InputError where the recipe's judge is asked about no reference, or for prompts that cannot be used.
    """
    if fleet is not None:
        return _referenced(recipe, fleet)
    with init_process_group():
        return _referenced(recipe, None)


def _referenced(recipe: AlignRun, fleet: Fleet | None) -> dict[str, Any] | None:
    if recipe.judge_sharded and (fleet is not None or process_group.world_size() == 1):
        raise InputError(
            "a sharded judge needs several processes.",
            "Start it with torchrun --nproc-per-node N -m rewarddance references RECIPE, or set judge_sharded=false.",
        )
    check_output(recipe.output)
    check_not_replaced(recipe.prompts, recipe.output)
    faults: list[FaultyRow] = []
    prompts = distinct(read_prompts(recipe.prompts, faults if recipe.skip_faulty else None))
    bank = recipe.output.resolve() / "references"
    parts = None
    if fleet is None:
        parts = _load(recipe, *recipe.devices())
        prompts, faults = _checked(recipe, *parts, prompts, faults)
    else:
        check = functools.partial(PromptWorker, _everywhere(recipe), fleet.device, faults)
        ((prompts, faults),) = fleet.in_order(check, [prompts])
    folder = recipe.output
    with ExitStack() as held:
        with process_group.main_process_first():
            writable_folder(folder)
            held.enter_context(locked(folder))
            keep_recipe(recipe, folder / "config.yaml", free=MAY_CHANGE)
            if process_group.is_main_process():
                keep_prompts(prompts, folder / KEPT)
                begun = (bank / "references.jsonl").exists()
                keep_inputs(recipe, Parts(), folder / INPUTS, binding=begun, of_references=True)
                list_faulty(faults, folder / FAULTY)
        if parts is not None:
            made = build_references(*parts, prompts, recipe.references, folder=bank, seed=recipe.seed)
        else:
            assert fleet is not None
            work = functools.partial(ReferenceWorker, _everywhere(recipe), fleet.device, bank)
            make = functools.partial(fleet.in_order, work)
            made = fill_bank(prompts, recipe.references, make, folder=bank, seed=recipe.seed)
    if not process_group.is_main_process():
        return None
    pictures = sum(len(one.pictures) for one in made)
    return {"references": str(bank), "prompts": len(made), "pictures": pictures} | skipped(folder / FAULTY)


class PromptWorker:
    """In a worker of a fleet: generator and judge, which look at all prompts before references are made.

    Gives the prompts that can be used and the faults of the others: `faults`, those found in reading the file, first.
    """

    def __init__(self, recipe: AlignRun, device: str, faults: list[FaultyRow]) -> None:
        self.recipe, self.faults = recipe, faults
        self.generator, self.judge = _load(recipe, device, device)

    def __call__(self, prompts: list[Prompt]) -> tuple[list[Prompt], list[FaultyRow]]:
        return _checked(self.recipe, self.generator, self.judge, prompts, self.faults)


class ReferenceWorker:
    """In a worker of a fleet: generator and judge, which make the references of a part's prompts."""

    def __init__(self, recipe: AlignRun, device: str, bank: Path) -> None:
        self.recipe, self.bank = recipe.references, bank
        self.generator, self.judge = _load(recipe, device, device)

    def __call__(self, part: Sequence[Candidates]) -> list[Row]:
        self.generator.check_prompts([candidates.prompt for candidates in part])
        return make_part(self.generator, self.judge, part, self.recipe, self.bank)


def _checked(
    recipe: AlignRun, generator: PipelineGenerator, judge: Any, prompts: list[Prompt], faults: list[FaultyRow]
) -> tuple[list[Prompt], list[FaultyRow]]:
    """`checked_prompts`, and that any of those that are kept may share a batch."""
    source, skip = recipe.prompts, recipe.skip_faulty
    prompts, faults = checked_prompts(generator, [judge], prompts, faults, source=source, skip=skip)
    generator.check_prompts(prompts)
    return prompts, faults


def _everywhere(recipe: AlignRun) -> AlignRun:
    """The recipe with paths that hold wherever a worker stands."""
    named: dict[str, Any] = {name: absolute(getattr(recipe, name)) for name in ("generator", "judge")}
    files = {name: absolute(value) for name, value in recipe.judge_options.items() if name in _MAY_BE_FILES}
    named["judge_options"] = recipe.judge_options | files
    named["rewards"] = {
        name: reward.model_copy(update={"judge": absolute(reward.judge), "criteria": absolute(reward.criteria)})
        for name, reward in recipe.rewards.items()
    }
    return recipe.model_copy(update=named)


def _load(recipe: AlignRun, device: str, judge_device: str) -> tuple[PipelineGenerator, Any]:
    generator = load_policy(recipe, device)
    kind = load_sharded if recipe.judge_sharded else load_reward
    load = functools.partial(kind, device=judge_device, dtype=recipe.judge_dtype)
    judges = load_judges(recipe, load, load)
    if judges is None:
        raise InputError(f"{recipe.algorithm} asks no judge.", "It needs no bank: align.")
    rewards = as_rewards(recipe.chosen, generator, judges)
    if rewards[0].judging != "references":
        raise InputError(f"{recipe.algorithm} asks {recipe.judge} about no reference.", "It needs no bank: align.")
    return generator, joint_judge(rewards)
