"""Two processes train as one does at the same batch size, with all weights on each or in pieces over both."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from several import Interrupting, command_in_processes, in_processes
from tiny import colour_preferences, judge_folder

from rewarddance.data.preferences import write_preferences
from rewarddance.errors import InputError
from rewarddance.protocols import RewardModel
from rewarddance.report.run_folder import read_metrics
from rewarddance.reward.loading import load_reward
from rewarddance.reward.recipe import JudgeRecipe
from rewarddance.reward.train import train_judge
from rewarddance.runtime.tracking import Metrics
from rewarddance.types import Question

PAIRS = [
    replace(pair, reason="it is red " * (i % 3), reason_swapped="it is not")
    for i, pair in enumerate(colour_preferences(9))
]
QUESTIONS = [Question(p.prompt, p.second, p.first) for p in colour_preferences(5, seed=1)]
RECIPE = JudgeRecipe(
    base=str(judge_folder()), instruction="t2i-brief", learning_rate=1e-3, batch_size=4, epochs=1.5, save_every=2
)
"""4 steps; the third one has a single pair, which two processes cannot share."""


def margins(judge: RewardModel) -> dict[str, float]:
    return {f"margin_{i}": float(one) for i, one in enumerate(judge(QUESTIONS).margin)}


def train(folder: Path, recipe: JudgeRecipe, evaluate=margins) -> bool:
    """Is the judge that comes back whole?"""
    judge = train_judge(recipe, PAIRS, folder, Metrics(folder / "metrics.jsonl"), seed=7, evaluate=evaluate)
    return not any(hasattr(weight, "full_tensor") for weight in judge.model.parameters())


def logged(folder: Path) -> list[dict[str, float]]:
    return [{name: row[name] for name in row if name not in ("phase", "kind")} for row in read_metrics(folder)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "reward" / "model.safetensors")


def assert_alike(folder: Path, other: Path, figure: float, weight: float) -> None:
    """Figures agree to a share of `figure`, weights to `weight`."""
    for ours, theirs in zip(logged(folder), logged(other), strict=True):
        assert ours == pytest.approx(theirs, rel=figure, abs=figure)
    first, second = weights(folder), weights(other)
    assert first.keys() == second.keys()
    assert max((first[name].float() - second[name].float()).abs().max().item() for name in first) < weight


CASES = {
    "replicated, in two parts": {"gradient_accumulation_steps": 2},
    "replicated, with reasons": {"reasoning": "after"},
    "in pieces": {"sharded": True, "checkpointing": True},
    "in pieces, with lora": {"sharded": True, "lora_rank": 4, "freeze_vision_tower": True},
}


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_two_processes_train_as_one_does(tmp_path, changes):
    recipe = JudgeRecipe(**(RECIPE.model_dump() | changes))
    alone = {"sharded": False, "checkpointing": False, "gradient_accumulation_steps": 1}
    train(tmp_path / "one", recipe.model_copy(update=alone))
    whole = in_processes(2, train, tmp_path / "two", recipe)
    assert whole == ([True, False] if recipe.sharded else [True, True])
    assert_alike(tmp_path / "two", tmp_path / "one", 2e-5, 5e-5)
    found = torch.tensor([*margins(load_reward(str(tmp_path / "two" / "reward"))).values()])
    last = torch.tensor([one for name, one in logged(tmp_path / "one")[-1].items() if "margin_" in name])
    assert torch.allclose(found, last, atol=1e-3)


def test_lora_in_float32_on_a_base_in_bfloat16_trains_in_pieces(tmp_path):
    recipe = RECIPE.model_copy(update={"lora_rank": 4, "dtype": "bfloat16", "checkpointing": True})
    train(tmp_path / "one", recipe)
    in_processes(2, train, tmp_path / "two", recipe.model_copy(update={"sharded": True}))
    assert_alike(tmp_path / "two", tmp_path / "one", 0.05, 5e-3)
    assert {
        one.dtype for one in load_file(tmp_path / "two" / "checkpoint-4" / "adapter_model.safetensors").values()
    } == {torch.float32}


@pytest.mark.parametrize("sharded", [False, True], ids=["replicated", "in pieces"])
def test_an_interrupted_run_of_two_processes_goes_on_to_the_same_result(tmp_path, sharded):
    recipe = RECIPE.model_copy(update={"sharded": sharded, "pixel_noise": 0.05, "dtype": "bfloat16"})

    def both() -> None:
        train(tmp_path / "whole", recipe)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "again", recipe, Interrupting(margins))
        train(tmp_path / "again", recipe)

    in_processes(2, both)
    assert logged(tmp_path / "again") == logged(tmp_path / "whole")
    ours, theirs = weights(tmp_path / "again"), weights(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_what_needs_other_processes_is_refused_in_words(tmp_path):
    with pytest.raises(InputError, match="a sharded judge needs several processes") as caught:
        train(tmp_path, RECIPE.model_copy(update={"sharded": True}))
    assert "torchrun" in caught.value.remedy
    with pytest.raises(InputError, match="cannot be shared by 1 processes in 8 parts"):
        train(tmp_path, RECIPE.model_copy(update={"gradient_accumulation_steps": 8}))


def test_two_processes_train_from_a_recipe_and_one_process_speaks(tmp_path):
    write_preferences(PAIRS, tmp_path / "train.jsonl")
    write_preferences(PAIRS[:4], tmp_path / "ood.jsonl")
    judge = RECIPE.model_dump(mode="json", exclude_defaults=True) | {"sharded": True, "keep_best": "accuracy_ood"}
    content = {
        "preferences": str(tmp_path / "train.jsonl"),
        "tests": {"ood": str(tmp_path / "ood.jsonl")},
        "output": str(tmp_path / "out"),
        "judge": judge,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    said = command_in_processes(2, "train", tmp_path / "recipe.yaml")
    assert [done.code for done in said] == [0, 0], said
    (spoken,) = [done.out for done in said if done.out]
    assert json.loads(spoken)["reward"] == str(tmp_path / "out" / "reward")
    assert sum(done.err.count("training the judge") for done in said) == 1
    steps = [row["best_step"] for row in logged(tmp_path / "out") if "best_step" in row]
    assert len(steps) == 3 and set(steps) <= {2, 4, 6}
    assert load_reward(str(tmp_path / "out" / "reward"))(QUESTIONS).margin.isfinite().all()
