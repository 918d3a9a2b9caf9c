"""Grids of pictures: every picture stands in its prompt's row, and a file is whole or not there."""

from __future__ import annotations

import pytest
import torch

from rewarddance.data import picture_grid as grids
from rewarddance.data.media import read_picture, read_video
from rewarddance.data.picture_grid import LABEL, grid, write_grid


def plain(value: float, size: int = 32, frames: int = 1) -> torch.Tensor:
    return torch.full((frames, 3, size, size), value)


def test_each_picture_stands_in_its_prompts_row_and_none_covers_the_label():
    made = grid(["a red circle", "a blue cross"], [[plain(0.0), plain(0.2)], [plain(0.4), plain(0.6)]])
    assert made.shape == (1, 3, 2 * 100 + 4, LABEL + 2 * 100)
    for y, row in enumerate(((0.0, 0.2), (0.4, 0.6))):
        top = 4 + 100 * y
        assert made[..., top : top + 96, :LABEL].min() < 0.5 < made[..., top : top + 96, :LABEL].mean()
        for x, value in enumerate(row):
            left = LABEL + 100 * x
            assert (made[..., top : top + 96, left : left + 96] - value).abs().max() < 1 / 255


def test_large_pictures_are_reduced_and_small_ones_enlarged_without_blur():
    assert grid(["x"], [[torch.rand(1, 3, 1024, 512)]]).shape == (1, 3, 256 + 8, LABEL + 128 + 4)
    small = torch.rand(1, 3, 2, 2)
    shown = grid(["x"], [[small]])[..., 4:100, LABEL : LABEL + 96]
    assert (shown[..., ::48, ::48] - small).abs().max() <= 0.5 / 255 + 1e-6
    assert torch.equal(shown[..., :48, :48], shown[..., :1, :1].expand(1, 3, 48, 48))


def test_videos_play_side_by_side_and_a_shorter_one_rests_on_its_end():
    long, short = torch.stack([plain(0.1 * t)[0] for t in range(3)]), plain(0.9)
    made = grid(["x"], [[long, short]])
    assert made.shape[0] == 3
    assert made[:, 0, 50, LABEL + 50].tolist() == pytest.approx([0.0, 0.1, 0.2], abs=1 / 255)
    assert made[:, 0, 50, LABEL + 150].tolist() == pytest.approx([0.9] * 3, abs=1 / 255)


@pytest.mark.parametrize("label", ["", "word " * 300, "x" * 500, "一只红色的圆" * 60, "two\nlines"])
def test_a_label_of_any_length_stays_in_its_own_column(label):
    made = grid([label, "next"], [[plain(0.0)], [plain(0.0)]])
    assert made.shape == (1, 3, 204, LABEL + 100)
    assert made[..., LABEL - 6 : LABEL].min() == 1 and made[..., 97:104, :LABEL].mean() > 0.97


def test_a_kill_while_a_grid_is_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "samples" / "step-0002.png"
    write_grid(plain(0.2), path)

    def killed(pixels, place):
        place.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(grids, "write_picture", killed)
        write_grid(plain(0.8), path)
    assert read_picture(path).mean() == pytest.approx(0.2)
    write_grid(torch.rand(3, 3, 8, 8), path)
    assert read_video(path).shape == (3, 3, 8, 8) and [file.name for file in path.parent.iterdir()] == [path.name]
