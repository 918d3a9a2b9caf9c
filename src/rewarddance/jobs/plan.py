"""What `rewarddance plan` does: find out which run a recipe file describes, and plan it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from rewarddance.alignment.recipe import AlignRun
from rewarddance.errors import InputError
from rewarddance.jobs.train import TrainRun
from rewarddance.planning.alignment import plan_alignment
from rewarddance.planning.plan import Plan
from rewarddance.planning.recipe import PlanOptions
from rewarddance.planning.training import plan_training
from rewarddance.runtime.config import LARGEST_RECIPE, load_recipe, parse_yaml
from rewarddance.runtime.files import read_text


def plan_recipe(path: Path, overrides: Sequence[str], options: PlanOptions) -> Plan:
    """The plan of a recipe of `rewarddance train` or `rewarddance align`, with suggestions where it does not fit.

    Raises InputError for a recipe of neither, for a model whose architecture is not known, and for what the run itself
    would refuse.
    """
    if _aligns(path):
        return plan_alignment(load_recipe(AlignRun, path, overrides), options)
    run = load_recipe(TrainRun, path, overrides)
    return plan_training(run.judge, run.preferences, options)


def _aligns(path: Path) -> bool:
    """Which of the two a recipe is, by its keys. A file that cannot be read is refused where it is loaded."""
    try:
        content = parse_yaml(read_text(path, LARGEST_RECIPE))
    except (OSError, ValueError, yaml.YAMLError):
        return False
    keys = content if isinstance(content, dict) else {}
    if "generator" in keys and not isinstance(keys.get("judge"), dict):
        return True
    if "generator" in keys or not ("preferences" in keys or "judge" in keys):
        raise InputError(
            f"{path} is a recipe neither of `rewarddance train` nor of `rewarddance align`.",
            "Plan one that has preferences and judge, or generator and judge.",
        )
    return False
