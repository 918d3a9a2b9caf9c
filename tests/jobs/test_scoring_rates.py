"""`score` with a judge that knows a rate: a video of another one is a failure by name, and no low score."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from tiny import command, judge_folder

from rewarddance.reward.loading import load_reward


def video(path: Path, rate: int, frames: int = 9) -> Path:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(rate))
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for i in range(frames):
            shown = np.random.default_rng(i).integers(0, 255, (32, 32, 3)).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(shown, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_videos_of_another_rate_or_too_few_frames_fail_by_name(tmp_path):
    load_reward(str(judge_folder()), instruction="t2v-brief", frames=4, fps=8.0).save(tmp_path / "reward")
    video(tmp_path / "right.mp4", 8)
    video(tmp_path / "fast.mp4", 24)
    video(tmp_path / "short.mp4", 8, frames=3)
    rows = [{"prompt": "a circle", "candidate": f"{name}.mp4", "reference": "right.mp4"} for name in
            ("right", "fast", "short")]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = command("score", tmp_path / "rows.jsonl", "--judge", tmp_path / "reward", "--output", tmp_path / "out.jsonl")
    assert done.code == 1, done.err  # some rows failed
    found = json.loads(done.out)
    assert (found["scored"], found["failed"]) == (1, 2)
    reasons = [json.loads(line)["reason"] for line in Path(found["failures"]).read_text().splitlines()]
    assert "has 24 frames a second, and this judge knows videos of 8" in reasons[0]
    assert "has 3 frames, and this judge reads 4 of a video" in reasons[1]
