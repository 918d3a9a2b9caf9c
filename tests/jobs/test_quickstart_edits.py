"""The whole job on edits, on random checkpoints: the same stages and code as of pictures and videos."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tiny import command, edit_quickstart_recipe
from tiny_runs import Killing, figures, summary_of

from rewarddance.errors import InputError
from rewarddance.jobs import quickstart as job
from rewarddance.jobs import quickstart_figures
from rewarddance.jobs.quickstart import QuickstartRecipe, Run, quickstart, resume_run, start_run, training_prompts
from rewarddance.jobs.quickstart_figures import tables
from rewarddance.report.run_folder import read_summary
from rewarddance.report.run_page import summary_table
from rewarddance.runtime.config import load_recipe
from rewarddance.shapeworld.edits.preferences import EditRecipe
from rewarddance.shapeworld.edits.specs import KINDS
from rewarddance.shapeworld.tasks import task_of
from rewarddance.types import Prompt


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Run:
    """A run in one go."""
    folder = tmp_path_factory.mktemp("runs")
    run = start_run(load_recipe(QuickstartRecipe, edit_quickstart_recipe(folder)), folder / "edit")
    quickstart(run)
    return run


def test_a_run_on_edits_says_following_and_keeping_apart_by_kind(whole):
    summary = read_summary(whole.folder)
    assert summary.task == "edit" and [*summary.parts] == ["following", "keeping"] == [*summary.parts_by_category]
    for part in summary.parts.values():
        for gain in (part.gain_best_of_n, part.gain_refl, part.gain_nft):
            assert gain is not None and gain.low <= gain.mean <= gain.high
    for by_kind in (summary.by_category, *summary.parts_by_category.values()):
        assert set(by_kind) == set(KINDS)
    assert summary.gsb is not None and set(summary.gsb.by_category) == set(KINDS)
    caption = str(summary_table(json.loads(summary.model_dump_json())).caption)
    assert "following: base" in caption and "keeping: base" in caption


def test_alignment_is_told_beside_its_parts_on_the_page_and_in_probes(whole):
    page = (whole.folder / "report.html").read_text()
    assert ">Following</a>" in page and ">Keeping</a>" in page
    assert page.count("<figcaption>Source</figcaption>") == whole.recipe.evaluation.gallery_prompts
    rows = [json.loads(line) for line in (whole.folder / "metrics.jsonl").read_text().splitlines()]
    probes = [row for row in rows if row["kind"] == "probe" and row["phase"] == "refl"]
    assert probes and all(0 <= row["following"] <= 1 and 0 <= row["keeping"] <= 1 for row in probes)


def test_both_edits_of_its_preferences_are_of_one_source(whole):
    rows = [json.loads(line) for line in (whole.folder / "preferences" / "train.jsonl").read_text().splitlines()]
    assert rows and all((whole.folder / "preferences" / row["image"]).is_file() for row in rows)
    config = json.loads((whole.folder / "judge" / "reward" / "reward_config.json").read_text())
    assert config["instruction"] == "edit-brief"
    bank = [json.loads(line) for line in (whole.folder / "references" / "references.jsonl").read_text().splitlines()]
    assert len({row["image"] for row in bank}) == len(training_prompts(whole.recipe, whole.recipe.refl_prompts))


def test_a_run_on_edits_that_was_killed_ends_with_the_same_figures(whole, tmp_path):
    arguments: tuple = ("--recipe", edit_quickstart_recipe(tmp_path), "--name", "killed")
    kills = ((job, "write_preferences", 2), (quickstart_figures, "diversity", 2), (job, "gallery", 1))
    for module, name, at in kills:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, name, Killing(getattr(module, name), at))
            assert command("quickstart", "--output", tmp_path, *arguments).code == 130, name
        arguments = ("--resume",)
    assert command("quickstart", "--output", tmp_path, "--resume").code == 0
    assert figures(tmp_path / "killed") == figures(whole.folder)
    assert quickstart(resume_run(tmp_path / "killed")) == summary_of(tmp_path / "killed")


def test_the_preferences_of_a_task_of_edits_are_of_edits():
    edits = QuickstartRecipe.model_validate({"task": "edit", "preferences": {"drawn": 3}})
    assert edits.preferences == EditRecipe(drawn=3)
    with pytest.raises(ValueError, match="frames"):
        QuickstartRecipe.model_validate({"task": "edit", "preferences": {"frames": 8}})
    with pytest.raises(InputError, match="the task is t2i, and its preferences are of edit"):
        task_of("t2i", EditRecipe())


def test_an_instruction_always_comes_with_the_same_source():
    task = task_of("edit", EditRecipe())
    first, again = (task.prompts("held_out", 6, 3) for _ in range(2))
    assert all(torch.equal(a.image, b.image) for a, b in zip(first, again, strict=True))  # type: ignore[arg-type]
    assert {prompt.metadata["category"] for prompt in first} == set(KINDS)


def test_what_an_arm_gained_in_a_part_is_paired_with_the_same_noises():
    class Score:
        alignment = quality = correct = overall = 0.5

        def __init__(self, following: float) -> None:
            self.following, self.keeping = following, 1 - following

    asked = [Prompt("a", metadata={"category": "add"}), Prompt("b", metadata={"category": "move"})]
    base = [[Score(0.2), Score(0.9)], [Score(0.4), Score(0.0)]]
    aligned, best = [[Score(0.5)], [Score(0.4)]], [[Score(0.9)], [Score(0.4)]]
    found = tables({"sft": base, "best_of_n": best, "refl": aligned}, asked, 1, ("following", "keeping"))  # type: ignore[dict-item]
    parts = found["parts"]
    assert parts["following"]["gain_refl"]["mean"] == pytest.approx(np.mean([0.3, 0.0]))
    assert parts["keeping"]["gain_refl"]["mean"] == pytest.approx(-0.15)
    assert parts["following"]["gain_best_of_n"]["mean"] == pytest.approx(np.mean([0.35, 0.2]))
    assert found["parts_by_category"]["following"]["move"]["sft"]["mean"] == pytest.approx(0.2)
