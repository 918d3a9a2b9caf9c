"""What the page gets of pictures and videos: all that is seen, and nothing that says who made it."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import av
import numpy as np
import pytest
from browsing import browser, complaints, press, wait
from PIL import Image
from test_votes_server import Browser, served
from voters import picture

from rewarddance.annotate.page_media import PageMedia, check_media, page_file
from rewarddance.annotate.recipe import HandingOut
from rewarddance.annotate.store import Pair, Store
from rewarddance.data.media import as_pixels
from rewarddance.errors import InputError


def video(path: Path, codec: str = "libx264", frames: int = 12) -> Path:
    """A grey video that says who made it in its metadata."""
    with av.open(path, "w") as container:
        container.metadata["title"] = "made by secret-model"
        container.metadata["comment"] = "secret settings"
        stream = container.add_stream(codec, rate=12)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for n in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 15 * n, np.uint8), format="rgb24")
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def test_a_video_is_copied_frame_by_frame_without_its_metadata(tmp_path):
    path = video(tmp_path / "a.mp4")
    assert b"secret" in path.read_bytes()
    shown = page_file(path)
    assert shown.kind == "video/mp4" and b"secret" not in shown.data
    assert np.array_equal(as_pixels(shown.data).numpy(), as_pixels(path).numpy())


def test_a_video_that_browsers_do_not_play_is_named_before_anybody_votes(tmp_path):
    with pytest.raises(InputError, match=r"old\.mp4 is coded as mpeg4"):
        check_media(video(tmp_path / "old.mp4", "mpeg4"))


def test_a_folder_of_frames_is_animated_at_its_rate(tmp_path):
    for n in range(5):
        picture(tmp_path / "frames" / f"{n}.png", 30 * n)
    shown = page_file(tmp_path / "frames", fps=4)
    with Image.open(BytesIO(shown.data)) as opened:
        assert shown.kind == "image/png" and opened.n_frames == 5 and opened.info["duration"] == 250


def test_a_picture_is_made_once_and_keeps_every_pixel(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(
        "rewarddance.annotate.page_media.page_file", lambda path, fps: made.append(path) or page_file(path, fps)
    )
    media, path = PageMedia(), picture(tmp_path / "a.png", 77)
    first = media.get("x", path, None)
    assert media.get("x", path, None) is first and len(made) == 1
    assert np.array_equal(np.asarray(Image.open(BytesIO(first.data))), np.asarray(Image.open(path)))


def test_a_player_may_ask_for_a_part_of_a_video(tmp_path):
    store = Store(tmp_path / "votes.sqlite", HandingOut())
    store.add_pairs([Pair("a grey square", video(tmp_path / "a.mp4"), video(tmp_path / "b.mp4", frames=9))])
    with served(store) as (address, _), Browser(address) as client:
        src = client.asks()[0]["left"]["src"]
        whole = client.get(src).content
        part = client.get(src, headers={"range": "bytes=10-19"})
        assert (part.status_code, part.content) == (206, whole[10:20])
        assert part.headers["content-range"] == f"bytes 10-19/{len(whole)}"
        assert client.get(src, headers={"range": f"bytes={len(whole)}-"}).status_code == 416


@pytest.mark.timeout(600)
def test_videos_play_together_and_an_edit_is_shown_with_its_source(tmp_path):
    store = Store(tmp_path / "votes.sqlite", HandingOut())
    source = picture(tmp_path / "source.png", 9)
    store.add_pairs([Pair("let it move", video(tmp_path / "a.mp4"), video(tmp_path / "b.mp4"), source)])
    with served(store) as (address, _), browser() as driver:
        driver.get(address)
        videos = "[...document.querySelectorAll('.frame video')]"
        wait(driver, f"{videos}.length === 2 && {videos}.every((one) => one.readyState >= 2 && !one.paused)")
        wait(driver, "document.querySelector('#source img').naturalWidth === 32")
        press(driver, " ")
        wait(driver, f"{videos}.every((one) => one.paused)")
        assert complaints(driver) == []
