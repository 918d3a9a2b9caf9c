"""Weights that do not fit what they are loaded into are refused by name, whichever library would have taken them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel, CLIPProcessor

from rewarddance import load_generator, load_reward
from rewarddance.errors import InputError
from rewarddance.generators.sampling import sample
from rewarddance.runtime.checkpoint import BUNDLED
from rewarddance.runtime.weights import check_report, variant_of
from rewarddance.types import Question


def changed(kind: str, weights: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], str]:
    """The weights spoiled in one way, and what the error must name."""
    first = sorted(weights)[len(weights) // 2]
    if kind == "wrapped":
        return {f"_orig_mod.{name}": weight for name, weight in weights.items()}, "_orig_mod."
    if kind == "missing":
        return {name: weight for name, weight in weights.items() if name != first}, first.rpartition(".")[2]
    if kind == "unexpected":
        return weights | {"ema.decay": torch.zeros(2)}, "ema.decay"
    if kind == "misshapen":
        return weights | {first: torch.zeros(5, 3)}, first.rpartition(".")[2]
    assert kind == "not finite"
    return weights | {first: torch.full_like(weights[first], torch.inf)}, first.rpartition(".")[2]


KINDS = ("wrapped", "missing", "unexpected", "misshapen", "not finite")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("base", ["shapeworld-judge-small", "shapeworld-clip"])
def test_a_judge_whose_weights_do_not_fit_is_refused_by_their_names(tmp_path, base, kind):
    folder = tmp_path / "judge"
    shutil.copytree(BUNDLED / base, folder)
    weights, named = changed(kind, load_file(folder / "model.safetensors"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError) as caught:
        load_reward(folder, kind="clip" if "clip" in base else "pairwise")
    assert named in caught.value.what and str(folder) in caught.value.what and caught.value.remedy


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
def test_a_generator_says_of_which_component_weights_do_not_fit(tmp_path, component, kind):
    folder = tmp_path / "generator"
    shutil.copytree(BUNDLED / "shapeworld-unet", folder)
    file = next((folder / component).glob("*.safetensors"))
    weights, named = changed(kind, load_file(file))
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(InputError) as caught:
        load_generator(str(folder), 2)
    assert named in caught.value.what and f"the {component} of the generator" in caught.value.what


def test_weights_in_a_variant_alone_are_loaded_component_by_component(tmp_path):
    shutil.copytree(BUNDLED / "shapeworld-unet", tmp_path / "g")
    for component in ("unet", "text_encoder"):
        file = next((tmp_path / "g" / component).glob("*.safetensors"))
        file.rename(file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")))
    found, expected = (sample(load_generator(name, 2), ["a"], [0]) for name in (str(tmp_path / "g"), "shapeworld-unet"))
    assert torch.equal(found, expected)


def test_the_variant_of_a_folder_is_read_from_its_files_names(tmp_path):
    assert variant_of(tmp_path) is None
    (tmp_path / "model-00001-of-00002.fp16.safetensors").touch()
    assert variant_of(tmp_path) == "fp16"
    (tmp_path / "model.fp16-00001-of-00002.safetensors").touch()
    assert variant_of(tmp_path) == "fp16"
    (tmp_path / "model.safetensors").touch()
    assert variant_of(tmp_path) is None


def test_pickled_weights_are_refused_with_how_to_convert_them(tmp_path):
    folder = tmp_path / "judge"
    shutil.copytree(BUNDLED / "shapeworld-judge-small", folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model\.bin") as caught:
        load_reward(folder)
    assert "save_pretrained" in caught.value.remedy


def test_tied_weights_and_buffers_of_old_versions_are_no_fault():
    model = torch.nn.ModuleDict({"first": torch.nn.Linear(2, 2), "second": torch.nn.Linear(2, 2)})
    model["second"].weight = model["first"].weight
    model.register_buffer("position_ids", torch.arange(3), persistent=False)
    report = {"missing_keys": {"second.weight"}, "unexpected_keys": {"position_ids"}, "mismatched_keys": set()}
    check_report(model, report, "the model", "")
    with pytest.raises(InputError, match=r"first\.weight"):
        check_report(model, report | {"missing_keys": {"first.weight", "second.weight"}}, "the model", "")


@pytest.mark.parametrize("kind", ["renamed", "half", "of another network", "not finite"])
def test_a_lora_that_does_not_go_in_whole_is_refused(tmp_path, kind):
    generator = load_generator("shapeworld-generator", 2)
    for weight in generator.add_lora(2, 2):
        weight.data.normal_()
    generator.save_lora(tmp_path)
    file = tmp_path / "pytorch_lora_weights.safetensors"
    saved = load_file(file)
    spoiled = {
        "renamed": {f"module.{name}": weight for name, weight in saved.items()},
        "half": {name.replace(".to_q.", ".to_queries."): weight for name, weight in saved.items()},
        "of another network": saved | {"transformer.head.lora_A.weight": torch.ones(2, 4)},
        "not finite": {name: weight / 0 for name, weight in saved.items()},
    }[kind]
    save_file(spoiled, file)
    fresh = load_generator("shapeworld-generator", 2)
    with pytest.raises(InputError) as caught:
        fresh.load_lora(tmp_path)
    assert str(tmp_path) in caught.value.what and caught.value.remedy


def adapter_of_a_judge(folder: Path) -> Path:
    """A folder as PEFT and a processor save it: an adapter on the bundled judge, and the judge's other files."""
    from peft import LoraConfig, get_peft_model

    judge = load_reward("shapeworld-judge-small")
    model = get_peft_model(judge.model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    model.peft_config["default"].base_model_name_or_path = "shapeworld-judge-small"
    model.save_pretrained(folder)
    judge.vlm.tokenizer.save_pretrained(folder)
    for path in BUNDLED.joinpath("shapeworld-judge-small").glob("*processor*.json"):
        shutil.copy(path, folder)
    return folder


def test_a_peft_adapter_goes_on_its_base_whole_or_is_refused(tmp_path):
    folder = adapter_of_a_judge(tmp_path / "adapter")
    asked = [Question("a red circle", torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32))]
    assert load_reward(folder)(asked).margin != load_reward("shapeworld-judge-small")(asked).margin
    file = folder / "adapter_model.safetensors"
    saved = load_file(file)
    save_file({name.replace("layers.0", "layers.7"): weight for name, weight in saved.items()}, file)
    with pytest.raises(InputError, match="do not fit") as caught:
        load_reward(folder)
    assert "lora_A" in caught.value.what


def test_a_clip_that_transformers_5_saved_gives_the_very_same_margins(tmp_path):
    bundled, folder = BUNDLED / "shapeworld-clip", tmp_path / "clip"
    CLIPModel.from_pretrained(bundled).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(bundled)
    CLIPProcessor(CLIPImageProcessor.from_pretrained(bundled), tokenizer).save_pretrained(folder)
    assert not (folder / "preprocessor_config.json").exists()
    picture = torch.rand(3, 40, 48)
    expected = load_reward("shapeworld-clip", kind="clip").score("a red circle", [picture]).margin
    loaded = load_reward(folder, kind="clip")
    torch.testing.assert_close(loaded.score("a red circle", [picture]).margin, expected)
    (tmp_path / "again").mkdir()
    loaded.save(tmp_path / "again")
    torch.testing.assert_close(load_reward(tmp_path / "again").score("a red circle", [picture]).margin, expected)


@pytest.mark.parametrize("pad", [None, "!"])
def test_a_clip_tokenizer_with_another_pad_token_or_none_is_no_fault(tmp_path, pad):
    folder = tmp_path / "clip"
    shutil.copytree(BUNDLED / "shapeworld-clip", folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config.pop("pad_token", None)
    path.write_text(json.dumps(config | ({"pad_token": pad} if pad else {})))
    asked = [Question(text, torch.rand(1, 3, 32, 32)) for text in ("a red circle", "a cross")]
    found, expected = (load_reward(name, kind="clip")(asked).margin for name in (folder, BUNDLED / "shapeworld-clip"))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


def test_packed_weights_are_left_as_they_are_and_not_trained_whole():
    generator = load_generator("shapeworld-unet", 2)
    packed = torch.nn.Parameter(torch.zeros(8, 1, dtype=torch.uint8), requires_grad=False)
    generator.network.conv_in.register_parameter("packed", packed)
    with pytest.raises(InputError, match=r"conv_in\.packed") as caught:
        generator.train_all()
    assert "LoRA" in caught.value.remedy
