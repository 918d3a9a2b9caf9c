"""How the bundled trained judge is made: the quickstart's, from the votes of its annotators."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from rewarddance.jobs.quickstart import QuickstartRecipe, fit_judge, gather_preferences, start_run

NAME = "shapeworld-reward"


def make_bundled_reward(folder: Path, recipe: QuickstartRecipe) -> None:
    """Draw a quickstart's pictures, let its annotators vote, train its judge, and write that in half precision.

    Minutes on one core, for the recipe that comes with the project.
    """
    with TemporaryDirectory() as scratch:
        run = start_run(recipe, Path(scratch) / "run")
        torch.manual_seed(recipe.seed)
        run.stage("preferences", lambda: gather_preferences(run))
        run.stage("judge", lambda: fit_judge(run))
        judge = run.judge()
        judge.model.to(torch.float16)
        judge.save(folder)
