"""Algorithms that only ask the judge, and searches, are planned as they run."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from measured import measured_peak
from tiny import generator_folder, judge_folder
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from rewarddance.alignment.algorithms import ALGORITHMS, algorithm_of
from rewarddance.alignment.group_rewards import Reward
from rewarddance.alignment.policy import PolicyRecipe
from rewarddance.alignment.recipe import AlignRun
from rewarddance.alignment.safeguards import Ema
from rewarddance.alignment.train import Alignment
from rewarddance.errors import InputError
from rewarddance.generators.pipelines import load_generator
from rewarddance.jobs.plan import plan_recipe
from rewarddance.planning.alignment import plan_alignment
from rewarddance.planning.hardware import GIB
from rewarddance.planning.plan import Plan, prompt_of_words
from rewarddance.planning.recipe import PlanOptions
from rewarddance.reward.loading import load_reward
from rewarddance.search.budget import CountingGenerator, CountingJudge
from rewarddance.search.run import read_method, search
from rewarddance.types import Prompt

ASKING = [name for name in ALGORITHMS if name not in ("refl", "dpo")]
PROMPTS = [Prompt(prompt_of_words(6)) for _ in range(2)]
FAMILIES: dict[str, dict[str, object]] = {
    "grpo": {"kl": 0.1},
    "nft": {"levels": 2, "level_range": (0.0, 0.5)},  # of 2 levels, so that all samples meet at both
}
METHODS = {"best_of_n": {}, "zero_order": {}, "paths": {"paths": 1, "copies": 2}, "pruning": {}}


def run_of(algorithm: str, **keys: object) -> AlignRun:
    own = {"prompts_per_step": 2, "group_size": 4, "lora_rank": 2, "lora_alpha": 16, **keys}
    content = {"generator": str(generator_folder()), "judge": str(judge_folder()), "num_inference_steps": 3}
    content |= {"prompts": "missing.txt", "output": "missing", "dtype": "float32", "judge_dtype": "float32"}
    return AlignRun.model_validate({**content, "algorithm": algorithm, algorithm: own})


@functools.cache
def planned(algorithm: str, gpus: int = 1) -> Plan:
    return plan_alignment(run_of(algorithm, **FAMILIES.get(algorithm, {})), PlanOptions(prompt_words=6, gpus=gpus))


def real_iteration(algorithm: str) -> Any:
    """A function that does one iteration, with gradients and averages that are there already."""
    run = run_of(algorithm, **FAMILIES[algorithm])
    generator, judge = load_generator(run.generator, run.num_inference_steps), load_reward(run.judge)
    weights = generator.add_lora(2, 16)
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    recipe, ema = run.chosen, Ema(weights, 0.5)
    assert isinstance(recipe, PolicyRecipe)
    whole = Alignment(generator, [Reward(judge, recipe.judging_of(judge))], PROMPTS, recipe)
    return lambda: list(algorithm_of(recipe).updates(whole, 0, ema))


@pytest.mark.parametrize("algorithm", ASKING)
def test_every_algorithm_that_asks_is_planned(algorithm: str):
    plan = planned(algorithm)
    assert {"sampling", "decoder", "judge", "generator", "backward"} == set(plan.flops) - {"other"}
    assert all(plan.peaks[phase] > 0 for phase in ("sampling", "judge", "generator", "backward"))
    assert plan.steps == ALGORITHMS[algorithm].recipe().steps and plan.notes == ("Probes and files come on top.",)


@pytest.mark.parametrize("algorithm", FAMILIES)
def test_an_iteration_takes_the_memory_and_the_operations_planned(algorithm: str):
    plan = planned(algorithm)
    real = measured_peak(real_iteration(algorithm))
    phases = ("sampling", "decoder", "judge", "generator", "backward")
    assert max(plan.peaks[phase] for phase in phases) == pytest.approx(real, rel=0.15)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        real_iteration(algorithm)()
    assert sum(plan.flops.values()) == pytest.approx(counter.get_total_flops(), rel=0.1)


def test_two_processes_share_the_prompts_of_an_iteration():
    one, two = planned("grpo"), planned("grpo", 2)
    assert two.peaks["generator"] < 0.7 * one.peaks["generator"]
    assert sum(two.flops.values()) == pytest.approx(sum(one.flops.values()), rel=0.05)
    with pytest.raises(InputError, match="3 processes cannot share"):
        planned("grpo", 3)


def test_an_iteration_that_does_not_fit_is_done_in_smaller_parts():
    plan = planned("grpo")
    small = PlanOptions(prompt_words=6, gpu_memory=(plan.size - 2**20) / GIB)
    (suggestion,) = plan_alignment(run_of("grpo"), small).suggestions
    assert suggestion.size < plan.size and all(key.startswith("grpo.") for key in suggestion.keys)


def test_votes_are_not_planned_and_the_plan_says_what_is():
    run = AlignRun.model_validate({"generator": "x", "algorithm": "dpo", "prompts": "x", "output": "x"})
    with pytest.raises(InputError, match="dpo") as caught:
        plan_alignment(run, PlanOptions())
    assert "online_dpo" in caught.value.remedy


def searching(folder: Path, **keys: object) -> Path:
    content = {"generator": str(generator_folder()), "judge": str(judge_folder()), "num_inference_steps": 3}
    content |= {"prompts": "missing.txt", "budget": "samples=12", "prompts_at_once": 2, "batch_size": 8}
    path = folder / "search.yaml"
    path.write_text(yaml.safe_dump({**content, "dtype": "float32", **keys}))
    return path


@pytest.mark.parametrize("method", METHODS)
def test_a_search_is_planned_by_operations_and_memory_of_its_method(method: str, tmp_path: Path):
    path = searching(tmp_path, method=method, options=METHODS[method])
    plan = plan_recipe(path, [], PlanOptions(prompt_words=6))
    assert plan.job == "search" and plan.fits and plan.steps == 1
    generator = CountingGenerator(load_generator(str(generator_folder()), 3))
    judge = CountingJudge(load_reward(str(judge_folder())))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        recipe = read_method(method, METHODS[method])
        search(generator, judge, PROMPTS, recipe, "samples=12", prompts_at_once=2, batch_size=8)
    real = measured_peak(
        lambda: search(generator, judge, PROMPTS, recipe, "samples=12", prompts_at_once=2, batch_size=8)
    )
    assert max(plan.peaks.values()) == pytest.approx(real, rel=0.05)
    making = plan.flops["sampling"] + plan.flops["decoder"]
    assert making + plan.flops["judge"] == pytest.approx(counter.get_total_flops(), rel=0.15)


def test_a_search_with_a_judge_in_shards_or_apart_holds_less_here(tmp_path: Path):
    def plan(*keys: str, gpus: int = 1) -> Plan:
        return plan_recipe(searching(tmp_path), keys, PlanOptions(prompt_words=6, gpus=gpus))

    whole, apart, shards = plan(), plan("judge_device=cuda:1"), plan("judge_sharded=true", gpus=2)
    assert apart.judge_gpu > 0 and apart.gpus == 2 and apart.size < whole.size
    parts = [{part.name: part.size for part in each.memory} for each in (whole, shards)]
    assert parts[1]["judge"] <= parts[0]["judge"] // 2 + 4
    for keys, message in ((["budget=seconds=5"], "seconds"), (["judge_sharded=true"], "several")):
        with pytest.raises(InputError, match=message):
            plan(*keys)


def test_a_search_compares_its_winners_by_the_held_out_judge_besides(tmp_path: Path):
    plain = plan_recipe(searching(tmp_path), [], PlanOptions(prompt_words=6))
    plan = plan_recipe(searching(tmp_path, held_out=str(judge_folder())), [], PlanOptions(prompt_words=6))
    parts = {part.name: part.size for part in plan.memory}
    assert parts["held-out judge"] == parts["judge"] and plan.sources["held-out judge"] == str(judge_folder())
    assert plan.flops["judge"] > plain.flops["judge"] and plan.flops["sampling"] == plain.flops["sampling"]


def test_a_search_that_does_not_fit_makes_fewer_pictures_at_once(tmp_path: Path):
    def plan(memory: float | None = None) -> Plan:
        return plan_recipe(searching(tmp_path), [], PlanOptions(prompt_words=6, gpu_memory=memory))

    whole = plan()
    (suggestion,) = plan((whole.size - 2**20) / GIB).suggestions
    assert suggestion.keys == ("batch_size=4", "prompts_at_once=2") and suggestion.size < whole.size
