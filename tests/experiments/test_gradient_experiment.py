"""Where the judge's gradient leads: the way it is followed, and what is said of it."""

from __future__ import annotations

import itertools

import pytest
import torch
from tiny import BrightnessJudge, quickstart_recipe, video_quickstart_recipe
from tiny_grid import experiment
from tiny_pipelines import FAMILIES, pipeline_folder

from experiments.gradient import StepEffect, as_markdown, probe_gradient, step_from
from rewarddance.evaluation.statistics import Interval
from rewarddance.generators.pipelines import load_generator
from rewarddance.generators.sampling import rollout
from rewarddance.jobs.quickstart import QuickstartRecipe, Run, start_run
from rewarddance.runtime.config import load_recipe

STEPS = 3


def run_of(task: str, folder, monkeypatch) -> Run:
    """A run whose judge likes bright samples."""
    recipe = quickstart_recipe(folder) if task == "t2i" else video_quickstart_recipe(folder, task)
    run = start_run(load_recipe(QuickstartRecipe, recipe, [f"num_inference_steps={STEPS}"]), folder / "run")
    run.stages["judge"] = {"result": {}}
    monkeypatch.setattr(run, "judge", BrightnessJudge)
    return run


@pytest.mark.parametrize("task", ["t2i", "i2v"])
def test_samples_moved_along_the_gradient_please_the_judge(task, tmp_path, monkeypatch):
    run = run_of(task, tmp_path, monkeypatch)
    far = probe_gradient(run, prompts=6, samples=2, size=0.5)
    assert [one.step for one in far] == [s for s in range(STEPS) if run.generator().scales(s).sigma > 0]
    assert all(one.margin.low > 0 for one in far)
    assert all(low.noise > high.noise for low, high in itertools.pairwise(far))
    for one in probe_gradient(run, prompts=6, samples=2, size=1e-9):
        assert one.margin.mean == pytest.approx(0, abs=1e-4) and one.oracle.mean == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("family", ["sd15-ddim", "sd15-v", "sdxl-euler", "sd3", "wan"])
def test_the_step_from_its_own_prediction_is_the_samplers(family):
    generator = load_generator(str(pipeline_folder(family)), num_inference_steps=4, **FAMILIES[family].plain)
    x_t = rollout(generator, ["a red circle"], [0], 1).x_t
    with torch.no_grad():
        v = generator.predict(x_t, 1, generator.encode(["a red circle"]))
    ours = step_from(generator, x_t, generator.predict_x0(x_t, v, 1), 1)
    torch.testing.assert_close(ours, generator.advance(x_t, v, 1), atol=1e-4, rtol=1e-4)


def test_the_text_names_the_steps_that_gain_and_the_range_that_spans_them():
    nothing, gain = Interval(0.0, -0.01, 0.01, 6), Interval(0.03, 0.01, 0.05, 6)
    effects = [StepEffect(step, 1 - step / 5, gain if step in (2, 3) else nothing, gain) for step in range(5)]
    text = as_markdown(effects, 6, 0.3)
    assert "above 0 at 2, 3, which refl.grad_step_range=[0.40,0.60] spans" in text
    assert "| 2 | 0.60 | +3.0 [+1.0, +5.0] | +0.03 |" in text
    assert "it is not seen that the gradient leads anywhere" in as_markdown(effects[:2], 6, 0.3)


def test_a_run_without_a_judge_is_refused_by_name(tmp_path):
    start_run(load_recipe(QuickstartRecipe, quickstart_recipe(tmp_path)), tmp_path / "run")
    found = experiment("gradient", tmp_path / "run")
    assert found.code == 2 and "judge" in found.err and "is not trained yet" in found.err
    assert experiment("gradient", tmp_path / "nowhere").code == 2
