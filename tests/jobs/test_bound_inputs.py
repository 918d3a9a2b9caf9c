"""A run that goes on reads what it began with: the words of an instruction, and what made its references."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import align_recipe, colour_preferences, command, generator_folder, judge_folder

from rewarddance.alignment.recipe import AlignRun
from rewarddance.data.preferences import write_preferences
from rewarddance.errors import InputError
from rewarddance.jobs.align import Parts, keep_inputs
from rewarddance.reward.identity import reward_digest
from rewarddance.reward.instructions import TEMPLATES
from rewarddance.runtime.config import load_recipe


def refused(done, what: str) -> None:
    said = " ".join(done.err.split())
    assert done.code == 2 and what in said and "Traceback" not in said, done


@pytest.fixture
def instruction(tmp_path) -> Path:
    return Path(shutil.copy(TEMPLATES / "t2i-brief.yaml", tmp_path / "mine.yaml"))


def edit(file: Path) -> None:
    file.write_text(file.read_text().replace("better", "worse"))


def test_a_training_does_not_go_on_in_other_words(tmp_path, instruction):
    judge = {"base": str(judge_folder()), "instruction": str(instruction), "batch_size": 4, "epochs": 1}
    content = {"preferences": str(tmp_path / "votes.jsonl"), "output": str(tmp_path / "run"), "judge": judge}
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(content))
    write_preferences(colour_preferences(4), tmp_path / "votes.jsonl")
    assert command("train", tmp_path / "train.yaml").code == 0
    edit(instruction)
    refused(command("train", tmp_path / "train.yaml"), "mine.yaml or its criteria has changed since the run")


def test_a_search_does_not_go_on_in_other_words(tmp_path, instruction):
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    words = ["search", tmp_path / "prompts.txt", "--generator", generator_folder(), "--judge", judge_folder()]
    words += ["--output", tmp_path / "found", "--budget", "samples=2", "--num-inference-steps", "4", "--device", "cpu"]
    words += ["--instruction", instruction]
    assert command(*words).code == 0
    edit(instruction)
    refused(command(*words), "the same judge")


def test_the_digest_of_a_reward_is_of_its_own_words_too(instruction):
    name = str(judge_folder())
    ours, before = reward_digest(name, instruction="t2i-brief"), reward_digest(name, instruction=str(instruction))
    assert ours == reward_digest(name) != before
    edit(instruction)
    assert reward_digest(name, instruction=str(instruction)) not in (ours, before)


def aligning(tmp_path: Path, **keys: Any) -> Path:
    (tmp_path / "prompts.txt").write_text("a red circle\na blue square\n")
    models = {name: str(tmp_path / name) for name in ("generator", "judge")}
    return align_recipe(tmp_path, **models, device="cpu", **keys)


@pytest.fixture
def models(tmp_path) -> Path:
    shutil.copytree(generator_folder(), tmp_path / "generator")
    shutil.copytree(judge_folder(), tmp_path / "judge")
    return tmp_path


@pytest.mark.parametrize("changed", ["generator", "judge"])
def test_references_are_taken_over_with_what_made_them_alone(models, changed):
    aligning(models)
    assert command("references", models / "align.yaml").code == 0
    (models / changed / "another.txt").write_text("as if it had been trained again")
    refused(command("align", models / "align.yaml"), f"a run whose {changed} has changed since")


def test_a_reward_named_as_another_input_hides_none(models):
    recipe = aligning(models, rewards={"generator": {}, "other": {"judge": str(models / "judge"), "weight": 2}})
    run = load_recipe(AlignRun, recipe)
    path = models / "inputs.json"
    keep_inputs(run, Parts(), path, binding=True, of_references=False)
    (models / "generator" / "another.txt").write_text("other weights")
    with pytest.raises(InputError, match="whose generator has changed since"):
        keep_inputs(run, Parts(), path, binding=True, of_references=False)
