"""What `rewarddance plan` does: find out which run a recipe file describes, and plan it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from rewarddance.alignment.recipe import AlignRun
from rewarddance.errors import InputError
from rewarddance.jobs.recipes import SearchRun
from rewarddance.jobs.train import TrainRun
from rewarddance.planning.alignment import plan_alignment
from rewarddance.planning.plan import Plan
from rewarddance.planning.recipe import PlanOptions
from rewarddance.planning.search import HELD_OUT, SearchSetting, plan_search
from rewarddance.planning.training import plan_training
from rewarddance.runtime.checkpoint import writable_folder, write_text_atomically
from rewarddance.runtime.config import LARGEST_RECIPE, load_recipe, parse_yaml, read_recipe
from rewarddance.runtime.files import read_text
from rewarddance.search.run import read_method


def plan_recipe(path: Path, overrides: Sequence[str], options: PlanOptions) -> Plan:
    """The plan of a recipe of `rewarddance train`, `align` or `search`.

    Where it does not fit, with suggestions. Raises InputError for a recipe of none of them, for a
    model whose architecture is not known, and for what the run itself would refuse.
    """
    command = _command_of(path)
    if command == "align":
        return plan_alignment(load_recipe(AlignRun, path, overrides), options)
    if command == "search":
        return plan_search(_setting_of(load_recipe(SearchRun, path, overrides)), options)
    run = load_recipe(TrainRun, path, overrides)
    return plan_training(run.judge, run.preferences, options)


def check_new_recipe(output: Path) -> None:
    """Raises InputError for a file that is there already, and where none can be written."""
    if output.exists() or output.is_symlink():
        raise InputError(f"{output} is there already.", "Move it away, or name another file.")
    writable_folder(output.parent)


def write_fitting(plan: Plan, path: Path, overrides: Sequence[str], output: Path) -> None:
    """Write the recipe at `path` as it was planned, with the first of the changes that make it fit where it does not.

    Raises InputError where no change does on as many GPUs.
    """
    changes = next((found for found in plan.suggestions if found.gpus == plan.gpus), None)
    if not (plan.fits or changes):
        raise InputError(
            f"nothing was found that makes {path} fit on {plan.gpus} x {plan.gpu.name} ({plan.gpu.memory:g} GiB); "
            f"{output} is not written.",
            "Take more or larger GPUs, or a smaller model.",
        )
    keys = changes.keys if changes else ()
    head = f"# {path} for {plan.gpus} x {plan.gpu.name} ({plan.gpu.memory:g} GiB), by `rewarddance plan`"
    said = f", with {' '.join(keys)} ({changes.effect})." if changes else "."
    content = read_recipe(path, [*overrides, *keys])
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, default_flow_style=None)
    write_text_atomically(output, f"{head}{said}\n{text}")


def _command_of(path: Path) -> str:
    """Which command a recipe is of, by its keys. A file that cannot be read is refused where it is loaded."""
    try:
        content = parse_yaml(read_text(path, LARGEST_RECIPE))
    except (OSError, ValueError, yaml.YAMLError):
        return "train"
    keys = content if isinstance(content, dict) else {}
    if "generator" in keys and not isinstance(keys.get("judge"), dict):
        return "search" if "budget" in keys else "align"
    if "generator" in keys or not ("preferences" in keys or "judge" in keys):
        raise InputError(
            f"{path} is a recipe neither of `rewarddance train` nor of `rewarddance align` or `search`.",
            "Plan one that has preferences and judge, generator and judge, or a budget beside them.",
        )
    return "train"


def _setting_of(run: SearchRun) -> SearchSetting:
    guidance = {} if run.guidance_scale is None else {"guidance_scale": run.guidance_scale}
    batch = {} if run.judge_batch is None else {"batch_size": run.judge_batch}
    judges: dict[str, tuple[str, dict[str, Any]]] = {"judge": (run.judge, {**run.changes, **batch})}
    if run.held_out is not None:
        judges[HELD_OUT] = (run.held_out, batch)
    return SearchSetting(
        generator=run.generator,
        num_inference_steps=run.num_inference_steps,
        generator_options={**guidance, **run.generator_options},
        judges=judges,
        dtype=run.dtype,
        prompts=run.prompts,
        method=read_method(run.method, run.options),
        budget=run.budget,
        judging=run.judging,
        batch_size=run.batch_size,
        prompts_at_once=run.prompts_at_once,
        judge_sharded=run.judge_sharded,
        judge_apart=run.judge_device not in (None, "cpu", run.device or "cuda"),
    )
