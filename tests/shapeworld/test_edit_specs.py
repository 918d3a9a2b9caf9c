"""Instructions of edits say what they mean, in many ways, and the splits keep what they promise."""

from __future__ import annotations

import numpy as np
import pytest

from rewarddance.errors import InputError
from rewarddance.shapeworld.edits.specs import (
    KINDS,
    EditSpec,
    all_edits,
    edit_near_miss,
    edit_specs,
    parse_edit,
)
from rewarddance.shapeworld.scenes import UNSEEN_COMBINATIONS, split_of

ALL = [spec for specs in all_edits().values() for spec in specs]


def test_every_instruction_is_read_back_as_what_it_says():
    for spec in ALL:
        assert parse_edit(spec.text) == spec
        assert parse_edit(spec.text.upper() + ".") == spec


def test_every_phrasing_means_the_same():
    rng = np.random.default_rng(1)
    for specs in all_edits().values():
        for i in rng.permutation(len(specs))[:20]:
            said = {specs[i].paraphrase(rng) for _ in range(12)}
            assert len(said) >= 2 and {parse_edit(text) for text in said} == {specs[i]}


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("Please change the color of the red circle to blue.", "make the red circle blue"),
        ("move the cross to the left", "move the cross left"),
        ("swap the small square for a red cross", "replace the small square with a red cross"),
        ("take away the triangle", "remove the triangle"),
        ("add a red circle to the left of the square", "add a red circle left of the square"),
        ("enlarge the white circle", "make the white circle larger"),
    ],
)
def test_plain_english_of_other_hands_is_read(text: str, same: str):
    assert parse_edit(text) == parse_edit(same)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("a red circle", "'a red circle' is not ShapeWorld English"),
        ("make the circle funny", "'make the circle funny' is not ShapeWorld English"),
        ("remove the dog", "'a dog'"),
        ("remove the circle and the square", "'a circle and the square'|more than one object"),
        ("make the red circle red", "it is red already"),
        ("make the large circle larger", "it is large already"),
        ("replace the red circle with a red circle", "it is that already"),
    ],
)
def test_what_cannot_be_read_or_changes_nothing_is_refused_by_name(text: str, named: str):
    with pytest.raises(InputError, match=named):
        parse_edit(text)


def test_the_splits_are_apart_and_each_has_every_kind():
    seen: dict[str, set[str]] = {}
    for split in ("train", "held_out", "unseen"):
        asked = edit_specs(split, 60, 0)
        assert [spec.kind for _, spec in asked[:6]] == list(KINDS)
        assert {split_of(spec) for _, spec in asked} == {split}
        assert {parse_edit(text) == spec for text, spec in asked} == {True}
        seen[split] = {spec.canonical for _, spec in asked}
    assert not seen["train"] & seen["held_out"] and not seen["train"] & seen["unseen"]
    for _, spec in edit_specs("train", 200, 1):
        nouns = [noun for noun in (spec.target, spec.result) if noun]
        assert not {(noun.colour, noun.shape) for noun in nouns} & UNSEEN_COMBINATIONS
        assert spec.kind != "recolour" or (spec.word, nouns[0].shape) not in UNSEEN_COMBINATIONS
    with pytest.raises(InputError, match="'test'"):
        edit_specs("test", 1, 0)


def test_a_near_miss_asks_for_something_else_of_the_same_object():
    rng = np.random.default_rng(2)
    for number in rng.permutation(len(ALL))[:100]:
        spec = ALL[number]
        other = edit_near_miss(spec, rng)
        assert isinstance(other, EditSpec) and other != spec and other.target == spec.target
        assert parse_edit(other.text) == other
