"""Prompts say what scenes show: every prompt is read back, and every scene is what its prompt asks for."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from rewarddance.errors import InputError
from rewarddance.shapeworld.scenes import (
    CANVAS,
    CATEGORIES,
    GAP,
    PREFIXES,
    SIZES,
    SPLITS,
    UNSEEN_COMBINATIONS,
    ObjectSpec,
    Spec,
    all_specs,
    holds,
    near_miss,
    parse_prompt,
    prompt_set,
    random_scene,
    sample_scene,
    sample_spec,
    split_of,
    wrong_attribute,
)

EVERY_SPEC = [spec for specs in all_specs().values() for spec in specs]


def test_every_prompt_is_read_back_as_the_spec_it_was_written_from():
    for spec, prefix in itertools.product(EVERY_SPEC, PREFIXES):
        assert parse_prompt(prefix + spec.text) == spec


def test_every_near_miss_is_english_too():
    rng = np.random.default_rng(0)
    for _ in range(500):
        missed = near_miss(sample_spec(rng), rng)
        assert parse_prompt(missed.text) == missed


RED_CIRCLE, BLUE_SQUARE = ObjectSpec("circle", colour="red"), ObjectSpec("square", colour="blue")


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("A red circle to the left of a blue square.", Spec("position", (RED_CIRCLE, BLUE_SQUARE), "left of")),
        ("a red circle is on the right of a blue square", Spec("position", (RED_CIRCLE, BLUE_SQUARE), "right of")),
        ("a red circle is above a blue square", Spec("position", (RED_CIRCLE, BLUE_SQUARE), "above")),
        ("  A  Photo of\ta RED circle  and one blue   square . ", Spec("color_attr", (RED_CIRCLE, BLUE_SQUARE))),
        ("two red circles and a square", Spec("counting", (ObjectSpec("circle", 2, "red"), ObjectSpec("square")))),
        ("an image of red circle", Spec("colors", (RED_CIRCLE,))),
        ("four small white crosses", Spec("counting", (ObjectSpec("cross", 4, "white", "small"),))),
        ("two circles above a square", Spec("position", (ObjectSpec("circle", 2), ObjectSpec("square")), "above")),
    ],
)
def test_free_spellings_are_read(text: str, spec: Spec):
    assert parse_prompt(text) == spec


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("", "''"),
        ("a red hexagon", "'a red hexagon'"),
        ("a red circle and a pink square", "'a pink square'"),
        ("a red circle beside a blue square", "'a red circle beside a blue square'"),
        ("a circle and a square and a cross", "'a cross'"),
        ("two circle", "'two circle'"),
        ("circles", "'circles'"),
        ("a circlees", "'a circlees'"),
        ("five circles", "'five circles'"),
        ("a red small circle", "'a red small circle'"),
        ("a circle left of", "'a circle left of'"),
    ],
)
def test_what_is_not_shapeworld_english_is_refused_by_its_phrase(text: str, phrase: str):
    with pytest.raises(InputError, match="cannot read") as caught:
        parse_prompt(text)
    assert phrase in str(caught.value)


def test_a_prompt_for_more_objects_than_fit_is_refused():
    with pytest.raises(InputError, match="more than 4 objects"):
        parse_prompt("three circles and two squares")


def test_a_position_record_lists_the_anchor_first():
    record = parse_prompt("a red circle left of a square").geneval("a photo of a red circle left of a square")
    assert record == {
        "tag": "position",
        "include": [
            {"class": "square", "count": 1},
            {"class": "circle", "count": 1, "color": "red", "position": ["left of", 0]},
        ],
        "exclude": [],
        "prompt": "a photo of a red circle left of a square",
    }


def test_a_counting_record_excludes_one_more():
    assert parse_prompt("three blue crosses").geneval()["exclude"] == [{"class": "cross", "count": 4}]
    mixed = parse_prompt("two red circles and a blue circle").geneval()
    assert mixed["exclude"] == [{"class": "circle", "count": 4}]


def test_every_record_is_json_with_genevals_keys():
    for spec in EVERY_SPEC:
        record = spec.geneval()
        assert json.loads(json.dumps(record)) == record
        assert list(record) == ["tag", "include", "exclude", "prompt"]
        assert record["tag"] in CATEGORIES and record["prompt"] == spec.text
        assert sum(entry["count"] for entry in record["include"]) == spec.total
        assert [entry["class"] for entry in record["include"] if "position" in entry] == (
            [spec.objects[0].shape] if spec.relation else []
        )
        assert bool(record["exclude"]) == (record["tag"] == "counting")


def contents(split: str) -> set[str]:
    """What the prompts of a split say, the two wordings of one content counted once."""
    return {spec.canonical for spec in EVERY_SPEC if split_of(spec) == split}


def test_the_three_splits_share_no_content_and_leave_none_out():
    of_splits = [contents(split) for split in SPLITS]
    assert all(not a & b for a, b in itertools.combinations(of_splits, 2))
    assert set.union(*of_splits) == {spec.canonical for spec in EVERY_SPEC}
    assert len(contents("held_out")) >= 120


def test_the_two_wordings_of_a_content_are_one():
    for text, twin in (
        ("a red circle and a square", "a square and a red circle"),
        ("a circle left of a square", "a square right of a circle"),
        ("two circles above a square", "a square below two circles"),
    ):
        assert parse_prompt(text).canonical == parse_prompt(twin).canonical
    assert parse_prompt("a circle left of a square").canonical != parse_prompt("a square left of a circle").canonical


def test_no_preference_split_shows_an_unseen_part():
    for split, n in (("train", 600), ("held_out", 140)):
        for _, spec in prompt_set(split, n, 1):
            assert spec.total < 4 and not any((o.colour, o.shape) in UNSEEN_COMBINATIONS for o in spec.objects)
    assert all(spec.unseen and split_of(spec) == "unseen" for _, spec in prompt_set("unseen", 90, 1))


def test_a_prompt_set_is_the_same_for_the_same_seed_and_another_for_another():
    for split in ("train", "held_out"):
        assert prompt_set(split, 60, 3) == prompt_set(split, 60, 3)
        assert prompt_set(split, 60, 3) != prompt_set(split, 60, 4)
        assert prompt_set(split, 30, 3) == prompt_set(split, 60, 3)[:30]


def test_the_categories_take_turns():
    for split in SPLITS:
        specs = [spec for _, spec in prompt_set(split, 30, 2)]
        turns = list(dict.fromkeys(spec.category for spec in specs))
        assert [spec.category for spec in specs] == [turns[i % len(turns)] for i in range(30)]
        assert split == "unseen" or turns == list(CATEGORIES)


def test_no_training_prompt_comes_again_before_all_of_its_category():
    specs = [spec for _, spec in prompt_set("train", 500, 5)]
    pools = {category: [s for s in all_specs()[category] if split_of(s) == "train"] for category in CATEGORIES}
    for name, pool in pools.items():
        drawn = [spec for spec in specs if spec.category == name][: len(pool)]
        assert len(set(drawn)) == len(drawn) > 0


@pytest.mark.parametrize("split", ["held_out", "unseen"])
def test_what_is_tested_on_is_distinct_and_all_of_it_can_be_had(split: str):
    every = len(contents(split))
    specs = [spec for _, spec in prompt_set(split, every, 8)]
    assert len({spec.canonical for spec in specs}) == every
    with pytest.raises(InputError, match=f"{every + 1} prompts of the split '{split}'.*{every} differ"):
        prompt_set(split, every + 1, 8)


def test_a_prompt_says_how_many_objects_and_whether_where():
    layouts = {text: parse_prompt(text).layout for text in ("a red cross", "two crosses", "a cross and a square")}
    assert list(layouts.values()) == ["one object", "several of a kind", "two objects"]
    assert parse_prompt("a cross below a square").layout == "relation"


def test_every_text_of_a_prompt_set_says_its_spec():
    assert all(parse_prompt(text) == spec for split in SPLITS for text, spec in prompt_set(split, 90, 6))


def test_an_unknown_split_is_refused_by_name():
    with pytest.raises(InputError, match=r"'test'.*train, held_out, unseen"):
        prompt_set("test", 1, 0)


def test_a_scene_shows_what_its_prompt_asks_for():
    rng = np.random.default_rng(1)
    groups = [parse_prompt("two circles above two squares"), parse_prompt("a cross left of three circles")]
    for spec in [*EVERY_SPEC, *groups]:
        scene = sample_scene(spec, rng)
        phrases = [phrase for phrase in spec.objects for _ in range(phrase.count)]
        assert len(scene) == spec.total
        for phrase, thing in zip(phrases, scene, strict=True):
            assert thing.shape == phrase.shape
            assert phrase.colour in (None, thing.colour) and phrase.size in (None, thing.size)
        if spec.relation:
            n = spec.objects[0].count
            assert all(holds(spec.relation, a.centre, b.centre) for a in scene[:n] for b in scene[n:])


def test_objects_stand_apart_and_inside_the_canvas():
    rng = np.random.default_rng(2)
    for _ in range(300):
        scene = random_scene(rng)
        assert 1 <= len(scene) <= 4
        for t in scene:
            assert t.x >= 1 and t.y >= 1 and t.x + t.side < CANVAS and t.y + t.side < CANVAS
            assert SIZES[t.size][0] <= t.side <= SIZES[t.size][1]
        for a, b in itertools.combinations(scene, 2):
            gap_x = max(a.x, b.x) - min(a.x + a.side, b.x + b.side)
            gap_y = max(a.y, b.y) - min(a.y + a.side, b.y + b.side)
            assert max(gap_x, gap_y) >= GAP


def test_each_relation_is_the_mirror_of_its_opposite():
    rng = np.random.default_rng(3)
    for a, b in rng.uniform(0, CANVAS, size=(200, 2, 2)).tolist():
        for one, other in (("left of", "right of"), ("above", "below")):
            assert holds(one, tuple(a), tuple(b)) == holds(other, tuple(b), tuple(a))
            assert not (holds(one, tuple(a), tuple(b)) and holds(other, tuple(a), tuple(b)))


def test_a_scene_that_cannot_be_laid_out_is_refused():
    with pytest.raises(InputError, match="found no place"):
        sample_scene(parse_prompt("three large circles above a large square"), np.random.default_rng(0))


def test_wrong_attributes_change_as_many_objects_as_asked_and_no_place():
    rng = np.random.default_rng(4)
    for _ in range(200):
        scene, n = random_scene(rng), int(rng.integers(0, 5))
        wrong = wrong_attribute(scene, rng, n)
        assert [(t.side, t.x, t.y) for t in wrong] == [(t.side, t.x, t.y) for t in scene]
        changed = [(a.shape != b.shape) + (a.colour != b.colour) for a, b in zip(scene, wrong, strict=True)]
        assert sorted(changed, reverse=True) == [1] * min(n, len(scene)) + [0] * max(0, len(scene) - n)


def test_a_near_miss_is_another_prompt_that_can_be_drawn():
    rng = np.random.default_rng(5)
    for _ in range(500):
        spec = sample_spec(rng)
        missed = near_miss(spec, rng)
        assert missed != spec
        assert len(sample_scene(missed, rng)) == missed.total <= 4
