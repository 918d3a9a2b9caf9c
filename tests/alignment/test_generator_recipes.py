"""The recipes for real generators can be read, give only what the family uses, and say that they were not run."""

from __future__ import annotations

import importlib

import pytest

from rewarddance.alignment.recipe import AlignRun
from rewarddance.cli.app import recipe_file
from rewarddance.generators.adapter import EVERY_FAMILY, GeneratorOptions
from rewarddance.generators.pipelines import ADAPTERS
from rewarddance.runtime.config import load_recipe, parse_recipe

RECIPES = sorted((recipe_file("quickstart.yaml").parent / "generators").glob("*.yaml"))


def test_there_is_one_for_every_family_but_the_bundled_ones():
    named = {path.read_text().partition("(")[2].partition(")")[0] for path in RECIPES}
    assert named == set(ADAPTERS) - {"CogView4Pipeline"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_gives_only_what_its_family_uses(path):
    run = load_recipe(AlignRun, path)
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    (command,) = [line for line in head if line.startswith("# command:  ")]
    assert command.endswith(f"rewarddance align recipes/generators/{path.name}")
    assert command.startswith("# command:  torchrun ") == run.chosen.sharded
    assert any(line.startswith("# hardware:") and "GPU" in line for line in head)
    assert any("not run: no such GPU here" in line for line in head)
    module, _, adapter = ADAPTERS[head[0].partition("(")[2].partition(")")[0]].partition(".")
    family = getattr(importlib.import_module(f"rewarddance.generators.families.{module}"), adapter)
    options = {**run.generator_options, "num_inference_steps": run.num_inference_steps}
    assert options.pop("pipeline", None) in (None, head[0].partition("(")[2].partition(")")[0])
    assert set(options) <= family.uses | EVERY_FAMILY
    parse_recipe(GeneratorOptions, options, str(path))
    assert run.dtype == run.judge_dtype == "bfloat16" and run.refl.generator_batch
