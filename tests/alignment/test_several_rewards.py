"""Rewards that pull apart: each normalised by itself, in ReFL and in policy gradients, and logged by its name."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from several import in_processes
from test_refl_training import BANK, RECIPE
from tiny import BrightnessJudge, TinyGenerator
from tiny_alignment import assert_same_run, logged, updates_of, with_lora

from rewarddance.alignment.alarms import AlarmMonitor, AlarmRecipe
from rewarddance.alignment.algorithms import AlgorithmConfig, align_generator, as_rewards, prepare_alignment
from rewarddance.alignment.flow_grpo import GrpoRecipe
from rewarddance.alignment.group_rewards import Reward, advantages, combine, joint_figures
from rewarddance.alignment.joint import JointReward, blend, mean_cosine, mean_size, pair_cosines
from rewarddance.alignment.nft import NftRecipe
from rewarddance.alignment.policy import against_base
from rewarddance.alignment.references import ReferenceBank
from rewarddance.alignment.refl import refl_step
from rewarddance.alignment.train import Alignment
from rewarddance.errors import InputError
from rewarddance.protocols import judging
from rewarddance.reward.averages import mean_probability
from rewarddance.runtime.process_group import gather_objects, rank
from rewarddance.runtime.tracking import Metrics
from rewarddance.types import Question, Verdict

PROMPTS = [one.prompt for one in BANK]
LOOP: dict[str, Any] = {"prompts_per_step": 3, "group_size": 4, "lora_rank": 2, "lora_alpha": 2, "ema_decay": 0.5}
LOOP |= {"steps": 4, "probe_every": 2, "save_every": 2, "learning_rate": 0.1}
RECIPES = {
    "refl": RECIPE.model_copy(update={"steps": 4, "probe_every": 2, "save_every": 2, "cap": 1 - 1e-9}),
    "grpo": GrpoRecipe(**LOOP, kl=0.0, window_range=(0.0, 1.0)),
    "nft": NftRecipe(**LOOP, velocity_mse=0.0, advantage_clip=1.0, beta=0.3, levels=4),
}
each = pytest.mark.parametrize("algorithm", RECIPES)


@dataclass
class Channel:
    """Likes one colour of the three, `scale` times; it may be cut off at a call."""

    number: int
    scale: float = 8.0
    calls: int = 10**6
    needs_reference = False

    def __call__(self, questions: Sequence[Question]) -> Verdict:
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        of = [
            pixels[:, self.number].mean() - (0.0 if other is None else other[:, self.number].mean())
            for pixels, other in ((question.candidate, question.reference) for question in questions)
        ]
        return Verdict(self.scale * torch.stack(of) if of else torch.zeros(0))


def two(algorithm: str, *judges: Any, weights: Sequence[float] = (1.0, 1.0)) -> list[Reward]:
    judging = "references" if algorithm == "refl" else "alone"
    return [Reward(judge, judging, w, name) for judge, w, name in zip(judges, weights, ("red", "blue"), strict=True)]


def gradient_of(algorithm: str, rewards: Sequence[Reward]) -> tuple[torch.Tensor, dict[str, float]]:
    """A step's gradient on the LoRA, and its figures."""
    generator, weights = with_lora(num_steps=5)
    (figures,) = updates_of(generator, rewards, PROMPTS, RECIPES[algorithm], step=2, bank=BANK, weights=weights)
    return torch.cat([weight.grad.flatten() for weight in weights if weight.grad is not None]), figures


def train(algorithm: str, folder: Path, rewards: Sequence[Reward], probe: bool = False) -> TinyGenerator:
    generator = TinyGenerator(num_steps=5)
    run = Alignment(generator, rewards, PROMPTS, RECIPES[algorithm], 3, ReferenceBank(BANK))
    probes = against_base(run) if probe else dict
    align_generator(run, folder=folder, metrics=Metrics(folder / "metrics.jsonl"), probe=probes)
    return generator


# -- formulas ----------------------------------------------------------------------------------------------------------


def test_a_sum_of_advantages_has_the_deviation_of_one_rewards():
    rng = torch.Generator().manual_seed(0)
    scores = [torch.randn(5, 8, generator=rng) * scale for scale in (100.0, 0.01, 1.0)]
    of_rewards = [advantages(values) for values in scores]
    summed = sum(weight * values for weight, (values, _) in zip((2.0, 1.0, 0.5), of_rewards, strict=True))
    found = combine(of_rewards, [2.0, 1.0, 0.5]).values
    torch.testing.assert_close(found, summed / summed.std(correction=0))
    assert found.std(correction=0).item() == pytest.approx(1, rel=1e-5)
    torch.testing.assert_close(combine([of_rewards[0], *of_rewards[:2]], [1.0, 1.0, 0.0]).values, of_rewards[0].values)
    torch.testing.assert_close(combine(of_rewards[:2], [3.0, 0.0]).values, of_rewards[0].values)


def test_what_is_left_of_rewards_that_cancel_is_not_blown_up():
    own = advantages(torch.tensor([[0.0, 1.0, 2.0], [5.0, 3.0, 1.0]]))
    against = own._replace(values=-own.values + 1e-4)
    assert combine([own, against], [1.0, 1.0]).values.abs().max() < 1e-3


def test_blended_gradients_do_not_depend_on_any_rewards_scale():
    rng = torch.Generator().manual_seed(0)
    a, b = (torch.randn(4, 3, 2, 2, generator=rng) for _ in range(2))
    sizes = [mean_size(g.flatten(1).norm(dim=1)) for g in (a, b)]
    torch.testing.assert_close(blend([a, a], [sizes[0]] * 2, [1.0, 3.0]), a)
    found = blend([a, b], sizes, [1.0, 3.0])
    expected = (a / sizes[0] + 3 * b / sizes[1]) / 4 * (sizes[0] + 3 * sizes[1]) / 4
    torch.testing.assert_close(found, expected)
    loud = blend([a, 1000 * b], [sizes[0], 1000 * sizes[1]], [1.0, 3.0])
    torch.testing.assert_close(loud / loud.norm(), found / found.norm())
    torch.testing.assert_close(blend([a, b], sizes, [1.0, 0.0]), a)
    torch.testing.assert_close(blend([a, 0 * b], [sizes[0], 0.0], [1.0, 3.0]), a / 4)  # its share, and no more
    assert not blend([0 * a, b], [0.0, sizes[1]], [1.0, 0.0]).any()


def test_a_size_is_of_the_samples_that_are_pulled_and_a_cosine_of_those_by_both():
    assert mean_size(torch.tensor([0.0, 3.0, 1.0])) == 2 and mean_size(torch.zeros(2)) == 0
    a, b = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]), torch.tensor([[-3.0, 0.0], [4.0, 0.0], [1.0, 1.0]])
    cosines = pair_cosines([a, b])
    assert cosines.shape == (3, 1) and cosines[:2, 0].tolist() == [-1.0, 0.0] and cosines[2].isnan().all()
    assert mean_cosine(cosines) == -0.5 and mean_cosine(torch.full((2, 1), torch.nan)) == 0


def test_the_joint_verdict_is_the_weighted_mean_of_the_probabilities():
    shown = torch.rand(4, 1, 3, 4, 4)
    rewards = two("refl", Channel(0, 500.0), BrightnessJudge(), weights=(3.0, 1.0))
    asked = [Question("x", shown[i], shown[i + 2]) for i in range(2)]
    joint = JointReward(rewards)
    margins = torch.stack([reward.judge(asked).margin for reward in rewards])
    torch.testing.assert_close(joint(asked).margin, mean_probability(margins, torch.tensor([3.0, 1.0])))
    assert joint.needs_reference and joint([]).margin.shape == (0,) and repr(joint).startswith("red (3 x ")
    silent = JointReward(two("refl", Channel(0), BrightnessJudge(), weights=(1.0, 0.0)))
    torch.testing.assert_close(silent(asked).margin, Channel(0)(asked).margin)
    assert not silent.needs_reference


class InStep:
    """Asked in turns of all processes, as a sharded judge is; it fails on a question named `bad`."""

    needs_reference, needs_all_processes = False, True

    def __init__(self, name: str) -> None:
        self.name, self.inside = name, False

    def turn(self, asks: bool) -> bool:
        told = gather_objects((self.name, asks))
        assert {name for name, _ in told} == {self.name}, "the processes are not in the same judge"
        return any(asking for _, asking in told)

    @contextmanager
    def together(self):
        if self.inside:
            yield
            return
        self.inside = True
        try:
            yield
        finally:
            self.inside = False
            while self.turn(False):
                pass

    def __call__(self, questions: Sequence[Question]) -> Verdict:
        with self.together():
            self.turn(True)
            if questions[0].prompt.text == f"bad {self.name}":
                raise ValueError("not this one")
            return Verdict(torch.ones(len(questions)))


def test_processes_with_fewer_questions_go_along_in_each_sharded_reward():
    def ask() -> int:
        joint = JointReward(two("refl", InStep("red"), InStep("blue")))
        asked = 0
        with judging(joint):
            for text in ("x", "bad red", "y", "bad blue") if rank() == 0 else ("bad blue",):
                try:
                    asked += len(joint([Question(text, torch.zeros(1, 3, 2, 2))]).margin)
                except ValueError:
                    continue
        return asked

    assert in_processes(2, ask) == [2, 0]


def test_figures_are_logged_by_name_and_averaged_by_weight():
    rewards = two("refl", Channel(0), Channel(1), weights=(3.0, 1.0))
    found = joint_figures(rewards, [{"margin": 1.0, "only": 7.0}, {"margin": 5.0}])
    assert found == {"margin": 2.0, "margin/red": 1.0, "margin/blue": 5.0, "only/red": 7.0}
    assert joint_figures(rewards[:1], [{"margin": 1.0}]) == {"margin": 1.0}


# -- what is learned ---------------------------------------------------------------------------------------------------


@each
def test_the_direction_does_not_depend_on_a_rewards_scale(algorithm):
    plain, figures = gradient_of(algorithm, two(algorithm, Channel(0), Channel(2)))
    loud, _ = gradient_of(algorithm, two(algorithm, Channel(0, 0.08), Channel(2, 24.0)))
    assert torch.cosine_similarity(plain, loud, dim=0) > 0.9999 and plain.norm() > 0
    assert figures["margin"] == pytest.approx((figures["margin/red"] + figures["margin/blue"]) / 2)
    assert {"reward/red", "spread_within/blue", "rewards_cosine"} <= figures.keys()


@each
def test_two_rewards_that_are_one_give_its_gradient(algorithm):
    alone, figures = gradient_of(algorithm, [Reward(Channel(0), "references" if algorithm == "refl" else "alone")])
    twice, of_twice = gradient_of(algorithm, two(algorithm, Channel(0), Channel(0), weights=(0.2, 3.0)))
    torch.testing.assert_close(twice, alone, rtol=1e-4, atol=1e-6)
    assert of_twice["rewards_cosine"] == pytest.approx(1, abs=1e-5) and "rewards_cosine" not in figures
    assert of_twice["loss"] == pytest.approx(figures["loss"], rel=1e-4)


@each
def test_the_weights_say_which_reward_is_followed(algorithm):
    red, _ = gradient_of(algorithm, [Reward(Channel(0), "references" if algorithm == "refl" else "alone")])
    followed = [
        torch.cosine_similarity(
            gradient_of(algorithm, two(algorithm, Channel(0), Channel(2), weights=weights))[0], red, dim=0
        ).item()
        for weights in ((1.0, 0.0), (1.0, 1.0), (0.0, 1.0))
    ]
    assert followed[0] == pytest.approx(1, abs=1e-4) and followed[0] > followed[1] + 0.05 > followed[2] + 0.1


@each
def test_a_pairwise_and_a_pointwise_judge_go_together(algorithm):
    rewards = as_rewards(RECIPES[algorithm], TinyGenerator(5), {"a": (Channel(0), 1.0), "b": (BrightnessJudge(), 2.0)})
    expected = ["references"] * 2 if algorithm == "refl" else ["alone", "group"]
    assert [reward.judging for reward in rewards] == expected
    gradient, figures = gradient_of(algorithm, rewards)
    assert torch.isfinite(gradient).all() and {"margin/a", "margin/b"} <= figures.keys()


@each
def test_a_run_by_several_rewards_goes_on_where_it_was_interrupted(tmp_path, algorithm):
    train(algorithm, tmp_path / "whole", two(algorithm, Channel(0), Channel(1)), probe=algorithm == "grpo")
    with pytest.raises(KeyboardInterrupt):
        cut = two(algorithm, Channel(0), Channel(1, calls=3))
        train(algorithm, tmp_path / "cut", cut, probe=algorithm == "grpo")
    train(algorithm, tmp_path / "cut", two(algorithm, Channel(0), Channel(1)), probe=algorithm == "grpo")
    assert_same_run(tmp_path / "cut", tmp_path / "whole")
    steps = [row for row in logged(tmp_path / "whole") if row["kind"] == "step"]
    assert all({"margin/red", "margin/blue", "spread_within/red", "rewards_cosine"} <= row.keys() for row in steps)
    if algorithm == "grpo":
        probe = [row for row in logged(tmp_path / "whole") if row["kind"] == "probe"][-1]
        expected = (probe["preferred_to_base/red"] + probe["preferred_to_base/blue"]) / 2
        assert probe["preferred_to_base"] == pytest.approx(expected, abs=2e-6)


def test_a_group_that_one_reward_cannot_judge_fails_for_all_of_them():
    class Picky(Channel):
        def __call__(self, questions):
            if any(question.prompt.text == PROMPTS[1].text for question in questions):
                raise ValueError("not this one")
            return super().__call__(questions)

    for algorithm, recipe in RECIPES.items():
        recipe = recipe.model_copy(update={"prompts_per_step": 6})
        generator, weights = with_lora(num_steps=5)
        rewards = two(algorithm, Channel(0), Picky(1))
        (figures,) = updates_of(generator, rewards, PROMPTS, recipe, bank=BANK, weights=weights)
        assert figures["failed_groups"] == 1
        assert all(torch.isfinite(torch.tensor(figures[f"margin/{name}"])) for name in ("red", "blue"))


def test_a_held_out_judge_gates_by_what_the_rewards_say_together():
    generator, _ = with_lora(num_steps=5)
    joint = JointReward(two("refl", Channel(0, 800.0), Channel(1, 800.0)))
    figures = refl_step(generator, joint, BANK, RECIPES["refl"], seed=0, step=0, held_out=BrightnessJudge(bias=-99.0))
    assert 0 < figures["disagreeing"] <= 1 and figures["held_out_margin"] < -90


def test_the_references_are_chosen_by_all_rewards_together(tmp_path):
    config = AlgorithmConfig.model_validate(
        {"references": {"candidates": 4, "keep": 1}, "refl": {"lora_rank": 2, "lora_alpha": 2}}
    )
    banks = {}
    for name, weights in (("red", (1.0, 0.0)), ("both", (1.0, 1.0)), ("blue", (0.0, 1.0))):
        judges = {"red": (Channel(0), weights[0]), "blue": (Channel(2), weights[1])}
        run = prepare_alignment(config, TinyGenerator(5), judges, PROMPTS, references_folder=tmp_path / name, seed=1)
        assert run.bank is not None
        banks[name] = torch.stack([of_prompt.pictures[0].mean((0, 2, 3)) for of_prompt in run.bank.references]).mean(0)
    assert banks["red"][0] > banks["both"][0] > banks["blue"][0]
    assert banks["red"][2] < banks["both"][2] < banks["blue"][2]


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_what_a_reward_cannot_be_is_refused_by_its_name():
    class Blind(Channel):
        differentiable = False

    with pytest.raises(InputError, match="the reward blind: ReFL follows the reward's gradient"):
        as_rewards(RECIPES["refl"], TinyGenerator(5), {"red": (Channel(0), 1.0), "blind": (Blind(1), 1.0)})
    with pytest.raises(InputError, match="all rewards have the weight 0"):
        as_rewards(RECIPES["nft"], TinyGenerator(5), {"red": (Channel(0), 0.0)})
    alone = RECIPES["nft"].model_copy(update={"judging": "alone"})
    with pytest.raises(InputError, match="the reward b: a pairwise judge cannot score one sample by itself"):
        as_rewards(alone, TinyGenerator(5), {"a": (Channel(0), 1.0), "b": (BrightnessJudge(), 1.0)})


# -- alarms ------------------------------------------------------------------------------------------------------------


def rung(rows: Sequence[dict[str, float]], **changes: Any) -> list[tuple[str, str]]:
    monitor = AlarmMonitor(AlarmRecipe(**changes))
    return [(a.name, a.saw) for step, row in enumerate(rows, start=1) for a in monitor.update(step, row)]


def rows_of(red: float, blue: float, spread: float = 1.0) -> list[dict[str, float]]:
    """A run whose rewards move by so much in all, and at whose end blue's spread is this share of the first."""
    noise = torch.randn(48, 2, generator=torch.Generator().manual_seed(0)) / 10
    rows = []
    for i, (a, b) in enumerate(noise.tolist()):
        row = {"margin/red": red * i / 47 + a, "margin/blue": blue * i / 47 + b, "reward/red": 0.5, "reward/blue": 0.5}
        row |= {"spread_within/red": 1.0, "spread_within/blue": 1.0 if i < 24 else spread, "spread_within": 1.0}
        rows.append(row | {"margin": (row["margin/red"] + row["margin/blue"]) / 2, "reward": 0.5})
    return rows


def test_a_reward_that_is_paid_for_with_another_rings():
    found = rung(rows_of(3.0, -2.0))
    assert {name for name, _ in found} == {"traded"} and "red rose by" in found[0][1] and "blue fell by" in found[0][1]
    assert rung(rows_of(3.0, 0.0)) == [] and rung(rows_of(3.0, 2.0)) == [] and rung(rows_of(-3.0, -2.0)) == []
    assert rung(rows_of(3.0, -2.0), off=("traded",)) == []


def test_each_rewards_spread_and_saturation_ring_by_its_name():
    ((name, saw),) = rung(rows_of(0.0, 0.0, spread=0.1))
    assert name == "spread_within" and saw.startswith("blue: spread within a prompt is 0.")
    full = [row | {"reward/blue": 0.95} for row in rows_of(0.0, 3.0)]
    assert [(name, saw.split(":")[0]) for name, saw in rung(full)] == [("saturation", "blue")]
