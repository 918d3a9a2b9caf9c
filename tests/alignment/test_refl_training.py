"""ReFL raises what the judge rewards, stays near the base where it is told to, and forgets every interruption."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import BrightnessJudge, TinyGenerator, comparing
from tiny_alignment import WatchedJudge, align_by_refl, assert_same_run, logged, with_lora

from rewarddance.alignment.references import References
from rewarddance.alignment.refl import refl_step
from rewarddance.alignment.refl_losses import margin_loss
from rewarddance.alignment.refl_recipe import ReflRecipe
from rewarddance.alignment.safeguards import velocity_mse
from rewarddance.alignment.train import lr_factor
from rewarddance.errors import InputError, RewardError
from rewarddance.generators.sampling import rollout, sample
from rewarddance.runtime.checkpoint import COMPLETE, OURS
from rewarddance.runtime.config import parse_recipe
from rewarddance.types import Prompt, Question, Verdict

RECIPE = ReflRecipe(
    steps=15,
    prompts_per_step=4,
    group_size=3,
    learning_rate=0.1,
    lora_rank=2,
    lora_alpha=2,
    grad_step_range=(0.3, 1.0),
    loss="margin",
    velocity_mse=0.0,
    jitter_copies=2,
    jitter_shift=1,
    jitter_noise=0.05,
    ema_decay=0.5,
    probe_every=5,
    save_every=4,
)


def bank_of(n: int) -> list[References]:
    """Prompts with a grey and a lighter reference each."""
    greys = tuple(torch.full((1, 3, 4, 4), value) for value in (0.5, 0.6))
    latents = torch.stack([grey[0].logit() for grey in greys])
    prompts = [Prompt(f"prompt {'x' * i}") for i in range(n)]
    return [References(prompt, greys, seeds=(-1, -2), wins=(1.0, 0.0), latents=latents) for prompt in prompts]


BANK = bank_of(6)


def brightness(generator: TinyGenerator) -> float:
    prompts = [one.prompt for one in BANK] * 10
    return sample(generator, prompts, list(range(10_000, 10_060))).mean().item()


def train(folder: Path, judge=None, probe=dict, **changes) -> TinyGenerator:
    generator = TinyGenerator()
    recipe = RECIPE.model_copy(update=changes)
    align_by_refl(generator, judge or BrightnessJudge(), BANK, recipe, folder, probe=probe)
    return generator


def gain(generator: TinyGenerator) -> float:
    return brightness(generator) - brightness(TinyGenerator())


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    train(folder, probe=lambda: {"probed": 1.0})
    return folder


# -- what it learns ----------------------------------------------------------------------------------------------------


def test_refl_raises_what_the_judge_rewards(tmp_path):
    generator = train(tmp_path)
    assert gain(generator) > 0.05
    rewards = [row["reward"] for row in logged(tmp_path) if row["kind"] == "step"]
    assert sum(rewards[-4:]) > sum(rewards[:4]) + 0.2


def test_a_judge_of_the_opposite_taste_lowers_it(tmp_path):
    @comparing
    def darkness(questions: list[Question]) -> Verdict:
        return Verdict(-BrightnessJudge()(questions).margin)

    assert gain(train(tmp_path, judge=darkness)) < -0.05


def test_a_huge_weight_on_the_velocitys_distance_keeps_it_near_the_base(tmp_path):
    free, held = train(tmp_path / "free"), train(tmp_path / "held", velocity_mse=1e4)
    assert abs(gain(held)) < 0.05 * gain(free)
    distances = {name: logged(tmp_path / name)[-2]["velocity_mse"] for name in ("free", "held")}
    assert distances["held"] < 0.01 * distances["free"]


def test_samples_that_the_judge_already_prefers_above_the_cap_teach_nothing(tmp_path):
    generator = train(tmp_path, judge=BrightnessJudge(bias=50.0), loss="hinge")
    assert gain(generator) == 0
    assert all(row["gradient_norm"] == 0 for row in logged(tmp_path) if row["kind"] == "step")


def test_what_is_delivered_is_the_average_and_lies_in_the_folder(tmp_path):
    last = train(tmp_path / "last", ema_decay=0.0)
    averaged = train(tmp_path / "averaged", ema_decay=0.9)
    assert 0 < gain(averaged) < gain(last)
    saved = load_file(tmp_path / "averaged" / "lora" / "lora.safetensors")
    assert all(torch.equal(saved[name], weight) for name, weight in zip(("down", "up"), averaged.lora, strict=True))


def test_all_weights_are_trained_where_there_is_no_lora(tmp_path):
    generator = train(tmp_path, lora_rank=0)
    assert gain(generator) > 0.005 and not generator.lora
    assert torch.equal(load_file(tmp_path / "generator" / "whole.safetensors")["whole"], generator.whole)
    assert not (tmp_path / "lora").exists()


def test_a_run_of_all_weights_goes_on_where_it_was_interrupted(tmp_path):
    train(tmp_path / "whole", lora_rank=0)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", judge=interrupted(9), lora_rank=0)
    train(tmp_path / "cut", lora_rank=0)
    assert_same_run(tmp_path / "cut", tmp_path / "whole", "generator/whole.safetensors")


def test_a_step_leaves_the_gradient_of_the_late_one_step_prediction():
    """The same gradient by hand: roll out without graph, predict, decode, ask, and add the distance to the base."""
    recipe = RECIPE.model_copy(update={"velocity_mse": 0.3, "jitter_copies": 1, "jitter_shift": 0, "jitter_noise": 0.0})
    (generator, weights), judge = with_lora(), WatchedJudge()
    figures = refl_step(generator, judge, BANK, recipe, seed=3, step=7)
    found = [weight.grad.clone() for weight in weights]

    asked, stop = judge.questions, figures["stop"]
    prompts = [question.prompt for question in asked]
    x_t = rollout(generator, prompts, generator.started[:12], stop).x_t
    with generator.as_before_training():
        base = generator.predict(x_t, stop, generator.encode(prompts))
    v = generator.predict(x_t, stop, generator.encode(prompts))
    pixels = generator.decode(x_t - generator.sigmas[stop] * v)
    torch.testing.assert_close(torch.stack([question.candidate for question in asked]), pixels)
    margin = 8 * (pixels.mean(dim=(1, 2, 3, 4)) - torch.stack([question.reference.mean() for question in asked]))
    loss = margin_loss(margin, recipe.cap) + 0.3 * velocity_mse(v, base)
    for own, by_hand in zip(found, torch.autograd.grad(loss, weights), strict=True):
        torch.testing.assert_close(own, by_hand)
    groups = margin.detach().view(4, 3)
    assert figures["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert figures["reward"] == pytest.approx(margin.sigmoid().mean().item(), rel=1e-5)
    assert figures["margin"] == pytest.approx(margin.mean().item(), rel=1e-5)
    assert figures["spread_within"] == pytest.approx(groups.std(1, correction=0).mean().item(), rel=1e-4)
    assert figures["spread_across"] == pytest.approx(groups.mean(1).std(correction=0).item(), rel=1e-4)


def test_a_step_adds_the_gradient_of_denoising_the_references():
    """By hand: the squared error of the velocity from the reference to its noise, at the step's own noise level."""
    latent = torch.randn(1, 3, 4, 4)
    picture = latent.sigmoid()[0].unsqueeze(0)
    prompts = [Prompt(f"prompt {'x' * i}") for i in range(6)]
    bank = [References(prompt, (picture,), seeds=(-1,), wins=(1.0,), latents=latent) for prompt in prompts]
    read: list[tuple] = []

    class Reading(TinyGenerator):
        def predict(self, x_t, step, condition):
            read.append((x_t.detach(), step, condition))
            return super().predict(x_t, step, condition)

    gradients, figures = {}, {}
    for weight in (0.0, 0.7):
        generator, weights = with_lora(Reading)
        recipe = RECIPE.model_copy(update={"reference_mse": weight})
        figures[weight] = refl_step(generator, BrightnessJudge(), bank, recipe, seed=3, step=7)
        gradients[weight] = [one.grad.clone() for one in weights]
    parts = read[-4:]
    assert [len(x_t) for x_t, _, _ in parts] == [3, 3, 3, 3] and len({step for _, step, _ in parts}) > 1
    loss = torch.zeros(())
    for x_t, step, condition in parts:
        sigma = generator.sigmas[step]
        eps = (x_t - (1 - sigma) * latent) / sigma
        assert abs(eps.std() - 1) < 0.2
        loss = loss + (generator.predict(x_t, step, condition) - (eps - latent)).square().mean() / 4
    for with_it, without, by_hand in zip(
        gradients[0.7], gradients[0.0], torch.autograd.grad(loss, weights), strict=True
    ):
        torch.testing.assert_close(with_it - without, 0.7 * by_hand, rtol=1e-4, atol=1e-5)
    assert figures[0.7]["reference_mse"] == pytest.approx(loss.item(), rel=1e-4)
    assert figures[0.7]["loss"] == pytest.approx(figures[0.0]["loss"] + 0.7 * loss.item(), rel=1e-4)
    assert "reference_mse" not in figures[0.0]


def test_fewer_references_than_samples_are_denoised_where_the_recipe_says_so():
    picture, latent = torch.rand(1, 3, 4, 4), torch.randn(1, 3, 4, 4)
    bank = [References(Prompt(f"prompt {i}"), (picture,), seeds=(-1,), wins=(1.0,), latents=latent) for i in range(6)]
    read: list[torch.Tensor] = []

    class Reading(TinyGenerator):
        def predict(self, x_t, step, condition):
            read.append(x_t.detach())
            return super().predict(x_t, step, condition)

    told, seen = {}, {}
    for few in (None, 4):
        generator, _ = with_lora(Reading)
        recipe = RECIPE.model_copy(update={"reference_mse": 0.7, "reference_batch": few})
        read.clear()
        told[few] = refl_step(generator, BrightnessJudge(), bank, recipe, seed=3, step=7)
        noised = torch.cat(read[-4:])  # LEVELS parts come last
        seen[few] = len(noised)
        assert torch.isfinite(torch.tensor(told[few]["reference_mse"]))
    assert seen == {None: RECIPE.prompts_per_step * RECIPE.group_size, 4: 4}
    assert told[4]["reward"] == told[None]["reward"]


@pytest.mark.parametrize(
    "parts", [{"decode_batch": 1}, {"generator_batch": 5}, {"decode_batch": 5, "generator_batch": 1}]
)
def test_a_step_in_parts_leaves_the_same_gradient_and_figures(parts):
    recipe = RECIPE.model_copy(update={"velocity_mse": 0.3, "reference_mse": 0.7})
    gradients, figures = [], []
    for changes in ({}, parts):
        generator, weights = with_lora()
        step = refl_step(generator, BrightnessJudge(), BANK, recipe.model_copy(update=changes), seed=3, step=7)
        gradients.append([one.grad.clone() for one in weights])
        figures.append(step)
    for whole, parted in zip(*gradients, strict=True):
        torch.testing.assert_close(parted, whole)
    assert figures[1] == pytest.approx(figures[0], rel=1e-5)


# -- what it draws -----------------------------------------------------------------------------------------------------


def test_the_gradient_is_taken_at_every_late_step_and_no_other():
    generator, _ = with_lora(num_steps=11)
    recipe = RECIPE.model_copy(update={"grad_step_range": (0.5, 0.8), "prompts_per_step": 1, "group_size": 1})
    stops = {refl_step(generator, BrightnessJudge(), BANK, recipe, seed=0, step=step)["stop"] for step in range(60)}
    assert stops == {5, 6, 7, 8}


def prompts_asked(bank: list[References], steps: int, per_step: int) -> list[str]:
    generator, judge = with_lora()[0], WatchedJudge()
    recipe = RECIPE.model_copy(update={"prompts_per_step": per_step, "group_size": 1, "jitter_copies": 1})
    for step in range(steps):
        refl_step(generator, judge, bank, recipe, seed=1, step=step)
    return [question.prompt.text for question in judge.questions]


@pytest.mark.parametrize("per_step", [1, 4, 9])
def test_every_prompt_comes_once_before_any_comes_again(per_step):
    asked = prompts_asked(BANK, steps=18, per_step=per_step)
    rounds = [asked[start : start + 6] for start in range(0, len(asked), 6)]
    assert all(len(set(one)) == 6 for one in rounds)
    assert len({tuple(one) for one in rounds}) > 1  # in another order


def test_samples_of_a_group_share_the_prompt_and_have_noises_of_their_own():
    (generator, _), judge = with_lora(), WatchedJudge()
    refl_step(generator, judge, BANK, RECIPE.model_copy(update={"jitter_copies": 1}), seed=1, step=0)
    asked = [question.prompt.text for question in judge.questions]
    assert all(len(set(asked[start : start + 3])) == 1 for start in range(0, 12, 3)) and len(set(asked)) == 4
    assert len(set(generator.started)) == 12


# -- going on where it stopped -----------------------------------------------------------------------------------------


def interrupted(step: int) -> WatchedJudge:
    """A judge that is cut off in the middle of a step; it is asked twice a step."""
    return WatchedJudge(2 * step + 1)


@pytest.mark.parametrize("step", [0, 3, 4, 9, 14])
def test_a_run_interrupted_within_a_step_ends_with_the_same_weights_and_metrics(tmp_path, whole, step):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, judge=interrupted(step), probe=lambda: {"probed": 1.0})
    assert not (tmp_path / "lora").exists()
    train(tmp_path, probe=lambda: {"probed": 1.0})
    assert_same_run(tmp_path, whole)


def test_a_run_interrupted_again_and_again_ends_with_the_same_metrics(tmp_path, whole):
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, judge=interrupted(5), probe=lambda: {"probed": 1.0})
    train(tmp_path, probe=lambda: {"probed": 1.0})
    assert_same_run(tmp_path, whole)


def test_a_probe_at_a_checkpoints_own_step_is_logged_once(tmp_path):
    def probes(folder: Path) -> list[int]:
        return [row["step"] for row in logged(folder) if row["kind"] == "probe"]

    every = {"probe_every": 2, "save_every": 2, "probe": lambda: {"probed": 1.0}}
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, judge=interrupted(9), **every)
    assert probes(tmp_path) == [0, 2, 4, 6, 8]
    train(tmp_path, **every)
    assert probes(tmp_path) == [0, 2, 4, 6, 8, 10, 12, 14, 15]


def test_a_finished_run_that_is_started_again_takes_no_further_step(tmp_path):
    train(tmp_path, steps=8)
    before, judge = load_file(tmp_path / "lora" / "lora.safetensors"), BrightnessJudge()
    rows = logged(tmp_path)
    generator = train(tmp_path, judge=judge, steps=8)
    assert judge.asked == 0 and logged(tmp_path) == rows
    assert all(torch.equal(before[name], weight) for name, weight in zip(("down", "up"), generator.lora, strict=True))


def test_a_checkpoint_without_its_mark_is_not_read(tmp_path, whole):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, judge=interrupted(10), probe=lambda: {"probed": 1.0})
    newest = tmp_path / "checkpoint-8"
    (newest / OURS).touch()  # as where a kill came while it was removed
    (newest / COMPLETE).unlink()
    (newest / "weights.safetensors").write_bytes(b"cut off")
    train(tmp_path, probe=lambda: {"probed": 1.0})
    assert_same_run(tmp_path, whole)


@pytest.mark.parametrize("content", [b"", b"cut off", None])
def test_a_checkpoint_whose_moments_are_damaged_is_named_and_can_be_removed(tmp_path, whole, content):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, judge=interrupted(10), probe=lambda: {"probed": 1.0})
    newest = tmp_path / "checkpoint-8"
    (newest / "optimiser.pt").unlink()
    if content is not None:
        (newest / "optimiser.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"the checkpoint .*checkpoint-8 cannot be read") as caught:
        train(tmp_path, probe=lambda: {"probed": 1.0})
    assert "Remove it" in caught.value.remedy
    shutil.rmtree(newest)
    train(tmp_path, probe=lambda: {"probed": 1.0})
    assert_same_run(tmp_path, whole)


def test_a_probe_sees_the_averaged_generator_and_leaves_the_training_alone(tmp_path, whole):
    generator, seen = TinyGenerator(), []
    align_by_refl(
        generator, BrightnessJudge(), BANK, RECIPE, tmp_path,
        probe=lambda: seen.append(brightness(generator)) or {"probed": 1.0},
    )  # fmt: skip
    assert_same_run(tmp_path, whole)
    assert seen[0] == brightness(TinyGenerator()) and seen[-1] == brightness(generator)
    assert seen == sorted(seen) and len(seen) == 4


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tmp_path, whole):
    generator = TinyGenerator()
    torch.manual_seed(99)  # what else drew random numbers before does not matter
    train(tmp_path / "same", probe=lambda: {"probed": 1.0})
    assert_same_run(tmp_path / "same", whole)
    align_by_refl(generator, BrightnessJudge(), BANK, RECIPE, tmp_path / "other", seed=4)
    ours, theirs = (load_file(one / "lora" / "lora.safetensors") for one in (tmp_path / "other", whole))
    assert not torch.equal(ours["down"], theirs["down"])


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_an_empty_bank_is_an_error(tmp_path):
    with pytest.raises(InputError, match="the reference bank is empty"):
        align_by_refl(TinyGenerator(), BrightnessJudge(), [], RECIPE, tmp_path)


RISING = "grad_step_range must be two rising shares between 0 and 1"
VALUE = "the key '{}' in recipe.yaml has the value"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(({"grad_step_range": steps}, RISING) for steps in ([0.9, 0.2], [0.5, 0.5], [-0.1, 1.0], [0.0, 1.1])),
        ({"last_steps": 2, "grad_step_range": [0.2, 0.8]}, "grad_step_range says nothing where last_steps is above 1"),
        ({"lora_rank": 0, "lora_targets": ["to_q"]}, "lora_targets is used with a lora_rank only"),
        ({"reference_batch": 4}, "with a reference_mse only"),
        ({"reference_batch": 999, "reference_mse": 1}, "a step has 32 references"),
        ({"checkpointing": ["vae"]}, VALUE.format("checkpointing.0") + " 'vae'"),
        ({"cap": 1.0}, VALUE.format("cap") + " 1.0"),
        ({"loss": "quadratic"}, VALUE.format("loss") + " 'quadratic'"),
        ({"steps": 0}, VALUE.format("steps") + " 0"),
        ({"ema_decay": 1.0}, VALUE.format("ema_decay") + " 1.0"),
        ({"velocity_mse": -1}, VALUE.format("velocity_mse") + " -1"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_by_its_key(changes, message):
    with pytest.raises(InputError, match=message):
        parse_recipe(ReflRecipe, changes, "recipe.yaml")


def test_a_gradient_that_is_not_finite_stops_the_run_with_its_step(tmp_path):
    class Steep(BrightnessJudge):
        """From the fifth step on its margin is as it was, with a slope that is not a number."""

        def __call__(self, questions):
            margin = super().__call__(questions).margin
            return Verdict(margin + (margin - margin.detach()).square().sqrt() if self.asked > 4 * 24 else margin)

    with pytest.raises(RewardError, match=r"stopped at step 5: .*the gradient of question 0"):
        train(tmp_path, judge=Steep())


def test_the_learning_rate_rises_stays_and_falls_towards_zero():
    recipe = ReflRecipe(steps=20, warmup=0.1, cooldown=0.5)
    rates = [lr_factor(step, recipe) for step in range(20)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[10:] == pytest.approx([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    assert [lr_factor(step, ReflRecipe(steps=20, warmup=0, cooldown=0)) for step in (0, 19)] == [1.0, 1.0]


def test_a_reward_without_a_gradient_is_refused_before_the_first_step(tmp_path):
    class Blind(BrightnessJudge):
        differentiable = False

        def __call__(self, questions):
            return Verdict(super().__call__(questions).margin.detach())

    with pytest.raises(InputError, match=r"ReFL follows the reward's gradient .* Set algorithm to grpo or nft"):
        train(tmp_path, judge=Blind())
    assert not (tmp_path / "metrics.jsonl").exists()
    Blind.differentiable = None  # only a call can tell
    with pytest.raises(RewardError, match="the reward gives no gradient in its pictures"):
        train(tmp_path, judge=Blind())


def test_a_reward_that_needs_no_reference_is_raised_by_its_difference_to_one(tmp_path):
    class Pointwise:
        needs_reference = False

        def __call__(self, questions):
            scores = [q.candidate.mean() - (q.reference.mean() if q.reference is not None else 0) for q in questions]
            return Verdict(8 * torch.stack(scores))

    assert gain(train(tmp_path, judge=Pointwise())) > 0.05
