"""The whole job on random checkpoints: it leaves what it promises, and a killed run ends with the same figures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny import Done, command, quickstart_recipe
from tiny_runs import Killing, figures, summary_of

from rewarddance.alignment import references
from rewarddance.cli.runs import recipe_of_task
from rewarddance.errors import InputError
from rewarddance.generators.finetuning import LORA_FILE
from rewarddance.jobs import quickstart as job
from rewarddance.jobs import quickstart_figures
from rewarddance.jobs.quickstart import (
    QuickstartRecipe,
    Run,
    check_base,
    quickstart,
    resume_run,
    start_run,
    training_prompts,
)
from rewarddance.report.run_folder import find_grids, read_metrics
from rewarddance.reward.recipe import JudgeRecipe
from rewarddance.runtime.config import load_recipe


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Run:
    """A run in one go."""
    folder = tmp_path_factory.mktemp("runs")
    run = start_run(load_recipe(QuickstartRecipe, quickstart_recipe(folder)), folder / "whole")
    quickstart(run)
    return run


def test_the_summary_holds_every_figure_with_its_interval(whole):
    summary = summary_of(whole.folder)
    for key in ("judge.accuracy_id", "judge.accuracy_ood", "judge.untrained_id", "oracle.sft", "oracle.best_of_n",
                "oracle.refl", "oracle.nft", "diversity.sft", "diversity.nft", "reward.sft", "reward.nft"):  # fmt: skip
        group, name = key.split(".")
        found = summary[group][name]
        assert set(found) == {"mean", "low", "high", "n"}, key
        assert found["low"] <= found["mean"] <= found["high"] and found["n"] >= 6, key
    assert (summary["name"], summary["seed"], summary["n"]) == ("whole", 3, 3)
    assert summary["seconds"] > 0 and 0.1 < summary["peak_memory_gib"] < 64
    assert summary["hacking"].keys() == {"hacked", "sentence", "undecided"}
    assert len(summary["by_category"]) == 6 and summary["aligned"] == "nft"
    assert set(summary["by_layout"]) == {"one object", "several of a kind", "two objects", "relation"}
    for gains in summary["by_layout"].values():
        assert set(gains) == {"best_of_n", "refl", "nft"}


def test_every_arm_is_measured_on_the_same_prompts_and_the_arms_differ(whole):
    oracle = summary_of(whole.folder)["oracle"]
    assert {oracle[arm]["n"] for arm in oracle} == {6}
    assert oracle["gain_best_of_n"]["mean"] == pytest.approx(oracle["best_of_n"]["mean"] - oracle["sft"]["mean"])
    assert summary_of(whole.folder)["diversity"]["sft"] != summary_of(whole.folder)["diversity"]["refl"]
    assert load_recipe(QuickstartRecipe, whole.folder / "config.yaml") == whole.recipe


def test_a_run_leaves_its_config_metrics_checkpoints_samples_and_report(whole):
    names = {str(file.relative_to(whole.folder)) for file in whole.folder.rglob("*") if file.is_file()}
    assert {"config.yaml", "stages.json", "summary.json", "metrics.jsonl", "samples.json", "report.html"} <= names
    assert {f"judge/reward/{name}" for name in ("README.md", "evaluation.json", "training.json")} <= names
    assert {"judge/reward/reward_config.json", "refl/lora/pytorch_lora_weights.safetensors"} <= names
    assert {
        "preferences/train.jsonl",
        "preferences/id.jsonl",
        "preferences/ood.jsonl",
        "references/references.jsonl",
    } <= names
    assert not [name for name in names if name.endswith(".partial")]
    gallery = json.loads((whole.folder / "samples.json").read_text())
    assert len(gallery) == 2 and all(
        (whole.folder / file).is_file() for row in gallery for file in row["pictures"].values()
    )
    rows = [json.loads(line) for line in (whole.folder / "metrics.jsonl").read_text().splitlines()]
    assert {row["phase"] for row in rows} == {"judge", "refl", "nft"}
    assert [row["step"] for row in rows if row["kind"] == "probe"] == [0, 2, 4, 0, 2]
    assert list(find_grids(whole.folder)) == [0, 2, 4, 6]  # DiffusionNFT goes on from ReFL's last step
    assert [row["step"] for row in rows if row["kind"] == "evaluation"] == [2, 4, 6]


def test_a_run_that_trains_all_weights_is_evaluated_with_them(whole, tmp_path):
    folder = tmp_path / "all"
    shutil.copytree(whole.folder, folder, ignore=shutil.ignore_patterns("refl", "nft", "report.html", "summary.json"))
    loop = whole.recipe.refl.model_copy(update={"lora_rank": 0, "lora_alpha": None, "learning_rate": 1e-3})
    run = Run(folder, whole.recipe.model_copy(update={"refl": loop, "nft": None}))
    for stage in ("refl", "nft", "evaluation"):
        del run.stages[stage]
    quickstart(run)
    assert (folder / "refl" / "generator" / "model_index.json").exists() and not (folder / "refl" / "lora").exists()
    base, here = (summary_of(one)["reward"] for one in (whole.folder, folder))
    assert base["sft"] == here["sft"] and base["refl"] != here["refl"] != here["sft"]


def test_the_reference_bank_is_of_distinct_training_prompts(whole):
    prompts = [prompt.text for prompt in training_prompts(whole.recipe, whole.recipe.refl_prompts)]
    rows = [json.loads(line) for line in (whole.folder / "references" / "references.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == prompts and len(set(prompts)) == 4


KILLS = (
    (job, "write_preferences", 2, []),
    (job, "accuracy", 5, ["preferences"]),  # at the judge's second checkpoint
    (references, "write_picture", 3, ["preferences", "judge"]),
    (quickstart_figures, "diversity", 3, ["preferences", "judge", "references"]),  # at ReFL's last probe
    (quickstart_figures, "diversity", 2, ["preferences", "judge", "references", "refl"]),  # at the last of all
    (job, "gallery", 1, ["preferences", "judge", "references", "refl", "nft"]),
    (job, "write_report", 1, ["preferences", "judge", "references", "refl", "nft", "evaluation"]),
)
"""Where the run is killed in turn: module, function, at which call, and the stages that are then done."""


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> tuple[Path, list[tuple[Done, list[str]]], Done]:
    """The same run by command, killed in every stage: its folder, what each kill left, and the last resume."""
    output, left = tmp_path_factory.mktemp("killed"), []
    arguments: tuple[str | Path, ...] = ("--recipe", quickstart_recipe(output), "--name", "killed")
    for module, name, at, _ in KILLS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, name, Killing(getattr(module, name), at))
            done = command("quickstart", "--output", output, *arguments)
        stages = output / "killed" / "stages.json"
        left.append((done, list(json.loads(stages.read_text())) if stages.exists() else []))
        arguments = ("--resume",)
    return output / "killed", left, command("quickstart", "--output", output, "--resume")


def test_each_kill_ends_with_the_way_to_go_on(killed):
    _, left, last = killed
    for (done, stages), (_, name, _, expected) in zip(left, KILLS, strict=True):
        assert (done.code, stages) == (130, expected), name
        assert "interrupted; give --resume" in done.err and "Traceback" not in done.err
    assert last.code == 0


def test_a_run_killed_in_every_stage_ends_with_the_figures_of_one_in_one_go(killed, whole):
    folder, _, _ = killed
    assert figures(folder) == figures(whole.folder)
    assert (folder / "metrics.jsonl").read_text() == (whole.folder / "metrics.jsonl").read_text()
    assert (folder / "samples.json").read_text() == (whole.folder / "samples.json").read_text()
    for step, grid in find_grids(folder).items():
        assert grid.read_bytes() == find_grids(whole.folder)[step].read_bytes()
    for weights in ("judge/reward/model.safetensors", *(f"{name}/lora/{LORA_FILE}" for name in ("refl", "nft"))):
        ours, theirs = load_file(folder / weights), load_file(whole.folder / weights)
        assert ours.keys() == theirs.keys() and all((ours[name] == theirs[name]).all() for name in ours)


def test_a_finished_run_says_its_figures_its_verdict_and_where_the_report_is(killed):
    folder, _, last = killed
    assert "SFT base" in last.err and "Best of 3" in last.err and "ReFL" in last.err
    assert summary_of(folder)["hacking"]["sentence"][:40] in last.err
    assert f"report: {folder / 'report.html'}" in last.err


def test_a_finished_run_that_is_resumed_does_nothing_again(whole):
    stages, summary = (whole.folder / "stages.json").read_text(), summary_of(whole.folder)
    assert quickstart(resume_run(whole.folder)) == summary
    assert (whole.folder / "stages.json").read_text() == stages


def test_the_second_algorithm_goes_on_from_the_first(whole):
    first, second = (load_file(whole.folder / name / "lora" / LORA_FILE) for name in ("refl", "nft"))
    assert first.keys() == second.keys() and any((first[name] != second[name]).any() for name in first)
    step = next(row for row in read_metrics(whole.folder) if row["phase"] == "nft" and row["kind"] == "step")
    assert step["velocity_mse"] > 0  # from the base: a LoRA that begins anew has none


def test_a_lora_of_another_form_is_not_gone_on_from(tmp_path):
    with pytest.raises(InputError, match="goes on from refl's LoRA"):
        load_recipe(QuickstartRecipe, quickstart_recipe(tmp_path), ["nft.lora_rank=4"])


def test_the_full_job_is_the_short_one_with_a_longer_refl():
    short, full = (load_recipe(QuickstartRecipe, recipe_of_task(None, is_full, None)) for is_full in (False, True))
    assert full.refl.steps > short.refl.steps
    changes = {"refl": short.refl, "refl_prompts": short.refl_prompts}
    assert full.model_copy(update=changes) == short


def test_more_aligned_samples_than_the_base_has_are_refused_at_once(tmp_path):
    with pytest.raises(InputError, match=r"aligned_samples \(5\) .* n \(4\)"):
        load_recipe(QuickstartRecipe, quickstart_recipe(tmp_path), ["evaluation.n=4", "evaluation.aligned_samples=5"])


def test_a_run_that_was_refused_leaves_its_name_free(tmp_path):
    asked = ("quickstart", "--recipe", quickstart_recipe(tmp_path), "--output", tmp_path, "--name", "one")
    done = command(*asked, "evaluation.prompts=155")
    assert done.code == 2 and "155 prompts of the split 'held_out'" in done.err
    assert not (tmp_path / "one" / "config.yaml").exists()


def test_another_seed_is_another_run(whole):
    other = whole.recipe.model_copy(update={"seed": 4})
    assert training_prompts(other, other.refl_prompts) != training_prompts(whole.recipe, whole.recipe.refl_prompts)


def test_a_folder_that_holds_a_run_is_not_begun_again(whole):
    with pytest.raises(InputError, match="holds a run already") as caught:
        start_run(whole.recipe, whole.folder)
    assert "--resume" in caught.value.remedy and "--name" in caught.value.remedy


@pytest.mark.parametrize("content", ["", "# nothing\n", "{}", "null"])
def test_a_run_whose_config_was_emptied_is_not_gone_on_with_by_defaults(tmp_path, content):
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(InputError, match=r"config\.yaml is not what a run writes there"):
        resume_run(tmp_path)


@pytest.mark.parametrize(
    "stage", ["3", "{}", '{"result": {}}', '{"result": 1, "seconds": 1, "cpu_seconds": 1}', "null"]
)
def test_a_record_of_stages_that_is_none_is_refused(whole, tmp_path, stage):
    shutil.copy(whole.folder / "config.yaml", tmp_path)
    (tmp_path / "stages.json").write_text(f'{{"judge": {stage}}}')
    with pytest.raises(InputError, match=r"stages\.json is not what a run writes there"):
        resume_run(tmp_path)


def test_a_folder_without_a_run_cannot_be_resumed(tmp_path):
    with pytest.raises(InputError, match="there is no run to resume in"):
        resume_run(tmp_path)


WRONG_BASES = [("edit", "shapeworld-judge"), ("t2v", "shapeworld-judge-small"), ("i2v", "shapeworld-edit-judge")]
WRONG_BASES += [("t2i", "shapeworld-video-judge"), ("t2i", "shapeworld-edit-judge"), ("edit", "shapeworld-video-judge")]


@pytest.mark.parametrize(("task", "base"), WRONG_BASES)
def test_a_bundled_base_of_another_task_is_refused_before_any_work(task, base, tmp_path):
    done = command("quickstart", "--task", task, "--output", tmp_path, f"judge.base={base}")
    assert done.code == 2 and f"the base {base} (judge.base) was not made for the task {task}" in done.err
    assert not list(tmp_path.glob("*/preferences"))


def test_a_base_of_ones_own_is_taken_for_every_task(tmp_path):
    own = tmp_path / "shapeworld-judge"
    own.mkdir()
    for task in ("t2i", "t2v", "i2v", "edit"):
        check_base(task, JudgeRecipe(base=str(own)))
    check_base("t2i", JudgeRecipe(base="shapeworld-judge-small"))
