"""The CLIP reward is the model's own logit of picture and prompt, differentiable in the pixels."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import clip_folder, colour_preferences, drawing, judge_folder, photograph, pictures, trained_folder
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel, SiglipConfig, SiglipModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from rewarddance.errors import InputError
from rewarddance.reward.clip import ClipReward, Preprocessing
from rewarddance.reward.judge import RewardConfig
from rewarddance.reward.loading import load_reward
from rewarddance.reward.objectives import bradley_terry
from rewarddance.types import Prompt, Question

PROMPTS = ("a red circle", "two small blue crosses", "a picture of a large green square left of a triangle")


@pytest.fixture(scope="module")
def judge() -> ClipReward:
    return load_reward(str(clip_folder()), kind="clip")


def questions(n: int, seed: int = 0, size: int = 32) -> list[Question]:
    shown = pictures(2 * n, seed, size)
    return [Question(PROMPTS[i % 3], shown[2 * i], shown[2 * i + 1]) for i in range(n)]


def as_picture(pixels: Tensor) -> Image.Image:
    return Image.fromarray((pixels * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())


def naive(prompts: list[str], shown: list[Tensor]) -> Tensor:
    """logits_per_image [N, N] by the model's own processor, tokenizer and forward; nothing of ours."""
    model, tokenizer = CLIPModel.from_pretrained(clip_folder()).eval(), AutoTokenizer.from_pretrained(clip_folder())
    processor = CLIPImageProcessorPil.from_pretrained(clip_folder())
    values = processor([as_picture(pixels[0]) for pixels in shown], return_tensors="pt").pixel_values
    inputs = tokenizer(prompts, padding=True, return_tensors="pt")
    with torch.no_grad():
        return model(pixel_values=values, **inputs).logits_per_image


# -- the margin --------------------------------------------------------------------------------------------------------


def test_the_margin_is_the_models_own_logit(judge):
    asked = questions(5)
    own = naive([q.prompt.text for q in asked], [q.candidate for q in asked]).diagonal()
    other = naive([q.prompt.text for q in asked], [q.reference for q in asked]).diagonal()
    assert own.std() > 0.05
    alone = judge([replace(q, reference=None) for q in asked]).margin
    assert alone.dtype == torch.float32
    torch.testing.assert_close(alone, own, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(judge(asked).margin, own - other, atol=1e-4, rtol=1e-5)


def test_a_siglip_is_read_as_it_was_trained_with_prompts_filled_up_and_its_bias(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(clip_folder())
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = tower | {"vocab_size": len(tokenizer), "max_position_embeddings": 16, "projection_size": 32}
    torch.manual_seed(0)
    model = SiglipModel(
        SiglipConfig(text_config=text, vision_config=tower | {"image_size": 32, "patch_size": 8})
    ).eval()
    with torch.no_grad():
        model.logit_scale.fill_(1.5)
        model.logit_bias.fill_(-2.0)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    content = {"size": {"height": 32, "width": 32}, "resample": 3, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    asked = [replace(q, reference=None) for q in questions(3)]
    inputs = tokenizer([q.prompt.text for q in asked], padding="max_length", max_length=16, return_tensors="pt")
    with torch.no_grad():
        values = torch.cat([q.candidate for q in asked]) * 2 - 1
        expected = model(input_ids=inputs.input_ids, pixel_values=values).logits_per_image.diagonal()
    torch.testing.assert_close(load_reward(str(tmp_path), kind="clip")(asked).margin, expected, atol=1e-5, rtol=1e-5)


def test_a_dual_encoder_is_of_its_kind_by_itself_and_a_kind_that_is_said_counts():
    assert load_reward(clip_folder()).config.kind == "clip"
    with pytest.raises(InputError, match="CLIP is of kind clip"):
        load_reward(clip_folder(), kind="pairwise")


def test_swapping_candidate_and_reference_negates_the_margin_exactly(judge):
    asked = questions(4)
    turned = [replace(q, candidate=q.reference, reference=q.candidate) for q in asked]
    both = judge([*asked, *turned]).margin
    assert torch.equal(both[:4], -both[4:])


@pytest.mark.parametrize("batch_size", [1, 2, 128])
def test_a_verdict_does_not_depend_on_what_else_is_asked(judge, batch_size):
    asked = questions(5)
    together = load_reward(str(clip_folder()), kind="clip", batch_size=batch_size)(asked).margin
    alone = torch.cat([judge([question]).margin for question in asked])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-5)


def test_each_picture_and_each_prompt_is_encoded_once(monkeypatch, judge):
    shown, read = list(pictures(3)), []

    def counted(encode):
        return lambda what: read.append(len(what)) or encode(what)

    for name in ("text_features", "image_features"):
        monkeypatch.setattr(judge, name, counted(getattr(judge, name)))
    judge([Question(prompt, a, b) for prompt in PROMPTS[:2] for a in shown for b in shown])
    assert read == [2, 3]


def test_a_videos_margin_is_the_mean_of_its_frames(judge):
    frames = pictures(4)[:, 0]
    video = judge([Question("a red circle", frames)]).margin
    each = judge([Question("a red circle", frame.unsqueeze(0)) for frame in frames]).margin
    torch.testing.assert_close(video, each.mean().view(1), atol=1e-4, rtol=1e-5)


def test_pictures_of_any_size_and_videos_are_judged_together(judge):
    shown = [pictures(1, size=40)[0], pictures(1, seed=1)[0], pictures(3, seed=2)[:, 0]]
    found = judge.score("a red circle", shown).margin
    alone = torch.cat([judge.score("a red circle", [one]).margin for one in shown])
    torch.testing.assert_close(found, alone, atol=1e-4, rtol=1e-5)


# -- preprocessing and gradient ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(32, 32), (96, 96), (75, 131), (131, 75), (20, 24), (448, 300)])
@pytest.mark.parametrize("picture", [photograph, drawing])
def test_preprocessing_is_within_one_and_a_half_steps_of_the_familys_own(judge, picture, size):
    array = picture(*size)
    processor = CLIPImageProcessorPil.from_pretrained(clip_folder())
    own = processor(Image.fromarray(array), return_tensors="pt").pixel_values
    ours = judge.preprocess(torch.from_numpy(array / 255).float().permute(2, 0, 1).unsqueeze(0))
    deviation = torch.tensor(processor.image_std)[:, None, None]
    assert ours.shape == own.shape
    assert ((ours - own) * deviation).abs().max() < 1.5 / 255


def test_the_pixel_gradient_is_that_of_the_plain_forward(judge):
    question = questions(1)[0]
    ours, theirs = (question.candidate.clone().requires_grad_() for _ in range(2))
    judge([Question(question.prompt, ours)]).margin.sum().backward()
    model, tokenizer = CLIPModel.from_pretrained(clip_folder()).eval(), AutoTokenizer.from_pretrained(clip_folder())
    processor = CLIPImageProcessorPil.from_pretrained(clip_folder())
    mean, deviation = (torch.tensor(v)[:, None, None] for v in (processor.image_mean, processor.image_std))
    inputs = tokenizer(question.prompt.text, return_tensors="pt")
    model(pixel_values=(theirs - mean) / deviation, **inputs).logits_per_image.sum().backward()
    assert theirs.grad.norm() > 1e-2
    assert (ours.grad - theirs.grad).norm() / theirs.grad.norm() < 1e-4


def test_the_gradient_passes_through_resize_and_crop(judge):
    candidate = pictures(1, size=64)[0][..., :48].clone().requires_grad_()
    judge([Question("a red circle", candidate, pictures(1, seed=1)[0])]).margin.sum().backward()
    assert 0.6 < (candidate.grad != 0).float().mean() < 0.95  # a strip above and one below are cropped away


def test_preprocessing_that_is_not_known_is_refused_by_its_key():
    plain = {"size": 32, "crop_size": 32, "do_center_crop": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    assert Preprocessing(plain)(torch.rand(1, 3, 40, 50)).shape == (1, 3, 32, 32)
    changes = ({"do_resize": False}, {"resample": 0}, {"crop_size": 40}, {"do_center_crop": False})
    for change in changes:
        with pytest.raises(ValueError, match=next(iter(change))):
            Preprocessing(plain | change)


# -- what cannot be answered -------------------------------------------------------------------------------------------


def test_a_prompt_that_the_model_cannot_read_whole_is_refused_and_never_cut(judge):
    long = " and ".join(["a large purple triangle"] * 20)
    with pytest.raises(InputError) as caught:
        judge([Question(long, *pictures(2))])
    assert long in caught.value.what and "reads 64" in caught.value.what and "Shorten" in caught.value.remedy


def test_a_prompt_with_one_of_the_models_own_tokens_is_refused(judge):
    with pytest.raises(InputError, match="contains the token '<|endoftext|>'".replace("|", r"\|")):
        judge([Question("a red <|endoftext|> circle", *pictures(2))])


def test_an_instruction_or_a_prompts_image_is_refused_by_name(judge):
    (shown,) = list(pictures(1))
    with pytest.raises(InputError, match=r"question 0 \('a cross'\) has an instruction"):
        judge([Question("a cross", shown, instruction="t2i")])
    with pytest.raises(InputError, match="has an image in its prompt"):
        judge([Question(Prompt("a cross", image=shown), shown)])


def test_a_folder_that_is_no_dual_encoder_is_refused_by_name(tmp_path):
    with pytest.raises(InputError) as caught:
        load_reward(str(judge_folder()), kind="clip")
    assert "InternVL" in caught.value.what and "CLIP" in caught.value.remedy
    with pytest.raises(InputError, match="cannot be loaded"):
        load_reward(str(clip_folder()), kind="pairwise")
    broken = Path(shutil.copytree(clip_folder(), tmp_path / "broken"))
    (broken / "preprocessor_config.json").unlink()
    with pytest.raises(InputError, match="cannot be loaded"):
        load_reward(str(broken), kind="clip")


# -- training and its folder -------------------------------------------------------------------------------------------


def test_the_loss_is_bradley_terry_on_the_margin(judge):
    pairs = [replace(pair, share=share) for pair, share in zip(colour_preferences(3), (1.0, 0.5, 0.2), strict=True)]
    margin = judge([Question(p.prompt, p.second, p.first) for p in pairs]).margin
    torch.testing.assert_close(judge.loss(pairs), bradley_terry(margin, torch.tensor([1.0, 0.5, 0.2])))


def test_the_folder_loads_in_plain_transformers_and_says_what_it_is():
    whole = trained_folder("clip")
    model, ours = CLIPModel.from_pretrained(whole / "reward"), load_reward(str(whole / "reward"))
    assert all(torch.equal(weight, ours.model.state_dict()[name]) for name, weight in model.state_dict().items())
    saved = json.loads((whole / "reward" / "reward_config.json").read_text())
    assert saved["kind"] == "clip" and not {"instruction", "yes", "orders"} & set(saved)
    assert ours.config == RewardConfig(kind="clip")
    with pytest.raises(InputError, match="trained as a clip reward and cannot be asked as a pairwise one"):
        load_reward(str(whole / "reward"), kind="pairwise")
