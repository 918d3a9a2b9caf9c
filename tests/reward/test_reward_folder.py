"""A reward is a plain save_pretrained folder and a small JSON file; what is wrong with one is said by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny import clip_folder, judge_folder, pictures
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModelForImageTextToText, AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from rewarddance.errors import InputError
from rewarddance.reward.generative import PairwiseReward
from rewarddance.reward.judge import RewardConfig
from rewarddance.reward.loading import load_reward
from rewarddance.reward.vlm_judge import VisionLanguageModel
from rewarddance.types import Question


def questions(n: int) -> list[Question]:
    shown = pictures(2 * n)
    return [Question("a red circle", shown[2 * i], shown[2 * i + 1]) for i in range(n)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    config = RewardConfig(instruction="t2i-brief", orders="both")
    folder = tmp_path_factory.mktemp("saved") / "reward"
    PairwiseReward(VisionLanguageModel(str(judge_folder())), config).freeze().save(folder)
    return folder


@pytest.fixture
def broken(saved, tmp_path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(saved, tmp_path / "broken"))


def test_a_saved_reward_gives_the_same_margins(saved):
    config = RewardConfig(instruction="t2i-brief", orders="both")
    before = PairwiseReward(VisionLanguageModel(str(judge_folder())), config).freeze()
    assert torch.equal(load_reward(str(saved))(questions(3)).margin, before(questions(3)).margin)


def test_a_saved_reward_says_how_it_is_to_be_asked(saved):
    config = json.loads((saved / "reward_config.json").read_text())
    assert config["kind"] == "pairwise"
    assert (config["instruction"], config["instruction_version"], config["orders"]) == ("t2i-brief", 1, "both")
    assert load_reward(str(saved)).config == RewardConfig(instruction="t2i-brief", orders="both")


def test_a_saved_reward_loads_in_plain_transformers(saved):
    model = AutoModelForImageTextToText.from_pretrained(saved)
    tokenizer = AutoTokenizer.from_pretrained(saved)
    ours = load_reward(str(saved)).vlm
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), ours.model.state_dict().values(), strict=True)
    )
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a red circle"}]}]
    written = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert written == "<|im_start|>user\n<IMG_CONTEXT>\na red circle<|im_end|>\n<|im_start|>assistant\n"
    assert GotOcr2ImageProcessorPil.from_pretrained(saved).size["height"] == 32
    names = {file.name for file in saved.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "chat_template.jinja",
        "processor_config.json",
    } <= names


def test_a_loaded_reward_is_frozen_and_a_saved_one_can_be_saved_again(saved, tmp_path):
    reward = load_reward(str(saved))
    assert not any(weight.requires_grad for weight in reward.vlm.model.parameters())
    reward.save(tmp_path / "again")
    again = load_reward(str(tmp_path / "again"))
    assert torch.equal(again(questions(2)).margin, reward(questions(2)).margin)


def test_a_checkpoint_that_is_no_reward_is_asked_the_default_instruction():
    assert load_reward(str(judge_folder())).config == RewardConfig()


def test_changes_go_before_what_is_saved(saved):
    assert load_reward(str(saved), orders="forward").config == RewardConfig(instruction="t2i-brief", orders="forward")


def test_a_missing_checkpoint_is_refused_by_name(tmp_path):
    with pytest.raises(InputError) as caught:
        load_reward(str(tmp_path / "nowhere"))
    assert "nowhere" in caught.value.what and "save_pretrained" in caught.value.remedy


@pytest.mark.parametrize("text", ["{'kind': ", "[1, 2]", "7", "\xff"])
def test_a_broken_reward_config_is_refused_by_name(broken, text):
    (broken / "reward_config.json").write_text(text, encoding="latin-1")
    with pytest.raises(InputError) as caught:
        load_reward(str(broken))
    assert str(broken / "reward_config.json") in caught.value.what and "train the reward again" in caught.value.remedy


def test_an_unknown_field_of_the_config_is_refused_with_the_nearest_known_one(broken):
    (broken / "reward_config.json").write_text('{"order": "both"}')
    with pytest.raises(InputError) as caught:
        load_reward(str(broken))
    assert "unknown key 'order'" in caught.value.what and "'orders'" in caught.value.remedy
    with pytest.raises(InputError, match=r"unknown key 'batchsize'.*'batch_size'"):
        load_reward(str(judge_folder()), batchsize=3)
    with pytest.raises(InputError, match=r"the key 'orders'.*'backward'"):
        load_reward(str(judge_folder()), orders="backward")


def test_an_unknown_instruction_is_refused_with_the_known_ones(saved):
    with pytest.raises(InputError) as caught:
        load_reward(str(saved), instruction="t2x")(questions(1))
    assert "'t2x'" in caught.value.what and "t2i, t2i-bare, t2i-brief" in caught.value.remedy


def test_a_reward_trained_with_another_version_of_its_instruction_says_so(broken):
    config = json.loads((broken / "reward_config.json").read_text())
    (broken / "reward_config.json").write_text(json.dumps(config | {"instruction_version": 7}))
    with pytest.raises(InputError, match="version 7 of the instruction 't2i-brief'; version 1 is here"):
        load_reward(str(broken))
    assert load_reward(str(broken), instruction="t2i-brief").config.instruction_version == 1
    own = broken / "old.yaml"
    own.write_text('name: old\nversion: 7\npairwise: "{prompt} {reference} {candidate} yes or no?"')
    assert load_reward(str(broken), instruction=str(own)).config.instruction_version == 7


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"])
@pytest.mark.parametrize("lost", [True, False], ids=["lost", "cut off"])
def test_a_folder_without_one_of_its_files_or_with_half_is_refused_by_name(broken, name, lost):
    whole = (broken / name).read_bytes()
    (broken / name).unlink()
    if not lost:
        (broken / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError) as caught:
        load_reward(str(broken))
    assert str(broken) in caught.value.what and "cannot be loaded" in caught.value.what


def test_a_model_whose_tokenizer_cannot_say_yes_in_one_token_is_refused():
    with pytest.raises(InputError) as caught:
        load_reward(str(judge_folder()), yes=("absolutely correct",))
    assert "'absolutely correct'" in caught.value.what and "one token" in caught.value.remedy


def test_a_users_own_instruction_goes_with_the_reward(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text(
        'name: mine\nversion: 7\npairwise: "{prompt}: {reference} {candidate} {answer}"\nanswer: {none: "¿Sí?"}'
    )
    judge = load_reward(str(judge_folder()), instruction=str(own))
    before = judge(questions(2)).margin
    judge.save(tmp_path / "reward")
    own.write_text("not read any more")
    assert torch.equal(judge(questions(2)).margin, before)
    moved = (tmp_path / "reward").rename(tmp_path / "moved")
    assert json.loads((moved / "reward_config.json").read_text())["instruction"] == "instruction.yaml"
    again = load_reward(moved)
    assert torch.equal(again(questions(2)).margin, before) and again.instruction.name == "mine"
    again.save(tmp_path / "twice")
    assert (tmp_path / "twice" / "instruction.yaml").read_text() == (moved / "instruction.yaml").read_text()
    assert torch.equal(load_reward(str(tmp_path / "twice"))(questions(2)).margin, before)


def test_an_instruction_of_the_package_is_kept_by_its_name(saved, tmp_path):
    assert not (saved / "instruction.yaml").exists()
    leaf = load_reward(str(judge_folder()), instruction="t2i#alignment/count")
    leaf.save(tmp_path)
    assert not (tmp_path / "instruction.yaml").exists()
    assert load_reward(str(tmp_path)).config.instruction == "t2i#alignment/count"


def test_a_token_for_all_that_is_unknown_is_neither_yes_nor_no(tmp_path):
    folder = Path(shutil.copytree(judge_folder(), tmp_path / "unknowing"))
    own = AutoTokenizer.from_pretrained(folder)
    words = {word: place for word, place in own.get_vocab().items() if word.strip("Ġ").lower() not in ("yes", "no")}
    plain = Tokenizer(WordLevel(words | {"[UNK]": own.vocab["yes"]}, unk_token="[UNK]"))
    plain.pre_tokenizer = Whitespace()
    marks = {name: getattr(own, name) for name in ("start_image_token", "end_image_token", "context_image_token")}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="[UNK]", extra_special_tokens=marks)
    tokenizer.chat_template = own.chat_template
    tokenizer.save_pretrained(folder)
    assert len(tokenizer("yes", add_special_tokens=False).input_ids) == 1
    with pytest.raises(InputError, match="no single token for any of 'yes', 'Yes'"):
        load_reward(str(folder))


def test_one_word_cannot_be_both_answers():
    with pytest.raises(InputError, match="'yes' would be both a yes and a no"):
        load_reward(str(judge_folder()), no=("no", "yes"))


@pytest.mark.parametrize("device", ["pairwise", "cuda:77"])
def test_a_device_that_is_not_there_is_refused_by_name(device):
    with pytest.raises(InputError, match=f"no device '{device}' here.*kind='pointwise'"):
        load_reward(str(judge_folder()), device)


def test_a_dual_encoder_is_not_asked_in_words(tmp_path):
    with pytest.raises(InputError) as caught:
        load_reward(str(clip_folder()), kind="pairwise")
    assert "CLIPConfig" in caught.value.what and "\n" not in caught.value.what and "of kind clip" in caught.value.remedy


def test_a_text_model_is_refused_as_a_judge(tmp_path):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shutil.copytree(judge_folder(), tmp_path / "text")
    Qwen2ForCausalLM(
        Qwen2Config(vocab_size=99, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    ).save_pretrained(tmp_path / "text")
    with pytest.raises(InputError, match="cannot be loaded"):
        load_reward(str(tmp_path / "text"))
