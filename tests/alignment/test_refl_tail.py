"""The gradient through the end of a rollout, and through all of a ReFL step, is that of plain autograd."""

from __future__ import annotations

import re

import pytest
import torch
from tiny import BrightnessJudge, TinyGenerator, comparing, generator_folder, judge_folder
from tiny_alignment import WatchedJudge, moved, with_lora
from tiny_pipelines import fresh
from torch import Tensor

from rewarddance.alignment.references import References
from rewarddance.alignment.refl import refl_step
from rewarddance.alignment.refl_losses import margin_loss
from rewarddance.alignment.refl_recipe import ReflRecipe
from rewarddance.alignment.relay import LastSteps
from rewarddance.alignment.safeguards import velocity_mse
from rewarddance.errors import InputError, RewardError
from rewarddance.generators.pipelines import load_generator
from rewarddance.generators.sampling import rollout
from rewarddance.reward.loading import load_reward
from rewarddance.runtime.config import parse_recipe
from rewarddance.types import Prompt, Question, Verdict

PROMPTS = ["a red circle", "two small blue crosses left of a square", "a green square"]
RECIPE = ReflRecipe(prompts_per_step=2, group_size=2, lora_rank=2, loss="margin", velocity_mse=0.3)


def flow():
    return load_generator(str(generator_folder()), 4)


@pytest.mark.parametrize("make", [flow, lambda: fresh("sd15-ddim"), lambda: fresh("sdxl-euler")])
@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("at_once", [3, 2])
def test_the_gradient_through_the_last_steps_is_that_of_one_graph(make, length, at_once):
    generator = make()
    torch.manual_seed(1)  # of the first factor of LoRA
    weights, first = moved(generator.add_lora(2, 4), 0.2), generator.num_steps - length
    x_t = rollout(generator, PROMPTS, [3, 1, 4], first).x_t
    aim = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(9))
    parts = torch.arange(3).split(at_once)
    conditions = [generator.encode([PROMPTS[int(row)] for row in rows]) for rows in parts]
    tail = LastSteps(generator, conditions, parts, first, length)
    x_0 = tail.forward(x_t)
    assert not x_0.requires_grad and len(tail.kept) == (length if at_once == 3 else 0)
    away = tail.backward(2 * (x_0 - aim) / aim.numel(), weight=0.3)
    found = [weight.grad.clone() for weight in weights]

    condition, far, x = generator.encode(PROMPTS), torch.zeros(()), x_t
    for step in range(first, generator.num_steps):
        v = generator.predict(x, step, condition)
        with generator.as_before_training(), torch.no_grad():
            v_base = generator.predict(x, step, condition)
        given = generator.predict(x.detach(), step, condition)  # the distance says nothing to the steps before
        far = far + velocity_mse(given, v_base) / length
        x = generator.predict_x0(x, v, step) if length == 1 else generator.advance(x, v, step)
    torch.testing.assert_close(x_0, x, rtol=1e-5, atol=1e-5)
    assert away == pytest.approx(far.item(), rel=1e-5)
    plain = torch.autograd.grad((x - aim).square().mean() + 0.3 * far, weights)
    scale = max(float(one.abs().max()) for one in plain)
    assert scale > 0
    for one, other in zip(found, plain, strict=True):
        assert (one - other).abs().max() <= 2e-6 * scale


def bank_of(generator, size: int = 32) -> list[References]:
    return [
        References(
            Prompt(prompt),
            tuple(torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(k)) for k in (i, 9 + i)),
            (-1, -2), (1.0, 0.0), generator.init_noise([i, 9 + i]),
        )
        for i, prompt in enumerate(PROMPTS)
    ]  # fmt: skip


def step_of(recipe: ReflRecipe) -> tuple[dict[str, float], list[Tensor]]:
    """One step of real tiny models: what it logs, and its gradient."""
    generator, judge = flow(), load_reward(str(judge_folder()))
    torch.manual_seed(0)  # LoRA's first factor
    weights = moved(generator.add_lora(2, 4), 0.2)
    figures = refl_step(generator, judge, bank_of(generator), recipe, seed=3, step=7)
    return figures, [weight.grad for weight in weights]


@pytest.mark.parametrize("last_steps", [1, 3])
def test_checkpointing_every_part_leaves_the_same_gradient_and_figures(last_steps):
    recipe = RECIPE.model_copy(update={"last_steps": last_steps, "reference_mse": 0.5})
    figures, plain = step_of(recipe)
    scale = max(float(one.abs().max()) for one in plain)
    for parts in (("generator",), ("decoder",), ("judge",), ("generator", "decoder", "judge")):
        told, found = step_of(recipe.model_copy(update={"checkpointing": parts}))
        assert told == pytest.approx(figures, rel=1e-5, abs=1e-6)
        for one, other in zip(plain, found, strict=True):
            assert (one - other).abs().max() <= 2e-6 * scale


def test_the_last_steps_end_in_a_finished_picture_and_lift_the_judges_margin():
    generator = TinyGenerator(num_steps=6)
    weights = generator.add_lora(2, 2)
    bank = [References(Prompt("p"), (torch.full((1, 3, 4, 4), 0.5),), (-1,), (1.0,), torch.zeros(1, 3, 4, 4))]
    judge, recipe = (
        WatchedJudge(),
        RECIPE.model_copy(update={"last_steps": 3, "prompts_per_step": 1, "velocity_mse": 0.0}),
    )
    figures = refl_step(generator, judge, bank, recipe, seed=0, step=0)
    assert figures["stop"] == 3
    whole = generator.decode(rollout(generator, ["p"] * 2, generator.started[:2], 6).x_t)
    torch.testing.assert_close(torch.stack([question.candidate for question in judge.questions]), whole)
    with torch.no_grad():
        for weight in weights:
            weight -= 0.5 * weight.grad
    after = refl_step(generator, judge, bank, recipe, seed=0, step=0)
    assert after["margin"] > figures["margin"] and after["loss"] < figures["loss"]
    assert figures["loss"] == pytest.approx(
        margin_loss(8 * (whole.mean((1, 2, 3, 4)) - 0.5), recipe.cap).item(), rel=1e-4
    )


def test_more_last_steps_than_there_are_are_refused():
    with pytest.raises(InputError, match=r"refl\.last_steps is 5, and the generator takes 4 steps"):
        step_of(RECIPE.model_copy(update={"last_steps": 5}))
    kept = ReflRecipe(last_steps=2).model_dump()
    assert parse_recipe(ReflRecipe, kept, "config.yaml").last_steps == 2  # what a run writes down can be read


# -- memory that runs out ----------------------------------------------------------------------------------------------


class Small(TinyGenerator):
    """It has no room for one of its parts, with a graph or without."""

    def __init__(self, part: str, with_graph: bool) -> None:
        super().__init__()
        self.part, self.with_graph = part, with_graph

    def _fill(self, part: str) -> None:
        if part == self.part and torch.is_grad_enabled() == self.with_graph:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    def predict(self, x_t, step, condition):
        self._fill("predict")
        return super().predict(x_t, step, condition)

    def decode(self, x_0):
        self._fill("decode")
        return super().decode(x_0)


@pytest.mark.parametrize(
    ("part", "with_graph", "named", "keys"),
    [
        ("predict", False, "the generator, while it samples", ["group_size", "prompts_per_step"]),
        ("predict", True, "the generator:", ["refl.generator_batch", "refl.checkpointing"]),
        ("decode", False, "the decoder (VAE)", ["refl.decode_batch", "refl.checkpointing"]),
        ("decode", True, "the decoder (VAE)", ["refl.decode_batch", "refl.checkpointing"]),
    ],
)
def test_memory_that_runs_out_is_an_error_that_names_the_part_and_what_to_lower(part, with_graph, named, keys):
    generator = Small(part, with_graph)
    generator.add_lora(2, 2)
    with pytest.raises(InputError, match=re.escape(f"memory ran out in {named}")) as caught:
        in_parts = {} if with_graph else {"decode_batch": 1}  # decoded once without a graph, and once with one
        recipe = RECIPE.model_copy(update={"grad_step_range": (0.4, 1), **in_parts})
        refl_step(generator, BrightnessJudge(), bank_of(generator, 4), recipe, seed=0, step=0)
    assert all(key in caught.value.remedy for key in keys) and "2.00 GiB" in caught.value.what


@pytest.mark.parametrize("way", [{}, {"last_steps": 2}, {"surrogate": "drtune"}])
def test_the_base_is_asked_only_where_its_distance_is_wanted(way, monkeypatch):
    asked, as_before_training = [], TinyGenerator.as_before_training
    monkeypatch.setattr(
        TinyGenerator, "as_before_training", lambda self: (asked.append(True), as_before_training(self))[1]
    )
    found = {}
    for weight, off in ((0.0, ()), (0.0, ("distance",)), (0.3, ("distance",))):
        generator, weights = with_lora()
        recipe = ReflRecipe(prompts_per_step=2, group_size=2, velocity_mse=weight, alarms={"off": off}, **way)
        figures = refl_step(generator, BrightnessJudge(), bank_of(generator, 4), recipe, seed=0, step=0)
        found[weight, off] = [one.grad for one in weights]
        wanted = bool(weight) or not off
        assert bool(asked) == wanted == ("velocity_mse" in figures)
        asked.clear()
    assert all(map(torch.equal, found[0.0, ()], found[0.0, ("distance",)]))


def test_a_judge_that_runs_out_of_memory_is_named_even_if_it_says_so_itself():
    generator, _ = with_lora()

    @comparing
    def judge(questions: list[Question]) -> Verdict:
        raise RewardError("memory ran out on a single question.", "") from torch.OutOfMemoryError("no room")

    with pytest.raises(InputError, match=r"ran out in the judge: no room\. Lower refl.judge_batch"):
        refl_step(generator, judge, bank_of(generator, 4), RECIPE, seed=0, step=0)


def test_a_judge_without_layers_of_ours_is_not_checkpointed():
    generator, _ = with_lora()
    with pytest.raises(InputError, match="Leave judge out of checkpointing"):
        recipe = RECIPE.model_copy(update={"checkpointing": ("judge",)})
        refl_step(generator, BrightnessJudge(), bank_of(generator, 4), recipe, seed=0, step=0)
