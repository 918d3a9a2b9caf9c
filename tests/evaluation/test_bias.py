"""Image statistics are measured and changed as they say, and what the votes explain is no bias."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import pictures

from rewarddance.data.image_stats import blurred, luma
from rewarddance.evaluation.bias import PROBE_AMOUNTS, correlation_beyond, image_stats, perturbed, rank_correlation

PICTURE = 0.3 + 0.4 * pictures(1)[0]
"""Well within [0, 1], so that no change is cut off."""


def stats_of(pixels: torch.Tensor) -> dict[str, float]:
    return dict(zip(PROBE_AMOUNTS, image_stats(pixels), strict=True))


def test_of_a_flat_grey_picture_brightness_alone_is_not_0():
    assert image_stats(torch.full((1, 3, 8, 8), 0.4)) == pytest.approx([0.4, 0, 0, 0], abs=1e-6)


def test_the_statistics_of_half_red_and_half_black():
    picture = torch.zeros(1, 3, 8, 8)
    picture[:, 0, :, :4] = 1
    sharpness = 0.2126 * 0.25 * 0.25**0.5  # two of eight columns, a quarter of the step each
    assert image_stats(picture) == pytest.approx([0.2126 / 2, 0.5, sharpness, 0.2126 / 2])


def test_the_statistics_of_a_video_are_the_means_of_its_frames():
    frames = pictures(3)
    expected = np.mean([image_stats(frame) for frame in frames], 0).tolist()
    assert image_stats(torch.cat([*frames])) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("sign", [1, -1])
def test_brightness_moves_by_the_amount_and_nothing_else_moves(sign):
    before, after = image_stats(PICTURE), image_stats(perturbed(PICTURE, "brightness", sign * 0.05))
    assert np.subtract(after, before).tolist() == pytest.approx([sign * 0.05, 0, 0, 0], abs=1e-5)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", ["saturation", "contrast"])
def test_saturation_and_contrast_move_by_their_share_at_equal_brightness(sign, name):
    before, after = stats_of(PICTURE), stats_of(perturbed(PICTURE, name, sign * PROBE_AMOUNTS[name]))
    assert after[name] == pytest.approx((1 + sign * PROBE_AMOUNTS[name]) * before[name], rel=1e-4)
    assert after["brightness"] == pytest.approx(before["brightness"], abs=0.002)


def test_saturation_leaves_contrast_alone_and_sharpness_follows_its_amount():
    before, after = stats_of(PICTURE), stats_of(perturbed(PICTURE, "saturation", 0.2))
    assert after["contrast"] == pytest.approx(before["contrast"], rel=1e-4)
    less, more = (stats_of(perturbed(PICTURE, "sharpness", amount))["sharpness"] for amount in (-0.5, 0.5))
    assert less < 0.75 * before["sharpness"] and more > 1.25 * before["sharpness"]


@pytest.mark.parametrize("name", PROBE_AMOUNTS)
def test_a_change_stays_within_the_pixel_scale_and_0_changes_nothing(name):
    picture = pictures(1)[0]
    after = perturbed(picture, name, 3.0)
    assert float(after.min()) >= 0 and float(after.max()) <= 1
    assert torch.allclose(perturbed(picture, name, 0.0), picture, atol=1e-6)


def test_the_blur_keeps_what_is_flat_and_the_luma_weights_sum_to_one():
    flat = torch.full((2, 3, 5, 6), 0.7)
    assert torch.allclose(blurred(flat), flat) and torch.allclose(luma(flat), flat[:, :1])


def made_pairs(n: int, follows_stat: float, follows_votes: float) -> tuple[np.ndarray, ...]:
    """Margins that follow votes and a statistic to known extents; it goes with the votes, as in real sets."""
    rng = np.random.default_rng(3)
    share = rng.integers(0, 4, n) / 3
    stat = (share - 0.5) + rng.standard_normal(n)
    margin = follows_votes * (share - 0.5) + follows_stat * stat + 0.5 * rng.standard_normal(n)
    return margin, stat, share, np.arange(n) // 2


def test_a_judge_that_follows_the_votes_alone_has_no_correlation_beyond_them():
    margin, stat, share, prompts = made_pairs(4000, 0.0, 5.0)
    assert np.corrcoef(margin, stat)[0, 1] > 0.3
    beyond = correlation_beyond(margin, stat, share, prompts)
    assert beyond is not None and beyond.low < 0 < beyond.high and abs(beyond.mean) < 0.04 and beyond.n == 4000


def test_what_a_judge_follows_besides_the_votes_is_its_correlation():
    beyond = correlation_beyond(*made_pairs(4000, 0.5, 5.0))
    assert beyond is not None and beyond.mean == pytest.approx(0.5**0.5, abs=0.03) and beyond.low > 0.6


def test_which_picture_stands_first_does_not_matter():
    margin, stat, share, prompts = made_pairs(60, 0.3, 1.0)
    turned = np.where(np.arange(60) % 3 == 0, -1, 1)
    beyond = correlation_beyond(margin, stat, share, prompts)
    again = correlation_beyond(turned * margin, turned * stat, 0.5 + turned * (share - 0.5), prompts)
    assert beyond is not None and again is not None and tuple(beyond) == pytest.approx(tuple(again))


def test_without_votes_it_is_the_plain_correlation_through_the_origin():
    margin, stat, _, prompts = made_pairs(50, 0.3, 1.0)
    beyond = correlation_beyond(margin, stat, np.full(50, 0.5), prompts)
    plain = (margin @ stat) / np.sqrt((margin @ margin) * (stat @ stat))
    assert beyond is not None and beyond.mean == pytest.approx(plain)


def test_what_does_not_vary_beyond_the_votes_has_no_correlation():
    _, stat, share, prompts = made_pairs(50, 0.3, 1.0)
    assert correlation_beyond(3 * (share - 0.5), stat, share, prompts) is None
    assert correlation_beyond(stat, np.zeros(50), share, prompts) is None


def test_a_rank_correlation_is_of_the_order_alone():
    length = np.array([3.0, 5.0, 5.0, 9.0, 20.0])
    assert rank_correlation(length, np.exp(length))[0] == pytest.approx(1)  # type: ignore[index]
    assert rank_correlation(length, -length)[0] == pytest.approx(-1)  # type: ignore[index]
    assert rank_correlation(length, np.ones(5)) is None
