"""Trackers are accelerate's own: what a run logs is read back from TensorBoard's files."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch
from tensorboardX.proto.event_pb2 import Event

from rewarddance.errors import InputError
from rewarddance.runtime import trackers
from rewarddance.runtime.config import Recipe
from rewarddance.runtime.trackers import check_trackers, reporting
from rewarddance.runtime.tracking import Metrics


class Inner(Recipe):
    rate: float = 0.5
    off: tuple[str, ...] = ("drift",)


class Outer(Recipe):
    seed: int = 3
    device: str | None = None
    inner: Inner = Inner()


def events(folder: Path) -> list[tuple[int, str]]:
    """Step and name of every figure and picture in TensorBoard's files of a run, in the order they were written."""
    found = []
    for file in sorted(folder.glob("trackers/*/events.*"), key=lambda path: path.stat().st_mtime_ns):
        data, at = file.read_bytes(), 0
        while at < len(data):  # each record: its length, a checksum, itself, a checksum
            (length,) = struct.unpack("<Q", data[at : at + 8])
            event = Event.FromString(data[at + 12 : at + 12 + length])
            found += [(event.step, value.tag) for value in event.summary.value]
            at += 16 + length
    return [(step, name) for step, name in found if name.startswith("refl/")]


def test_figures_and_pictures_reach_tensorboard_once_though_resumed(tmp_path):
    for turn in range(2):
        with reporting(["tensorboard"], tmp_path, Outer()) as found:
            metrics = Metrics(tmp_path / "metrics.jsonl", found)
            metrics.rewind("refl", 0)
            for step in range(1, 3 + turn):
                metrics.log("refl", step, margin=0.5, reward=step)
                metrics.show("refl", "samples", torch.rand(2, 3, 8, 8))
                metrics.log("refl", step, "probe", oracle=0.5)
        for file in tmp_path.glob("trackers/*/events.out*"):  # tensorboardX names them by the second
            file.rename(file.with_name(f"events.{turn}"))
    names = "refl/margin", "refl/reward", "refl/samples", "refl/oracle"
    assert events(tmp_path) == [(step, name) for step in (1, 2, 3) for name in names]
    (told,) = tmp_path.glob("trackers/*/*/hparams.yml")
    assert "inner.rate: 0.5" in told.read_text()


def test_no_tracker_leaves_no_trace(tmp_path):
    with reporting([], tmp_path, Outer()) as found:
        assert found == []
    assert list(tmp_path.iterdir()) == []


def test_of_several_processes_only_the_first_reports(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "is_main_process", lambda: False)
    with reporting(["tensorboard"], tmp_path, Outer()) as found:
        assert found == []
    assert list(tmp_path.iterdir()) == []


def test_a_tracker_that_is_unknown_or_missing_is_refused_by_name(monkeypatch):
    check_trackers(["tensorboard"])
    with pytest.raises(InputError, match="no tracker 'tensorbord'") as caught:
        check_trackers(["tensorboard", "tensorbord"])
    assert "tensorboard" in caught.value.remedy
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: [])
    with pytest.raises(InputError, match="'wandb' is not installed") as caught:
        check_trackers(["wandb"])
    assert "pip install wandb" in caught.value.remedy


def test_a_tracker_that_does_not_open_is_named_with_its_reason(tmp_path, monkeypatch):
    def refuse(self):
        raise PermissionError("no right to write")

    monkeypatch.setattr("accelerate.tracking.TensorBoardTracker.start", refuse)
    with (
        pytest.raises(InputError, match="'tensorboard' does not open: no right to write"),
        reporting(["tensorboard"], tmp_path, Outer()),
    ):
        raise AssertionError


def test_a_tracker_that_takes_no_pictures_gets_figures_alone(tmp_path):
    class Plain:
        name = "plain"

        def __init__(self) -> None:
            self.told = []

        def log(self, values, step=None):
            self.told.append((step, values))

    one = Plain()
    metrics = Metrics(tmp_path / "metrics.jsonl", [one])
    metrics.log("nft", 1, margin=0.25)
    metrics.log("nft", 1)
    metrics.show("nft", "samples", torch.rand(1, 3, 8, 8))
    assert one.told == [(1, {"nft/margin": 0.25})]
