"""Every example runs as it stands, on the bundled checkpoints or on small random ones of the real classes."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import colour_preferences, judge_folder, picture_folder
from tiny_pipelines import pipeline_folder

from rewarddance.data.preferences import write_preferences

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


def pairs(folder: Path) -> list[str]:
    write_preferences(colour_preferences(8), folder / "pairs.jsonl")
    return [str(folder / "pairs.jsonl"), str(folder / "run"), str(judge_folder())]


def sdxl(folder: Path) -> list[str]:
    (folder / "prompts.txt").write_text("a red circle\na blue cross\n")
    keys = ["steps=1", "references.candidates=3"]
    words = [f"output={folder / 'run'}", "dtype=float32", "num_inference_steps=3", "prompts_per_step=1", *keys[:1]]
    words += ["references={candidates: 3}", "generator_options={height: 32, width: 48}", "checkpointing=[]"]
    return [str(judge_folder()), str(folder / "prompts.txt"), str(pipeline_folder("sdxl-euler")), *words]


ARGUMENTS: dict[str, Callable[[Path], list[str]]] = {
    "01_score_a_folder": lambda folder: [str(picture_folder(folder))],
    "02_train_a_judge": pairs,
    "03_judge_in_a_grpo_loop": lambda folder: [],
    "04_refl_on_sdxl": sdxl,
    "05_best_of_n": lambda folder: ["shapeworld-judge", str(folder / "best.png")],
    "06_reward_of_your_own": lambda folder: [str(folder / "run"), "1"],
}
LEAVES = {"02_train_a_judge": "run/reward", "04_refl_on_sdxl": "run/lora", "05_best_of_n": "best.png"}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_and_prints_its_figures(path, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(path), *ARGUMENTS[path.stem](tmp_path)])
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(path), run_name="__main__")
    assert any(character.isdigit() for character in capsys.readouterr().out)
    assert (tmp_path / LEAVES.get(path.stem, ".")).exists()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 40


def test_the_pairs_of_the_example_are_as_its_head_says(tmp_path):
    row = json.loads(Path(pairs(tmp_path)[0]).read_text().splitlines()[0])
    assert {"prompt", "media_a", "media_b", "share"} <= set(row)
