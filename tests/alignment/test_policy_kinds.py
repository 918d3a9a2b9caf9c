"""Other random steps, and GRPO-Guard, align as Flow-GRPO does."""

from __future__ import annotations

import json

import pytest
import torch
from several import in_processes
from test_alignment_processes import align as align_shared
from test_alignment_processes import assert_alike
from test_failed_groups import BAD, Failing, gradient
from test_policy_training import GRPO, PROMPTS, Mean, gain, train
from tiny_alignment import assert_same_run, logged, moved, updates_of, with_lora
from tiny_pipelines import fresh

from rewarddance.alignment.flow_grpo import GrpoRecipe
from rewarddance.alignment.group_rewards import Reward
from rewarddance.errors import InputError
from rewarddance.runtime.config import parse_recipe

KINDS = {
    "dance": {"kind": "dance", "noise_level": 0.3},
    "cps": {"kind": "cps", "noise_level": 0.5},
    "precise": {"kind": "precise", "noise_level": 0.7},
    "ddim": {"kind": "ddim", "noise_level": 0.7},
    "guard": {"guard": True},
    "guarded dance": {"kind": "dance", "guard": True},
}
each = pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)


@each
def test_each_kind_raises_what_the_judge_rewards(tmp_path, changes):
    assert gain(train("grpo", tmp_path, steps=24, **changes)) > 0.005


@each
def test_each_kinds_run_ends_the_same_after_an_interruption(tmp_path, changes):
    train("grpo", tmp_path / "whole", updates=2, **changes)
    with pytest.raises(KeyboardInterrupt):
        train("grpo", tmp_path / "cut", Mean(calls=9), updates=2, **changes)
    train("grpo", tmp_path / "cut", updates=2, **changes)
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


@each
def test_two_processes_align_by_each_kind_as_one_does(tmp_path, changes):
    align_shared("grpo", tmp_path / "one", **changes)
    in_processes(2, lambda: align_shared("grpo", tmp_path / "two", **changes))
    assert_alike(tmp_path / "two", tmp_path / "one")


@each
def test_a_pipelines_first_update_has_ratios_of_one_and_a_gradient(changes):
    generator = fresh("sd3")
    weights = moved(generator.add_lora(2, 2))
    recipe = GrpoRecipe(prompts_per_step=2, group_size=2, window=1, generator_batch=3, **changes)
    (figures,) = updates_of(generator, [Reward(Mean(), "alone")], ["a red circle", "a star"], recipe)
    assert figures["ratio_away"] == 0 and figures["velocity_mse"] > 0
    gradient_ = torch.cat([weight.grad.flatten() for weight in weights])
    assert torch.isfinite(gradient_).all() and gradient_.abs().max() > 0


def test_guard_divides_the_first_updates_gradient_by_dt_and_multiplies_it_by_the_deviation():
    """At a ratio of one nothing is clipped and the means are equal, so that only the weights differ."""
    found = {}
    for guard in (False, True):
        generator, weights = with_lora(num_steps=5)
        recipe = GRPO.model_copy(update={"guard": guard, "window": 1, "window_range": (0.25, 0.25)})
        updates_of(generator, [Reward(Mean(), "alone")], PROMPTS, recipe)
        found[guard] = torch.cat([weight.grad.flatten() for weight in weights])
    rate = 0.7 * (0.8 / (1 - 0.8)) ** 0.5
    expected = found[False] * rate * 0.2**0.5 / 0.2
    torch.testing.assert_close(found[True], expected, rtol=1e-4, atol=1e-6)


def test_groups_that_fail_leave_guard_the_gradient_of_the_others():
    recipe = GRPO.model_copy(update={"guard": True, "prompts_per_step": 3, "generator_batch": 4})
    with_constant, _ = gradient(Failing(BAD, how="constant"), recipe)
    without, _ = gradient(Failing(BAD), recipe)
    torch.testing.assert_close(without, 1.5 * with_constant, rtol=1e-4, atol=1e-6)


def test_the_alarm_of_distance_rings_in_flow_grpo(tmp_path):
    alarms = {"alarms": GRPO.alarms.model_copy(update={"window": 4, "most_distance": 1e-4})}
    train("grpo", tmp_path, kl=1e-6, **alarms)
    rows = map(json.loads, (tmp_path / "alarms.jsonl").read_text().splitlines())
    assert "distance" in [row["name"] for row in rows]
    assert all("velocity_mse" in row for row in logged(tmp_path) if row["kind"] == "step")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "cps", "noise_level": 1.2}, "a cps step has no more noise than at 1"),
        ({"kind": "ddim", "guard": True}, "guard is for the kinds flow and dance, and kind is ddim"),
    ],
)
def test_kinds_that_cannot_be_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        parse_recipe(GrpoRecipe, changes, "recipe.yaml")


@pytest.mark.parametrize("kind", ["dance", "cps", "precise"])
def test_a_generator_that_is_no_flow_is_refused_by_the_flows_kinds(kind):
    with pytest.raises(InputError, match="Set kind to ddim"):
        GRPO.model_copy(update={"kind": kind, "window": 1}).check(fresh("sd15-ddim"), Mean())
