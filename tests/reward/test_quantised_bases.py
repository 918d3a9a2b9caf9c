"""Frozen bases in 4 and 8 bits: how far rewards move, and that a LoRA is trained, resumed and delivered on them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from several import Interrupting
from tiny import colour_preferences, generator_folder, judge_folder
from torch import nn

from rewarddance.alignment.recipe import AlignRun
from rewarddance.errors import InputError
from rewarddance.generators.pipelines import load_generator
from rewarddance.generators.sampling import sample
from rewarddance.jobs.export import run_export
from rewarddance.jobs.recipes import ExportRun
from rewarddance.reward.loading import load_reward
from rewarddance.reward.recipe import JudgeRecipe
from rewarddance.reward.sharded import ShardedJudge
from rewarddance.reward.train import train_judge
from rewarddance.runtime.config import parse_recipe
from rewarddance.runtime.quantised import quantise, quantised_bytes
from rewarddance.runtime.tracking import Metrics
from rewarddance.shapeworld.preferences import PreferenceRecipe, pair_up, picture_pool
from rewarddance.shapeworld.scenes import prompt_set
from rewarddance.types import Question

pytest.importorskip("bitsandbytes")

PAIRS = colour_preferences(6)
QUESTIONS = [Question(p.prompt, p.second, p.first) for p in PAIRS]
QLORA = {"base_precision": "nf4", "lora_rank": 4, "batch_size": 3, "epochs": 2, "save_every": 2, "learning_rate": 1e-2}
BOUNDS = {"int8": (0.01, 0.05), "nf4": (0.06, 0.25)}
"""Of P("yes") of the bundled judges against bfloat16: in the mean, and at most."""


def drawn() -> list[Question]:
    """Pairs of drawn pictures of ShapeWorld's held-out prompts."""
    pools = [picture_pool(text, spec) for text, spec in prompt_set("held_out", 6, 0)]
    pairs = pair_up(pools, "held_out", 4, PreferenceRecipe(), 0, exact=True)
    return [Question(pair.prompt, pair.second, pair.first) for pair in pairs]


@pytest.mark.parametrize("kind", ["pairwise", "pointwise"])
@pytest.mark.parametrize("precision", BOUNDS)
def test_rewards_of_the_bundled_judge_stay_within_the_bound(kind, precision):
    asked = drawn()
    options = {"kind": kind, "dtype": torch.bfloat16}
    whole = load_reward("shapeworld-judge-small", **options)(asked).probability
    packed = load_reward("shapeworld-judge-small", base_precision=precision, **options)(asked).probability
    away, (mean, most) = (packed - whole).abs(), BOUNDS[precision]
    assert 0 < away.mean() < mean
    assert away.max() < most


@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_a_packed_judge_holds_the_bytes_that_are_foretold(precision):
    whole, packed = (load_reward(str(judge_folder()), base_precision=p) for p in ("none", precision))
    held = sum(weight.nbytes for weight in packed.model.parameters())
    assert held == pytest.approx(quantised_bytes(whole.model, precision), rel=0.05)
    assert held < 0.6 * sum(weight.nbytes for weight in whole.model.parameters())


@pytest.mark.parametrize(("precision", "least"), [("int8", 0.99), ("nf4", 0.55)])
def test_the_bundled_judges_pixel_gradient_keeps_its_direction(precision, least):
    asked, gradients = drawn(), []
    for p in ("none", precision):
        judge = load_reward("shapeworld-judge-small", kind="pointwise", base_precision=p)
        candidates = [question.candidate.clone().requires_grad_() for question in asked]
        margin = judge([Question(q.prompt, c) for q, c in zip(asked, candidates, strict=True)]).margin
        gradients.append(torch.stack([g.flatten() for g in torch.autograd.grad(margin.sum(), candidates)]))
    assert nn.functional.cosine_similarity(*gradients, dim=1).mean() > least


def train(folder: Path, evaluate=None, **changes):
    recipe = JudgeRecipe(base=str(judge_folder()), instruction="t2i-brief", **{**QLORA, **changes})
    measure = evaluate or (lambda judge: {"margin": float(judge(QUESTIONS).margin.mean())})
    return train_judge(recipe, PAIRS, folder, Metrics(folder / "metrics.jsonl"), seed=7, evaluate=measure)


def is_quantised(module):
    return any(not weight.is_floating_point() for weight in module.parameters())


@pytest.mark.parametrize("changes", [{}, {"dtype": "bfloat16", "kind": "pointwise"}], ids=["float32", "bfloat16"])
def test_qlora_trains_and_delivers_the_lora_alone(tmp_path, changes):
    judge = train(tmp_path, **changes)
    reward = tmp_path / "reward"
    assert (reward / "adapter_model.safetensors").is_file() and not (reward / "model.safetensors").exists()
    again = load_reward(
        str(reward), dtype=changes.get("dtype", "float32") and getattr(torch, changes.get("dtype", "float32"))
    )
    assert is_quantised(again.model)
    within = 0.05 if "dtype" in changes else 1e-4
    torch.testing.assert_close(again(QUESTIONS).margin, judge(QUESTIONS).margin, atol=within, rtol=within)
    before = load_reward(str(judge_folder()), instruction="t2i-brief", kind=judge.config.kind, base_precision="nf4")
    assert (before(QUESTIONS).margin - judge(QUESTIONS).margin).abs().max() > 0.01, "it has learned"
    assert not is_quantised(load_reward(str(reward), base_precision="none").model)


def test_an_interrupted_qlora_ends_with_the_very_same_weights(tmp_path):
    def measure(judge):
        return {"margin": float(judge(QUESTIONS).margin.mean())}

    train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "again", Interrupting(measure))
    train(tmp_path / "again")
    one, other = (load_file(tmp_path / name / "reward" / "adapter_model.safetensors") for name in ("whole", "again"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_qlora_is_exported_on_its_base_in_full(tmp_path):
    train(tmp_path / "run")
    run_export(ExportRun(judge=str(tmp_path / "run" / "reward"), output=tmp_path / "whole", merge=True))
    merged, apart = (
        load_reward(str(tmp_path / "whole")),
        load_reward(str(tmp_path / "run" / "reward"), base_precision="none"),
    )
    assert merged.config.base_precision == "none" and not is_quantised(merged.model)
    torch.testing.assert_close(merged(QUESTIONS).margin, apart(QUESTIONS).margin, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_a_generator_learns_a_lora_on_packed_weights(tmp_path, precision):
    generator = load_generator(str(generator_folder()), 3, base_precision=precision)
    assert is_quantised(generator.network)
    plain = sample(load_generator(str(generator_folder()), 3), ["a star"], [1])
    assert (sample(generator, ["a star"], [1]) - plain).abs().mean() < 0.1
    weights = generator.add_lora(2, 2)
    prediction = generator.predict(generator.init_noise([1]), 1, generator.encode(["a star"]))
    prediction.square().mean().backward()
    assert all(weight.grad is not None for weight in weights)
    with torch.no_grad():
        for weight in weights:
            weight.add_(0.05 * torch.sign(weight.grad + 1e-9))
    moved = sample(generator, ["a star"], [1])
    generator.save_lora(tmp_path / "lora")
    other = load_generator(str(generator_folder()), 3, base_precision=precision)
    other.load_lora(tmp_path / "lora")
    torch.testing.assert_close(sample(other, ["a star"], [1]), moved, atol=1e-5, rtol=1e-5)
    with generator.as_before_training():
        assert not torch.equal(sample(generator, ["a star"], [1]), moved)


def test_full_training_and_pieces_are_refused(tmp_path):
    with pytest.raises(ValueError, match="weights in nf4 cannot be trained: set lora_rank"):
        JudgeRecipe(base_precision="nf4")
    with pytest.raises(ValueError, match="packed, and cannot be sharded"):
        JudgeRecipe(base_precision="int8", lora_rank=4, sharded=True)
    run = {"generator": "g", "judge": "j", "prompts": "p.txt", "output": tmp_path}
    for changes, message in (
        (
            {"generator_options": {"base_precision": "nf4"}, "refl": {"lora_rank": 0}},
            "weights in nf4 cannot be trained",
        ),
        ({"generator_options": {"base_precision": "nf4"}, "refl": {"sharded": True}}, "cannot be sharded"),
        ({"judge_options": {"base_precision": "int8"}, "judge_sharded": True}, "a judge in base_precision is packed"),
    ):
        with pytest.raises(InputError, match=message):
            parse_recipe(AlignRun, run | changes, "the recipe")
    with pytest.raises(InputError, match="packed weights cannot be trained"):
        load_generator(str(generator_folder()), 3, base_precision="nf4").train_all()
    with pytest.raises(InputError, match="is quantised"):
        ShardedJudge(load_reward(str(judge_folder()), base_precision="nf4"), mesh=None)
    with pytest.raises(InputError, match="a judge in nf4 is not saved"):
        load_reward(str(judge_folder()), base_precision="nf4").save(tmp_path)


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes.nn", None)
    with pytest.raises(InputError, match="needs bitsandbytes") as caught:
        quantise(nn.Linear(2, 2), "nf4", torch.float32)
    assert "rewarddance[quantised]" in caught.value.remedy
