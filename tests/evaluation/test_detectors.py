"""Detectors: tiny random checkpoints of the real classes, known outputs put into them, and functions."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import clip_folder, scratch
from transformers import (
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Owlv2Config,
    Owlv2ForObjectDetection,
    PreTrainedModel,
    SwinConfig,
)

from rewarddance.errors import InputError, RewardError
from rewarddance.evaluation.detectors import COCO, FunctionDetector, detector_facts, load_detector
from rewarddance.evaluation.object_colours import AskedColours, ClipColours, crop
from rewarddance.evaluation.object_scores import Detection
from rewarddance.reward.loading import load_reward
from rewarddance.shapeworld.training.tokenizer import prompt_corpus, train_tokenizer

SWIN = {"image_size": 64, "embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 2], "window_size": 4}
TOKENS = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]"]
FAMILIES = ("mask2former", "grounding-dino", "owlv2")
TEXT = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def random_model(family: str, words: int) -> PreTrainedModel:
    """A model of the family with random weights, as small as it can be."""
    if family == "mask2former":
        stages = [f"stage{n}" for n in range(1, 5)]
        sizes = {"num_queries": 6, "hidden_dim": 32, "feature_size": 32, "mask_feature_size": 32}
        sizes |= {"dim_feedforward": 32, "encoder_feedforward_dim": 32, "encoder_layers": 1, "decoder_layers": 2}
        backbone = SwinConfig(**SWIN, out_features=stages)
        labels = {0: "circle", 1: "square", 2: "cross"}
        config = Mask2FormerConfig(backbone_config=backbone, num_attention_heads=2, id2label=labels, **sizes)
        return Mask2FormerForUniversalSegmentation(config)
    if family == "owlv2":
        text = TEXT | {"vocab_size": words, "max_position_embeddings": 16, "pad_token_id": 0, "eos_token_id": 2}
        vision = TEXT | {"image_size": 32, "patch_size": 8}
        return Owlv2ForObjectDetection(
            Owlv2Config(text_config=text | {"bos_token_id": 1}, vision_config=vision, projection_dim=32)
        )
    text = TEXT | {"model_type": "bert", "vocab_size": words, "max_position_embeddings": 64}
    sizes = {"num_queries": 5, "d_model": 32, "encoder_layers": 1, "encoder_ffn_dim": 32, "encoder_attention_heads": 2}
    sizes |= {"decoder_layers": 2, "decoder_ffn_dim": 32, "decoder_attention_heads": 2, "max_text_len": 32}
    backbone = SwinConfig(**SWIN, out_indices=[2, 3, 4])
    return GroundingDinoForObjectDetection(GroundingDinoConfig(backbone_config=backbone, text_config=text, **sizes))


@functools.cache
def detector_folder(family: str) -> Path:
    torch.manual_seed(0)
    folder = scratch() / f"detector-{family}"
    tokenizer = train_tokenizer([*prompt_corpus()], TOKENS, pad_token="[PAD]", eos_token="[SEP]")
    random_model(family, len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"height": 32, "width": 32} if family == "owlv2" else {"shortest_edge": 64, "longest_edge": 96}
    name = {"mask2former": "Mask2Former", "grounding-dino": "GroundingDino", "owlv2": "Owlv2"}[family]
    processor = {"image_processor_type": f"{name}ImageProcessor", "size": size}
    processor |= {"size_divisor": 32} if family == "mask2former" else {}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_a_detector_finds_objects_of_the_classes_it_is_asked_for(family):
    detector = load_detector(str(detector_folder(family)))
    found = detector(torch.rand(3, 40, 50), ("circle", "square"))
    assert {one.name for one in found} <= {"circle", "square"} and all(0.05 < one.score <= 1 for one in found)
    assert family == "mask2former" or found
    for one in found:
        assert one.box[0] <= one.box[2] and one.box[1] <= one.box[3]
        assert one.mask is None or one.mask.shape == (40, 50)
    again = load_detector(str(detector_folder(family)))(torch.ones(3, 40, 50) / 2, ("circle",))
    assert {one.name for one in again} <= {"circle"}


def test_a_masks_object_is_the_masks_bounds_at_the_pictures_size(monkeypatch):
    detector: Any = load_detector(str(detector_folder("mask2former")))
    classes = torch.full((1, 6, 4), -20.0)
    classes[0, 0, 1], classes[0, 1, 0], classes[0, 2:, 3] = 20.0, 20.0, 20.0  # square, circle, nothing
    masks = torch.full((1, 6, 16, 24), -20.0)  # a fourth of the 64 x 96 that a picture of 40 x 50 is read as
    masks[0, 0, 4:8, 6:12] = 20.0  # the circle's is empty
    outputs = SimpleNamespace(class_queries_logits=classes, masks_queries_logits=masks)
    seen = []

    def forward(pixel_values, pixel_mask):
        seen.append(pixel_values.shape[-2:])
        return outputs

    monkeypatch.setattr(detector, "model", forward)
    (one,) = detector(torch.rand(3, 40, 50), ("square", "circle"))
    assert seen == [(64, 96)] and one.name == "square" and one.score > 0.9
    assert one.box == pytest.approx((12.5, 10, 25, 20), abs=1)
    assert one.mask is not None and one.mask[12:18, 15:23].all() and not one.mask[:, 27:].any()
    assert detector(torch.rand(3, 40, 50), ("cross",)) == []


def test_what_a_picture_was_filled_up_with_is_cut_off_its_masks():
    detector: Any = load_detector(str(detector_folder("mask2former")))
    there = torch.zeros(1, 64, 96)
    there[..., :80] = 1
    mask = torch.zeros(16, 24)
    mask[:, 21:] = 20.0
    logits = detector._at_size(mask, {"pixel_values": torch.zeros(1, 3, 64, 96), "pixel_mask": there}, (40, 50))
    assert logits.shape == (40, 50) and logits.max() < 10


def test_boxes_of_owlv2_are_of_the_square_that_it_fills_up(monkeypatch):
    detector: Any = load_detector(str(detector_folder("owlv2")))
    logits = torch.tensor([[[3.0, -3.0], [-2.0, 2.0], [-9.0, -9.0]]])
    boxes = torch.tensor([[[0.5, 0.25, 0.2, 0.1], [0.1, 0.1, 0.2, 0.2], [0.5, 0.5, 1, 1]]])
    model = detector.model

    class Known:
        config = model.config

        def __call__(self, **inputs):
            assert inputs["input_ids"].shape == (2, 16) and inputs["pixel_values"].shape == (1, 3, 32, 32)
            return SimpleNamespace(logits=logits, pred_boxes=boxes)

    monkeypatch.setattr(detector, "model", Known())
    first, second = detector(torch.rand(3, 50, 100), ("circle", "red square"))
    assert first.name == "circle" and first.box == pytest.approx((40, 20, 60, 30))
    assert second.name == "red square" and second.score == pytest.approx(torch.sigmoid(torch.tensor(2.0)).item())


def test_a_class_of_grounding_dino_scores_as_its_surest_token(monkeypatch):
    detector: Any = load_detector(str(detector_folder("grounding-dino")))
    tokens = detector.tokenizer("red circle. square.", return_offsets_mapping=True)
    words = [detector.tokenizer.decode([one]).strip(" .") for one in tokens.input_ids]
    logits = torch.full((1, 5, len(words)), -9.0)
    logits[0, 0, words.index("circle")] = 1.0
    logits[0, 1, words.index("square")] = 2.0
    boxes = torch.full((1, 5, 4), 0.5)
    answer = SimpleNamespace(logits=logits, pred_boxes=boxes)
    monkeypatch.setattr(detector, "model", lambda **inputs: answer)
    found = detector(torch.rand(3, 40, 80), ("Red circle", "square"))
    assert [(one.name, round(one.score, 3)) for one in found] == [("Red circle", 0.731), ("square", 0.881)]
    assert found[0].box == pytest.approx((20, 10, 60, 30))


def test_what_a_detector_knows_is_known_before_it_is_loaded():
    known = detector_facts(str(detector_folder("mask2former")))
    assert known.classes == ("circle", "square", "cross")
    assert (known.rules.threshold, known.rules.counting_threshold) == (0.3, 0.9)
    assert detector_facts(str(detector_folder("owlv2"))) == (None, load_detector(str(detector_folder("owlv2"))).rules)
    assert len(COCO) == len(set(COCO)) == 80 and COCO[64] == "computer mouse"
    with pytest.raises(InputError, match="clip"):
        detector_facts(str(clip_folder()))
    with pytest.raises(InputError, match="no_such"):
        load_detector("rewarddance.shapeworld.detector:no_such")


@pytest.mark.parametrize(
    "answer",
    [("dog", (0, 0, 9, 9)), ("dog", (9, 0, 0, 9), 0.5), ("dog", (0, 0, 9, 9), 1.5), (3, (0, 0, 1, 1), 1), None],
)
def test_what_a_function_returns_is_looked_at(answer):
    with pytest.raises(RewardError, match="mine"):
        FunctionDetector(lambda picture, names: [answer], "mine")(torch.rand(3, 8, 8), ("dog",))
    good = FunctionDetector(lambda picture, names: [("dog", (0, 0, 9, 9), 1)], "mine")(torch.rand(3, 8, 8), ("dog",))
    assert good == [Detection("dog", (0.0, 0.0, 9.0, 9.0), 1.0)]


def test_a_crop_is_grey_where_the_mask_says_so_and_never_empty():
    picture = torch.zeros(1, 3, 10, 20)
    mask = torch.zeros(10, 20, dtype=torch.bool)
    mask[2:4, 5:9] = True
    part = crop(picture, Detection("dog", (5, 2, 12, 6), 1.0, mask.numpy()))
    assert part.shape == (1, 3, 4, 7)
    assert part[..., :2, :4].max() == 0 and torch.all(part[..., 2:, :] == 0x99 / 255)
    for box in ((30, 30, 40, 40), (-5, -5, -1, -1), (3, 3, 3, 3)):
        assert crop(picture, Detection("dog", box, 1.0)).shape == (1, 3, 1, 1)


def test_a_clip_says_the_colour_whose_texts_are_nearest():
    class Known:
        """Texts and pictures by their place among three colours."""

        def text_features(self, texts):
            places = torch.tensor([[word in text for word in ("red", "green", "blue")] for text in texts]).float()
            return places + 0.01

        def image_features(self, pictures):
            return [pixels.mean((2, 3)) for pixels in pictures]

    picture = torch.zeros(1, 3, 8, 8)
    picture[:, 0, :, :4] = picture[:, 2, :, 4:] = 1
    halves = [Detection("car", (0, 0, 4, 8), 1.0), Detection("car", (4, 0, 8, 8), 1.0)]
    assert ClipColours(Known())(picture, "car", halves) == ["red", "blue"]
    real = ClipColours(load_reward(str(clip_folder()), kind="clip"))
    assert len(real(picture, "circle", halves)) == 2


def test_whatever_answers_questions_can_say_the_colour():
    class Known:
        form = "yes_no"

        def choose(self, picture, question, choices):
            assert question == "What color is the car?" and picture.shape == (1, 3, 2, 2)
            return choices[4]

    answers: Any = Known()
    assert AskedColours(answers)(torch.rand(1, 3, 8, 8), "car", [Detection("car", (0, 0, 2, 2), 1.0)]) == ["blue"]
