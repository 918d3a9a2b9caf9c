"""Two processes that hold a judge in pieces align as one process with the whole judge does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from several import in_processes
from tiny import family_folder, generator_folder, judge_folder

from rewarddance.alignment.recipe import AlignRun
from rewarddance.errors import InputError
from rewarddance.jobs.align import run_alignment
from rewarddance.runtime.config import parse_recipe

PROMPTS = ["a red circle", "two crosses", "a star", "a blue square left of a circle", "a cross"]
SMALL = {"prompts_per_step": 2, "group_size": 2, "steps": 2, "learning_rate": 1e-3, "probe_every": 1}
CASES = {
    "refl": {"held_out": "qwen3_vl", "refl": {**SMALL, "jitter_copies": 2, "jitter_noise": 0.05, "judge_batch": 1}},
    "grpo": {"rewards": "qwen3_vl", "grpo": {**SMALL, "judging": "references"}},
    "nft": {"nft": SMALL},
}


def recipe(folder: Path, algorithm: str, **changes: object) -> AlignRun:
    if not (folder / "prompts.txt").exists():
        (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    content: dict[str, object] = {
        "generator": str(generator_folder()),
        "num_inference_steps": 4,
        "algorithm": algorithm,
        "judge": str(judge_folder()),
        "prompts": folder / "prompts.txt",
        "grid_prompts": 0,
        **CASES[algorithm],
        **changes,
    }
    if algorithm != "nft":  # five parts, which two processes cannot share equally
        content["references"] = {"candidates": 3, "batch_size": 3}
    other = str(family_folder("qwen3_vl"))
    content |= {"held_out": other} if "held_out" in content else {}
    several = {
        "follow": {"criteria": "t2i#alignment/count"},
        "clean": {"criteria": "t2i#quality/sharpness"},
        "other": {"judge": other, "weight": 0.5},
    }
    content |= {"rewards": several} if "rewards" in content else {}
    return parse_recipe(AlignRun, content, "the recipe")


def logged(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: figure for name, figure in row.items() if name not in ("phase", "kind")} for row in rows]


@pytest.mark.parametrize("algorithm", CASES)
def test_two_processes_with_half_a_judge_each_align_as_one_does(tmp_path, algorithm):
    def align(output: str, sharded: bool) -> None:
        run_alignment(recipe(tmp_path, algorithm, output=tmp_path / output, judge_sharded=sharded))

    align("one", False)
    in_processes(2, align, "two", True)
    one, two = tmp_path / "one", tmp_path / "two"
    assert logged(one)
    for ours, theirs in zip(logged(two), logged(one), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-4)
    if algorithm != "nft":
        index = "references/references.jsonl"
        assert (two / index).read_text() == (one / index).read_text()
    found, expected = (load_file(next((folder / "lora").glob("*.safetensors"))) for folder in (two, one))
    away = torch.cat([(found[name] - expected[name]).flatten() for name in expected])
    assert away.square().mean().sqrt() < 1e-5


def test_one_process_cannot_hold_a_judge_in_pieces(tmp_path):
    with pytest.raises(InputError, match="a sharded judge needs several processes") as caught:
        run_alignment(recipe(tmp_path, "nft", output=tmp_path / "one", judge_sharded=True))
    assert "torchrun" in caught.value.remedy
    assert not (tmp_path / "one").exists()
