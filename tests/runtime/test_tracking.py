"""metrics.jsonl after a resume is what it would be without the interruption; what is said while work goes on."""

from __future__ import annotations

import json
import re
import time

import pytest

from rewarddance.runtime import tracking
from rewarddance.runtime.tracking import Bar, Metrics, peak_memory_gib, progress_bar, stage_lines


@pytest.fixture
def metrics(tmp_path) -> Metrics:
    return Metrics(tmp_path / "run" / "metrics.jsonl")


def rows(metrics: Metrics) -> list[tuple]:
    return [tuple(json.loads(line).values()) for line in metrics.path.read_text().splitlines()]


def test_each_call_is_one_line_at_once(metrics):
    metrics.log("judge", 1, loss=0.12345678, note="x")
    row = {"phase": "judge", "step": 1, "kind": "step", "loss": 0.123457, "note": "x"}
    assert json.loads(metrics.path.read_text()) == row
    metrics.log("refl", 2, "alarm", stop=3)
    assert rows(metrics) == [("judge", 1, "step", 0.123457, "x"), ("refl", 2, "alarm", 3)]


def test_rewinding_drops_what_one_phase_logged_after_a_step(metrics):
    for step in range(4):
        metrics.log("judge", step)
        metrics.log("refl", step)
    metrics.rewind("refl", 1)
    assert [row[:2] for row in rows(metrics)] == [
        ("judge", 0), ("refl", 0), ("judge", 1), ("refl", 1), ("judge", 2), ("judge", 3)
    ]  # fmt: skip
    metrics.log("refl", 2)
    assert rows(metrics)[-1] == ("refl", 2, "step")


def test_rewinding_drops_a_line_that_a_kill_cut_off(metrics):
    metrics.log("refl", 1)
    with metrics.path.open("a") as file:
        file.write('{"phase": "refl", "st')
    metrics.rewind("refl", 5)
    metrics.log("refl", 2)
    assert rows(metrics) == [("refl", 1, "step"), ("refl", 2, "step")]


def test_rewinding_drops_lines_that_are_no_rows(metrics):
    metrics.log("refl", 1)
    metrics.path.write_bytes(b'[1]\n{"phase": "refl"}\n\xff\xfe\n' + metrics.path.read_bytes())
    metrics.rewind("refl", 5)
    assert rows(metrics) == [("refl", 1, "step")]


def test_rewinding_before_anything_was_logged_does_nothing(metrics):
    metrics.rewind("refl", 0)
    assert not metrics.path.exists()


def test_quick_work_is_one_plain_line_where_there_is_no_terminal(capsys):
    with progress_bar("counting", 10, done=4) as bar:
        bar.advance()
        bar.show(reward=0.5)
    assert capsys.readouterr().err.split("\n") == ["counting (6 to do)", ""]


def test_slow_work_says_what_how_far_how_long_still_and_figures(capsys, monkeypatch):
    monkeypatch.setattr(tracking, "LINE_SECONDS", 0.02)
    with stage_lines("stage 1 of 2: counting sheep", "sheep"):
        time.sleep(0.1)
        with progress_bar("counting", 10, done=4) as bar:
            bar.advance(3)
            bar.show(reward=0.5)
            time.sleep(0.1)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "stage 1 of 2: counting sheep" and re.fullmatch(r"sheep: [\d.]+ s so far", lines[1])
    line = r"counting: 7 of 10, [\d.]+ s so far, about [\d.]+ s left; reward 0\.500"
    assert any(re.fullmatch(line, each) for each in lines)
    assert re.fullmatch(r"sheep: done in [\d.]+ s", lines[-1])


def test_the_time_left_is_from_the_units_that_this_run_did(monkeypatch):
    now = iter((100.0, 130.0, 130.0))
    monkeypatch.setattr(tracking.time, "monotonic", lambda: next(now))
    bar = Bar("counting", 10, done=4)
    bar.advance(2)
    assert bar.line() == "counting: 6 of 10, 30.0 s so far, about 1 min 00 s left"


def test_what_watches_a_run_is_told_of_all_but_training_steps(tmp_path):
    told = []
    metrics = Metrics(tmp_path / "metrics.jsonl", watch=lambda: told.append(metrics.path.read_text().count("\n")))
    metrics.log("refl", 0, "probe", oracle=0.5)
    metrics.log("refl", 1, "step", reward=0.5)
    metrics.log("refl", 1, "evaluation", accuracy=0.5)
    assert told == [1, 3]


def test_peak_memory_is_in_gib():
    block = bytearray(300 * 2**20)
    block[::4096] = b"x" * len(block[::4096])
    assert 0.29 < peak_memory_gib() < 64
