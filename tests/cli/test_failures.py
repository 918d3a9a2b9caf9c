"""Every failure has one face: one message that names the item and the remedy, and a documented exit code."""

from __future__ import annotations

import errno
import json
import math
import runpy

import pytest
import torch
import typer
import yaml
from tiny import colour_preferences, command, generator_folder, judge_folder

from rewarddance.data.preferences import write_preferences
from rewarddance.errors import as_ours
from rewarddance.runtime.checkpoint import newest_complete
from rewarddance.runtime.sharding import all_finite

RAISED = {
    "a full disk": (OSError(errno.ENOSPC, "No space left on device", "runs/a"), "runs/a: the disk is full"),
    "a full disk, by safetensors": (RuntimeError("I/O error: No space left (os error 28)"), "the disk is full"),
    "a lost mount": (OSError(errno.ESTALE, "Stale file handle", "runs/b"), "runs/b: the disk was taken away"),
    "a file that can only be read": (PermissionError(errno.EACCES, "Permission denied", "c"), "c: it is not permitted"),
    "no memory": (MemoryError(), "memory"),
    "no memory of a GPU": (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "memory"),
    "links in a circle": (RuntimeError("Symlink loop from 'runs/d'"), "'runs/d': its links lead in a circle"),
    "an assertion": (AssertionError(), "AssertionError"),
    "no end of calls": (RecursionError("maximum recursion depth exceeded"), "maximum recursion depth"),
    "a library's own": (json.JSONDecodeError("Expecting value", "", 0), "JSONDecodeError"),
    "a message with colours": (ValueError("\x1b[31mred\x1b[0m\x07"), "\\x1b[31mred"),
}


@pytest.mark.parametrize("kind", RAISED)
def test_whatever_a_library_raises_is_one_message_and_exit_code_2(kind):
    error, named = RAISED[kind]
    commands = typer.Typer()

    @commands.command()
    def fail() -> None:
        raise error

    done = command(commands=commands)
    assert done.code == 2 and done.err.startswith("error: ") and named in done.err
    assert "Traceback" not in done.err and "\x1b[31mred" not in done.err and len(done.err.splitlines()) >= 2
    shown = command("--debug", commands=commands)
    assert shown.code == 2 and "Traceback" in shown.err and named in shown.err


@pytest.mark.parametrize("code", [None, 0, 1, 7, "done"])
def test_a_function_that_ends_the_process_is_a_failure_and_named(tmp_path, code):
    (tmp_path / "leaves.py").write_text(f"import sys\n\n\ndef leave():\n    sys.exit({code!r})\n")
    commands = typer.Typer()

    @commands.command()
    def work() -> None:
        runpy.run_path(str(tmp_path / "leaves.py"))["leave"]()

    done = command(commands=commands)
    assert done.code == 2 and "leaves.py, line 5" in done.err and f"sys.exit({code!r})" in done.err


def test_every_error_becomes_ours_with_a_remedy():
    for error, _ in RAISED.values():
        assert as_ours(error).what and as_ours(error).remedy


def test_the_help_says_the_exit_codes():
    said = " ".join(command("--help").out.split())
    assert all(code in said for code in ("0, all was done", "1, it went through, and some rows failed", "2, an error"))


def test_a_check_of_nothing_is_no_success(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n\n")
    done = command("data", "check", tmp_path / "empty.jsonl")
    assert done.code == 2 and "empty.jsonl is empty" in done.err


def test_where_all_rows_fail_nothing_was_done(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "candidate": "gone.png"}\n' * 2)
    options = ["--judge", judge_folder(), "--kind", "pointwise", "--output", tmp_path / "out.jsonl"]
    done = command("score", tmp_path / "rows.jsonl", *options)
    assert done.code == 2 and done.err.count("gone.png") >= 2 and not (tmp_path / "out.jsonl").exists()


@pytest.fixture
def recipe(tmp_path) -> dict:
    write_preferences(colour_preferences(12), tmp_path / "train.jsonl")
    judge = {"base": str(judge_folder()), "instruction": "t2i-brief", "batch_size": 4, "save_every": 1, "epochs": 2}
    return {"preferences": str(tmp_path / "train.jsonl"), "output": str(tmp_path / "run"), "judge": judge}


def test_weights_that_one_step_made_infinite_stop_the_training_of_a_judge(tmp_path, recipe):
    recipe["judge"] |= {"learning_rate": 1e38, "warmup": 0.34, "max_grad_norm": 1e30}
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(recipe))
    done = command("train", tmp_path / "train.yaml")
    assert done.code == 2 and "not finite" in done.err and "step " in done.err
    assert not (tmp_path / "run" / "reward").exists()
    kept = newest_complete(tmp_path / "run")
    assert kept is not None
    from safetensors.torch import load_file

    assert all(weight.isfinite().all() for weight in load_file(kept / "model.safetensors").values())


def test_weights_that_one_step_made_infinite_stop_an_alignment(tmp_path):
    (tmp_path / "prompts.txt").write_text("a red circle\na blue square\n")
    content = {
        "generator": str(generator_folder()),
        "num_inference_steps": 2,
        "judge": str(judge_folder()),
        "judge_options": {"kind": "pointwise", "instruction": "t2i-brief"},
        "prompts": str(tmp_path / "prompts.txt"),
        "output": str(tmp_path / "run"),
        "algorithm": "nft",
        "nft": {"steps": 3, "prompts_per_step": 1, "group_size": 2, "probe_every": 3, "probe_prompts": 1, "levels": 1}
        | {"learning_rate": 1e38, "warmup": 0.0, "lora_rank": 0},
    }
    (tmp_path / "align.yaml").write_text(yaml.safe_dump(content))
    done = command("align", tmp_path / "align.yaml")
    assert done.code == 2 and "step" in done.err and "finite" in done.err, done.err
    assert not (tmp_path / "run" / "generator").exists()


def test_a_weight_that_is_not_finite_is_seen():
    weights = [torch.ones(3), torch.ones(2, 2)]
    assert all_finite(weights)
    for value in (math.nan, math.inf):
        weights[1][0, 1] = value
        assert not all_finite(weights)
