"""Samples during training stand in the page itself, by step, from the base to the end."""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path

import pytest
import torch
from page_content import Tags, assert_self_contained
from PIL import Image
from test_alignment_page import run_of

from rewarddance.data.picture_grid import LABEL, grid, write_grid
from rewarddance.errors import InputError
from rewarddance.report.alignment_page import write_alignment_page
from rewarddance.report.run_folder import find_grids, grid_name
from rewarddance.report.sample_strip import MOST_FRAMES, MOST_GRIDS, SampleStrip, sample_strip


def draw_grids(folder: Path, steps: range, frames: int = 1) -> None:
    """Grids of three prompts, one picture or video each, whose level is the step."""
    for step in steps:
        levels = step / 100 + 0.01 * torch.arange(3) + torch.linspace(0, 0.5, frames).view(-1, 1, 1, 1, 1)
        videos = [[video] for video in levels.view(frames, 3, 1, 1, 1).expand(-1, -1, 3, 32, 32).unbind(1)]
        write_grid(grid(["one", "two", "three"], videos), folder / "samples" / grid_name(step))


def opened(data_uri: str) -> Image.Image:
    header, data = data_uri.split(",")
    assert header == "data:image/webp;base64"
    return Image.open(BytesIO(base64.b64decode(data)))


def strip_of(folder: Path) -> SampleStrip:
    strip = sample_strip(folder)
    assert strip is not None
    return strip


def test_the_first_grid_the_last_and_some_between_stand_in_order(tmp_path):
    draw_grids(tmp_path, range(0, 80, 10))
    (tmp_path / "samples" / "000_refl.png").write_bytes(b"another picture")
    strip = strip_of(tmp_path)
    steps = [*strip.grids]
    assert steps[0] == 0 and steps[-1] == 70 and steps == sorted(steps) and len(steps) == MOST_GRIDS
    assert strip.left_out == 2 and opened(strip.prompts).size == (LABEL, 304)
    for step, data_uri in strip.grids.items():
        picture = opened(data_uri)
        assert picture.size == (100, 304)
        assert picture.convert("RGB").getpixel((40, 50))[0] == pytest.approx(2.55 * step, abs=3)


def test_a_step_past_the_fourth_digit_stands_in_its_order(tmp_path):
    draw_grids(tmp_path, range(9_000, 12_000, 1_000))
    assert [*find_grids(tmp_path)] == [9_000, 10_000, 11_000]


def test_videos_play_in_the_page_with_few_frames(tmp_path):
    draw_grids(tmp_path, range(1), frames=16)
    strip = strip_of(tmp_path)
    assert getattr(opened(strip.prompts), "n_frames", 1) == 1 and opened(strip.grids[0]).n_frames == MOST_FRAMES


def test_the_page_of_large_pictures_stays_small(tmp_path):
    smooth = torch.nn.functional.interpolate(torch.rand(8, 3, 24, 24), size=(512, 512), mode="bicubic").clamp(0, 1)
    for step in range(0, 60, 10):
        cells = [[smooth[2 * k : 2 * k + 1], smooth[2 * k + 1 : 2 * k + 2]] for k in range(4)]
        write_grid(grid(["a long prompt"] * 4, cells), tmp_path / "samples" / grid_name(step))
    strip = strip_of(tmp_path)
    size = len(strip.prompts) + sum(map(len, strip.grids.values()))
    assert size < 1_000_000 < sum(path.stat().st_size for path in find_grids(tmp_path).values())


def test_the_page_holds_its_pictures_itself_and_is_the_same_each_time(tmp_path):
    folder = run_of(tmp_path / "mine", [])
    draw_grids(folder, range(0, 80, 10))
    html = write_alignment_page(folder).read_text()
    assert html == write_alignment_page(folder).read_text()
    assert "2 more are in the run's folder samples." in html
    assert len(Tags(html).of("img")) == 1 + MOST_GRIDS and "<figcaption>Step 70</figcaption>" in html
    assert_self_contained(html)


def test_a_grid_that_cannot_be_read_is_named(tmp_path):
    draw_grids(tmp_path, range(1))
    (tmp_path / "samples" / grid_name(20)).write_bytes(b"half")
    with pytest.raises(InputError, match=r"step-0020\.png cannot be read"):
        sample_strip(tmp_path)
