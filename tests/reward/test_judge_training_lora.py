"""LoRA, half precision and parts of a step: what is trained, what is stored, and that a resumed run repeats it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from several import Interrupting
from tiny import colour_preferences, family_folder, judge_folder
from transformers import AutoModelForImageTextToText

from rewarddance.protocols import RewardModel
from rewarddance.report.run_folder import read_metrics
from rewarddance.reward.judge import Judge
from rewarddance.reward.loading import load_reward
from rewarddance.reward.recipe import JudgeRecipe
from rewarddance.reward.train import train_judge
from rewarddance.runtime.tracking import Metrics
from rewarddance.types import Question

PAIRS = colour_preferences(9)
QUESTIONS = [Question(p.prompt, p.second, p.first) for p in colour_preferences(4, seed=1)]
RECIPE = JudgeRecipe(
    base=str(judge_folder()), instruction="t2i-brief", learning_rate=3e-3, batch_size=4, epochs=2, save_every=2
)
LORA = RECIPE.model_copy(update={"lora_rank": 4, "lora_alpha": 16})
HALF = LORA.model_copy(update={"dtype": "bfloat16", "checkpointing": True})


def margins(judge: RewardModel) -> dict[str, float]:
    return {f"margin_{i}": float(one) for i, one in enumerate(judge(QUESTIONS).margin)}


def train(folder: Path, recipe: JudgeRecipe, evaluate=margins) -> Judge:
    return train_judge(recipe, PAIRS, folder, Metrics(folder / "metrics.jsonl"), seed=7, evaluate=evaluate)


def last_margins(folder: Path) -> torch.Tensor:
    return torch.tensor([one for name, one in read_metrics(folder)[-1].items() if name.startswith("margin_")])


@pytest.fixture(scope="module")
def lora(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    train(folder, LORA)
    return folder


def test_lora_learns_and_its_reward_is_a_plain_folder_that_answers_alike(lora):
    losses = [row["loss"] for row in read_metrics(lora) if row["kind"] == "step"]
    assert losses[-1] < 0.8 * losses[0]
    assert (
        load_file(lora / "reward" / "model.safetensors").keys()
        == load_file(judge_folder() / "model.safetensors").keys()
    )
    assert not list((lora / "reward").glob("adapter_*"))  # transformers would look for a base then
    found = load_reward(str(lora / "reward"))(QUESTIONS).margin
    assert torch.allclose(found, last_margins(lora), atol=1e-3)


def test_the_adapter_beside_the_reward_is_pefts_and_gives_the_same_weights(lora):
    base = AutoModelForImageTextToText.from_pretrained(judge_folder(), dtype=torch.float32)
    merged = PeftModel.from_pretrained(base, str(lora / "reward" / "adapter")).merge_and_unload()
    delivered = AutoModelForImageTextToText.from_pretrained(lora / "reward", dtype=torch.float32).state_dict()
    assert all(torch.allclose(one, delivered[name], atol=1e-6) for name, one in merged.state_dict().items())
    config = json.loads((lora / "reward" / "adapter" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["r"], config["lora_alpha"]) == (str(judge_folder()), 4, 16)


def test_a_checkpoint_of_lora_holds_the_adapter_alone(lora):
    checkpoint = lora / "checkpoint-6"
    assert not (checkpoint / "model.safetensors").exists()
    assert (checkpoint / "adapter_config.json").is_file()
    saved = load_file(checkpoint / "adapter_model.safetensors")
    assert saved and all("lora_" in name for name in saved)
    assert {one.dtype for one in saved.values()} == {torch.float32}
    assert not any("lm_head" in name or "embed" in name for name in saved)
    assert any("vision_tower" in name for name in saved) and any("language_model" in name for name in saved)


def test_lora_leaves_a_frozen_vision_tower_alone(tmp_path):
    train(tmp_path, LORA.model_copy(update={"freeze_vision_tower": True, "epochs": 0.4}), None)
    assert not any(
        "vision_tower" in name for name in load_file(tmp_path / "reward" / "adapter" / "adapter_model.safetensors")
    )


def test_a_regressive_head_is_trained_whole_beside_lora(tmp_path):
    recipe = JudgeRecipe(**(HALF.model_dump() | {"kind": "regressive", "instruction": "t2i", "epochs": 1}))
    judge = train(tmp_path, recipe)
    head = load_file(tmp_path / "reward" / "reward_head.safetensors")["reward_head.weight"]
    assert head.dtype == torch.float32 and head.abs().max() > 0
    found = load_reward(str(tmp_path / "reward"), dtype=torch.bfloat16)(QUESTIONS).margin
    assert torch.equal(found, judge(QUESTIONS).margin)


@pytest.mark.parametrize("base", ["internvl", "qwen3_vl"])
def test_half_precision_trains_and_is_stored_in_half(tmp_path, base):
    recipe = RECIPE.model_copy(
        update={"dtype": "bfloat16", "learning_rate": 1e-3, "base": str(family_folder(base)), "instruction": "t2i"}
    )
    before = load_reward(str(family_folder(base)), kind="pairwise", instruction="t2i")
    judge = train(tmp_path, recipe)
    with torch.no_grad():  # what was to be made small, on the same pairs: a step's loss is of its own four
        assert float(judge.loss(PAIRS)) < 0.75 * float(before.loss(PAIRS))
    assert {one.dtype for one in load_file(tmp_path / "reward" / "model.safetensors").values()} == {torch.bfloat16}
    trained = load_file(tmp_path / "checkpoint-6" / "model.safetensors")
    assert {one.dtype for one in trained.values()} == {torch.float32}  # what the optimiser goes on from
    found = judge(QUESTIONS).margin
    assert found.dtype == torch.float32 and torch.allclose(found, last_margins(tmp_path), atol=0.2)
    assert torch.equal(found, load_reward(str(tmp_path / "reward"), dtype=torch.bfloat16)(QUESTIONS).margin)


def test_a_step_that_is_smaller_than_half_precision_can_hold_is_not_lost(tmp_path):
    train(tmp_path, RECIPE.model_copy(update={"dtype": "bfloat16", "learning_rate": 1e-6, "epochs": 1}), None)
    before = load_file(judge_folder() / "model.safetensors")
    after = load_file(tmp_path / "checkpoint-3" / "model.safetensors")
    moved = [(after[name] - before[name]).abs().mean().item() for name in before]
    assert 0 < max(moved) < 3e-6


@pytest.mark.parametrize(
    "recipe",
    [HALF, RECIPE.model_copy(update={"dtype": "bfloat16"}), LORA],
    ids=["half lora with checkpointing", "half", "lora"],
)
def test_an_interrupted_run_in_parts_goes_on_to_the_very_same_result(tmp_path, recipe):
    recipe = recipe.model_copy(update={"gradient_accumulation_steps": 3, "pixel_noise": 0.05})
    train(tmp_path / "whole", recipe)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "again", recipe, Interrupting(margins))
    train(tmp_path / "again", recipe)
    assert read_metrics(tmp_path / "again") == read_metrics(tmp_path / "whole")
    ours, theirs = (load_file(tmp_path / run / "reward" / "model.safetensors") for run in ("again", "whole"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
