"""The script for a GPU: dry, each of its parts runs; and what happens to one part does not happen to the others."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pretend_device
import pytest

GPU = Path(__file__).parents[1] / "benchmarks" / "gpu"
missing = pretend_device.missing_compilers()


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(GPU))
    return importlib.import_module("all")


@pytest.mark.skipif(bool(missing), reason=f"the pretend device is built by {' and '.join(missing)}, not found here")
@pytest.mark.timeout(620)
def test_every_part_runs_on_the_pretend_device():
    done = subprocess.run([sys.executable, GPU / "dry.py"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]


def test_a_part_that_fails_costs_itself_and_keeps_what_it_found(script, tmp_path, monkeypatch):
    def broken(card, sizes, found):
        found(first=1.0)
        raise RuntimeError("no kernel image")

    def killed(card, sizes, found):
        found(first=2.0)
        os.kill(os.getpid(), signal.SIGKILL)

    def slow(card, sizes, found):
        found(first=3.0)
        time.sleep(60)

    runs = {"broken": broken, "killed": killed, "slow": slow, "good": lambda card, sizes, found: found(first=4.0)}
    parts = {name: script.Part(run, 3.0 if name == "slow" else 60.0) for name, run in runs.items()}
    monkeypatch.setattr(script, "PARTS", parts)
    whole = script.run(tmp_path, "cpu", script.REAL, list(parts))
    assert [part["figures"]["first"] for part in whole["parts"].values()] == [1.0, 2.0, 3.0, 4.0]
    failed = {name: part.get("failed", "") for name, part in whole["parts"].items()}
    assert "no kernel image" in failed["broken"] and "-9" in failed["killed"]
    assert "not done in 3 s" in failed["slow"] and not failed["good"]
    assert json.loads((tmp_path / "gpu.json").read_text()) == whole
    page = (tmp_path / "gpu.md").read_text()
    assert "no kernel image" in page and "not measured" in page
    script.run(tmp_path, "cpu", script.REAL, ["good"])  # those that are there already are kept
    assert list(json.loads((tmp_path / "gpu.json").read_text())["parts"]) == list(parts)


def test_parts_are_not_begun_when_no_time_is_left(script, tmp_path):
    whole = script.run(tmp_path, "cpu", script.REAL, ["product"], longest=0.0)
    assert whole["parts"]["product"]["failed"] == "no time was left"


def test_a_line_of_the_page_says_what_was_measured_beside_what_was_planned(script):
    parts = {
        "scoring": {"figures": {"qwen3_vl_8b_pairs_a_second": 50.0, "qwen3_vl_8b_naive_pairs_a_second": 25.0}},
        "training": {"figures": {"peak_gib": 20.0, "seconds": 2.0}},
        "planned": {"figures": {"training_gib": 22.0, "training_tflop": 400.0}},
    }
    whole = {"date": "today", "torch": "2", "card": {"name": "a card", "peak": 1000.0}}
    page = script.page(whole | {"parts": {name: part | {"seconds": 1.0} for name, part in parts.items()}})
    assert "| 25 to 50 |" in page and "20.0 GiB, planned 22.0 (+10%)" in page and "| 20% |" in page


def test_the_site_lists_every_figure_that_is_to_be_reached(script):
    listed = (GPU.parents[1] / "docs" / "results" / "gpu.md").read_text()
    for claim in script.CLAIMS:
        assert f"| {claim.figure} | {claim.to_reach} |" in listed
    for name, part in script.PARTS.items():
        assert f"| `{name}` |" in listed and part.run.__doc__
