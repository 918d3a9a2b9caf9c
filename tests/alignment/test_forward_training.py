"""AWM, DGPO, CRD and online DPO raise what the judge rewards, on the loop that DiffusionNFT has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from several import in_processes
from test_alignment_processes import LOOP as SHARED_LOOP
from test_alignment_processes import RECIPES as SHARED
from test_alignment_processes import align as align_shared
from test_alignment_processes import assert_alike
from test_failed_groups import BAD, Blind, Failing
from test_failed_groups import gradient as gradient_of_groups
from test_policy_training import LOOP, PROMPTS, RECIPES, Mean, gain, train
from tiny import BrightnessJudge, TinyGenerator
from tiny_alignment import assert_same_run, logged, moved, updates_of, with_lora
from tiny_pipelines import fresh, pipeline_folder

from rewarddance.alignment.awm import AwmRecipe
from rewarddance.alignment.crd import CrdRecipe
from rewarddance.alignment.dgpo import DgpoRecipe
from rewarddance.alignment.forward_process import ForwardRecipe
from rewarddance.alignment.group_rewards import Reward
from rewarddance.alignment.online_dpo import OnlineDpoRecipe
from rewarddance.errors import InputError
from rewarddance.generators.pipelines import load_generator
from rewarddance.runtime.config import parse_recipe

KINDS: dict[str, type[ForwardRecipe]] = {
    "awm": AwmRecipe,
    "dgpo": DgpoRecipe,
    "crd": CrdRecipe,
    "online_dpo": OnlineDpoRecipe,
}
OWN = {
    "awm": {"clip_range": 0.5},
    "dgpo": {"clip_range": 0.5, "beta": 10.0},
    "crd": {"beta": 0.3},
    "online_dpo": {"beta": 20.0},
}
each = pytest.mark.parametrize("algorithm", KINDS)


@pytest.fixture(autouse=True)
def recipes(monkeypatch):
    """These algorithms beside the others of the shared runs."""
    for name, kind in KINDS.items():
        own = {"learning_rate": 0.1, "velocity_mse": 0.0, "levels": 4, **OWN[name]}
        monkeypatch.setitem(RECIPES, name, kind(**LOOP, **own))
        shared = {**SHARED_LOOP, "group_size": 4, "learning_rate": 0.05, "updates": 2, "velocity_mse": 0.1}
        monkeypatch.setitem(SHARED, name, kind(**shared, **OWN[name], generator_batch=3 if name == "awm" else 4))


@each
@pytest.mark.parametrize("judging", ["alone", "group", "references"])
def test_each_raises_what_the_judge_rewards_however_it_is_asked(tmp_path, algorithm, judging):
    judge = Mean() if judging == "alone" else BrightnessJudge()
    assert gain(train(algorithm, tmp_path, judge, judging, steps=24)) > 0.005


@each
def test_a_judge_of_the_opposite_taste_lowers_it(tmp_path, algorithm):
    assert gain(train(algorithm, tmp_path, Mean(sign=-1.0))) < -0.003


@each
@pytest.mark.parametrize("step", [0, 9])
def test_an_interrupted_run_ends_as_the_whole_one(tmp_path, algorithm, step):
    train(algorithm, tmp_path / "whole", updates=2)
    with pytest.raises(KeyboardInterrupt):
        train(algorithm, tmp_path / "cut", Mean(calls=step), updates=2)
    train(algorithm, tmp_path / "cut", updates=2)
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


@each
def test_two_processes_align_as_one_does(tmp_path, algorithm):
    align_shared(algorithm, tmp_path / "one")
    in_processes(2, lambda: align_shared(algorithm, tmp_path / "two"))
    assert_alike(tmp_path / "two", tmp_path / "one")


def test_two_processes_with_the_weights_in_pieces_align_by_groups_as_one_does(tmp_path):
    changes = {"prompts_per_step": 2, "group_size": 2, "steps": 2, "save_every": 2, "learning_rate": 1e-3, "updates": 1}
    align_shared("dgpo", tmp_path / "one", "sd3", **changes)
    in_processes(2, lambda: align_shared("dgpo", tmp_path / "two", "sd3", sharded=True, **changes))
    assert_alike(tmp_path / "two", tmp_path / "one")


@each
@pytest.mark.parametrize("family", ["sd3", "sd15-ddim"])
def test_an_update_of_a_pipeline_has_a_finite_gradient_and_measures_the_distance(algorithm, family):
    generator = fresh(family)
    weights = moved(generator.add_lora(2, 2))
    recipe = KINDS[algorithm](prompts_per_step=2, group_size=2, generator_batch=2)
    reward = Reward(Mean(), "alone")
    (figures,) = updates_of(generator, [reward], ["a red circle", "a star"], recipe, weights=weights)
    assert figures["velocity_mse"] > 0 and 0.5 < figures["velocity_norm"] < 2
    gradient = torch.cat([weight.grad.flatten() for weight in weights])
    assert torch.isfinite(gradient).all() and gradient.abs().max() > 0


@pytest.mark.parametrize("algorithm", ["awm", "dgpo"])
def test_a_ratio_that_is_clipped_is_of_predictions_in_one_precision(algorithm, monkeypatch):
    """Or what is cut off is rounding: at the first update old and new weights are the same."""
    monkeypatch.setattr("rewarddance.generators.adapter.multiplies_bfloat16", lambda device: True)
    generator = load_generator(str(pipeline_folder("sd3")), 4, half_sampling=True)
    weights, old, new = generator.add_lora(2, 2), list[torch.Tensor](), list[torch.Tensor]()
    predict = generator.predict

    def predicted(x_t, step, condition):
        found = predict(x_t, step, condition)
        if not generator._uses_initial:
            (new if torch.is_grad_enabled() else old).append(found.detach())
        return found

    monkeypatch.setattr(generator, "predict", predicted)
    recipe = KINDS[algorithm](prompts_per_step=1, group_size=2, levels=1, ema_decay=0.5, rollout_forwards=2)
    updates_of(generator, [Reward(Mean(), "alone")], ["a red circle"], recipe, weights=weights)
    rounding = [(a - b).abs().max().item() for a, b in zip(old[-len(new) :], new, strict=True)]
    assert max(rounding) < 1e-4 and old[0].dtype == torch.float32


@pytest.mark.parametrize("algorithm", ["nft", "awm"])
def test_the_norm_guard_keeps_the_velocity_from_growing(tmp_path, algorithm):
    """By a reward that makes it grow: of the two tastes, one does."""
    free = {sign: norm_after(tmp_path, algorithm, sign) for sign in (1.0, -1.0)}
    grows = max(free, key=lambda sign: free[sign])
    held = norm_after(tmp_path, algorithm, grows, norm_guard=30.0)
    assert free[grows] > 1.001 and held - 1 < 0.5 * (free[grows] - 1)


def norm_after(folder: Path, algorithm: str, sign: float, **changes: Any) -> float:
    """The velocity's norm, of the base's, at the end of a run."""
    own = folder / f"{sign} {changes}"
    train(algorithm, own, Mean(sign=sign), steps=12, **changes)
    return [row for row in logged(own) if row["kind"] == "step"][-1]["velocity_norm"]


@each
def test_a_gradient_in_parts_is_that_of_the_whole(algorithm):
    gradients = []
    for at_once in (None, 6):
        generator, weights = with_lora(num_steps=5)
        recipe = RECIPES[algorithm].model_copy(update={"generator_batch": at_once, "velocity_mse": 0.3})
        updates_of(generator, [Reward(Mean(), "alone")], PROMPTS, recipe, step=2, weights=weights)
        gradients.append(torch.cat([weight.grad.flatten() for weight in weights]))
    assert (gradients[0] - gradients[1]).abs().max() <= 1e-5 * gradients[0].abs().max()


@each
def test_groups_that_fail_are_as_if_they_had_not_been(algorithm):
    recipe = RECIPES[algorithm].model_copy(update={"prompts_per_step": 3, "spread": "prompt"})
    found, _ = gradient_of_groups(Failing(BAD), recipe)
    for at_once, generator, judge in ((6, None, Failing(BAD)), (None, Blind, BrightnessJudge())):
        other = recipe.model_copy(update={"generator_batch": at_once})
        same, _ = gradient_of_groups(judge, other, *([generator] if generator else []))
        torch.testing.assert_close(same, found, rtol=1e-4, atol=1e-6)


def test_awm_asks_no_old_policy_where_it_is_the_one_that_learns():
    gradients = []
    for decay in (0.0, 0.5):
        generator, weights = with_lora(num_steps=5)
        recipe = RECIPES["awm"].model_copy(update={"ema_decay": decay})
        assert recipe.asks_old == bool(decay)
        updates_of(generator, [Reward(Mean(), "alone")], PROMPTS, recipe, step=2, weights=weights)
        gradients.append(torch.cat([weight.grad.flatten() for weight in weights]))
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)  # the average is still the weights


def test_a_groups_samples_have_the_same_levels_and_noises_where_they_are_compared():
    rng_steps: list[tuple[int, ...]] = []

    class Watched(TinyGenerator):
        def predict(self, x_t, step, condition):
            if torch.is_grad_enabled():
                rng_steps.append((step, len(x_t)))
            return super().predict(x_t, step, condition)

    generator, weights = with_lora(Watched, 5)
    recipe = RECIPES["crd"].model_copy(update={"generator_batch": 6, "levels": 2})
    updates_of(generator, [Reward(Mean(), "alone")], PROMPTS, recipe, weights=weights)
    assert len(rng_steps) == 6 and {n for _, n in rng_steps} == {6}  # three groups of six, two levels each


@pytest.mark.parametrize(("pairs", "samples"), [("extremes", 2), ("all", 6)])
def test_dpo_learns_the_samples_of_its_pairs_alone(pairs, samples):
    seen = []

    class Watched(TinyGenerator):
        def predict(self, x_t, step, condition):
            if torch.is_grad_enabled():
                seen.append(len(x_t))
            return super().predict(x_t, step, condition)

    generator, weights = with_lora(Watched, 5)
    recipe = RECIPES["online_dpo"].model_copy(update={"pairs": pairs, "levels": 2})
    updates_of(generator, [Reward(Mean(), "alone")], PROMPTS, recipe, weights=weights)
    assert sum(seen) == 3 * samples * 2


@pytest.mark.parametrize("algorithm", [*KINDS, "nft"])
def test_the_alarm_of_distance_rings(tmp_path, algorithm):
    alarms = RECIPES[algorithm].alarms.model_copy(update={"window": 4, "most_distance": 1e-6})
    train(algorithm, tmp_path, alarms=alarms)
    rows = [json.loads(line) for line in (tmp_path / "alarms.jsonl").read_text().splitlines()]
    assert "distance" in [row["name"] for row in rows]


def test_a_decay_that_rises_goes_on_after_an_interruption_as_if_it_had_not_been(tmp_path):
    changes = {"decay_rise": 0.1, "decay_from": 2, "ema_decay": 0.9}
    train("nft", tmp_path / "whole", **changes)
    with pytest.raises(KeyboardInterrupt):
        train("nft", tmp_path / "cut", Mean(calls=9), **changes)
    train("nft", tmp_path / "cut", **changes)
    assert_same_run(tmp_path / "cut", tmp_path / "whole")
    train("nft", tmp_path / "constant", ema_decay=0.9)
    assert logged(tmp_path / "whole")[-2]["reward"] != logged(tmp_path / "constant")[-2]["reward"]


@pytest.mark.parametrize(
    ("algorithm", "changes", "message"),
    [
        ("dgpo", {"generator_batch": 6, "group_size": 4}, "groups of 4 are learned whole"),
        ("crd", {"generator_batch": 3, "group_size": 4}, "groups of 4 are learned whole"),
        ("awm", {"decay_from": 4}, "decay_from is used with a decay_rise only"),
        ("awm", {"weighting": "t^3"}, "weighting"),
        ("dgpo", {"level_range": [0.5, 0.2]}, "level_range"),
    ],
)
def test_recipes_that_cannot_be_are_refused(algorithm, changes, message):
    with pytest.raises(InputError, match=message):
        parse_recipe(KINDS[algorithm], changes, "recipe.yaml")
