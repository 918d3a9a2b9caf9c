"""Pictures come in upright, opaque and in [0, 1], whatever the file; a broken file is named."""

from __future__ import annotations

import random
from zlib import crc32

import numpy as np
import pytest
import torch
from bad_media import animation, picture, png, video
from PIL import Image

from rewarddance.data.media import as_pixels, inspect_media, read_picture, write_picture
from rewarddance.errors import InputError


def photograph(seed: int = 0) -> np.ndarray:
    """uint8 [24, 20, 3], every pixel its own."""
    return np.random.default_rng(seed).integers(0, 256, (24, 20, 3), dtype=np.uint8)


def of(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.float32) / 255).permute(2, 0, 1).unsqueeze(0)


def test_a_picture_is_one_frame_in_unit_range(tmp_path):
    Image.fromarray(photograph()).save(tmp_path / "a.png")
    found = read_picture(tmp_path / "a.png")
    assert found.shape == (1, 3, 24, 20) and found.dtype == torch.float32 and found.is_contiguous()
    assert torch.equal(found, of(photograph()))


def test_what_is_written_is_read_back_to_the_last_step(tmp_path):
    pixels = torch.rand(1, 3, 9, 7)
    write_picture(pixels, tmp_path / "deep" / "a.png")
    assert (read_picture(tmp_path / "deep" / "a.png") - pixels).abs().max() <= 0.5 / 255 + 1e-6
    write_picture(torch.tensor([-3.0, 0.5, 7.0])[None, :, None, None], tmp_path / "b.png")
    assert (read_picture(tmp_path / "b.png") * 255).flatten().tolist() == [0, 128, 255]


def test_a_video_is_written_whole_even_where_it_stands_still(tmp_path):
    pixels = torch.stack([torch.full((3, 4, 6), value / 255) for value in (1, 1, 1, 200, 200)])
    write_picture(pixels, tmp_path / "video.png")
    torch.testing.assert_close(as_pixels(tmp_path / "video.png"), pixels, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (6, lambda a: np.rot90(a, -1)),
        (8, lambda a: np.rot90(a)),
    ],
)
def test_a_camera_that_was_turned_is_turned_back(tmp_path, orientation, upright):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(photograph()).save(tmp_path / "a.png", exif=exif)
    assert torch.equal(read_picture(tmp_path / "a.png"), of(np.ascontiguousarray(upright(photograph()))))


def test_what_is_transparent_lies_on_white(tmp_path):
    rgba = np.dstack([photograph(), np.full((24, 20), 255, np.uint8)])
    rgba[:12, :, 3] = 0
    rgba[12:14, :, 3] = 128
    Image.fromarray(rgba, "RGBA").save(tmp_path / "a.png")
    found = read_picture(tmp_path / "a.png")
    assert torch.equal(found[:, :, :12], torch.ones(1, 3, 12, 20))
    assert torch.equal(found[:, :, 14:], of(photograph())[:, :, 14:])
    share = 128 / 255
    blended = share * of(photograph())[:, :, 12:14] + 1 - share
    assert (found[:, :, 12:14] - blended).abs().max() < 1.01 / 255


def test_a_palette_with_a_transparent_colour_lies_on_white(tmp_path):
    picture = Image.new("P", (4, 4), 0)
    picture.putpalette([0, 0, 0, 255, 0, 0])
    picture.putpixel((0, 0), 1)
    picture.save(tmp_path / "a.png", transparency=0)
    found = read_picture(tmp_path / "a.png")
    assert found[0, :, 0, 0].tolist() == [1, 0, 0]
    assert found[0, :, 3, 3].tolist() == [1, 1, 1]


def test_a_grey_picture_has_three_equal_channels(tmp_path):
    Image.fromarray(photograph()[..., 0]).save(tmp_path / "a.png")
    found = read_picture(tmp_path / "a.png")
    assert torch.equal(found, of(np.repeat(photograph()[..., :1], 3, axis=2)))


@pytest.mark.parametrize("name", ["lost.png", "note.png", "cut.png", "cut.jpg", "cut.webp", "folder"])
def test_what_is_missing_cut_off_or_no_picture_is_an_error_that_names_it(tmp_path, name):
    (tmp_path / "note.png").write_text("not a picture")
    (tmp_path / "folder").mkdir()
    if name.startswith("cut"):
        Image.fromarray(photograph()).save(tmp_path / name)
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[: (tmp_path / name).stat().st_size // 2])
    with pytest.raises(InputError, match=f"{name} cannot be read") as caught:
        read_picture(tmp_path / name)
    assert str(tmp_path / name) in caught.value.what and caught.value.remedy == "Replace or remove it."


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["png", "ppm", "avif", "tiff"])
def test_however_a_file_is_broken_the_error_is_ours(tmp_path, kind):
    rng, path, refused = random.Random(0), tmp_path / f"broken.{kind}", 0
    Image.fromarray(photograph()).save(path)
    whole = path.read_bytes()
    for _ in range(60):
        broken = bytearray(whole)
        for _ in range(3):
            broken[rng.randrange(120)] = rng.randrange(256)
        path.write_bytes(broken)
        try:
            read_picture(path)
        except InputError as error:
            refused += str(path) in error.what
    assert refused > 10


def test_a_picture_may_come_in_any_form_and_is_the_same_picture(tmp_path):
    array = photograph()
    Image.fromarray(array).save(tmp_path / "a.png")
    forms = (
        of(array),
        of(array)[0],
        (of(array) * 255).round().to(torch.uint8),
        of(array).double(),
        array,
        array.astype(np.float32) / 255,
        array[None],
        Image.fromarray(array),
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        [tmp_path / "a.png"],
    )
    for form in forms:
        found = as_pixels(form)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, of(array), atol=1e-6, rtol=0)


def test_frames_come_as_a_stack_or_one_by_one():
    frames = [photograph(seed) for seed in range(3)]
    expected = torch.cat([of(frame) for frame in frames])
    for form in (np.stack(frames), expected, frames, tuple(map(Image.fromarray, frames)), [of(f)[0] for f in frames]):
        torch.testing.assert_close(as_pixels(form), expected, atol=1e-6, rtol=0)


def test_pixels_keep_their_graph_and_their_identity():
    pixels = torch.rand(1, 3, 4, 4, requires_grad=True)
    assert as_pixels(pixels) is pixels
    as_pixels(pixels[0]).sum().backward()
    assert pixels.grad is not None and (pixels.grad == 1).all()


@pytest.mark.parametrize(
    ("media", "said"),
    [
        (torch.rand(4, 4), "candidate 3 has the shape [4, 4]"),
        (torch.rand(1, 4, 8, 8), "candidate 3 has the shape [1, 4, 8, 8]"),
        (torch.rand(0, 3, 8, 8), "candidate 3 has the shape [0, 3, 8, 8]"),
        (torch.rand(3, 8, 8) * 255, "candidate 3 has values from"),
        (torch.full((3, 8, 8), float("nan")), "candidate 3 has values from nan"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), "candidate 3 holds torch.int64"),
        (np.zeros((3, 8, 8)), "candidate 3 is an array [3, 8, 8]"),
        (np.zeros((4, 4, 3), np.longdouble), "candidate 3 is an array of"),
        (np.zeros((4, 4, 3), ">f4"), "candidate 3 is an array of >f4"),
        (torch.zeros(3, 4, 4, device="meta"), "candidate 3 is a meta tensor"),
        (torch.zeros(3, 4, 4).to_sparse(), "candidate 3 is a sparse tensor"),
        (Image.new("RGB", (0, 4)), "candidate 3 has the size (0, 4)"),
        ("", "candidate 3 is an empty text"),
        ("https://example.org/a.png", "candidate 3 is an address"),
        ([], "candidate 3 is empty"),
        ([np.zeros((4, 4, 3)), np.zeros((5, 4, 3))], "candidate 3 has frames of different sizes"),
        ([np.zeros((4, 4, 3)), torch.rand(2, 2)], "frame 1 of candidate 3 has the shape"),
    ],
)
def test_what_is_no_picture_is_refused_by_name(media, said):
    with pytest.raises(InputError) as refused:
        as_pixels(media, "candidate 3")
    assert said in str(refused.value)


def test_a_picture_that_breaks_when_it_is_decoded_is_refused_by_name(tmp_path):
    Image.fromarray(photograph()).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with Image.open(tmp_path / "cut.png") as opened, pytest.raises(InputError, match="candidate 0 cannot be decoded"):
        as_pixels(opened, "candidate 0")


# -- odd but right -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (6, 4), (4, 2), (0, 1)])
def test_a_picture_of_16_bits_a_channel_keeps_its_levels(tmp_path, colour, channels):
    levels = np.linspace(0, 65535, 64).astype(">u2").reshape(8, 8, 1).repeat(channels, axis=2)
    if channels in (2, 4):
        levels[..., -1] = 65535  # opaque
    rows = b"".join(b"\0" + row.tobytes() for row in levels)
    (tmp_path / "a.png").write_bytes(png(8, 8, depth=16, colour=colour, data=rows))
    for channel in read_picture(tmp_path / "a.png")[0]:
        assert (channel.flatten() - torch.linspace(0, 1, 64)).abs().max() < 1.01 / 255


def test_of_a_grey_picture_of_16_bits_the_transparent_level_is_white(tmp_path):
    levels = np.array([0, 30_000, 65_535], dtype=">u2")
    rows = b"".join(b"\0" + levels.tobytes() for _ in range(2))
    content = png(3, 2, depth=16, colour=0, data=rows)
    path = tmp_path / "a.png"
    path.write_bytes(content)
    assert read_picture(path)[0, 0, 0, 0] == 0
    begin = content.index(b"IDAT") - 4
    trns = b"tRNS" + levels[:1].tobytes()
    path.write_bytes(content[:begin] + b"\0\0\0\2" + trns + crc32(trns).to_bytes(4, "big") + content[begin:])
    assert (read_picture(path)[0, 0, 0] - torch.tensor([1.0, 30 / 65.535, 1.0])).abs().max() < 0.6


@pytest.mark.parametrize(("tags", "said"), [({258: 12}, "12 bits a value"), ({262: 0}, "its 0 is white")])
def test_a_tiff_whose_levels_are_not_known_is_refused(tmp_path, tags, said):
    path = tmp_path / "a.tif"
    Image.fromarray(np.full((4, 4), 4095, np.uint16)).save(path, tiffinfo=tags)
    content = bytearray(path.read_bytes())
    for tag, value in tags.items():  # Pillow writes its own
        at = content.index(tag.to_bytes(2, "little") + b"\3\0\1\0\0\0")
        content[at + 8 : at + 10] = value.to_bytes(2, "little")
    path.write_bytes(content)
    with pytest.raises(InputError, match=said):
        read_picture(path)


def test_a_grey_map_of_16_bits_is_not_clipped_to_white(tmp_path):
    levels = np.linspace(0, 65535, 64).astype(">u2")
    (tmp_path / "a.ppm").write_bytes(b"P5 8 8 65535\n" + levels.tobytes())
    assert (read_picture(tmp_path / "a.ppm")[0, 0].flatten() - torch.linspace(0, 1, 64)).abs().max() < 1 / 255


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_pictures_for_print_keep_their_colours_in_every_format(tmp_path, kind):
    Image.new("RGB", (16, 16), (200, 100, 50)).convert("CMYK").save(tmp_path / "a", kind)
    found = read_picture(tmp_path / "a")
    assert (found[0, :, 4, 4] * 255 - torch.tensor([200.0, 100.0, 50.0])).abs().max() <= 3


def test_inspecting_finds_what_a_file_holds_whatever_it_is_called(tmp_path):
    for kind, suffix in {"png": ".png", "jpg": ".jpg", "webp": ".webp", "gif": ".gif", "tiff": ".tiff"}.items():
        (tmp_path / "a.jpg").write_bytes(picture(kind))
        assert inspect_media(tmp_path / "a.jpg") == inspect_media(picture(kind)) == suffix
        assert as_pixels(tmp_path / "a.jpg").shape == (1, 3, 24, 24)
    (tmp_path / "a.jpg").write_bytes(animation("webp"))
    assert inspect_media(tmp_path / "a.jpg") == ".webp" and len(as_pixels(tmp_path / "a.jpg")) == 6
    for codec, container, suffix in (("libx264", "mp4", ".mp4"), ("libvpx", "webm", ".mkv"), ("mpeg4", "avi", ".avi")):
        (tmp_path / "a.jpg").write_bytes(video(codec, container))
        assert inspect_media(tmp_path / "a.jpg") == suffix
    folder = tmp_path / "frames"
    for number in range(3):
        write_picture(torch.rand(1, 3, 8, 8), folder / f"{number}.png")
    assert inspect_media(folder) == ""
    write_picture(torch.rand(1, 3, 9, 8), folder / "3.png")
    with pytest.raises(InputError, match="frames of different sizes"):
        inspect_media(folder)
