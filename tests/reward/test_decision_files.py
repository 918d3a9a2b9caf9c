"""A judge's folder as transformers' decisions read it: the same tokens, the same pixels, and what it refuses."""

from __future__ import annotations

import json

import pytest
import torch
from tiny import FAMILIES, clip_folder, family_folder, judge_folder, photograph, pictures, scratch
from tiny_families import other_folder
from transformers import AutoTokenizer
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from rewarddance.errors import InputError
from rewarddance.reward.decision_files import decision_files
from rewarddance.reward.loading import load_reward
from rewarddance.reward.prefill import JudgeInput
from rewarddance.reward.recipe import JudgeRecipe
from rewarddance.types import Question

PROMPT = 'a "red" circle {{ and }} 中 \\n a cross'
IMAGE = {"type": "image"}


def saved(name, folder, **options):
    judge = load_reward(str(name), instruction="t2i-brief", **options)
    folder.mkdir(exist_ok=True)
    judge.save(folder)
    return judge


def written(folder, state, kind="noul", options=()) -> str:
    """What transformers makes of a state: its own Jinja, and none of our code."""
    labels = json.loads((folder / "decision.json").read_text())["labels"][kind]
    question = {"type": kind, "options": list(options), "labels": labels[: len(options)]}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    template = (folder / "decision_template.jinja").read_text(encoding="utf-8")
    chat = [{"role": "user", "content": ""}]
    return tokenizer.apply_chat_template(chat, chat_template=template, tokenize=False, state=state, question=question)


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("kind", ["pairwise", "pointwise"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_template_asks_token_for_token_as_the_judge_does(family, kind, frames, tmp_path):
    judge = saved(family_folder(family), tmp_path / "reward", kind=kind)
    reference, candidate = pictures(2).expand(-1, frames, -1, -1, -1)
    question = Question(PROMPT, candidate, None if kind == "pointwise" else reference)
    (asked,) = judge._judge_inputs([question])
    places = ["candidate"] if kind == "pointwise" else ["reference", "candidate"]
    state = {"prompt": PROMPT} | {place: [IMAGE] * frames for place in places}
    text = written(tmp_path / "reward", state)
    mark = "<IMG_CONTEXT>" if family == "internvl" else "<|image_pad|>"
    assert text.count(mark) == frames * len(places)
    tokens = judge.vlm.family.tokens(*candidate.shape[-2:])
    whole = f"<img>{mark * tokens}</img>" if family == "internvl" else mark * tokens
    ids = judge.vlm.tokenizer(text.replace(mark, whole), add_special_tokens=False).input_ids
    assert tuple(ids) == judge.vlm._sequence(JudgeInput(*asked[:2]), ()).ids


@pytest.fixture(scope="module")
def folder():
    place = scratch() / "decision-judge"
    saved(judge_folder(), place)
    return place


def test_a_question_in_other_words_is_put_into_one_turn(folder):
    text = written(folder, [{"type": "text", "text": "Is "}, IMAGE, {"type": "text", "text": "red?"}])
    assert text == "<|im_start|>user\nIs <IMG_CONTEXT>\nred?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    "state",
    [
        {"prompt": "x", "candidate": [IMAGE], "reference": [IMAGE]},
        {"prompt": "x", "candidate": [IMAGE]},
        {"prompt": [IMAGE], "reference": [IMAGE], "candidate": [IMAGE]},
        {"prompt": "x", "reference": "a.png", "candidate": [IMAGE]},
        {"prompt": "x", "reference": [IMAGE], "candidate": [IMAGE, {"type": "text", "text": "yes"}]},
        "no picture at all",
    ],
)
def test_the_template_refuses_a_state_that_the_judge_cannot_answer(folder, state):
    with pytest.raises(Exception, match=r"state|pictures"):
        written(folder, state)


def test_a_choice_must_offer_the_spellings_in_their_order(folder):
    state = {"prompt": "x", "reference": [IMAGE], "candidate": [IMAGE]}
    labels = json.loads((folder / "decision.json").read_text())["labels"]["choice"]
    assert labels == ["yes", "Yes", " yes", " Yes", "no", "No", " no", " No"]
    assert written(folder, state, "choice", labels) == written(folder, state)
    with pytest.raises(Exception, match="order"):
        written(folder, state, "choice", labels[::-1])


def test_a_noul_is_exact_only_with_one_spelling_of_each_answer(folder):
    content = json.loads((folder / "decision.json").read_text())
    assert content["labels"]["noul"] == ["yes", "no"] and not content["rewarddance"]["noul_is_exact"]
    one = decision_files(load_reward(str(judge_folder()), yes=("Yes",), no=("no",)))
    assert one.exact and one.config()["labels"] == {"noul": ["Yes", "no"], "choice": ["Yes", "no"]}


def test_a_judge_is_trained_with_one_spelling_where_its_recipe_says_so():
    config = JudgeRecipe(yes=("yes",), no=("no",)).reward_config()
    assert (config.yes, config.no) == (("yes",), ("no",))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"orders": "both"}, "both orders"),
        ({"criteria": "t2i"}, "tree of criteria"),
        ({"reasoning": "before"}, "reason before"),
        ({"among": "vocabulary"}, "vocabulary"),
    ],
)
def test_a_judge_that_a_decision_cannot_be_says_why(options, why, tmp_path):
    judge = load_reward(str(judge_folder()), **options)
    with pytest.raises(InputError, match=why):
        decision_files(judge)
    judge.save(tmp_path)
    assert (tmp_path / "reward_config.json").is_file() and not (tmp_path / "decision.json").exists()


def test_a_dual_encoder_is_no_decision():
    with pytest.raises(InputError, match="clip"):
        decision_files(load_reward(str(clip_folder()), kind="clip"))


def test_a_judge_of_so_many_frames_is_given_just_those(tmp_path):
    saved(judge_folder(), tmp_path / "reward", frames=2)
    state = {"prompt": "x", "reference": [IMAGE] * 2, "candidate": [IMAGE] * 2}
    assert written(tmp_path / "reward", state).count("<IMG_CONTEXT>") == 4
    with pytest.raises(Exception, match="2 frames"):
        written(tmp_path / "reward", state | {"candidate": [IMAGE]})


def test_the_pixel_budget_stands_in_the_processors_own_file(tmp_path):
    judge = saved(family_folder("qwen3_vl"), tmp_path / "reward", max_pixels=24 * 24)
    theirs = Qwen2VLImageProcessorPil.from_pretrained(tmp_path / "reward")(photograph(200, 100), return_tensors="pt")
    high, wide = judge.vlm.family.grid(200, 100)
    assert theirs["image_grid_thw"].tolist() == [[1, high, wide]] and high * wide * 16 <= 24 * 24


def test_a_tile_family_is_one_tile_to_others_too(tmp_path):
    source = tmp_path / "source"
    judge = load_reward(str(judge_folder()))
    source.mkdir()
    judge.save(source)
    config = json.loads((source / "preprocessor_config.json").read_text())
    config |= {"crop_to_patches": True, "min_patches": 1, "max_patches": 12}
    (source / "preprocessor_config.json").write_text(json.dumps(config))
    saved(source, tmp_path / "reward")
    image = photograph(200, 100)
    theirs = GotOcr2ImageProcessorPil.from_pretrained(tmp_path / "reward")(
        image, crop_to_patches=True, return_tensors="pt"
    )
    ours = judge.vlm.preprocess(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)
    assert theirs["pixel_values"].shape == ours.shape
    assert (theirs["pixel_values"] - ours).abs().max() < 2 / 255 / 0.224


def test_a_family_that_splits_pictures_is_saved_not_to(tmp_path):
    saved(other_folder("idefics3"), tmp_path / "reward")
    content = json.loads((tmp_path / "reward" / "processor_config.json").read_text())
    assert content["image_processor"]["do_image_splitting"] is False
