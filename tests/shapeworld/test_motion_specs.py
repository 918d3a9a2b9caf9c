"""Prompts about motion say what they mean, in many ways, and the splits keep what they promise."""

from __future__ import annotations

import re

import numpy as np
import pytest

from rewarddance.errors import InputError
from rewarddance.shapeworld.motion.specs import (
    ACTIONS,
    CROSSINGS,
    MOTION_CATEGORIES,
    UNSEEN_ACTIONS,
    MotionSpec,
    all_motion_specs,
    motion_near_miss,
    motion_prompts,
    parse_motion,
    sample_motion,
)
from rewarddance.shapeworld.scenes import UNSEEN_COMBINATIONS, split_of


def some_specs(each: int = 150) -> list[MotionSpec]:
    rng = np.random.default_rng(0)
    return [specs[i] for specs in all_motion_specs().values() for i in rng.permutation(len(specs))[:each]]


def test_every_prompt_is_read_back_as_what_it_says():
    for spec in some_specs():
        assert parse_motion(spec.text) == spec
        assert parse_motion(spec.text.upper() + ".") == spec


def test_every_phrasing_means_the_same():
    rng = np.random.default_rng(1)
    for spec in some_specs(40):
        said = {spec.paraphrase(rng) for _ in range(12)}
        assert len(said) >= 3 and {parse_motion(text) for text in said} == {spec}


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("A clip of a red circle moving to the left.", "a red circle moves left"),
        ("a small square is rising, while a cross is getting bigger", "a small square moves up and a cross grows"),
        ("circle turning blue", "a circle turns blue"),
        ("a red circle changes color to blue", "a red circle turns blue"),
        ("a video of a cross going behind a large blue square", "a cross passes behind a large blue square"),
        ("one triangle moves in front of a circle", "a triangle passes in front of a circle"),
    ],
)
def test_plain_english_of_other_hands_is_read(text: str, same: str):
    assert parse_motion(text) == parse_motion(same)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("a red circle", "cannot read 'a red circle'"),
        ("a red circle dances", "cannot read 'a red circle dances'"),
        ("two circles move left", "cannot read 'two circles move left'"),
        ("a circle grows and a square", "cannot read 'a square'"),
        ("a circle grows, a square shrinks and a cross appears", "cannot read 'a circle grows, a square shrinks'"),
        ("a circle passes behind", "cannot read 'a circle passes behind'"),
        ("a circle moves left a square", "cannot read 'a circle moves left a square'"),
        ("a red circle turns red", "it is red already"),
        ("a large circle grows", "what grows is not large before"),
        ("a small circle shrinks", "what shrinks is not small before"),
        ("a red circle moves left and a blue circle grows", "different shapes"),
        ("a red circle passes behind a red square", "one colour"),
        ("a large circle passes behind a square", "a small object passes a large one"),
        ("a circle grows and a square grows", "do different things"),
    ],
)
def test_what_cannot_be_read_or_shown_is_refused_by_name(text: str, named: str):
    with pytest.raises(InputError, match=re.escape(named)):
        parse_motion(text)


def test_every_category_is_in_every_split_and_every_action_in_the_train_split():
    for split in ("train", "held_out", "unseen"):
        for task in ("t2v", "i2v"):
            prompts = motion_prompts(split, 60, 0, task)
            assert [spec.category for _, spec in prompts[:6]] == list(MOTION_CATEGORIES)
            assert all(split_of(spec) == split for _, spec in prompts)
    done = {role.action for _, spec in motion_prompts("train", 400, 0) for role in spec.roles}
    assert done == {*ACTIONS, None}


def test_no_training_prompt_shows_an_unseen_combination_or_action():
    kept_out = UNSEEN_COMBINATIONS | UNSEEN_ACTIONS
    for split in ("train", "held_out"):
        for _, spec in motion_prompts(split, 600, 0):
            for role in spec.roles:
                words = (role.noun.shape, role.noun.colour, role.into)
                assert not {(role.action, word) for word in words} & kept_out
                assert not {(colour, role.noun.shape) for colour in (role.noun.colour, role.into)} & kept_out
    assert {pair[0] for pair in UNSEEN_ACTIONS} == set(ACTIONS)


def test_the_splits_share_no_prompt_and_one_seed_gives_one_set():
    texts = {
        split: {spec.text for _, spec in motion_prompts(split, 300, 0)} for split in ("train", "held_out", "unseen")
    }
    assert not texts["train"] & texts["held_out"] and not texts["held_out"] & texts["unseen"]
    assert motion_prompts("train", 50, 3) == motion_prompts("train", 50, 3) != motion_prompts("train", 50, 4)


def test_a_video_that_begins_empty_is_no_image_to_video():
    assert any(spec.begins_empty for _, spec in motion_prompts("train", 120, 0))
    assert not any(spec.begins_empty for _, spec in motion_prompts("train", 120, 0, "i2v"))


def test_an_unknown_split_or_task_is_refused():
    for split, task in (("test", "t2v"), ("train", "v2v")):
        with pytest.raises(InputError, match=f"{split}.*{task}"):
            motion_prompts(split, 1, 0, task)


def test_a_near_miss_is_another_thing_to_show():
    rng = np.random.default_rng(2)
    for _ in range(300):
        spec = sample_motion(rng)
        missed, moved = motion_near_miss(spec, rng), motion_near_miss(spec, rng, appearance=False)
        assert missed.roles != spec.roles and len(missed.roles) == len(spec.roles)
        assert moved.roles != spec.roles
        assert [role.noun for role in moved.roles] == [role.noun for role in spec.roles]


def test_the_opposite_crossing_is_among_the_near_misses():
    rng, spec = np.random.default_rng(3), parse_motion("a red circle passes behind a blue square")
    found = {motion_near_miss(spec, rng).roles[0].action for _ in range(200)}
    assert CROSSINGS[1] in found and len(found) > 5
