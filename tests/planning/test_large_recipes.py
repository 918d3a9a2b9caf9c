"""Real sizes fit by their own plans: FLUX.1-dev with judges of 8B to 38B on one card of 24 or 80 GB, and on eight."""

from __future__ import annotations

from pathlib import Path

import pytest

from rewarddance.jobs.plan import plan_recipe
from rewarddance.planning.recipe import PlanOptions

RECIPES = Path(__file__).parents[2] / "recipes" / "large"
CARDS = {
    "flux.1-dev-24gb": ("rtx4090", 1),
    "flux.1-dev-80gb": ("h100", 1),
    "flux.1-dev-8x80gb": ("h100", 8),
    "flux.1-dev-26b-judge-8x80gb": ("h100", 8),
    "flux.1-dev-38b-judge-8x80gb": ("h100", 8),
}
JUDGES = {"26b": 25_500_000_000, "38b": 38_000_000_000}


def test_every_large_recipe_is_planned_here():
    assert {path.stem for path in RECIPES.glob("*.yaml")} == {*CARDS}


@pytest.mark.parametrize("name", CARDS)
def test_a_large_recipe_fits_its_cards_by_its_own_figures(name):
    gpu, gpus = CARDS[name]
    plan = plan_recipe(RECIPES / f"{name}.yaml", [], PlanOptions(gpu=gpu, gpus=gpus))
    assert plan.fits and not plan.suggestions
    assert plan.parameters["transformer"] > 11_900_000_000
    assert plan.parameters["judge"] > next((size for part, size in JUDGES.items() if part in name), 8_700_000_000)
