"""The whole job on videos, from a text and from a first picture, on random checkpoints: the same stages and code."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tiny import command, video_quickstart_recipe
from tiny_runs import Killing, figures, summary_of

from rewarddance.data.media import read_video
from rewarddance.errors import InputError
from rewarddance.jobs import quickstart as job
from rewarddance.jobs import quickstart_figures
from rewarddance.jobs.quickstart import QuickstartRecipe, Run, quickstart, resume_run, start_run, training_prompts
from rewarddance.jobs.quickstart_figures import good_same_bad
from rewarddance.runtime.config import load_recipe
from rewarddance.shapeworld.motion.preferences import MotionRecipe
from rewarddance.shapeworld.preferences import PreferenceRecipe
from rewarddance.shapeworld.tasks import task_of
from rewarddance.types import Prompt


@pytest.fixture(scope="module", params=["t2v", "i2v"])
def whole(tmp_path_factory, request) -> Run:
    """A run in one go."""
    folder = tmp_path_factory.mktemp("runs")
    run = start_run(
        load_recipe(QuickstartRecipe, video_quickstart_recipe(folder, request.param)), folder / request.param
    )
    quickstart(run)
    return run


def test_a_run_on_videos_says_what_one_on_pictures_says(whole):
    summary = summary_of(whole.folder)
    assert summary["task"] == whole.recipe.task
    assert {"judge", "oracle", "by_category", "quality", "correct", "diversity", "reward", "hacking", "alarms"} <= set(
        summary
    )
    gsb = summary["gsb"]
    pairs = whole.recipe.evaluation.prompts * whole.recipe.evaluation.aligned_samples
    assert gsb["good"] + gsb["same"] + gsb["bad"] == pairs
    assert gsb["gsb"]["mean"] == pytest.approx((gsb["good"] - gsb["bad"]) / pairs)
    assert gsb["gsb"]["low"] <= gsb["gsb"]["mean"] <= gsb["gsb"]["high"]
    assert (
        set(gsb["by_category"])
        == set(summary["by_category"])
        <= set(("direction", "size_change", "presence", "colour_change", "occlusion", "two_motions"))
    )


def test_its_preferences_are_videos_with_their_rate_and_their_first_picture(whole):
    rows = [json.loads(line) for line in (whole.folder / "preferences" / "train.jsonl").read_text().splitlines()]
    assert all(row["fps_a"] == row["fps_b"] == 8 for row in rows)
    assert all(("image" in row) == (whole.recipe.task == "i2v") for row in rows)
    assert len(read_video(whole.folder / "preferences" / rows[0]["media_a"])) == 9
    config = json.loads((whole.folder / "judge" / "reward" / "reward_config.json").read_text())
    assert (config["frames"], config["fps"], config["instruction"]) == (4, 8.0, f"{whole.recipe.task}-brief")


def test_its_samples_are_videos_that_move_on_the_page(whole):
    for row in json.loads((whole.folder / "samples.json").read_text()):
        for file in row["pictures"].values():
            assert len(read_video(whole.folder / file)) == 9
    page = (whole.folder / "report.html").read_text()
    assert "Good, same, bad" in page and "data:image/png;base64" in page


def test_videos_from_a_picture_begin_with_it(whole):
    asked = training_prompts(whole.recipe, whole.recipe.refl_prompts)
    assert all((one.image is not None) == (whole.recipe.task == "i2v") for one in asked)
    if whole.recipe.task == "i2v":
        bank = [
            json.loads(line) for line in (whole.folder / "references" / "references.jsonl").read_text().splitlines()
        ]
        assert len({row["image"] for row in bank}) == len(asked)


@pytest.mark.parametrize("whole", ["i2v"], indirect=True)
def test_a_run_on_videos_that_was_killed_ends_with_the_figures_of_one_in_one_go(whole, tmp_path):
    arguments: tuple = ("--recipe", video_quickstart_recipe(tmp_path, whole.recipe.task), "--name", "killed")
    kills = (
        (job, "write_preferences", 2),
        (job, "accuracy", 4),
        (quickstart_figures, "diversity", 2),
        (job, "gallery", 1),
    )
    for module, name, at in kills:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, name, Killing(getattr(module, name), at))
            assert command("quickstart", "--output", tmp_path, *arguments).code == 130, name
        arguments = ("--resume",)
    assert command("quickstart", "--output", tmp_path, "--resume").code == 0
    assert figures(tmp_path / "killed") == figures(whole.folder)
    assert quickstart(resume_run(tmp_path / "killed")) == summary_of(tmp_path / "killed")


def test_a_recipe_says_its_own_task_and_an_unknown_one_is_refused(tmp_path):
    done = command("quickstart", "--task", "t2v", "--recipe", video_quickstart_recipe(tmp_path, "t2v"))
    assert done.code == 2 and "a recipe says its own task" in done.err
    done = command("quickstart", "--task", "t2v", "--full")
    assert done.code == 2 and "--full is of pictures, and the task is t2v" in done.err
    done = command("quickstart", "--resume", "--full")
    assert done.code == 2 and "--resume takes no" in done.err
    done = command("quickstart", "--task", "t2x")
    assert done.code == 2 and "Say t2i, t2v, i2v" in done.err


def test_the_preferences_of_a_recipe_are_those_of_its_task():
    assert QuickstartRecipe().preferences == PreferenceRecipe()
    videos = QuickstartRecipe.model_validate({"task": "i2v", "preferences": {"frames": 8}})
    assert videos.preferences == MotionRecipe(task="i2v", frames=8)
    with pytest.raises(ValueError, match="frames"):
        QuickstartRecipe.model_validate({"preferences": {"frames": 8}})
    with pytest.raises(InputError, match="the task is t2v, and its preferences are of i2v"):
        task_of("t2v", MotionRecipe(task="i2v"))


def test_good_same_and_bad_are_counted_by_the_oracles_overall_score():
    class Score:
        alignment = quality = correct = 0.0

        def __init__(self, overall: float) -> None:
            self.overall = overall

    asked = [Prompt("a", metadata={"category": "direction"}), Prompt("b", metadata={"category": "presence"})]
    better, base = (
        [[Score(0.9), Score(0.5)], [Score(0.2), Score(0.52)]],
        [[Score(0.4), Score(0.5)], [Score(0.9), Score(0.5)]],
    )
    found = good_same_bad(better, base, asked, same=0.05)  # type: ignore[arg-type]
    assert (found["good"], found["same"], found["bad"]) == (1, 2, 1) and found["gsb"]["mean"] == 0
    assert found["by_category"]["direction"]["gsb"]["mean"] == 0.5
    assert found["by_category"]["presence"]["bad"] == 1


def test_the_same_prompt_always_comes_with_the_same_picture():
    task = task_of("i2v", MotionRecipe(task="i2v"))
    first, again = (task.prompts("held_out", 6, 3) for _ in range(2))
    assert all(torch.equal(a.image, b.image) for a, b in zip(first, again, strict=True))  # type: ignore[arg-type]
    assert len({np.asarray(one.image).tobytes() for one in first}) == 6
