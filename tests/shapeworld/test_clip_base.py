"""The recipe of the CLIP base, with a few steps in place of thousands."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, CLIPModel

from rewarddance.reward.loading import load_reward
from rewarddance.shapeworld.oracle import score_picture
from rewarddance.shapeworld.render import render
from rewarddance.shapeworld.scenes import Thing, near_miss, parse_prompt, sample_scene, sample_spec
from rewarddance.shapeworld.training.clip import (
    build_clip_base,
    captioned_batch,
    contrastive_loss,
    make_clip_base,
    shows,
)
from rewarddance.types import Question

SCENE = (Thing("square", "red", 8, 0, 0), Thing("circle", "blue", 12, 16, 16))


def test_a_clip_base_is_made_in_the_folder_that_was_named(tmp_path):
    make_clip_base(tmp_path / "clip", steps=2, pairs=2, log=lambda line: None)
    judge = load_reward(str(tmp_path / "clip"), kind="clip")
    verdict = judge([Question("a circle", torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32))])
    assert torch.isfinite(verdict.margin).all()
    assert (tmp_path / "clip-snapshots").is_dir()
    assert CLIPModel.from_pretrained(tmp_path / "clip").config.vision_config.patch_size == 4
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "clip")
    ids = tokenizer("two small red circles").input_ids
    assert (ids[0], ids[-1], len(ids)) == (tokenizer.bos_token_id, tokenizer.eos_token_id, 6)


@pytest.mark.parametrize(
    ("caption", "holds"),
    [
        ("a square and a circle", True),
        ("a circle and a red square", True),
        ("a small square left of a large circle", True),
        ("a blue circle below a square", True),
        ("a circle left of a square", False),
        ("a blue square and a red circle", False),
        ("a square", False),
        ("two circles", False),
    ],
)
def test_a_scene_shows_what_is_there_and_nothing_else(caption, holds):
    assert shows(SCENE, parse_prompt(caption)) is holds


def test_what_a_scene_shows_is_what_the_oracle_reads_in_its_picture():
    rng = np.random.default_rng(0)
    for _ in range(60):
        spec = sample_spec(rng)
        for said in (spec, near_miss(spec, rng)):
            scene = sample_scene(spec, rng)
            assert shows(scene, said) == (score_picture(render(scene), said).alignment > 0.999)


def test_near_misses_stand_side_by_side_and_captions_are_true_of_their_pictures():
    batch = captioned_batch(6, np.random.default_rng(0))
    assert len(batch.captions) == 12 and batch.pixel_values.shape == (12, 3, 32, 32)
    assert batch.matches.diagonal().all()
    beside = torch.arange(12) ^ 1
    assert batch.matches[torch.arange(12), beside].float().mean() < 0.5
    assert all(batch.captions[i] != batch.captions[i ^ 1] for i in range(12))


def test_a_model_that_cannot_tell_has_the_log_of_the_batch_as_its_loss():
    true = torch.eye(4, dtype=torch.bool)
    assert contrastive_loss(torch.zeros(4, 4), true).item() == pytest.approx(math.log(4))
    true[0, 1] = True
    found = contrastive_loss(torch.zeros(4, 4), true).item()
    assert found == pytest.approx((2 * (3 * math.log(4) + math.log(3)) / 4) / 2)
    assert contrastive_loss(50 * torch.eye(4), torch.eye(4, dtype=torch.bool)).item() < 1e-6


def test_a_pair_that_also_matches_gets_no_gradient():
    logits = torch.randn(3, 3, requires_grad=True)
    true = torch.eye(3, dtype=torch.bool)
    true[2, 0] = True
    (gradient,) = torch.autograd.grad(contrastive_loss(logits, true), logits)
    assert gradient[2, 0] == 0 and (gradient[~true] > 0).all() and (gradient.diagonal() < 0).all()


def test_the_text_tower_reads_up_to_the_end_token_whatever_the_padding():
    model, tokenizer = build_clip_base()
    texts = ["a red circle", "a picture of two small blue crosses and a large square"]
    both = model.get_text_features(**tokenizer(texts, padding=True, return_tensors="pt")).pooler_output
    alone = model.get_text_features(**tokenizer(texts[:1], return_tensors="pt")).pooler_output
    torch.testing.assert_close(both[:1], alone, atol=1e-5, rtol=1e-5)
