"""Preferences about ShapeWorld pictures: what a prediction stands for, and pictures that show too much."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tiny import TinyGenerator

from rewarddance.shapeworld import preferences as module
from rewarddance.shapeworld.annotators import AnnotatorRecipe, cast_votes
from rewarddance.shapeworld.oracle import read, score_picture
from rewarddance.shapeworld.preferences import (
    Candidate,
    Pool,
    PreferenceRecipe,
    draw_picture,
    generate,
    overlay,
    pair_up,
    picture_pool,
)
from rewarddance.shapeworld.render import render, to_pixels
from rewarddance.shapeworld.scenes import ObjectSpec, Spec, prompt_set, sample_scene

RED, BLUE = (Spec("single_object", (ObjectSpec("circle", 1, colour),)) for colour in ("red", "blue"))
RECIPE = PreferenceRecipe(samples=4, drawn=2)


@pytest.fixture
def painter(monkeypatch) -> TinyGenerator:
    """A generator whose finished pictures are right for every other seed, and whose predictions are all one grey."""
    specs = {text: spec for split in ("train", "held_out", "unseen") for text, spec in prompt_set(split, 8, 0)}

    def predictions(generator, prompts, seeds, stops, batch_size):
        rng = np.random.default_rng(0)
        wrong = np.full((32, 32, 3), 0.5, dtype=np.float32)
        final = [render(sample_scene(specs[p.text], rng)) if i % 2 else wrong for i, p in enumerate(prompts)]
        return torch.full((len(prompts), 1, 3, 32, 32), 0.25), to_pixels(final)

    monkeypatch.setattr(module, "predictions", predictions)
    return TinyGenerator()


def test_what_people_vote_on_holds_no_prediction_unless_it_is_asked_for(painter):
    pools = generate(painter, "held_out", 8, RECIPE.samples, 0)
    seen = {
        early: {
            source
            for pair in pair_up(pools, "held_out", 6, RECIPE, 0, exact=True, early=early)
            for source in pair.source.split("/")
        }
        for early in ("none", "some", "all")
    }
    assert seen["none"] == {"sample", "flat"}
    assert seen["some"] == {"sample", "prediction", "flat", "overlaid", "overlaid prediction"}
    assert seen["all"] == {"prediction", "flat"}


def test_a_prediction_stands_for_the_finished_picture_of_its_own_noise(painter):
    """All predictions look alike here, so only their finished pictures can have decided."""
    pools = generate(painter, "held_out", 8, 4, 0)
    pairs = pair_up(pools, "held_out", 12, PreferenceRecipe(samples=4, drawn=0), 0, exact=True, early="all")
    assert {p.source for p in pairs} == {"prediction/prediction"}
    assert {p.share for p in pairs} == {0.0, 1.0}
    assert all(torch.equal(p.first, p.second) for p in pairs)


def test_two_pictures_in_one_show_the_objects_of_both_and_are_scored_as_such():
    rng = np.random.default_rng(3)

    def pool(spec: Spec, x: int) -> Pool:
        thing = sample_scene(spec, rng)[0]
        picture = render((type(thing)(thing.shape, thing.colour, 8, x, 12),))
        score = score_picture(picture, spec)
        early = Candidate(picture[None] * 0.5, "prediction", score)
        return picture_pool(spec.text, spec)._replace(final=[Candidate(picture[None], "sample", score)], early=[early])

    red, blue = pool(RED, 2), pool(BLUE, 20)
    overlays = [overlay(red, blue, np.random.default_rng(seed)) for seed in range(8)]
    counts = {len(read(final.frames[0]).things) for final, _ in overlays}
    assert counts == {1, 2}  # the other prompt's picture, or the same again
    for final, early in overlays:
        assert final.score == early.score == score_picture(final.frames[0], RED)
        np.testing.assert_allclose(early.frames, final.frames * 0.5)
    assert min(final.score.overall for final, _ in overlays) < red.final[0].score.overall - 0.1


def test_drawings_are_right_wrong_and_overfull():
    rng = np.random.default_rng(0)
    pictures = [draw_picture(RED, "flat", rng) for _ in range(200)]
    counts = [len(read(picture).things) for picture in pictures]
    right = sum(score_picture(picture, RED).correct for picture in pictures)
    assert 40 < right < 120
    assert sum(count >= 3 for count in counts) > 5 and sum(count == 1 for count in counts) > 60


def test_in_a_crowd_the_same_people_are_careless_every_time():
    picture = np.full((4, 4, 3), 0.5)
    recipe = AnnotatorRecipe(votes=3, noise=0.0, tie_within=0.0, careless=0.4, crowd=5)
    rng = np.random.default_rng(0)
    right = {who: [] for who in range(5)}
    for _ in range(400):
        votes = cast_votes(picture, picture, 0.5, recipe, rng)
        assert len({who for _, who in votes}) == 3
        for vote, who in votes:
            right[int(who)].append(vote)
    assert [np.mean(right[who]) for who in (2, 3, 4)] == [1, 1, 1]
    assert all(0.4 < np.mean(right[who]) < 0.6 for who in (0, 1))
    with pytest.raises(ValidationError, match="need a crowd"):
        AnnotatorRecipe(votes=3, crowd=2)


def test_a_crowds_votes_stand_one_by_one_and_without_one_the_share_alone(painter):
    pools = generate(painter, "train", 4, 4, 0)
    crowd = RECIPE.model_copy(update={"annotators": AnnotatorRecipe(votes=3, crowd=6)})
    rows = pair_up(pools, "train", 5, crowd, 0, exact=False)
    assert len(rows) == 4 * 5 * 3
    for first, *others in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
        assert all(first.first is other.first and first.second is other.second for other in others)
        assert len({first.annotator, *(other.annotator for other in others)}) == 3
    assert {row.share for row in rows} <= {0.0, 0.5, 1.0}
    plain = pair_up(pools, "train", 5, RECIPE, 0, exact=False)
    assert len(plain) == 20 and not any(row.annotator for row in plain)
    picture = np.zeros((4, 4, 3))
    votes = cast_votes(picture, picture, 0.3, AnnotatorRecipe(votes=4, careless=0.5), np.random.default_rng(1))
    assert len(votes) == 1 and votes[0][0] in {0, 0.25, 0.5, 0.75, 1.0}
