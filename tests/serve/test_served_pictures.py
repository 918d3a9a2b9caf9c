"""The pictures of requests: known again by their content, bounded, and never fetched."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import pictures

from rewarddance.data.media import as_images, write_picture
from rewarddance.data.references import References
from rewarddance.errors import InputError
from rewarddance.serve.pictures import Busy, Memory, PictureStore, RequestPictures, TooLarge


def png(pixels: torch.Tensor) -> bytes:
    file = io.BytesIO()
    as_images(pixels)[0].save(file, "PNG")
    return file.getvalue()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def request(store: PictureStore | None = None, limit: int = 1 << 20, memory: Memory | None = None) -> RequestPictures:
    return RequestPictures(store or PictureStore(1 << 20), memory or Memory(1 << 30), limit)


def test_the_same_bytes_are_the_same_tensor_whoever_sends_them():
    store, (a, b) = PictureStore(1 << 20), pictures(2)
    first = request(store).from_base64(text(png(a)), "a")
    assert torch.equal(first, a)
    assert request(store).from_base64("data:image/png;base64," + text(png(a)), "a") is first
    assert request(store).from_base64(text(png(b)), "b") is not first
    raw = (a * 255).round().byte()
    assert request(store).from_tensor(raw, "a") is request(store).from_tensor(raw.clone(), "a")
    assert request(store).from_tensor(raw.view(1, 3, 16, 64), "a").shape == (1, 3, 16, 64)


def test_what_is_kept_is_bounded_and_what_is_held_stays_itself():
    shown = pictures(20)
    store = PictureStore(5 * shown[0].nbytes)
    held = request(store).from_file(png(shown[0]), "a")
    for pixels in shown:
        request(store).from_file(png(pixels), "a")
    assert store.bytes <= store.limit
    assert request(store).from_file(png(shown[0]), "a") is held
    assert torch.equal(request(PictureStore(0)).from_file(png(shown[1]), "a"), shown[1])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused_before_the_judge_sees_them(value):
    pixels = pictures(1)[0].clone()
    pixels[0, 1, 2, 3] = value
    store = PictureStore(1 << 20)
    with pytest.raises(InputError, match="the candidate has values that are not finite"):
        request(store).from_tensor(pixels, "the candidate")
    assert store.bytes == 0


def test_a_request_with_too_many_pixels_is_refused_before_they_are_decoded():
    large = io.BytesIO()
    Image.new("L", (3000, 3000)).save(large, "PNG")  # a few KB
    with pytest.raises(TooLarge):
        request(limit=1000 * 1000).from_file(large.getvalue(), "a")
    several = request(limit=3 * 32 * 32)
    with pytest.raises(TooLarge):
        for pixels in pictures(4):
            several.from_file(png(pixels), "a")


def test_memory_of_requests_in_flight_is_given_back():
    memory = Memory(30_000)
    with request(memory=memory) as first:
        first.take_bytes(20_000)
        with pytest.raises(Busy), request(memory=memory) as second:
            second.take_bytes(20_000)
    assert memory.held == 0
    with pytest.raises(TooLarge):
        memory.take(40_000)


@pytest.mark.parametrize(
    "given",
    [
        None,
        7,
        "",
        "not base64!",
        text(b"no picture"),
        "data:image/png,abc",
        "http://127.0.0.1/a.png",
        "https://example.org/a.png",
        "file:///etc/passwd",
    ],
)
def test_what_is_no_picture_is_named_and_nothing_is_fetched(given):
    with pytest.raises(InputError, match="the candidate"):
        request().from_base64(given, "the candidate")


def test_references_are_read_by_prompt(tmp_path: Path):
    a, b = pictures(2)
    for name, pixels in (("a", a), ("b", b)):
        write_picture(pixels, tmp_path / "folder" / f"{name}.png")
        (tmp_path / "folder" / f"{name}.txt").write_text(f"prompt {name}\n")
    rows = [{"prompt": "x", "reference": "folder/a.png"}, {"prompt": "y", "reference": "folder/a.png"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "bank").mkdir()
    (tmp_path / "bank" / "references.jsonl").write_text(
        json.dumps({"prompt": "z", "files": ["../folder/b.png", "../folder/a.png"], "seeds": [1, 2], "wins": [1, 0]})
    )
    of_folder, of_rows = References(tmp_path / "folder"), References(tmp_path / "rows.jsonl")
    assert torch.equal(of_folder["prompt b"], b) and of_rows["x"] is of_rows["y"]
    assert torch.equal(References(tmp_path / "bank")["z"], b)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "x"}\n')
    with pytest.raises(InputError, match="line 1"):
        References(tmp_path / "rows.jsonl")
