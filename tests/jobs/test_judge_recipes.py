"""The recipes for real judges can be read, and their heads say what they need."""

from __future__ import annotations

import pytest
import yaml
from tiny import colour_preferences, command, judge_folder

from rewarddance.cli.app import recipe_file
from rewarddance.data.preferences import write_preferences
from rewarddance.errors import InputError
from rewarddance.jobs.train import TrainRun
from rewarddance.runtime.config import load_recipe

RECIPES = sorted((recipe_file("quickstart.yaml").parent / "judges").glob("*.yaml"))


def test_there_is_one_for_every_size():
    assert {path.stem for path in RECIPES} == {
        *(f"internvl3-{size}b" for size in (1, 2, 8, 14, 38)),
        *(f"qwen3-vl-{size}b" for size in (2, 4, 8, 32)),
    }


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_readable_and_says_how_to_start_it_and_that_it_was_not_run(path):
    run = load_recipe(TrainRun, path)
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    command = next(line for line in head if line.startswith("# command:"))
    assert command.endswith(f"rewarddance train recipes/judges/{path.name}")
    assert ("torchrun --nproc-per-node" in command) == run.judge.sharded
    assert any(line.startswith("# hardware:") and "GPU" in line for line in head)
    assert any("not run: no such GPU here" in line for line in head)
    assert run.judge.base.lower().removesuffix("-hf").removesuffix("-instruct").endswith(path.stem)
    assert run.judge.keep_best == "accuracy_ood" and "ood" in run.tests
    assert run.judge.dtype == "bfloat16" and run.judge.checkpointing


def test_the_best_can_only_be_chosen_by_a_test_set_that_is_there():
    with pytest.raises(InputError, match=r"keep_best is 'accuracy_odd', and tests give accuracy_id, accuracy_ood"):
        load_recipe(TrainRun, RECIPES[0], ["judge.keep_best=accuracy_odd"])


def test_a_training_does_not_go_on_with_preferences_that_have_changed(tmp_path):
    judge = {"base": str(judge_folder()), "instruction": "t2i-brief", "batch_size": 4, "epochs": 1}
    content = {"preferences": str(tmp_path / "votes.jsonl"), "output": str(tmp_path / "run"), "judge": judge}
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(content))
    write_preferences(colour_preferences(4), tmp_path / "votes.jsonl")
    assert command("train", tmp_path / "train.yaml").code == 0
    assert command("train", tmp_path / "train.yaml").code == 0
    write_preferences(colour_preferences(8), tmp_path / "votes.jsonl")
    refused = command("train", tmp_path / "train.yaml")
    assert refused.code == 2 and "votes.jsonl has changed since the run" in "".join(refused.err.split("\n"))
