"""Scoring and reference banks by workers of Ray: the rows, order and answers of one process, whatever becomes of one.

Skipped where Ray is not installed; what needs none of it is tested everywhere.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from tiny import align_recipe, command, judge_folder, pictures

from rewarddance.data.faults import FaultyRows
from rewarddance.data.media import write_picture
from rewarddance.errors import InputError
from rewarddance.jobs import score as scoring
from rewarddance.jobs import score_batches
from rewarddance.jobs.fleet import Fleet, Worker
from rewarddance.jobs.recipes import ScoreRun
from rewarddance.jobs.score import run_scoring

with_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
ROWS = 11


class HereFleet(Fleet):
    """Workers without Ray: each item by a worker of its own, all that they hand over pickled."""

    @classmethod
    def join(cls, address: str, workers: int, device: str | None) -> Fleet:
        return cls(workers, device or "cpu")

    def in_order(self, make: Callable[[], Callable[[Any], Any]], items: Any) -> Iterator[Any]:
        workers = [Worker(pickle.loads(pickle.dumps(make))) for _ in range(self.workers)]
        for place, item in enumerate(items):
            batch = {"place": [place], "item": [pickle.dumps(item)]}
            answer = pickle.loads(workers[place % self.workers](batch)["answer"][0])
            if isinstance(answer, Exception):
                raise answer
            yield answer


@pytest.fixture
def media(tmp_path) -> Path:
    """Rows with pictures of different brightness, a blank line, and one row that cannot be scored."""
    for number, pixels in enumerate(pictures(ROWS)):
        write_picture(pixels * (0.3 + 0.06 * number), tmp_path / f"{number}.png")
    rows = [
        {"id": n, "prompt": f"a red circle {n % 2}", "candidate": f"{n}.png", "reference": "0.png"} for n in range(ROWS)
    ]
    rows[4]["candidate"] = "none.png"
    lines = [json.dumps(row) for row in rows]
    (tmp_path / "in.jsonl").write_text("\n".join([*lines[:2], "", *lines[2:]]) + "\n")
    return tmp_path


def run_of(media: Path, output: str = "fleet.jsonl", **changes: Any) -> ScoreRun:
    given = {"input": media / "in.jsonl", "output": media / output, "judge": str(judge_folder()), "device": "cpu"}
    return ScoreRun(**given | {"batch_size": 2, "skip_faulty": True, "ray": "local", "workers": 2} | changes)


def outcome(run: ScoreRun) -> tuple[bytes, bytes]:
    return run.output.read_bytes(), run.output.with_name(f"{run.output.name}.failed.jsonl").read_bytes()


def alone(media: Path, **changes: Any) -> tuple[bytes, bytes]:
    """What one process leaves."""
    run = run_of(media, "alone.jsonl", ray=None, workers=1, **changes)
    run_scoring(run)
    return outcome(run)


def test_a_fleets_rows_are_those_of_one_process_to_the_byte(media, monkeypatch):
    monkeypatch.setattr(scoring, "Fleet", HereFleet)
    run = run_of(media)
    assert run_scoring(run) | {"scores": ""} == {"scores": "", "rows": 11, "scored": 10, "failed": 1} | {
        "failures": str(run.output) + ".failed.jsonl"
    }
    assert outcome(run) == alone(media)
    run = run_of(media, "fleet.parquet")
    run_scoring(run)
    assert [row["id"] for row in pq.read_table(run.output).to_pylist()] == [n for n in range(ROWS) if n != 4]


def test_batches_that_are_closed_early_end_at_the_same_rows(media, monkeypatch):
    monkeypatch.setattr(scoring, "Fleet", HereFleet)
    monkeypatch.setattr(score_batches, "PIXEL_VALUES", 3 * 3 * 32 * 32)  # three pictures, the reference among them
    run = run_of(media, batch_size=4)
    run_scoring(run)
    assert outcome(run) == alone(media, batch_size=4)


@pytest.mark.parametrize("first", ["fleet", "process"])
def test_a_run_goes_on_in_a_fleet_or_without_where_it_was_cut_off(media, monkeypatch, first):
    monkeypatch.setattr(scoring, "Fleet", HereFleet)
    monkeypatch.setattr(score_batches, "PIXEL_VALUES", 3 * 3 * 32 * 32)
    expected, kept = alone(media, batch_size=4), scoring.RowFile.commit
    left = [2]

    def dying(*given: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        kept(*given)

    monkeypatch.setattr(scoring.RowFile, "commit", dying)
    with_it = {"batch_size": 4}
    without = {"batch_size": 4, "ray": None, "workers": 1}
    with pytest.raises(KeyboardInterrupt):
        run_scoring(run_of(media, **with_it if first == "fleet" else without))
    monkeypatch.setattr(scoring.RowFile, "commit", kept)
    run_scoring(run_of(media, **without if first == "fleet" else with_it))
    assert outcome(run_of(media)) == expected


def test_a_fleet_refuses_what_one_process_refuses(media, monkeypatch):
    monkeypatch.setattr(scoring, "Fleet", HereFleet)
    with pytest.raises(FaultyRows, match="line 6 "):
        run_scoring(run_of(media, skip_faulty=False))
    assert not (media / "fleet.jsonl.config.yaml").exists()
    with pytest.raises(InputError, match=r"line 6 .*none\.png"):
        run_scoring(run_of(media, strict=True))
    with pytest.raises(InputError, match="none-such"):
        run_scoring(run_of(media, "other.jsonl", judge="none-such"))
    with pytest.raises(InputError, match="handed to workers"):
        run_scoring(run_of(media), judge=object())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="workers are those of Ray"):
        run_of(media, ray=None)


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_it_is_said_what_to_install(media):
    done = command(
        "score", media / "in.jsonl", "--judge", judge_folder(), "--output", media / "o.jsonl", "--ray", "local"
    )
    assert done.code == 2 and "rewarddance[ray]" in done.err


def test_a_fleets_bank_is_that_of_one_process(tmp_path, monkeypatch):
    monkeypatch.setattr("rewarddance.jobs.fleet.Fleet.join", HereFleet.join)
    (tmp_path / "prompts.txt").write_text("a red circle\na blue cross\na green circle\n")
    made = {}
    for name, options in {"fleet": ("--ray", "local", "--workers", "2"), "alone": ()}.items():
        recipe = align_recipe(tmp_path, output=str(tmp_path / name), references={"candidates": 3, "batch_size": 3})
        done = command("references", recipe, *options)
        assert done.code == 0, done.err
        bank = tmp_path / name / "references"
        made[name] = {file.name: file.read_bytes() for file in sorted(bank.iterdir())}
    assert made["fleet"] == made["alone"] and len(made["fleet"]) > 2


def test_a_fleets_bank_says_which_prompts_were_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr("rewarddance.jobs.fleet.Fleet.join", HereFleet.join)
    (tmp_path / "prompts.txt").write_text("a red circle\nhalf of one\0\n")
    recipe = align_recipe(tmp_path, output=str(tmp_path / "bank"), references={"candidates": 3, "batch_size": 3})
    done = command("references", recipe, "--ray", "local", "--workers", "2", "--skip-faulty")
    assert done.code == 1 and json.loads(done.out)["skipped"] == 1, done.err
    assert "line 2" in (tmp_path / "bank" / "faulty.jsonl").read_text()


def test_a_fleet_looks_at_all_prompts_before_it_makes_any_references(tmp_path, monkeypatch):
    monkeypatch.setattr("rewarddance.jobs.fleet.Fleet.join", HereFleet.join)
    write_picture(pictures(1)[0], tmp_path / "first.png")
    texts = [{"prompt": "a red circle"}, {"prompt": "a blue cross", "image": "first.png"}, {"prompt": "a green circle"}]
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps(text) for text in texts))
    changes = {"prompts": str(tmp_path / "prompts.jsonl"), "output": str(tmp_path / "bank")}
    recipe = align_recipe(tmp_path, **changes, references={"candidates": 3, "batch_size": 3})
    fleet = ("--ray", "local", "--workers", "2")
    done = command("references", recipe, *fleet)
    assert done.code == 2 and "line 2 of" in done.err and "takes no picture" in done.err
    assert not (tmp_path / "bank" / "references").exists()
    done = command("references", recipe, *fleet, "--skip-faulty")
    assert done.code == 1 and json.loads(done.out) | {"prompts": 2, "skipped": 1} == json.loads(done.out), done.err


# -- with Ray itself ---------------------------------------------------------------------------------------------------


class Slow:
    """Answers an item with its square and the process that did it; the first to see item 5 is killed there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, item: int) -> tuple[int, int]:
        time.sleep(0.05)
        try:
            (self.folder / f"{item}").touch(exist_ok=item != 5)
        except FileExistsError:
            return item * item, os.getpid()
        if item == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return item * item, os.getpid()


@with_ray
@pytest.mark.timeout(900)  # Ray starts in minutes on a busy machine
def test_ray_does_again_what_a_killed_worker_had_in_hand(tmp_path):
    import ray.cloudpickle  # type: ignore[import-not-found]

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test
    fleet = Fleet.join("local", 2, "cpu")
    found = list(fleet.in_order(functools.partial(Slow, tmp_path), list(range(12))))
    assert [square for square, _ in found] == [item * item for item in range(12)]
    assert (tmp_path / "5").exists() and len({process for _, process in found}) >= 2


@with_ray
@pytest.mark.timeout(900)  # Ray starts in minutes on a busy machine
def test_rays_scores_are_those_of_one_process(media):
    torch.set_num_threads(1)  # as Ray's workers have
    run = run_of(media)
    run_scoring(run)
    assert outcome(run) == alone(media)
    with pytest.raises(InputError, match="none-such"):
        run_scoring(run_of(media, "other.jsonl", judge="none-such"))
