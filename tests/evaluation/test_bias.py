"""Looks are measured and changed as they say, and what the votes explain is no bias."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import pictures

from rewarddance.evaluation.bias import (
    AMOUNTS,
    LOOKS,
    blurred,
    changed,
    correlation_beyond,
    looks,
    luma,
    rank_correlation,
)

PICTURE = 0.3 + 0.4 * pictures(1)[0]
"""Well within [0, 1], so that no change is cut off."""


def look_of(pixels: torch.Tensor, look: str) -> float:
    return looks(pixels)[LOOKS.index(look)]


def test_looks_of_a_flat_grey_picture_are_its_brightness_alone():
    assert looks(torch.full((1, 3, 8, 8), 0.4)) == pytest.approx([0.4, 0, 0, 0], abs=1e-6)


def test_looks_of_half_red_and_half_black():
    picture = torch.zeros(1, 3, 8, 8)
    picture[:, 0, :, :4] = 1
    brightness, saturation, sharpness, contrast = looks(picture)
    assert (brightness, saturation, contrast) == pytest.approx((0.2126 / 2, 0.5, 0.2126 / 2))
    assert sharpness == pytest.approx(0.2126 * 0.25 * 0.25**0.5)  # two of eight columns, a quarter of the step each


def test_the_looks_of_a_video_are_the_means_of_its_frames():
    frames = pictures(3)
    video = torch.cat([*frames])
    assert looks(video) == pytest.approx(np.mean([looks(frame) for frame in frames], 0).tolist(), rel=1e-4)


@pytest.mark.parametrize("sign", [1, -1])
def test_brightness_moves_by_the_amount_and_nothing_else_moves(sign):
    before, after = looks(PICTURE), looks(changed(PICTURE, "brightness", sign * 0.05))
    assert [b - a for a, b in zip(before, after, strict=True)] == pytest.approx([sign * 0.05, 0, 0, 0], abs=1e-5)


@pytest.mark.parametrize("sign", [1, -1])
def test_saturation_and_contrast_move_by_their_share_at_the_same_brightness(sign):
    for look in ("saturation", "contrast"):
        after = changed(PICTURE, look, sign * AMOUNTS[look])
        assert look_of(after, look) == pytest.approx((1 + sign * AMOUNTS[look]) * look_of(PICTURE, look), rel=1e-4)
        assert look_of(after, "brightness") == pytest.approx(look_of(PICTURE, "brightness"), abs=0.002)


def test_saturation_leaves_contrast_alone_and_sharpness_moves_with_its_amount():
    after = changed(PICTURE, "saturation", 0.2)
    assert look_of(after, "contrast") == pytest.approx(look_of(PICTURE, "contrast"), rel=1e-4)
    less, more = (look_of(changed(PICTURE, "sharpness", sign * 0.5), "sharpness") for sign in (-1, 1))
    assert less < 0.75 * look_of(PICTURE, "sharpness") and more > 1.25 * look_of(PICTURE, "sharpness")


@pytest.mark.parametrize("look", LOOKS)
def test_a_change_stays_within_the_pixel_scale_and_an_amount_of_nothing_changes_nothing(look):
    picture = pictures(1)[0]
    after = changed(picture, look, 3.0)
    assert float(after.min()) >= 0 and float(after.max()) <= 1
    assert torch.allclose(changed(picture, look, 0.0), picture, atol=1e-6)


def test_the_blur_keeps_what_is_flat_and_the_luma_weights_sum_to_one():
    flat = torch.full((2, 3, 5, 6), 0.7)
    assert torch.allclose(blurred(flat), flat) and torch.allclose(luma(flat), flat[:, :1])


def made_pairs(n: int, follows_look: float, follows_votes: float) -> tuple[np.ndarray, ...]:
    """Margins that follow votes and a look to known extents; the look goes with the votes, as in real sets."""
    rng = np.random.default_rng(3)
    share = rng.integers(0, 4, n) / 3
    look = (share - 0.5) + rng.standard_normal(n)
    margin = follows_votes * (share - 0.5) + follows_look * look + 0.5 * rng.standard_normal(n)
    return margin, look, share, np.arange(n) // 2


def test_a_judge_that_follows_the_votes_alone_has_no_correlation_beyond_them():
    margin, look, share, prompts = made_pairs(4000, 0.0, 5.0)
    assert np.corrcoef(margin, look)[0, 1] > 0.3
    found = correlation_beyond(margin, look, share, prompts)
    assert found is not None and found.low < 0 < found.high and abs(found.mean) < 0.04 and found.n == 4000


def test_what_a_judge_follows_besides_the_votes_is_its_correlation():
    margin, look, share, prompts = made_pairs(4000, 0.5, 5.0)
    found = correlation_beyond(margin, look, share, prompts)
    assert found is not None and found.mean == pytest.approx(0.5**0.5, abs=0.03) and found.low > 0.6


def test_which_picture_stands_first_does_not_matter():
    margin, look, share, prompts = made_pairs(60, 0.3, 1.0)
    turned = np.where(np.arange(60) % 3 == 0, -1, 1)
    found = correlation_beyond(margin, look, share, prompts)
    again = correlation_beyond(turned * margin, turned * look, 0.5 + turned * (share - 0.5), prompts)
    assert found is not None and again is not None and tuple(found) == pytest.approx(tuple(again))


def test_without_votes_it_is_the_plain_correlation_through_the_origin():
    margin, look, _, prompts = made_pairs(50, 0.3, 1.0)
    found = correlation_beyond(margin, look, np.full(50, 0.5), prompts)
    plain = (margin @ look) / np.sqrt((margin @ margin) * (look @ look))
    assert found is not None and found.mean == pytest.approx(plain)


def test_what_does_not_vary_beyond_the_votes_has_no_correlation():
    _, look, share, prompts = made_pairs(50, 0.3, 1.0)
    assert correlation_beyond(3 * (share - 0.5), look, share, prompts) is None
    assert correlation_beyond(look, np.zeros(50), share, prompts) is None


def test_a_rank_correlation_is_of_the_order_alone():
    length = np.array([3.0, 5.0, 5.0, 9.0, 20.0])
    assert rank_correlation(length, np.exp(length))[0] == pytest.approx(1)  # type: ignore[index]
    assert rank_correlation(length, -length)[0] == pytest.approx(-1)  # type: ignore[index]
    assert rank_correlation(length, np.ones(5)) is None
