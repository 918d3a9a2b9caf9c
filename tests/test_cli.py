"""The command line: what a user does wrong ends in one message that names it and its remedy, with exit code 2."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import DiffusionPipeline
from tiny import (
    align_recipe,
    colour_preferences,
    command,
    generator_folder,
    judge_folder,
    picture_folder,
    pictures,
    quickstart_recipe,
)

from rewarddance.alignment.recipe import AlignRun
from rewarddance.cli.app import app, recipe_file
from rewarddance.data.media import write_picture
from rewarddance.data.preferences import write_preferences
from rewarddance.jobs.quickstart import QuickstartRecipe
from rewarddance.jobs.train import TrainRun
from rewarddance.runtime.config import load_recipe

COMMANDS = sorted(command.name or command.callback.__name__ for command in app.registered_commands if command.callback)
RECIPES = sorted(recipe_file("quickstart.yaml").parent.glob("*.yaml"))
RECIPE_OF = {
    "quickstart": QuickstartRecipe,
    "train": TrainRun,
    "align": AlignRun,
}


def assert_refused(done, what: str, remedy: str) -> None:
    lines = done.err.splitlines()
    at = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    assert done.code == 2, done
    assert len(at) == 1, done.err
    assert what in lines[at[0]], done.err
    assert remedy in " ".join(lines[at[0] :]), done.err
    assert "Traceback" not in done.err + done.out


@pytest.fixture
def training(tmp_path) -> Path:
    """A recipe of `train` that works."""
    write_preferences(colour_preferences(8), tmp_path / "train.jsonl")
    write_preferences(colour_preferences(4, seed=1), tmp_path / "test.jsonl")
    content = {
        "preferences": str(tmp_path / "train.jsonl"),
        "tests": {"held": str(tmp_path / "test.jsonl")},
        "output": str(tmp_path / "out"),
        "judge": {"base": str(judge_folder()), "instruction": "t2i-brief", "batch_size": 4, "save_every": 1},
    }
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "train.yaml"


@pytest.fixture
def aligning(tmp_path) -> Path:
    """A recipe of `align` that works."""
    (tmp_path / "prompts.txt").write_text("a red circle\na blue cross\na red circle\n")
    return align_recipe(tmp_path, {"steps": 2}, output=str(tmp_path / "out"))


@pytest.fixture
def scoring(tmp_path) -> tuple[str | Path, ...]:
    """Arguments of `score` that work but for --output: three pictures and the random judge."""
    write_picture(pictures(1, seed=5)[0], tmp_path / "reference.png")
    folder, reference = picture_folder(tmp_path / "pictures"), tmp_path / "reference.png"
    return ("score", folder, "--judge", judge_folder(), "--reference", reference, "--device", "cpu")


# -- help --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_every_commands_help_shows_an_example(name):
    done = command(name, "--help")
    assert done.code == 0
    assert f"Example: rewarddance {name}" in done.out


def test_the_help_names_every_command():
    done = command("--help")
    assert done.code == 0 and all(name in done.out for name in COMMANDS)
    assert {"quickstart", "train", "align", "score", "distil", "report", "bases"} <= set(COMMANDS)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_that_comes_along_can_be_read_by_the_command_in_its_head(path):
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    words = next(line.split("rewarddance ")[1].split() for line in head if "rewarddance " in line)
    load_recipe(RECIPE_OF[words[0]], path)


def test_recipes_named_in_the_help_are_there():
    for name in COMMANDS:
        for word in command(name, "--help").out.split():
            if word.startswith("recipes/"):
                assert recipe_file(word.removeprefix("recipes/").rstrip(".")).is_file()


# -- what works --------------------------------------------------------------------------------------------------------


def test_train_says_its_figures_and_its_folder_and_goes_on_when_given_again(training, tmp_path):
    first = command("train", training)
    assert first.code == 0, first.err
    result = json.loads(first.out)
    assert result["reward"] == str(tmp_path / "out" / "reward")
    assert result["accuracy_held"].keys() == {"mean", "low", "high", "n"}
    metrics = (tmp_path / "out" / "metrics.jsonl").read_text()
    assert '"accuracy_held"' in metrics
    assert load_recipe(TrainRun, tmp_path / "out" / "config.yaml").judge.save_every == 1
    again = command("train", training)
    assert json.loads(again.out) == result
    assert (tmp_path / "out" / "metrics.jsonl").read_text() == metrics


def test_align_leaves_a_lora_of_the_distinct_prompts(aligning, tmp_path):
    done = command("align", aligning, "refl.steps=1")
    assert done.code == 0, done.err
    assert json.loads(done.out) == {"lora": str(tmp_path / "out" / "lora"), "prompts": 2, "alarms": 0}
    assert (tmp_path / "out" / "lora" / "pytorch_lora_weights.safetensors").is_file()
    assert load_recipe(AlignRun, tmp_path / "out" / "config.yaml").refl.steps == 1


def test_align_trains_a_whole_bf16_generator_that_plain_diffusers_loads(aligning, tmp_path):
    done = command(
        "align", aligning, "refl.lora_rank=0", "refl.lora_alpha=null", "dtype=bfloat16", "judge_dtype=bfloat16"
    )
    assert done.code == 0, done.err
    where = json.loads(done.out)["generator"]
    changed = DiffusionPipeline.from_pretrained(where).transformer.state_dict()
    before = DiffusionPipeline.from_pretrained(generator_folder()).transformer.state_dict()
    assert changed.keys() == before.keys() and any(not torch.equal(changed[name], before[name]) for name in before)
    assert all(weight.isfinite().all() for weight in changed.values())


def test_align_says_which_alarm_ended_it_and_when(aligning):
    alarms = ("refl.alarms.window=4", "refl.alarms.stop_on=[distance]", "refl.alarms.most_distance=1e-12")
    done = command("align", aligning, "refl.steps=8", "refl.learning_rate=0.01", "refl.velocity_mse=1.0", *alarms)
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["stopped_by"] == "distance" and 4 <= told["stopped_at"] < 8


@pytest.mark.parametrize(
    ("override", "what", "remedy"),
    [
        ("judge_device=tpu", "there is no device named 'tpu'", "Say cpu"),
        ("device=cuda:x", "there is no device named 'cuda:x'", "Say cpu"),
        ("dtype=float16", "the key 'dtype'", "bfloat16"),
        ("refl.lora_targets=[nowhere]", "no LoRA can be put on ['nowhere']", "Name layers"),
    ],
)
def test_a_device_a_precision_or_a_place_that_is_not_there(aligning, override, what, remedy):
    assert_refused(command("align", aligning, override), what, remedy)


def test_score_says_where_the_scores_are_and_asks_nothing_twice(scoring, tmp_path):
    output = tmp_path / "new" / "scores.jsonl"
    first = command(*scoring, "--output", output)
    assert first.code == 0, first.err
    assert json.loads(first.out) == {"scores": str(output), "rows": 3, "scored": 3, "failed": 0}
    scores = output.read_text()
    assert [json.loads(line)["candidate"] for line in scores.splitlines()] == ["0.png", "1.png", "2.png"]
    again = command(*scoring, "--output", output)
    assert (again.code, again.out, output.read_text()) == (0, first.out, scores)
    both = command(*scoring, "--output", tmp_path / "both.jsonl", "--orders", "both")
    assert both.code == 0 and (tmp_path / "both.jsonl").read_text() != scores


def test_a_row_that_cannot_be_scored_is_said_aloud_and_in_the_exit_code(scoring, tmp_path):
    (tmp_path / "pictures" / "1.png").write_text("no picture")
    done = command(*scoring, "--output", tmp_path / "scores.jsonl", "--skip-faulty")
    failures = tmp_path / "scores.jsonl.failed.jsonl"
    assert done.code == 1 and f"1 of 3 rows failed; {failures} says why" in done.err
    assert json.loads(done.out) == {
        "scores": str(tmp_path / "scores.jsonl"),
        "rows": 3,
        "scored": 2,
        "failed": 1,
        "failures": str(failures),
    }
    assert json.loads(failures.read_text())["line"] == 2
    done = command(*scoring, "--output", tmp_path / "strict.jsonl", "--skip-faulty", "--strict")
    assert_refused(done, f"{tmp_path / 'pictures' / '1.png'}: the picture", "Replace or remove it.")


def test_another_recipe_is_not_taken_up_in_a_folder_that_holds_a_run(training):
    assert command("train", training).code == 0
    assert_refused(command("train", training, "seed=77"), "seed = ", "Choose another output")


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_a_misspelt_key_of_a_recipe(training):
    training.write_text(training.read_text() + "sede: 3\n")
    assert_refused(command("train", training), f"unknown key 'sede' in {training}", "Did you mean 'seed'?")


@pytest.mark.parametrize(
    ("override", "what", "remedy"),
    [
        ("judge.learning_rat=1", "unknown key 'judge.learning_rat'", "Did you mean 'judge.learning_rate'?"),
        ("judge.batch_size=many", "the key 'judge.batch_size'", "Correct the value."),
        ("faster", "the override 'faster'", "seed=1"),
        ("judge.instruction=t2x", "no instruction named 't2x'", "t2i, t2i-bare, t2i-brief, t2v"),
        ("tests.ood=nowhere.jsonl", "nowhere.jsonl cannot be read", "Give a JSONL or Parquet file of preferences."),
    ],
)
def test_an_override_of_a_training_that_is_not_right(training, override, what, remedy):
    assert_refused(command("train", training, override), what, remedy)


def test_a_misspelt_override_of_the_quickstart():
    assert_refused(command("quickstart", "refl.stepz=3"), "unknown key 'refl.stepz'", "Did you mean 'refl.steps'?")


def test_a_missing_recipe(tmp_path):
    done = command("train", tmp_path / "nowhere.yaml")
    assert_refused(done, f"the recipe {tmp_path / 'nowhere.yaml'} cannot be read", "Give the path of a YAML recipe.")


def test_a_run_that_ended_before_its_first_step_does_not_bind_the_folder(training, tmp_path):
    done = command("train", training, "judge.base=nobody")
    assert_refused(done, "there is no checkpoint at 'nobody'", "save_pretrained")
    assert (tmp_path / "out").is_dir()
    assert_refused(command("train", training, "judge.instruction=t3i"), "t3i", "")
    assert_refused(command("train", training, "seed=-1"), "the key 'seed'", "Correct the value.")
    assert_refused(command("train", training, "seed=99999999999"), "the key 'seed'", "Correct the value.")
    assert command("train", training).code == 0


def test_a_missing_judge_or_generator(training, aligning, tmp_path):
    where = tmp_path / "nowhere"
    for name, recipe, key in (
        ("train", training, "judge.base"),
        ("align", aligning, "judge"),
        ("align", aligning, "generator"),
    ):
        assert_refused(command(name, recipe, f"{key}={where}"), f"no checkpoint at '{where}'", "save_pretrained")
    assert not (tmp_path / "out" / "references").exists()


def test_a_judge_where_a_generator_is_needed(aligning):
    done = command("align", aligning, f"generator={judge_folder()}")
    assert_refused(done, f"the generator '{judge_folder()}' cannot be loaded", "Give a diffusers folder.")


def test_a_broken_line_of_preferences(training, tmp_path):
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write('{"prompt": "half a li')
    done = command("train", training)
    assert_refused(done, f"line 9 of the preferences file {tmp_path / 'train.jsonl'}", "Correct or remove it.")
    assert not (tmp_path / "out" / "reward").exists()


def test_a_test_set_of_ties_alone(training, tmp_path):
    lines = [json.loads(line) | {"share": 0.5} for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert_refused(command("train", training), "none of the 4 pairs has an order", "share is not 0.5")
    assert not (tmp_path / "out").exists()  # before a step was taken


def test_prompts_that_are_not_there_or_hold_a_token_of_the_judge(aligning, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red <img> circle\n")
    assert_refused(command("align", aligning), "contains the token '<img>'", "Remove it from the prompt.")
    (tmp_path / "prompts.txt").write_text("")
    assert_refused(command("align", aligning), "prompts.txt is empty", "Write one prompt a line.")


def test_an_output_folder_that_cannot_be_written(training, aligning, tmp_path):
    (tmp_path / "file").touch()
    below = tmp_path / "file" / "runs"
    said = f"the output folder {below}"
    assert_refused(command("train", training, f"output={below}"), said, "Choose another folder")
    assert_refused(command("align", aligning, f"output={below}"), said, "Choose another folder")
    done = command("quickstart", "--recipe", quickstart_recipe(tmp_path), "--output", below)
    assert_refused(done, said, "Choose another folder")


def test_a_run_that_exists(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.yaml").touch()
    done = command("quickstart", "--output", tmp_path, "--name", "mine")
    assert_refused(done, f"{tmp_path / 'mine'} holds a run already", "--resume")


def test_nothing_to_resume(tmp_path):
    for arguments in (
        ("--output", tmp_path),
        ("--output", tmp_path / "nowhere"),
        ("--output", tmp_path, "--name", "x"),
    ):
        assert_refused(
            command("quickstart", "--resume", *arguments), "there is no run to resume in", "without --resume"
        )


def test_a_resume_with_another_config(tmp_path):
    for arguments in (("seed=3",), ("--seed", "3"), ("--recipe", "x.yaml")):
        done = command("quickstart", "--resume", "--output", tmp_path, *arguments)
        assert_refused(done, "--resume takes no task, recipe, seed, keys or --full", "keeps the config it began with")


def test_a_report_of_no_run(tmp_path):
    assert_refused(command("report", tmp_path), "summary.json is missing", "--resume")


def test_what_score_cannot_do(scoring, tmp_path):
    output = ("--output", tmp_path / "scores.jsonl")
    done = command(*scoring, *output, "--kind", "pairwize")
    assert_refused(done, "the key 'kind'", "Correct the value.")
    assert_refused(command(*scoring, *output, "--kind", "pointwise", "--orders", "both"), "'orders'", "Correct")
    assert_refused(command(*scoring[:4], *output), "a pairwise judge cannot score one picture by itself", "--reference")
    assert_refused(
        command(*scoring, "--output", tmp_path / "scores.csv"), "scores.csv is no table", ".jsonl or .parquet"
    )
    assert command(*scoring, *output, "--batch-size", "0").code == 2
    assert not (tmp_path / "scores.jsonl").exists()
    assert command(*scoring, *output).code == 0
    done = command(*scoring, *output, "--max-frames", "2")
    assert_refused(done, "holds a run with max_frames = 16, not 2", "Choose another output")


def test_an_unknown_option_is_an_error_of_usage():
    done = command("quickstart", "--sede", "3")
    assert done.code == 2 and "No such option" in done.err and "Traceback" not in done.err


def test_the_real_command_ends_the_same_way():
    done = subprocess.run(
        [sys.executable, "-m", "rewarddance", "bases", "nowhere"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and done.stdout == ""
    said = "Say judge, judge-small, judge-sizes, generator, unet, clip, video-judge, video-generator, "
    said += "edit-judge, editor, reward or all."
    assert done.stderr == f"error: there is no base named 'nowhere'.\n       {said}\n"
