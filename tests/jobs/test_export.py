"""`rewarddance export`: a LoRA becomes a whole checkpoint, and a judge without a decision is refused."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import command, family_folder, judge_folder, pictures, scratch

from rewarddance.reward.loading import load_reward
from rewarddance.types import Question


def questions():
    return [Question("a red circle", a, b) for a, b in zip(pictures(3, 1), pictures(3, 2), strict=True)]


@pytest.fixture(scope="module", params=["internvl", "qwen3_vl"])
def lora(request):
    """PEFT's two files on a judge, and nothing beside them."""
    folder = scratch() / f"lora-{request.param}"
    model = get_peft_model(
        load_reward(str(family_folder(request.param))).model,
        LoraConfig(r=2, lora_alpha=8, target_modules="all-linear"),
    )
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0, 0.3)
    model.peft_config["default"].base_model_name_or_path = str(family_folder(request.param))
    model.save_pretrained(str(folder))
    return folder


def test_a_lora_is_merged_into_a_folder_that_answers_the_same(lora, tmp_path):
    done = command("export", str(lora), str(tmp_path / "served"), "--merge", "--instruction", "t2i-brief")
    assert done.code == 0, done.err
    assert not (tmp_path / "served" / "adapter_config.json").exists()
    before = load_reward(str(lora), instruction="t2i-brief")(questions()).margin
    after = load_reward(str(tmp_path / "served"))(questions()).margin
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)
    base = json.loads((lora / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert (after - load_reward(base, instruction="t2i-brief")(questions()).margin).abs().min() > 1e-3


def test_merge_is_said_where_there_is_a_lora_and_only_there(lora, tmp_path):
    assert "--merge" in command("export", str(lora), str(tmp_path / "a")).err
    assert "no LoRA" in command("export", str(judge_folder()), str(tmp_path / "b"), "--merge").err
    assert not [*tmp_path.iterdir()]


def test_an_export_with_one_spelling_is_asked_so_at_both_ends(tmp_path):
    done = command("export", str(judge_folder()), str(tmp_path / "served"), "--one-spelling")
    assert json.loads(done.out)["noul_is_exact"]
    assert load_reward(str(tmp_path / "served")).config.yes == ("yes",)
    labels = json.loads((tmp_path / "served" / "decision.json").read_text())["labels"]
    assert labels["noul"] == labels["choice"] == ["yes", "no"]


def test_a_judge_that_is_there_is_not_written_over(tmp_path):
    load_reward(str(judge_folder())).save(tmp_path / "reward")
    (tmp_path / "reward" / "complete").touch()
    (tmp_path / "reward" / "notes.txt").write_text("keep")
    before = sorted(path.name for path in (tmp_path / "reward").iterdir())
    done = command("export", judge_folder(), tmp_path / "reward")
    assert done.code == 2 and "is there already" in done.err
    assert sorted(path.name for path in (tmp_path / "reward").iterdir()) == before


def test_a_judge_that_others_cannot_ask_is_not_exported(tmp_path):
    done = command("export", str(judge_folder()), str(tmp_path / "served"), "--orders", "both")
    assert done.code == 2 and "both orders" in done.err and not [*tmp_path.iterdir()]
