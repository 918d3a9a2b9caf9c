"""Videos from files: every container gives the same frames, and a broken file is refused by name."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sets import write_video

from rewarddance.data.frame_sampling import evenly_spaced, evenly_timed
from rewarddance.data.media import as_pixels, media_size, read_picture, read_rate, read_video
from rewarddance.errors import InputError

T = 12
ANIMATIONS = {"gif": {}, "webp": {"lossless": True}, "png": {}}
VIDEOS = {"mp4": "libx264", "webm": "libvpx-vp9", "mkv": "libx264", "avi": "mpeg4"}


def grey(level: float, size: tuple[int, int] = (32, 48)) -> Image.Image:
    return Image.fromarray(np.full((*size, 3), level, np.uint8))


def levels(pixels: torch.Tensor) -> list[int]:
    """Which frames these are: frame i is grey of the level 20 i."""
    return (pixels.mean((1, 2, 3)) * 255 / 20).round().int().tolist()


def animation(path: Path, kind: str, frames: int = T) -> Path:
    first, *rest = [grey(20 * i) for i in range(frames)]
    first.save(path, kind, save_all=True, append_images=rest, **ANIMATIONS[kind])
    return path


def video(path: Path, codec: str = "libx264", frames: int = T, options: dict[str, str] | None = None) -> Path:
    noise = [np.random.default_rng(i).integers(-4, 5, (32, 48, 3)) for i in range(frames)]
    return write_video(path, [np.clip(20 * i + n, 0, 255) for i, n in enumerate(noise)], codec, options=options)


# -- frames ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ANIMATIONS)
def test_an_animation_is_its_frames_in_order(tmp_path, kind):
    found = read_video(animation(tmp_path / f"a.{kind}", kind))
    assert found.shape == (T, 3, 32, 48) and found.dtype == torch.float32
    assert levels(found) == list(range(T))


@pytest.mark.parametrize("kind", VIDEOS)
def test_a_video_is_its_frames_in_order(tmp_path, kind):
    found = read_video(video(tmp_path / f"a.{kind}", VIDEOS[kind]))
    assert found.shape == (T, 3, 32, 48) and found.dtype == torch.float32 and found.is_contiguous()
    assert levels(found) == list(range(T))
    assert levels(read_video(tmp_path / f"a.{kind}", 4)) == [1, 4, 7, 10]


def test_a_folder_is_its_frames_in_the_order_of_their_numbers(tmp_path):
    for i in range(T):
        grey(20 * i).save(tmp_path / f"frame{i}.png")
    (tmp_path / "notes.txt").write_text("no frame")
    (tmp_path / ".thumb.png").write_text("hidden")
    assert levels(read_video(tmp_path)) == list(range(T))
    assert levels(as_pixels(str(tmp_path), max_frames=3)) == [2, 6, 10]


def test_of_a_longer_video_evenly_spaced_frames_are_read(tmp_path):
    for kind in ANIMATIONS:
        animation(tmp_path / f"a.{kind}", kind)
        assert levels(read_video(tmp_path / f"a.{kind}", 4)) == [1, 4, 7, 10]
        assert levels(as_pixels(tmp_path / f"a.{kind}", max_frames=1)) == [6]
    assert evenly_spaced(100, 16)[:3] == [3, 9, 15] and evenly_spaced(5, 5) == evenly_spaced(5, 9) == [0, 1, 2, 3, 4]


def test_of_uneven_frames_those_of_evenly_spaced_moments_are_read(tmp_path):
    times = [0, 1, 2, 3, 4, 5, 6, 14]  # the last but one stands a second
    frames = [np.full((32, 48, 3), 20 * number) for number in range(len(times))]
    file = write_video(tmp_path / "uneven.mkv", frames, times=times)
    assert levels(read_video(file, max_frames=3)) == [2, 6, 6]


def test_frames_that_come_evenly_or_at_unknown_times_are_taken_by_their_number():
    even = [number / 30 for number in range(20)]
    jitter = [time + 0.002 * (number % 2) for number, time in enumerate(even)]
    for times in (even, jitter, [None] * 20, [0.0] * 20):
        assert evenly_timed(times, 6) == evenly_spaced(20, 6)
    assert evenly_timed([0.0, 1.0, 2.0, 10.0], 4) == [1, 2, 2, 2]


@pytest.mark.parametrize("kind", VIDEOS)
def test_a_videos_rate_is_read_from_its_times(tmp_path, kind):
    file = video(tmp_path / f"a.{kind}", VIDEOS[kind])
    assert read_rate(file) == pytest.approx(8, rel=0.01)
    assert read_rate(file.read_bytes()) == pytest.approx(8, rel=0.01)


def test_an_animation_has_the_rate_of_its_durations_and_a_picture_none(tmp_path):
    first, *rest = [grey(20 * i) for i in range(4)]
    first.save(tmp_path / "timed.gif", save_all=True, append_images=rest, duration=125)
    assert read_rate(tmp_path / "timed.gif") == pytest.approx(8, rel=0.05)
    assert read_rate(animation(tmp_path / "untimed.png", "png")) is None
    grey(3).save(tmp_path / "still.png")
    assert read_rate(tmp_path / "still.png") is None and read_rate(tmp_path) is None


def test_a_broken_file_has_no_rate_but_an_error_that_names_it(tmp_path):
    file = video(tmp_path / "a.mp4")
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"the video .*a\.mp4 cannot be read"):
        read_rate(file)


def test_a_file_in_memory_is_the_same_video(tmp_path):
    for path in (animation(tmp_path / "a.gif", "gif"), video(tmp_path / "a.mp4")):
        assert torch.equal(as_pixels(path.read_bytes()), as_pixels(path))


def test_a_picture_is_one_frame_and_a_preferences_picture_stays_one(tmp_path):
    grey(40).save(tmp_path / "a.gif")
    assert read_video(tmp_path / "a.gif").shape == (1, 3, 32, 48)
    assert len(read_picture(animation(tmp_path / "b.gif", "gif"))) == 1


def test_the_pages_of_a_tiff_and_the_shots_of_a_camera_are_no_video(tmp_path):
    for kind in ("tiff", "mpo"):
        grey(40).save(tmp_path / f"a.{kind}", kind, save_all=True, append_images=[grey(80)])
        assert levels(read_video(tmp_path / f"a.{kind}")) == [2]


def test_the_still_of_an_animated_png_is_not_one_of_its_frames(tmp_path):
    grey(240).save(tmp_path / "a.png", save_all=True, append_images=[grey(0), grey(20), grey(40)], default_image=True)
    assert levels(read_video(tmp_path / "a.png")) == [0, 1, 2]


def test_what_is_transparent_in_an_animation_lies_on_white(tmp_path):
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    clear.save(tmp_path / "a.webp", save_all=True, append_images=[Image.new("RGBA", (8, 8), "black")], lossless=True)
    assert read_video(tmp_path / "a.webp").mean((1, 2, 3)).tolist() == [1, 0]


def test_a_video_taken_with_a_turned_camera_is_upright(tmp_path):
    path = video(tmp_path / "a.mp4", "libx264", frames=2)
    whole = bytearray(path.read_bytes())
    matrix = whole.index(b"tkhd") + 44
    turned = (0, 0x10000, 0, -0x10000, 0, 0, 32 << 16, 0, 0x40000000)  # a quarter clockwise
    whole[matrix : matrix + 36] = b"".join(number.to_bytes(4, "big", signed=True) for number in turned)
    upright = read_video(path)
    path.write_bytes(whole)
    found = read_video(path)
    assert found.shape == (2, 3, 48, 32)
    assert torch.equal(found, upright.rot90(-1, (2, 3)))


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*ANIMATIONS, *VIDEOS, "fast.mp4"])
@pytest.mark.parametrize("left", [0.97, 0.9, 0.85, 0.6, 0.4, 0.2, 0.02])
def test_a_video_that_was_cut_off_is_refused_by_name(tmp_path, kind, left):
    path = tmp_path / f"cut.{kind}"
    if kind in ANIMATIONS:
        animation(path, kind)
    else:
        video(path, VIDEOS[kind[-4:].strip(".")], options={"movflags": "faststart"} if kind == "fast.mp4" else None)
    path.write_bytes(path.read_bytes()[: int(left * path.stat().st_size)])
    with pytest.raises(InputError) as refused:
        read_video(path, 1)
    assert str(path) in refused.value.what and refused.value.remedy == "Replace or remove it."


def test_a_gif_that_was_cut_off_between_two_frames_is_refused(tmp_path):
    path = animation(tmp_path / "a.gif", "gif")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"a.gif cannot be read: it ends before"):
        read_video(path)


@pytest.mark.parametrize("name", ["a.png", "a.gif", "a.mp4", "a.webm"])
def test_what_a_file_holds_decides_and_not_its_name(tmp_path, name):
    path = tmp_path / name
    for write in (lambda: animation(path, "gif"), lambda: video(path.with_suffix(".mkv")).rename(path)):
        write()
        assert levels(read_video(path)) == list(range(T))
    for nothing in (b"", b"not a video", bytes(4096), path.read_bytes()[:16]):
        path.write_bytes(nothing)
        with pytest.raises(InputError) as refused:
            read_video(path)
        assert str(path) in refused.value.what


def test_a_transparent_picture_named_like_a_video_is_still_laid_on_white(tmp_path):
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "a.mp4", "PNG")
    assert read_video(tmp_path / "a.mp4").mean() == 1


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_file_that_would_fill_the_memory_is_refused_by_name(tmp_path, monkeypatch):
    paths = [animation(tmp_path / "a.gif", "gif"), video(tmp_path / "a.mp4"), tmp_path / "one.png"]
    grey(40).save(paths[2])
    frames = tmp_path / "frames"
    frames.mkdir()
    for i in range(T):
        grey(i).save(frames / f"{i}.png")
    size = 32 * 48
    for limit, refused in ((size, [*paths[:2], frames]), (size - 1, [*paths, frames])):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        for path in [*paths, frames]:
            if path in refused:
                with pytest.raises(InputError) as caught:
                    read_video(path)
                assert str(path) in caught.value.what and "too many" in caught.value.what
            else:
                read_video(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", size)
    assert len(read_video(paths[0], 2)) == len(read_video(paths[1], 2)) == len(read_video(frames, 2)) == 2


def test_without_pyav_a_video_is_refused_with_the_remedy(tmp_path, monkeypatch):
    path = video(tmp_path / "a.mp4")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError) as refused:
        as_pixels(path)
    assert "a.mp4 is a video" in refused.value.what and refused.value.remedy == "pip install 'rewarddance[video]'"
    assert len(read_video(animation(tmp_path / "a.gif", "gif"))) == T


def test_a_folder_without_frames_or_with_frames_of_two_sizes_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no pictures"):
        read_video(tmp_path)
    grey(0).save(tmp_path / "0.png")
    grey(0, (8, 8)).save(tmp_path / "1.png")
    with pytest.raises(InputError, match="frames of different sizes"):
        read_video(tmp_path)


@pytest.mark.parametrize("kind", VIDEOS)
def test_a_video_has_as_many_frames_as_are_read_of_it(tmp_path, kind):
    path = video(tmp_path / f"a.{kind}", VIDEOS[kind])
    assert media_size(path) == (T, 32, 48)


def test_of_a_recording_that_says_no_length_the_frames_are_counted(tmp_path):
    path = video(tmp_path / "a.webm", VIDEOS["webm"], options={"live": "1"})
    assert media_size(path) == (len(read_video(path)), 32, 48) == (T, 32, 48)


@pytest.mark.parametrize("kind", ["mp4", "mkv"])  # the first says how many frames it has, the second does not
def test_a_video_of_more_pixels_than_are_decoded_is_refused(tmp_path, monkeypatch, kind):
    path = video(tmp_path / f"a.{kind}", VIDEOS[kind])
    monkeypatch.setattr("rewarddance.data.video_io.MOST_DECODED", 5 * 32 * 48)
    with pytest.raises(InputError, match=r"too long: of 48x32 pixels some 5 frames are read; cut or shrink it"):
        read_video(path)


@pytest.mark.parametrize("kind", ["mp4", "gif"])
def test_frames_of_more_pixels_than_fit_into_memory_are_refused(tmp_path, monkeypatch, kind):
    path = video(tmp_path / "a.mp4") if kind == "mp4" else animation(tmp_path / "a.gif", kind)
    monkeypatch.setattr("rewarddance.data.video_io.MOST_PIXELS", 3 * 32 * 48)
    with pytest.raises(InputError, match="too many to be a safe file"):
        read_video(path)
    assert len(read_video(path, 2)) == 2
