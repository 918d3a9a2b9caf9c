"""Families without code of their own here, against their own processor and one plain `model(**inputs)` a question."""

from __future__ import annotations

import functools
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_families import OTHER_FAMILIES, SIDE, other_folder
from transformers import AutoModelForImageTextToText, AutoProcessor

from rewarddance.errors import InputError
from rewarddance.reward.families.any import AnyFamily, as_images, drawn
from rewarddance.reward.families.pixels import LANCZOS, preparation_of, resized
from rewarddance.reward.generative import PairwiseReward
from rewarddance.reward.instructions import Picture, load_instruction
from rewarddance.reward.judge import NO, YES, RewardConfig
from rewarddance.reward.loading import build_reward, load_reward
from rewarddance.reward.vlm_judge import JudgeInput, VisionLanguageModel
from rewarddance.types import Pixels, Preference, Question

PROMPTS = ("a red circle left of a blue square", "two crosses")
SHARING = ("llava", "llava_next", "idefics3", "aya_vision")
PREPARED = ("llava", "idefics3", "aya_vision", "gemma3", "paligemma")


@pytest.fixture(params=OTHER_FAMILIES, scope="module")
def judge(request) -> PairwiseReward:
    return load_reward(str(other_folder(request.param)), instruction="t2i-brief")  # type: ignore[return-value]


def family_of(judge: PairwiseReward) -> str:
    return judge.model.config.model_type


def same_size(n: int, seed: int = 0) -> list[Pixels]:
    """Pictures of the towers' own size, so that nothing is resized and both ways read the very same values."""
    return [drawn(SIDE, SIDE, seed + i) for i in range(n)]


@functools.cache
def transformers_own(folder: Path) -> tuple[Any, Any]:
    return AutoModelForImageTextToText.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


def plainly(folder: Path, question: Question) -> torch.Tensor:
    """One question through AutoProcessor and the whole model: no code of ours but the template's text."""
    model, processor = transformers_own(folder)
    content, images = [], []
    for part in load_instruction("t2i-brief").question(question.prompt.text):
        frames = as_images(getattr(question, part)) if isinstance(part, Picture) else []
        content += [{"type": "image", "image": frame} for frame in frames] or [{"type": "text", "text": str(part)}]
        images += frames
    cuts = ("crop_to_patches", "do_image_splitting")
    uncut = {name: False for name in cuts if hasattr(processor.image_processor, name)}
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"images_kwargs": uncut},
    )
    with torch.no_grad():
        logits = model(**inputs).logits[0, -1]
    ids = [[processor.tokenizer(word, add_special_tokens=False).input_ids for word in words] for words in (YES, NO)]
    yes, no = (sorted({one[0] for one in group if len(one) == 1}) for group in ids)
    return logits[yes].logsumexp(0) - logits[no].logsumexp(0)


def test_margins_equal_the_familys_own_processor_and_forward(judge):
    pictures = same_size(3)
    asked = [Question(p, c, r) for p in PROMPTS for c, r in itertools.permutations(pictures, 2)][:5]
    asked.append(Question(PROMPTS[1], torch.cat(same_size(2, 5)), torch.cat(same_size(3, 8))))  # videos
    theirs = torch.stack([plainly(judge.vlm.folder, question) for question in asked])
    assert (theirs[:2] - theirs[2:4]).abs().max() > 1e-3  # other pictures, other margins
    torch.testing.assert_close(judge(asked).margin, theirs, atol=1e-5, rtol=1e-5)


def test_what_a_family_can_is_found_out(judge):
    assert judge.vlm.family.caches_prefix == (family_of(judge) in SHARING)
    assert (judge.vlm.family.preparation is not None) == (family_of(judge) in PREPARED)


def test_margins_do_not_depend_on_what_else_is_asked(judge):
    pictures = [drawn(40, 56, 1), drawn(56, 40, 2), drawn(SIDE, SIDE, 3), drawn(20, 24, 4)]
    asked = [Question(p, c, pictures[0]) for p in PROMPTS for c in pictures[1:]]
    alone = torch.cat([judge([question]).margin for question in asked])
    torch.testing.assert_close(judge(asked[::-1]).margin, alone.flip(0), atol=1e-5, rtol=1e-5)


def test_pixel_gradients_are_those_of_plain_autograd_or_refused(judge):
    reference, *candidates = same_size(3)
    shown = [candidate.requires_grad_() for candidate in candidates]
    asked = [Question(PROMPTS[0], candidate, reference) for candidate in shown]
    if family_of(judge) not in PREPARED:
        with pytest.raises(InputError, match="keeps no graph"):
            judge(asked)
        return
    family, vlm = judge.vlm.family, judge.vlm
    parts = tuple((isinstance(p, Picture), str(p)) for p in load_instruction("t2i-brief").question(PROMPTS[0]))
    plain = []
    for candidate in shown:
        logits = vlm.model(**family.model_inputs(parts, (reference, candidate), ())).logits[0, -1]
        yes, no = vlm.answer_tokens(YES), vlm.answer_tokens(NO)
        plain += torch.autograd.grad(logits[yes].logsumexp(0) - logits[no].logsumexp(0), candidate)
    for vlm.checkpointing in (True, False):
        ours = torch.autograd.grad(judge(asked).margin.sum(), shown)
        for mine, theirs in zip(ours, plain, strict=True):
            assert theirs.abs().max() > 0
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def test_pictures_are_prepared_as_the_familys_own_processor_does_it(judge):
    if family_of(judge) not in PREPARED:
        with pytest.raises(InputError, match="keeps no graph"):
            judge.vlm.preprocess(drawn(40, 50))
        return
    image = judge.vlm.family.processor.image_processor
    for size in ((45, 61), (130, 90), (17, 20), (33, 200)):
        pixels = drawn(*size)
        options = judge.vlm.family._options
        theirs = image(as_images(pixels), return_tensors="pt", **options)["pixel_values"]
        ours = judge.vlm.preprocess(pixels)
        deviation = torch.tensor(image.image_std)[:, None, None]
        assert ((ours - theirs.reshape(ours.shape)).abs() * deviation).max() < 1.5 / 255


def test_what_was_said_is_read_on_from(judge):
    parts, pixels = ("Prompt: two crosses", Picture("candidate")), drawn(SIDE, SIDE)
    said = "yes. The candidate"
    count = len(judge.vlm.response_prefix_tokens(said))
    (states,) = judge.vlm.response_states([JudgeInput(parts, (pixels,), said)])
    assert len(states) == count + 1 > 2
    first = judge.vlm.last_states([JudgeInput(parts, (pixels,))])[0]
    torch.testing.assert_close(states[0], first, atol=1e-5, rtol=1e-5)


def test_writing_greedily_is_the_likeliest_token_each_time(judge):
    parts = ("Prompt: two crosses", Picture("candidate"))
    asked = [JudgeInput(parts, (drawn(SIDE, SIDE, seed),)) for seed in range(2)]
    best = judge.vlm.head(judge.vlm.last_states(asked)).argmax(-1)
    expected = [text.strip() for text in judge.vlm.tokenizer.batch_decode(best[:, None], skip_special_tokens=True)]
    assert judge.vlm.write(asked, max_new_tokens=1) == expected
    assert judge.vlm.write(asked, 5, temperature=2.0, seed=1) == judge.vlm.write(asked, 5, temperature=2.0, seed=1)


@pytest.mark.parametrize("family", ["idefics3", "gemma3", "mllama"])
def test_it_is_trained_saved_and_loaded_again(family, tmp_path):
    reward = build_reward(str(other_folder(family)), RewardConfig(instruction="t2i-brief", reasoning="after"))
    pairs = [Preference(PROMPTS[0], *same_size(2), 1.0, reason="It is red.", reason_swapped="It is not red.")]
    optimiser = torch.optim.SGD(reward.model.parameters(), lr=0.01)
    losses = []
    for _ in range(2):
        optimiser.zero_grad()
        loss = reward.loss(pairs)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]
    reward.freeze().save(tmp_path)
    question = [Question(PROMPTS[0], *same_size(2, 4))]
    torch.testing.assert_close(load_reward(str(tmp_path))(question).margin, reward(question).margin)


def test_half_precision_is_found_out_alike():
    vlm = VisionLanguageModel(str(other_folder("llava")), dtype=torch.bfloat16)
    assert vlm.family.caches_prefix
    assert not VisionLanguageModel(str(other_folder("gemma3")), dtype=torch.bfloat16).family.caches_prefix


# -- what is refused ---------------------------------------------------------------------------------------------------


def copied(family: str, folder: Path) -> Path:
    return Path(shutil.copytree(other_folder(family), folder / family))


def test_a_model_without_a_chat_template_is_refused_with_the_remedy(tmp_path):
    folder = copied("paligemma", tmp_path)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match=r"no chat template.*chat_template.jinja"):
        load_reward(str(folder))


def test_a_model_whose_processor_is_missing_is_refused(tmp_path):
    folder = copied("llava", tmp_path)
    for name in ("processor_config.json", "preprocessor_config.json"):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(InputError, match="processor"):
        load_reward(str(folder))


def test_an_encoder_decoder_is_refused(tmp_path):
    folder = copied("llava", tmp_path)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"is_encoder_decoder": True}))
    with pytest.raises(InputError, match="does not answer a conversation"):
        load_reward(str(folder))


def test_a_model_that_cannot_read_two_pictures_is_refused(monkeypatch):
    model_inputs = AnyFamily.model_inputs

    def one_at_most(self, parts, pictures, said):
        if len(pictures) > 1:
            raise ValueError("one picture only")
        return model_inputs(self, parts, pictures, said)

    monkeypatch.setattr(AnyFamily, "model_inputs", one_at_most)
    with pytest.raises(InputError, match="two pictures: one picture only"):
        load_reward(str(other_folder("llava")))


def test_a_model_whose_logits_are_not_its_heads_is_refused(monkeypatch):
    monkeypatch.setattr(AnyFamily, "scaled", lambda self, logits: logits.sin())
    with pytest.raises(InputError, match="do not follow from its last state"):
        load_reward(str(other_folder("llava")))


def test_a_scale_or_a_cap_of_the_logits_is_used_where_the_model_uses_it(monkeypatch):
    loaded = type(transformers_own(other_folder("llava"))[0])
    forward = loaded.forward

    def capped(self, *args, **kwargs):
        found = forward(self, *args, **kwargs)
        found.logits = 0.5 * (found.logits / 0.5).tanh()
        return found

    plain = VisionLanguageModel(str(other_folder("llava")))
    assert not plain.family.scales
    monkeypatch.setattr(loaded, "forward", capped)
    monkeypatch.setattr(type(plain.model.config.text_config), "final_logit_softcapping", 0.5, raising=False)
    vlm = VisionLanguageModel(str(other_folder("llava")))
    assert vlm.family.scales
    hidden = torch.randn(2, 64)
    torch.testing.assert_close(vlm.head(hidden), 0.5 * (plain.head(hidden) / 0.5).tanh())


def test_a_pixel_budget_is_refused_where_the_processor_decides():
    with pytest.raises(InputError, match="max_pixels"):
        load_reward(str(other_folder("llava")), max_pixels=576)


def test_a_prompt_with_one_of_the_models_own_tokens_is_refused(judge):
    with pytest.raises(InputError, match="contains the token"):
        judge([Question("a <s> circle", *same_size(2))])


def test_a_sliding_window_is_not_shared_over(tmp_path):
    folder = copied("llava", tmp_path)
    content = json.loads((folder / "config.json").read_text())
    content["text_config"] |= {"model_type": "mistral", "sliding_window": 8}
    (folder / "config.json").write_text(json.dumps(content))
    assert not VisionLanguageModel(str(folder)).family.caches_prefix


# -- resizing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(20, 30), (61, 45), (200, 17)])
def test_the_lanczos_filter_is_pillows(size):
    pixels = drawn(50, 40)
    theirs = np.asarray(as_images(pixels)[0].resize(size[::-1], Image.Resampling.LANCZOS)) / 255
    ours = resized(pixels, *size, LANCZOS)[0].permute(1, 2, 0)
    assert (ours - torch.from_numpy(theirs)).abs().max() < 1.5 / 255


def test_an_image_processor_that_does_something_else_is_not_guessed_at():
    for config in ({}, {"size": {"shortest_edge": 224}}, {"size": {"height": 8, "width": 8}, "resample": 0}):
        assert preparation_of(config) is None
