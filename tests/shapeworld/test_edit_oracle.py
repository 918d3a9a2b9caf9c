"""The oracle of edits says apart how far the change was made and how far all else stayed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rewarddance.errors import InputError
from rewarddance.shapeworld.edits.oracle import EditScore, judge_edits, score_edit
from rewarddance.shapeworld.edits.scenes import source_scene
from rewarddance.shapeworld.edits.specs import KINDS, all_edits, parse_edit
from rewarddance.shapeworld.oracle import read
from rewarddance.shapeworld.render import render, spoil, to_pixels
from rewarddance.shapeworld.scenes import Scene, Thing, pick
from rewarddance.types import Prompt

CIRCLE, CROSS = Thing("circle", "red", 8, 3, 3), Thing("cross", "blue", 9, 18, 18)
SOURCE = CIRCLE, CROSS


def scored(text: str, edited: Scene, source: Scene = SOURCE) -> EditScore:
    return score_edit(render(edited), read(render(source)).things, parse_edit(text))


@pytest.mark.parametrize("kind", KINDS)
def test_a_drawn_edit_is_right_and_a_source_left_alone_only_keeps(kind: str):
    rng = np.random.default_rng([3, KINDS.index(kind)])
    for _ in range(8):
        spec = pick(all_edits()[kind], rng)
        source, edited = source_scene(spec, rng)
        before = read(render(source)).things
        right, left = (score_edit(render(scene), before, spec) for scene in (edited, source))
        assert right.correct and (right.following, right.keeping, right.reasons) == (1, 1, ())
        assert (left.following, left.keeping, left.overall) == (0, 1, pytest.approx(0.2 * left.quality))
        assert left.reasons == ("the change is not made",) and left.category == kind


def moved(thing: Thing, dx: int = 0, dy: int = 0, **changes: object) -> Thing:
    fields = {"shape": thing.shape, "colour": thing.colour, "side": thing.side, "x": thing.x + dx, "y": thing.y + dy}
    return Thing(**{**fields, **changes})  # type: ignore[arg-type]


NEW = Thing("square", "white", 8, 20, 2)
CASES = [  # instruction, what was drawn, following, keeping
    ("make the circle blue", (moved(CIRCLE, colour="green"), CROSS), 0.3, 1.0),
    ("make the circle blue", (CIRCLE, moved(CROSS, colour="green")), 0.0, 0.7),
    ("make the circle blue", (moved(CIRCLE, colour="blue"), moved(CROSS, colour="green")), 1.0, 0.7),
    ("make the circle blue", (moved(CIRCLE, colour="blue"),), 1.0, 0.5),
    ("make the circle blue", (moved(CIRCLE, colour="blue"), CROSS, NEW), 1.0, 2 / 3),
    ("make the circle blue", (moved(CIRCLE, colour="blue", shape="square"), CROSS), 1.0, 0.7),
    ("replace the circle with a green square", (moved(CIRCLE, shape="square"), CROSS), 0.4, 1.0),
    ("replace the circle with a green square", (moved(CIRCLE, shape="square", colour="green"),), 1.0, 0.5),
    ("add a white square", (*SOURCE, moved(NEW, colour="green")), 0.4, 1.0),
    ("add a white square", (CIRCLE, NEW), 1.0, 0.5),
    ("add a white square below the circle", (*SOURCE, NEW), 0.5, 1.0),
    ("remove the cross", (moved(CIRCLE, colour="green"),), 1.0, 0.4),
    ("remove the cross", (CROSS,), 0.0, 0.0),
    ("remove the cross", (CIRCLE, moved(CROSS, dx=-12)), 0.0, 1.0),
    ("remove the cross", (CIRCLE, moved(CROSS, dy=-6)), 0.0, 1.0),
    ("move the circle down", (moved(CIRCLE, dy=8), CROSS), 1.0, 1.0),
    ("move the circle down", (moved(CIRCLE, dx=8), CROSS), 0.0, 1.0),
    ("move the circle right", (moved(CIRCLE, dx=8, colour="green"), CROSS), 1.0, 0.7),
    ("make the circle larger", (moved(CIRCLE, -1, -1, side=12), CROSS), 1.0, 1.0),
    ("make the circle larger", (moved(CIRCLE, side=7), CROSS), 0.0, 1.0),
]


@pytest.mark.parametrize(("text", "edited", "following", "keeping"), CASES)
def test_following_and_keeping_are_what_can_be_counted(text: str, edited: Scene, following: float, keeping: float):
    score = scored(text, edited)
    assert (score.following, score.keeping) == (pytest.approx(following), pytest.approx(keeping))
    assert score.alignment == pytest.approx((following * keeping) ** 0.5)
    assert score.correct == (following == keeping == 1) and bool(score.reasons) != score.correct


def test_another_picture_with_the_right_object_follows_and_keeps_little():
    other = moved(CIRCLE, colour="blue"), Thing("square", "yellow", 9, 20, 3), Thing("triangle", "white", 8, 4, 20)
    score = scored("make the circle blue", other)
    assert score.following == 1 and score.keeping < 0.35
    assert scored("make the circle blue", (moved(CIRCLE, colour="blue"), CROSS)).overall > score.overall


def test_defects_cost_quality_and_more_of_them_cost_more():
    edited, before = render((moved(CIRCLE, colour="blue"), CROSS)), read(render(SOURCE)).things
    spec = parse_edit("make the circle blue")
    for defect in ("blur", "noise"):
        found = [
            score_edit(spoil(edited, defect, level, np.random.default_rng(0)), before, spec) for level in (0, 0.2, 0.5)
        ]
        assert found[0].overall > found[1].overall > found[2].overall
        assert found[0].quality == 1


def test_a_half_erased_object_is_half_removed():
    edited, before = render(SOURCE), read(render(SOURCE)).things
    spec = parse_edit("remove the cross")
    edited[18:22, 18:27] = render(())[0, 0]
    score = score_edit(edited, before, spec)
    assert 0.2 < score.following < 0.8


def test_pixels_are_judged_beside_the_source_of_their_prompt():
    image = to_pixels([render(SOURCE)])[0]
    prompts = [Prompt("make the circle blue", image=image), Prompt("remove the cross", image=image)]
    edits = to_pixels([render((moved(CIRCLE, colour="blue"), CROSS)), render((CIRCLE,))])
    assert [score.correct for score in judge_edits(edits, prompts)] == [True, True]


def test_a_bad_source_or_edit_is_refused_by_name():
    image = to_pixels([render(SOURCE)])[0]
    edits = to_pixels([render(SOURCE)])
    good = Prompt("make the circle blue", image=image)
    broken = edits.clone()
    broken[0, 0, 0, 0, 0] = torch.nan
    for prompt, pixels, named in (
        (Prompt("make the circle blue"), edits, r"'make the circle blue' has no source"),
        (
            Prompt("make the circle blue", image=image[..., :16]),
            edits,
            r"the source of 'make the circle blue' of shape",
        ),
        (Prompt("make the circle blue", image=image.expand(2, -1, -1, -1)), edits, r"the source of .* of shape \(2"),
        (good, edits[..., :16], r"the edit of 'make the circle blue' of shape"),
        (good, broken, r"not finite, in the edit of 'make the circle blue'"),
        (Prompt("make the square blue", image=image), edits, r"'make the square blue' shows 0 objects"),
        (Prompt("a red circle", image=image), edits, "not ShapeWorld English"),
    ):
        with pytest.raises(InputError, match=named):
            judge_edits(pixels, [prompt])
    with pytest.raises(InputError, match="1 edits and 2 prompts"):
        judge_edits(edits, [good, good])
