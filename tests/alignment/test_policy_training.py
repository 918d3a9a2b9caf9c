"""Policy gradients raise what the judge rewards without its gradient, and forget every interruption."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_refl_training import BANK, brightness
from tiny import BrightnessJudge, TinyGenerator, comparing
from tiny_alignment import assert_same_run, logged, moved, updates_of, with_lora
from tiny_pipelines import fresh

from rewarddance.alignment.alarms import AlarmRecipe
from rewarddance.alignment.algorithms import align_generator
from rewarddance.alignment.flow_grpo import GrpoRecipe
from rewarddance.alignment.group_rewards import Reward
from rewarddance.alignment.nft import NftRecipe
from rewarddance.alignment.policy import against_base
from rewarddance.alignment.references import ReferenceBank
from rewarddance.alignment.train import Alignment
from rewarddance.errors import InputError, RewardError
from rewarddance.runtime.config import parse_recipe
from rewarddance.runtime.tracking import Metrics
from rewarddance.types import Question, Verdict

PROMPTS = [one.prompt for one in BANK]
LOOP = {"steps": 12, "prompts_per_step": 3, "group_size": 6, "lora_rank": 2, "lora_alpha": 2, "ema_decay": 0.5}
LOOP |= {"probe_every": 5, "save_every": 4}
GRPO = GrpoRecipe(**LOOP, learning_rate=0.1, kl=0.0, window_range=(0.0, 1.0))
NFT = NftRecipe(**LOOP, learning_rate=0.1, velocity_mse=0.0, advantage_clip=1.0, beta=0.3, levels=4)
RECIPES = {"grpo": GRPO, "nft": NFT}
REGULARISED = {
    "grpo": GRPO.model_copy(update={"kl": 0.3, "window": 1}), "nft": NFT.model_copy(update={"velocity_mse": 0.3})
}  # fmt: skip


class Mean:
    """A person who likes bright pictures: no gradient, no reference. It may be cut off at a call."""

    needs_reference = False

    def __init__(self, sign: float = 1.0, calls: int = 10**6) -> None:
        self.sign, self.calls = sign, calls

    def __call__(self, questions: list[Question]) -> Verdict:
        assert not torch.is_grad_enabled() and not any(q.candidate.requires_grad for q in questions)
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        return Verdict(torch.tensor([self.sign * 8 * float(question.candidate.mean()) for question in questions]))


def train(algorithm: str, folder: Path, judge=None, judging="alone", **changes) -> TinyGenerator:
    generator, bank = TinyGenerator(num_steps=5), ReferenceBank(BANK) if judging == "references" else None
    recipe = RECIPES[algorithm].model_copy(update=changes)
    run = Alignment(generator, [Reward(judge or Mean(), judging)], PROMPTS, recipe, 3, bank)
    align_generator(run, folder=folder, metrics=Metrics(folder / "metrics.jsonl"))
    return generator


def gain(generator: TinyGenerator) -> float:
    return brightness(generator) - brightness(TinyGenerator(num_steps=5))


both = pytest.mark.parametrize("algorithm", ["grpo", "nft"])


@both
@pytest.mark.parametrize("judging", ["alone", "group", "references"])
def test_what_the_judge_rewards_is_raised_however_it_is_asked(tmp_path, algorithm, judging):
    judge = Mean() if judging == "alone" else BrightnessJudge()
    assert gain(train(algorithm, tmp_path, judge, judging, steps=24)) > 0.005


@both
def test_a_judge_of_the_opposite_taste_lowers_it(tmp_path, algorithm):
    assert gain(train(algorithm, tmp_path, Mean(sign=-1.0))) < -0.005


@both
def test_groups_without_spread_teach_nothing_and_are_counted(tmp_path, algorithm):
    class Bored(Mean):
        def __call__(self, questions):
            return Verdict(torch.zeros(len(questions)))

    assert gain(train(algorithm, tmp_path, Bored())) == pytest.approx(0, abs=1e-6)
    assert [row["zero_std_groups"] for row in logged(tmp_path) if row["kind"] == "step"] == [3] * 12


@both
def test_a_huge_weight_on_the_distance_keeps_it_near_the_base(tmp_path, algorithm):
    free = train(algorithm, tmp_path / "free")
    held = train(algorithm, tmp_path / "held", **({"kl": 1e4} if algorithm == "grpo" else {"velocity_mse": 1e4}))
    assert abs(gain(held)) < 0.3 * gain(free)


@both
@pytest.mark.parametrize("step", [0, 4, 9])
def test_a_run_interrupted_within_a_step_ends_with_the_same_weights_and_metrics(tmp_path, algorithm, step):
    train(algorithm, tmp_path / "whole", updates=2)
    with pytest.raises(KeyboardInterrupt):
        train(algorithm, tmp_path / "cut", Mean(calls=step), updates=2)
    train(algorithm, tmp_path / "cut", updates=2)
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


@both
def test_all_weights_are_trained_where_there_is_no_lora(tmp_path, algorithm):
    generator = train(algorithm, tmp_path, lora_rank=0)
    assert generator.whole.item() != 0.5 and (tmp_path / "generator" / "whole.safetensors").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("family", "kind"), [("sd3", "flow"), ("sd15-ddim", "ddim")])
def test_at_the_first_update_every_ratio_is_exactly_one(family, kind, dtype):
    generator = fresh(family, dtype)
    moved(generator.add_lora(2, 2))
    recipe = GrpoRecipe(kind=kind, prompts_per_step=2, group_size=3, window=1, generator_batch=4, kl=0.1)
    reward = Reward(Mean(), "alone")
    (figures,) = updates_of(generator, [reward], ["a red circle", "two blue squares"], recipe, seed=0)
    assert figures["ratio_away"] == 0.0 and figures["clipped"] == 0.0 and figures["kl"] > 0
    assert sum(float(w.grad.abs().sum()) for w in generator.network.parameters() if w.grad is not None) > 0


def test_at_the_second_update_they_are_not(tmp_path):
    train("grpo", tmp_path, updates=2, steps=2)
    assert logged(tmp_path)[-2]["ratio_away"] > 0


def step_of(recipe) -> tuple[list[dict[str, float]], list[torch.Tensor], int]:
    """A step of a small Stable Diffusion 3: its figures, its gradient, and how often a block went forward."""
    generator, calls = fresh("sd3"), []
    torch.manual_seed(0)  # LoRA's first factor
    weights = moved(generator.add_lora(2, 2))
    generator.network.transformer_blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    prompts, recipe = ["a red circle", "two crosses"], recipe.model_copy(update={"prompts_per_step": 2})
    figures = updates_of(generator, [Reward(Mean(), "alone")], prompts, recipe, step=2, weights=weights)
    return figures, [weight.grad for weight in weights], len(calls)


@both
def test_layers_that_are_computed_again_leave_the_same_gradient_and_figures(algorithm):
    recipe = REGULARISED[algorithm].model_copy(update={"group_size": 2})
    figures, plain, forwards = step_of(recipe)
    same, again, more = step_of(recipe.model_copy(update={"checkpointing": ("generator",)}))
    assert same == [pytest.approx(one, rel=1e-5, abs=1e-6) for one in figures]
    scale = max(float(one.abs().max()) for one in plain)
    assert scale > 0 and max(float((a - b).abs().max()) for a, b in zip(plain, again, strict=True)) <= 2e-6 * scale
    assert more > forwards


@pytest.mark.parametrize("shared", [True, False])
def test_a_kept_graph_leaves_the_same_gradient_and_figures_in_fewer_forwards(shared):
    recipe = REGULARISED["grpo"].model_copy(update={"group_size": 3, "shared_prefix": shared})
    (figures,), plain, forwards = step_of(recipe)
    (same,), kept, fewer = step_of(recipe.model_copy(update={"keep_graph": True}))
    assert same == figures and figures["ratio_away"] == 0.0
    assert sum(float(one.abs().sum()) for one in plain) > 0
    assert all(torch.equal(a, b) for a, b in zip(plain, kept, strict=True))
    assert forwards - fewer == 1  # the window's


@pytest.mark.parametrize("key", ["generator_batch", "updates", "sharded"])
def test_a_graph_is_not_kept_for_other_updates_or_beside_what_saves_memory(key):
    with pytest.raises(InputError, match=rf"keep_graph .*{key}"):
        parse_recipe(GrpoRecipe, {"keep_graph": True, key: True if key == "sharded" else 2}, "recipe.yaml")
    with pytest.raises(InputError, match=r"keep_graph .*checkpointing"):
        parse_recipe(GrpoRecipe, {"keep_graph": True, "checkpointing": ["generator"]}, "recipe.yaml")


@both
def test_memory_that_runs_out_names_the_generator(tmp_path, algorithm, monkeypatch):
    def short(self, x_t, step, condition):
        if torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return x_t

    monkeypatch.setattr(TinyGenerator, "predict", short)
    with pytest.raises(InputError, match="memory ran out in the generator: CUDA out of memory") as caught:
        train(algorithm, tmp_path, steps=1)
    assert "checkpointing" in caught.value.remedy


@both
def test_a_part_that_no_gradient_goes_through_is_not_checkpointed(algorithm):
    with pytest.raises(InputError, match=r"'checkpointing.0' .* has the value 'decoder'"):
        parse_recipe(type(RECIPES[algorithm]), {"checkpointing": ["decoder"]}, "recipe.yaml")


@both
def test_a_gradient_in_parts_is_that_of_the_whole(algorithm):
    gradients = []
    for at_once in (None, 4):
        generator, weights = with_lora(num_steps=5)
        changes = {"generator_batch": at_once, "window": 2} if algorithm == "grpo" else {"generator_batch": at_once}
        recipe = REGULARISED[algorithm].model_copy(update=changes)
        updates_of(generator, [Reward(Mean(), "alone")], PROMPTS, recipe, step=2, weights=weights)
        gradients.append([weight.grad for weight in weights])
    for whole, parted in zip(*gradients, strict=True):
        torch.testing.assert_close(parted, whole, rtol=1e-4, atol=1e-6)


def test_each_sample_is_learned_at_its_own_levels_of_the_range():
    rng = np.random.default_rng(0)
    levels = NftRecipe(levels=2, level_range=(0.2, 0.6)).draw_levels(50, 11, rng)
    assert levels.shape == (50, 2) and {*levels.flatten().tolist()} == {2, 3, 4, 5, 6}
    assert (levels[:, 0] != levels[:, 1]).all() and len({*map(tuple, levels.tolist())}) > 10
    assert NftRecipe(levels=4, level_range=(0.0, 0.1)).draw_levels(3, 11, rng).shape == (3, 4)  # two steps, some twice


def test_the_base_is_asked_at_one_level_of_each_sample():
    generator, weights = with_lora(num_steps=5)
    asked = {True: 0, False: 0}
    predict = generator.predict

    def counted(x_t, step, condition):
        asked[generator.trained] += len(x_t)
        return predict(x_t, step, condition)

    generator.predict = counted
    recipe = NFT.model_copy(update={"levels": 3, "rollout_forwards": 2})
    (figures,) = updates_of(generator, [Reward(Mean(), "alone")], PROMPTS, recipe, weights=weights)
    assert asked[False] == 18 and asked[True] == 18 * (2 + 3 + 3)  # a rollout, the old policy, the new one
    assert figures["velocity_mse"] >= 0
    unwatched = recipe.model_copy(update={"alarms": AlarmRecipe(off=("distance",))})
    (figures,) = updates_of(generator, [Reward(Mean(), "alone")], PROMPTS, unwatched, weights=weights)
    assert asked[False] == 18 and "velocity_mse" not in figures


def test_a_rollout_takes_no_more_forwards_than_the_sampler_has_steps(tmp_path):
    with pytest.raises(InputError, match=r"rollout_forwards is 6, and the generator takes 5 steps"):
        train("nft", tmp_path, rollout_forwards=6)


def test_levels_are_drawn_from_a_rising_range():
    with pytest.raises(InputError, match="level_range must be two shares"):
        parse_recipe(NftRecipe, {"level_range": [0.5, 0.2]}, "recipe.yaml")


def test_every_update_gets_its_share_of_the_prompts():
    for updates in (1, 2, 3, 4, 5):
        batches = GRPO.model_copy(update={"updates": updates, "generator_batch": 4}).batches(5)
        rows = [torch.cat(batch) for batch in batches]
        assert torch.equal(torch.cat(rows), torch.arange(30))
        assert {len(row) // 6 for row in rows} <= {5 // updates, 5 // updates + 1} and len(rows) == updates


def test_samples_only_compared_with_each_other_have_no_spread_across_prompts(tmp_path):
    for judging in ("alone", "group"):
        train("grpo", tmp_path / judging, BrightnessJudge() if judging == "group" else Mean(), judging, steps=1)
    alone, group = (logged(tmp_path / name)[1] for name in ("alone", "group"))
    assert alone["spread_across"] > 0 and alone["spread_within"] > 0
    assert "spread_across" not in group and group["reward"] == pytest.approx(0.5)


@pytest.mark.parametrize("judging", ["alone", "group"])
def test_the_probe_says_how_the_trained_generator_compares_with_the_one_before(tmp_path, judging):
    reward = Reward(Mean() if judging == "alone" else BrightnessJudge(), judging)
    run = Alignment(TinyGenerator(num_steps=5), [reward], PROMPTS, GRPO, 3)
    align_generator(run, folder=tmp_path, metrics=Metrics(tmp_path / "metrics.jsonl"), probe=against_base(run))
    seen = [row["preferred_to_base"] for row in logged(tmp_path) if row["kind"] == "probe"]
    assert len(seen) == 4 and seen[0] == 0.5 and seen[-1] > 0.505
    silent = GRPO.model_copy(update={"probe_prompts": 0})
    assert against_base(replace(run, recipe=silent))() == {}


@pytest.mark.parametrize("shared", [True, False])
def test_a_group_with_a_shared_prefix_begins_from_one_noise(shared):
    generator, _ = with_lora(num_steps=5)
    recipe = GRPO.model_copy(update={"shared_prefix": shared})
    updates_of(generator, [Reward(Mean(), "alone")], PROMPTS, recipe)
    assert len(set(generator.started)) == (3 if shared else 18)


def test_the_window_begins_where_it_may_and_leaves_the_last_step_alone():
    generator, _ = with_lora(num_steps=11)
    recipe = GRPO.model_copy(update={"window_range": (0.3, 1.0), "prompts_per_step": 1, "group_size": 2})
    reward = Reward(Mean(), "alone")
    starts = [updates_of(generator, [reward], PROMPTS, recipe, seed=0, step=n)[0]["window_start"] for n in range(60)]
    assert set(starts) == {3, 4, 5, 6, 7, 8}


def test_several_rewards_pull_together():
    class Red(Mean):
        def __call__(self, questions):
            return Verdict(torch.tensor([float(question.candidate[:, 0].mean()) for question in questions]))

    generator, _ = with_lora(num_steps=5)
    rewards = [Reward(Mean(), "alone", name="light"), Reward(Red(), "alone", 2.0, "red")]
    (figures,) = updates_of(generator, rewards, PROMPTS, GRPO)
    assert "margin/red" in figures and np.isfinite(figures["margin/red"])


def test_a_window_longer_than_the_schedule_and_other_generators_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"window is 5, and 5 steps have 4 that can be random"):
        train("grpo", tmp_path, window=5)
    with pytest.raises(InputError, match=r"no flow.* Set kind to ddim"):
        GRPO.model_copy(update={"window": 1}).check(fresh("sd15-ddim"), Mean())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"window_range": [0.9, 0.2]}, "window_range must be two shares"),
        ({"group_size": 1}, "group_size"),
        ({"kind": "ode"}, "kind"),
        ({"noise_level": 0}, "noise_level"),
        ({"updates": 9}, "updates is 9, and each needs a prompt of the 8 a step"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_by_its_key(changes, told):
    with pytest.raises(InputError, match=told):
        parse_recipe(GrpoRecipe, changes, "recipe.yaml")


def test_a_score_that_cannot_be_had_stops_the_run_with_its_step(tmp_path):
    class Broken(Mean):
        def __call__(self, questions):
            return Verdict(torch.full((len(questions),), float("inf")))

    with pytest.raises(RewardError, match=r"GRPO stopped at step 1: .*the judge gave .prompt x"):
        train("grpo", tmp_path, Broken())


def test_no_sample_of_a_group_with_one_noise_meets_a_reference_of_that_noise(tmp_path):
    recipe = GRPO.model_copy(update={"prompts_per_step": 1, "group_size": 8})
    once = TinyGenerator(num_steps=5)
    once.add_lora(2, 2)
    updates_of(once, [Reward(BrightnessJudge(), "references")], PROMPTS, recipe, bank=BANK)
    (noise,) = set(once.started)
    bank = [replace(one, seeds=(noise, one.seeds[1])) for one in BANK]
    seen = []

    @comparing
    def judge(questions):
        seen.extend(question.reference for question in questions)
        return BrightnessJudge()(questions)

    updates_of(once, [Reward(judge, "references")], PROMPTS, recipe, bank=bank)
    assert len(seen) == 8 and all(torch.equal(one, BANK[0].pictures[1]) for one in seen)


def test_an_infinite_margin_is_an_error_though_its_win_rate_would_be_a_number(tmp_path):
    @comparing
    def sure(questions):
        return Verdict(torch.full((len(questions),), float("inf")))

    with pytest.raises(RewardError, match=r"GRPO stopped at step 1: .*the judge gave .prompt x"):
        train("grpo", tmp_path, sure, "group")
