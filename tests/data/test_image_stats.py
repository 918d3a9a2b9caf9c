"""How pictures look, in closed forms, and what a step logs of them."""

from __future__ import annotations

import math
import time

import pytest
import torch

from rewarddance.data.image_stats import distances, image_statistics, source_distances, step_image_stats


def flat(*levels: float, size: int = 8) -> torch.Tensor:
    return torch.tensor(levels).view(-1, 1, 1, 1, 1).expand(-1, 1, 3, size, size).contiguous()


def test_a_checkerboard_is_all_high_frequency_and_two_halves_are_none():
    board = (torch.arange(8)[:, None] + torch.arange(8)) % 2
    halves = torch.zeros(8, 8)
    halves[:, 4:] = 1
    found = image_statistics(torch.stack([board.float(), halves])[:, None, None].expand(2, 1, 3, 8, 8).contiguous())
    assert found["high_frequencies"].tolist() == pytest.approx([1.0, 0.0], abs=1e-6)
    assert found["contrast"].tolist() == pytest.approx([0.5, 0.5])
    assert found["sharpness"][0] > 2 * found["sharpness"][1]


def test_a_video_that_stands_still_has_no_motion_and_a_picture_none_to_measure():
    video = torch.rand(1, 1, 3, 8, 8).expand(1, 4, 3, 8, 8).contiguous()
    assert image_statistics(video)["motion"].tolist() == [0.0]
    assert image_statistics(torch.cat([video, 1 - video], 1)[:, 3:5])["motion"] > 0
    assert "motion" not in image_statistics(video[:, :1])


def test_a_step_logs_medians_robust_deviations_and_distances():
    figures = step_image_stats(flat(0.2, 0.3, 0.4, 0.5), groups=2)
    assert figures["brightness"] in (pytest.approx(0.3), pytest.approx(0.4))
    assert figures["brightness_deviation"] == pytest.approx(1.4826 * 0.1, rel=1e-4)
    assert figures["diversity_within"] == pytest.approx(0.1) and figures["diversity_across"] == pytest.approx(0.2)


def test_a_group_of_one_picture_has_collapsed_and_one_of_four_has_not():
    rng = torch.Generator().manual_seed(0)
    same = torch.rand(1, 1, 3, 16, 16, generator=rng).expand(4, 1, 3, 16, 16)
    others = torch.rand(4, 1, 3, 16, 16, generator=rng)
    assert step_image_stats(torch.cat([same, others]), groups=2)["collapsed"] == 0.5
    nearly = (same + 0.01 * torch.randn(4, 1, 3, 16, 16, generator=rng)).clamp(0, 1)
    assert step_image_stats(torch.cat([nearly, others]), groups=2)["collapsed"] == 0.5


def test_edits_are_as_far_from_their_sources_as_pixels_are_apart():
    edits, source = flat(0.5, 0.5, 0.5), flat(0.2, size=16)[0]
    apart = source_distances(edits, [edits[0], source, None]).tolist()
    assert apart[:2] == pytest.approx([0.0, 0.3]) and math.isnan(apart[2])
    assert step_image_stats(edits, 1, sources=[edits[0], source, None])["source_distance"] == pytest.approx(0.15)
    videos = edits.expand(3, 2, 3, 8, 8)
    for pixels, sources in ((edits, [None] * 3), (edits, ()), (videos, [source] * 3)):
        assert "source_distance" not in step_image_stats(pixels, 1, sources=sources)


def test_what_needs_two_pictures_is_left_out_where_there_is_one():
    figures = step_image_stats(flat(0.2), groups=1)
    assert "brightness" in figures
    assert not figures.keys() & {"diversity_within", "diversity_across", "collapsed"}


def test_distances_of_large_pictures_are_taken_on_small_ones():
    large = torch.zeros(2, 1, 3, 256, 128)
    large[1, :, :, :, :64] = 1
    assert step_image_stats(large, groups=1)["diversity_within"] == pytest.approx(0.5**0.5, rel=1e-5)
    assert distances(large[None]).shape == (1, 1)


def test_the_figures_of_a_step_cost_milliseconds():
    pixels = torch.rand(16, 1, 3, 32, 32)
    step_image_stats(pixels, groups=8)
    began = time.process_time()
    for _ in range(10):
        step_image_stats(pixels, groups=8)
    assert (time.process_time() - began) / 10 < 0.05  # a step of the quickstart takes more than a second
