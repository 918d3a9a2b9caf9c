"""A judge without weights is the judge that has them, but for the numbers in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from tiny import FAMILIES, family_folder, pictures

from rewarddance import planning
from rewarddance.errors import InputError
from rewarddance.planning.meta_judge import meta_reward, read_architecture, tokens_of
from rewarddance.reward.judge import RewardConfig
from rewarddance.reward.loading import build_reward, load_reward
from rewarddance.reward.prefill import JudgeInput, Tokens
from rewarddance.reward.vlm_judge import VisionLanguageModel
from rewarddance.types import Preference

TABLE = yaml.safe_load((Path(planning.__file__).parent / "architectures.yaml").read_text())
STATED = {
    "OpenGVLab/InternVL2_5-26B-MPO": 25_514_186_112,
    "OpenGVLab/InternVL3-1B-hf": "0.94",
    "OpenGVLab/InternVL3-2B-hf": "2.09",
    "OpenGVLab/InternVL3-8B-hf": "7.94",
    "OpenGVLab/InternVL3-14B-hf": "15.12",
    "OpenGVLab/InternVL3-38B-hf": "38.39",
    "Qwen/Qwen3-VL-2B-Instruct": 2_127_532_032,
    "Qwen/Qwen3-VL-4B-Instruct": 4_437_815_808,
    "Qwen/Qwen3-VL-8B-Instruct": 8_767_123_696,
    "Qwen/Qwen3-VL-32B-Instruct": "33.36",
}


def pair(size: int = 32, device: str = "cpu") -> Preference:
    first, second = (picture.to(device) for picture in pictures(2, size=size))
    return Preference("a red circle left of a blue square", first, second, 1.0)


@pytest.mark.parametrize("name", TABLE["judges"])
def test_the_table_gives_as_many_weights_as_the_model_has(name: str):
    count = sum(weight.numel() for weight in meta_reward(name, RewardConfig(), torch.bfloat16).model.parameters())
    stated = STATED[name]
    assert count == stated if isinstance(stated, int) else f"{count / 1e9:.2f}" == stated


@pytest.mark.parametrize("family", FAMILIES)
def test_a_judge_on_the_meta_device_has_the_very_weights_of_the_model(family: str):
    name = str(family_folder(family))
    config = RewardConfig(instruction="t2i-brief")
    meta, real = (
        {k: (w.shape, w.dtype) for k, w in model.named_parameters()}
        for model in (meta_reward(name, config, torch.float32).model, build_reward(name, config).model)
    )
    assert meta == real


@pytest.mark.parametrize("kind", ["pairwise", "pointwise", "regressive"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_pair_has_as_many_tokens_as_the_judge_itself_reads(family: str, kind: str, monkeypatch: pytest.MonkeyPatch):
    name, config = str(family_folder(family)), RewardConfig(kind=kind, instruction="t2i")
    lengths: list[int] = []
    sequence = VisionLanguageModel._sequence

    def listening(self: VisionLanguageModel, question: JudgeInput, numbers: tuple[int, ...]) -> Tokens:
        tokens = sequence(self, question, numbers)
        lengths.append(len(tokens.ids))
        return tokens

    with monkeypatch.context() as patched:
        patched.setattr(VisionLanguageModel, "_sequence", listening)
        build_reward(name, config).loss([pair(size=40)])
    tokens, of_pictures = tokens_of(meta_reward(name, config, torch.float32), pair(size=40, device="meta"))
    assert tokens == sum(lengths) and len(lengths) == 2
    assert of_pictures == 2 * build_reward(name, config).vlm.family.tokens(40, 40)  # type: ignore[attr-defined]


def test_a_folder_with_config_json_alone_is_enough(tmp_path: Path):
    config = json.loads((family_folder("qwen3_vl") / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"image_token_id": 400}))
    reward = meta_reward(str(tmp_path), RewardConfig(), torch.float32)
    sources = reward.vlm.sources  # type: ignore[attr-defined]
    assert sources.architecture == str(tmp_path / "config.json")
    assert "stand-in" in sources.tokenizer and "defaults of qwen3_vl" in sources.pictures
    tokens, picture_tokens = tokens_of(reward, pair(size=512, device="meta"))
    assert picture_tokens > 0 and tokens > 2 * picture_tokens


def test_english_is_one_token_a_word_for_the_stand_in():
    tokenizer = meta_reward("Qwen/Qwen3-VL-2B-Instruct", RewardConfig(), torch.float32).vlm.tokenizer  # type: ignore[attr-defined]
    assert len(tokenizer("a red circle, left of 12 squares.", add_special_tokens=False).input_ids) == 11
    assert tokenizer("<|image_pad|>" * 3, add_special_tokens=False).input_ids == [151655] * 3


def test_a_folder_that_is_not_here_is_known_by_its_own_name():
    folders = ("models/InternVL2_5-26B-MPO-hf", "InternVL3-38B-hf", "Qwen3-VL-8B-Instruct")
    sources = [read_architecture(name)[2] for name in folders]
    known = ("OpenGVLab/InternVL2_5-26B-MPO", "OpenGVLab/InternVL3-38B-hf", "Qwen/Qwen3-VL-8B-Instruct")
    assert sources == [f"the table of public judges: {name}" for name in known]


def test_an_unknown_judge_is_refused_with_what_is_known():
    with pytest.raises(InputError, match=r"'someone/else' is not known here.*config\.json.*Qwen/Qwen3-VL-8B-Instruct"):
        meta_reward("someone/else", RewardConfig(), torch.float32)


def test_a_folder_in_internvls_own_format_is_refused_with_what_to_do(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "internvl_chat"}))
    for use in (load_reward, read_architecture):
        with pytest.raises(InputError, match=r"InternVL's own format.*convert_internvl_weights_to_hf"):
            use(str(tmp_path))


def test_a_family_without_code_of_its_own_and_a_clip_reward_are_refused(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava"}))
    with pytest.raises(InputError, match="of the family llava"):
        meta_reward(str(tmp_path), RewardConfig(), torch.float32)
    with pytest.raises(InputError, match="is of kind clip"):
        meta_reward("shapeworld-clip", RewardConfig(kind="clip"), torch.float32)
