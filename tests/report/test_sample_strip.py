"""Pictures along the way stand in the page itself, by step, from the base to the end."""

from __future__ import annotations

import base64
import re
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_hacking_page import run_of

from rewarddance.data.picture_grid import LABEL, grid, write_grid
from rewarddance.errors import InputError
from rewarddance.report.hacking_page import write_hacking_page
from rewarddance.report.run_folder import find_grids, grid_name
from rewarddance.report.sample_strip import MOST_FRAMES, MOST_GRIDS, along


def drawn(folder: Path, steps: range, frames: int = 1, size: int = 32) -> None:
    for step in steps:
        cells = [[torch.full((frames, 3, size, size), step / 100) + 0.01 * k] for k in range(3)]
        video = [[cell[0] + torch.linspace(0, 0.5, frames).view(-1, 1, 1, 1)] for cell in cells]
        write_grid(grid(["one", "two", "three"], video), folder / "samples" / grid_name(step))


def pictures_of(html: str) -> list[Image.Image]:
    found = re.findall(r'src="data:image/webp;base64,([^"]*)"', html)
    return [Image.open(BytesIO(base64.b64decode(data))) for data in found]


def test_the_first_grid_the_last_and_some_between_are_shown_in_order_with_the_prompts_once(tmp_path):
    drawn(tmp_path, range(0, 80, 10))
    (tmp_path / "samples" / "000_refl.png").write_bytes(b"another picture")
    html = along(tmp_path)
    steps = [int(step) for step in re.findall(r"<figcaption>Step (\d+)", html)]
    assert steps[0] == 0 and steps[-1] == 70 and steps == sorted(steps) and len(steps) == MOST_GRIDS
    assert "2 more are in the run's folder samples." in html
    prompts, *shown = pictures_of(html)
    assert prompts.size == (LABEL, 304) and [one.size for one in shown] == [(100, 304)] * MOST_GRIDS
    for step, one in zip(steps, shown, strict=True):
        assert one.convert("RGB").getpixel((40, 50))[0] == pytest.approx(2.55 * step, abs=3)


def test_a_step_past_the_fourth_digit_stands_in_its_place(tmp_path):
    drawn(tmp_path, range(9_000, 12_000, 1_000))
    assert [*find_grids(tmp_path)] == [9_000, 10_000, 11_000]


def test_videos_play_in_the_page_with_few_frames(tmp_path):
    drawn(tmp_path, range(1), frames=16)
    prompts, video = pictures_of(along(tmp_path))
    assert getattr(prompts, "n_frames", 1) == 1 and video.n_frames == MOST_FRAMES


def test_the_page_of_large_pictures_stays_small(tmp_path):
    smooth = torch.nn.functional.interpolate(torch.rand(8, 3, 24, 24), size=(512, 512), mode="bicubic").clamp(0, 1)
    for step in range(0, 60, 10):
        cells = [[smooth[2 * k : 2 * k + 1], smooth[2 * k + 1 : 2 * k + 2]] for k in range(4)]
        write_grid(grid(["a long prompt"] * 4, cells), tmp_path / "samples" / grid_name(step))
    assert len(along(tmp_path)) < 1_000_000 < sum(path.stat().st_size for path in find_grids(tmp_path).values())


def test_the_page_holds_its_pictures_itself_and_is_the_same_each_time(tmp_path):
    folder = run_of(tmp_path / "mine", [])
    drawn(folder, range(0, 20, 10))
    html = write_hacking_page(folder).read_text()
    assert html == write_hacking_page(folder).read_text()
    assert len(pictures_of(html)) == 3 and not re.search(r'(src|href)="(?!data:|#)', html)


def test_a_grid_that_cannot_be_read_is_named(tmp_path):
    drawn(tmp_path, range(1))
    (tmp_path / "samples" / grid_name(20)).write_bytes(b"half")
    with pytest.raises(InputError, match=r"step-0020\.png cannot be read"):
        along(tmp_path)
