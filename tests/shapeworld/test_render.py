"""Pictures hold what their scene says, and a defect grows with its level and does nothing else."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from rewarddance.errors import InputError
from rewarddance.shapeworld.render import DEFECTS, render, shape_mask, spoil, to_pixels
from rewarddance.shapeworld.scenes import BACKGROUND, CANVAS, COLOURS, SHAPES, Thing, random_scene

LEVELS = (0.0, 0.1, 0.25, 0.4, 0.6, 0.8, 1.0)


def seeded(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_a_shape_fills_its_square_and_is_its_own_mirror_image():
    for shape, side in itertools.product(SHAPES, range(5, 16)):
        mask = shape_mask(shape, side)
        assert mask.shape == (side, side) and mask.any(axis=0).all() and mask.any(axis=1).all()
        assert (mask == mask[:, ::-1]).all()
        assert shape == "triangle" or (mask == mask[::-1]).all()


def test_shapes_of_one_size_differ_in_a_tenth_of_their_pixels():
    for side in range(7, 15):  # the closest are the circle and the cross of 7 pixels
        for a, b in itertools.combinations(SHAPES, 2):
            one, other = shape_mask(a, side), shape_mask(b, side)
            assert (one & other).sum() <= 0.9 * (one | other).sum(), (a, b, side)


def test_a_flat_picture_is_paint_on_background_and_nothing_else():
    rng = seeded(1)
    for _ in range(50):
        scene = random_scene(rng)
        rest = render(scene)
        for thing in scene:
            square = rest[thing.y : thing.y + thing.side, thing.x : thing.x + thing.side]
            mask = shape_mask(thing.shape, thing.side)
            assert (square[mask] == np.float32(COLOURS[thing.colour])).all()
            square[mask] = BACKGROUND
        assert rest.dtype == np.float32 and (rest == np.float32(BACKGROUND)).all()


def test_a_sketch_shows_the_same_scene_in_another_hand():
    scene = random_scene(seeded(2))
    flat, one, other = render(scene), render(scene, "sketch", seeded(3)), render(scene, "sketch", seeded(4))
    assert one.dtype == np.float32 and one.min() >= 0 and one.max() <= 1
    assert (one == render(scene, "sketch", seeded(3))).all()
    assert 0.01 < np.abs(one - flat).mean() < 0.1 and np.abs(one - other).max() > 0.01


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(InputError, match="style 'oil'"):
        render((), "oil", seeded())
    with pytest.raises(InputError, match="needs an rng"):
        render((), "sketch")
    with pytest.raises(InputError, match="'hexagon'"):
        shape_mask("hexagon", 9)


@pytest.mark.parametrize("defect", DEFECTS)
def test_level_nought_changes_nothing_and_no_level_changes_the_original(defect: str):
    picture = render(random_scene(seeded(5)))
    kept = picture.copy()
    untouched = spoil(picture, defect, 0.0, seeded())
    assert (untouched == kept).all() and untouched is not picture
    for level in LEVELS[1:]:
        spoiled = spoil(picture, defect, level, seeded())
        assert (picture == kept).all() and (spoiled != kept).any()
        assert spoiled.dtype == np.float32 and spoiled.shape == kept.shape
        assert spoiled.min() >= 0 and spoiled.max() <= 1


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_picture_moves_away_from_the_clean_one_as_its_defect_grows(defect: str):
    rng = seeded(6)
    errors = []
    for seed in range(40):
        picture = render(random_scene(rng))
        errors.append([np.square(spoil(picture, defect, level, seeded(seed)) - picture).sum() for level in LEVELS])
    assert (np.diff(np.mean(errors, axis=0)) > 0).all()
    if defect != "clutter":  # a piece of clutter may by chance cover another with the right colour
        assert (np.diff(errors, axis=1) > 0).all()


def test_one_seed_gives_one_noise_pattern_at_every_level():
    grey = np.full((CANVAS, CANVAS, 3), 0.5, dtype=np.float32)
    faint, strong = (spoil(grey, "noise", level, seeded(7)) - grey for level in (0.1, 0.2))
    assert np.allclose(2 * faint, strong, atol=1e-6)


def test_one_seed_gives_the_same_clutter_and_then_more():
    grey = np.full((CANVAS, CANVAS, 3), 0.5, dtype=np.float32)
    painted = [(spoil(grey, "clutter", level, seeded(8)) != grey).any(axis=2) for level in LEVELS]
    for fewer, more in itertools.pairwise(painted):
        assert not (fewer & ~more).any() and more.sum() > fewer.sum()


@pytest.mark.parametrize("level", [0.05, 0.1, 0.25, 0.5, 0.77, 1.0])
def test_a_smear_neither_moves_the_picture_nor_adds_paint(level: float):
    picture = render((Thing("square", "white", 9, 11, 12),))
    ink = picture.sum(axis=2) - sum(BACKGROUND)
    smeared = spoil(picture, "smear", level, seeded(9)).sum(axis=2) - sum(BACKGROUND)
    assert smeared.sum() == pytest.approx(ink.sum(), rel=1e-4)
    for axis in range(2):
        place = np.arange(CANVAS)
        centre = [(paint.sum(axis=1 - axis) * place).sum() / paint.sum() for paint in (ink, smeared)]
        assert centre[0] == pytest.approx(centre[1], abs=1e-3)


def test_a_defect_that_is_none_is_refused():
    picture = render(())
    for defect, level in (("scratch", 0.5), ("blur", 1.5), ("blur", float("nan"))):
        with pytest.raises(InputError, match="blur, noise, smear, clutter"):
            spoil(picture, defect, level, seeded())


def test_pixels_are_frames_of_channels_in_the_range_of_the_seams():
    pictures = [render(random_scene(seeded(seed))) for seed in range(3)]
    pixels = to_pixels(pictures)
    assert pixels.shape == (3, 1, 3, CANVAS, CANVAS) and pixels.dtype == torch.float32
    assert (pixels[2, 0, 1].numpy() == pictures[2][:, :, 1]).all()
