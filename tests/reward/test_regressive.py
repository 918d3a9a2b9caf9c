"""The regressive reward: a linear head on the model's last hidden state, kept beside a plain folder."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import (
    FAMILIES,
    clip_folder,
    colour_preferences,
    family_folder,
    judge_folder,
    pictures,
    pointwise_inputs,
    train_colours,
    trained_folder,
    training_recipe,
)
from transformers import AutoModelForImageTextToText, AutoTokenizer

from rewarddance.errors import InputError
from rewarddance.report.run_folder import read_metrics
from rewarddance.reward.judge import RewardConfig
from rewarddance.reward.loading import build_reward, load_reward
from rewarddance.reward.objectives import bradley_terry, win_tie_bradley_terry
from rewarddance.reward.regressive import RegressiveReward
from rewarddance.reward.trainable import vision_tower
from rewarddance.types import Question

CONFIG = RewardConfig(kind="regressive", instruction="t2i-brief")


def questions(n: int, seed: int = 0) -> list[Question]:
    shown = pictures(2 * n, seed)
    return [Question(("a red circle", "two small crosses")[i % 2], shown[2 * i], shown[2 * i + 1]) for i in range(n)]


def with_head(scale: float = 0.2) -> RegressiveReward:
    """The tiny judge with a random head."""
    judge = build_reward(str(judge_folder()), CONFIG)
    assert isinstance(judge, RegressiveReward)
    weight = judge.model.reward_head.weight
    with torch.no_grad():
        weight.copy_(scale * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    return judge.freeze()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "reward" / "model.safetensors") | load_file(folder / "reward" / "reward_head.safetensors")


@pytest.fixture(scope="module")
def whole() -> Path:
    """A run of 10 steps that nothing interrupted."""
    return trained_folder("regressive")


# -- the score ---------------------------------------------------------------------------------------------------------


def test_the_margin_is_the_head_on_the_last_hidden_state_of_one_plain_forward():
    judge = with_head()
    model = AutoModelForImageTextToText.from_pretrained(judge_folder()).eval()
    tokenizer = AutoTokenizer.from_pretrained(judge_folder())
    head = judge.model.reward_head.weight[0]

    def naive(prompt, pixels):
        states = model(**pointwise_inputs(tokenizer, prompt, pixels), output_hidden_states=True).hidden_states
        return states[-1][0, -1] @ head

    asked = questions(3)
    expected = torch.stack([naive(q.prompt.text, q.candidate) - naive(q.prompt.text, q.reference) for q in asked])
    assert expected.std() > 0.05
    torch.testing.assert_close(judge(asked).margin, expected.detach(), atol=1e-5, rtol=1e-5)
    alone = judge([Question(q.prompt, q.candidate) for q in asked]).margin
    own = torch.stack([naive(q.prompt.text, q.candidate) for q in asked])
    torch.testing.assert_close(alone, own.detach(), atol=1e-5, rtol=1e-5)


def test_twice_the_head_is_twice_the_margin_and_swapping_negates_it():
    asked = questions(3)
    once, twice = with_head(0.1)(asked).margin, with_head(0.2)(asked).margin
    torch.testing.assert_close(twice, 2 * once, atol=1e-5, rtol=1e-5)
    turned = [replace(q, candidate=q.reference, reference=q.candidate) for q in asked]
    judge = with_head()
    both = judge([*asked, *turned]).margin
    assert torch.equal(both[:3], -both[3:])


def test_the_pixel_gradient_is_the_slope_of_the_margin():
    judge = with_head()
    (picture,) = list(pictures(1))
    candidate = picture.clone().requires_grad_()
    judge([Question("a red circle", candidate)]).margin.sum().backward()
    along = candidate.grad / candidate.grad.norm()
    up, down = (Question("a red circle", picture + sign * 0.02 * along) for sign in (1, -1))
    margin = judge([up, down]).margin
    assert float(margin[0] - margin[1]) / 0.04 == pytest.approx(float(candidate.grad.norm()), rel=1e-2)


def test_a_new_head_finds_all_pictures_equal_and_learns_from_its_first_step():
    judge = build_reward(str(judge_folder()), CONFIG)
    pairs = colour_preferences(4)
    assert torch.equal(judge([Question(p.prompt, p.second, p.first) for p in pairs]).margin, torch.zeros(4))
    loss = judge.loss(pairs)
    assert loss.item() == pytest.approx(math.log(2))
    loss.backward()
    assert judge.model.reward_head.weight.grad.norm() > 0


@pytest.mark.parametrize("threshold", [None, 1.2])
def test_the_loss_is_bradley_terry_plain_or_win_tie(threshold):
    judge = with_head()
    judge.config = CONFIG.model_copy(update={"tie_threshold": threshold})
    shares = (1.0, 0.0, 0.5, 0.8)
    pairs = [replace(pair, share=share) for pair, share in zip(colour_preferences(4), shares, strict=True)]
    margin = judge([Question(p.prompt, p.second, p.first) for p in pairs]).margin
    share = torch.tensor(shares)
    expected = win_tie_bradley_terry(margin, share, threshold) if threshold else bradley_terry(margin, share)
    torch.testing.assert_close(judge.loss(pairs), expected, atol=1e-5, rtol=1e-5)


# -- training ----------------------------------------------------------------------------------------------------------


def test_training_moves_head_and_model(whole):
    trained = load_reward(str(whole / "reward"))
    assert isinstance(trained, RegressiveReward)
    assert trained.model.reward_head.weight.norm() > 0
    before, after = load_file(judge_folder() / "model.safetensors"), weights(whole)
    assert sum(not torch.equal(before[name], after[name]) for name in before) > 0.9 * len(before)
    losses = [row["loss"] for row in read_metrics(whole) if row["kind"] == "step"]
    assert losses[-1] < 0.7 * math.log(2)


def test_a_run_cut_off_after_its_last_step_keeps_its_trained_head(tmp_path, whole):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "reward")
    train_colours(tmp_path, training_recipe("regressive"))
    assert torch.equal(weights(tmp_path)["reward_head.weight"], weights(whole)["reward_head.weight"])


def test_training_goes_on_from_a_trained_reward_with_its_head(tmp_path, whole):
    again = build_reward(str(whole / "reward"), CONFIG)
    asked = questions(2)
    torch.testing.assert_close(again(asked).margin, load_reward(str(whole / "reward"))(asked).margin)


@pytest.mark.parametrize("family", [*FAMILIES, "clip"])
def test_every_family_has_a_vision_tower_to_freeze(family):
    kind = RewardConfig(kind="clip") if family == "clip" else CONFIG
    model = build_reward(str(clip_folder() if family == "clip" else family_folder(family)), kind).model
    vision_tower(model).requires_grad_(False)
    frozen = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    assert frozen and len(frozen) < len(list(model.parameters()))
    assert all("vision" in name or "visual" in name for name in frozen)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_learns_a_head_and_keeps_it(tmp_path, family):
    judge = build_reward(str(family_folder(family)), CONFIG)
    loss = judge.loss(colour_preferences(2))
    loss.backward()
    with torch.no_grad():
        judge.model.reward_head.weight -= judge.model.reward_head.weight.grad
    assert judge.loss(colour_preferences(2)) < loss
    judge.freeze().save(tmp_path / "reward")
    again = load_reward(str(tmp_path / "reward"))
    torch.testing.assert_close(again(questions(2)).margin, judge(questions(2)).margin, atol=1e-5, rtol=1e-5)


def test_a_model_without_a_vision_tower_of_its_own_is_refused_by_name():
    class Plain:
        def get_encoder(self, modality):
            return self

        base_model = None

    with pytest.raises(InputError, match=r"vision tower of a Plain cannot be frozen.*freeze_vision_tower"):
        vision_tower(Plain())


# -- the folder --------------------------------------------------------------------------------------------------------


def test_the_folder_is_plain_and_the_head_is_a_file_of_its_own(whole):
    folder = whole / "reward"
    assert set(load_file(folder / "model.safetensors")) == set(load_file(judge_folder() / "model.safetensors"))
    assert list(load_file(folder / "reward_head.safetensors")) == ["reward_head.weight"]
    _, found = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]
    assert set(load_file(whole / "checkpoint-10" / "model.safetensors")) == set(load_file(folder / "model.safetensors"))
    config = json.loads((folder / "reward_config.json").read_text())
    assert config["kind"] == "regressive" and config["instruction"] == "t2i-brief" and "yes" not in config


def test_a_saved_reward_gives_the_same_margins_and_records_win_tie(tmp_path):
    judge = with_head()
    judge.config = CONFIG.model_copy(update={"tie_threshold": 1.2})
    judge.save(tmp_path / "reward")
    again = load_reward(str(tmp_path / "reward"))
    assert again.config == judge.config
    assert not any(weight.requires_grad for weight in again.model.parameters())
    assert torch.equal(again(questions(3)).margin, judge(questions(3)).margin)


def test_a_model_without_a_head_gives_no_regressive_reward():
    with pytest.raises(InputError) as caught:
        load_reward(str(judge_folder()), kind="regressive")
    assert "no reward head" in caught.value.what and "Train one" in caught.value.remedy


@pytest.mark.parametrize("kind", ["pairwise", "pointwise", "clip"])
def test_a_regressive_folder_is_not_asked_as_another_kind(whole, kind):
    with pytest.raises(InputError, match=f"trained as a regressive reward and cannot be asked as a {kind} one"):
        load_reward(str(whole / "reward"), kind=kind)


def test_another_kinds_folder_is_not_asked_as_a_regressive_one(tmp_path):
    load_reward(str(judge_folder())).save(tmp_path / "reward")
    with pytest.raises(InputError, match="trained as a pairwise reward and cannot be asked as a regressive one"):
        load_reward(str(tmp_path / "reward"), kind="regressive")


@pytest.mark.parametrize("content", [b"cut off", {"other": torch.zeros(1)}, {"reward_head.weight": torch.zeros(1, 7)}])
def test_a_head_that_is_broken_or_another_models_is_refused_by_name(tmp_path, content):
    folder = Path(shutil.copytree(judge_folder(), tmp_path / "copy"))
    file = folder / "reward_head.safetensors"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        save_file(content, file)
    with pytest.raises(InputError) as caught:
        load_reward(str(folder), kind="regressive")
    assert str(file) in caught.value.what and "train the reward again" in caught.value.remedy


def test_a_clip_checkpoint_is_refused_as_a_regressive_base():
    with pytest.raises(InputError, match="cannot be loaded"):
        build_reward(str(clip_folder()), CONFIG)
