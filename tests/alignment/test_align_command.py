"""`rewarddance align` with each algorithm, from a recipe file."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny import colour_preferences, command, generator_folder, judge_folder

from rewarddance.alignment.judges import load_judges
from rewarddance.alignment.recipe import AlignRun
from rewarddance.data.media import read_picture
from rewarddance.data.picture_grid import LABEL
from rewarddance.data.preferences import write_preferences
from rewarddance.report.run_folder import find_grids
from rewarddance.reward.loading import load_reward
from rewarddance.runtime.config import load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
SMALL = {"steps": 2, "prompts_per_step": 1, "lora_rank": 2, "lora_alpha": 2}


@pytest.fixture
def recipe(tmp_path):
    """Writes a recipe with changes, and says where."""
    (tmp_path / "prompts.txt").write_text("a red circle\na blue cross\n")

    def written(**changes):
        content = {
            "generator": str(generator_folder()),
            "num_inference_steps": 4,
            "judge": str(judge_folder()),
            "prompts": str(tmp_path / "prompts.txt"),
            "output": str(tmp_path / "run"),
        }
        algorithm = changes.get("algorithm", "refl")
        if algorithm == "refl" or changes.get(algorithm, {}).get("judging") == "references":
            content["references"] = {"candidates": 3}
        (tmp_path / "align.yaml").write_text(yaml.safe_dump(content | changes))
        return tmp_path / "align.yaml"

    return written


@pytest.mark.parametrize("algorithm", ["refl", "grpo", "nft", "awm", "dgpo", "crd", "online_dpo"])
def test_each_algorithm_runs_from_its_recipe_and_is_gone_on_with(tmp_path, recipe, algorithm):
    file = recipe(algorithm=algorithm, report_to=["tensorboard"], **{algorithm: {**SMALL, "group_size": 2}})
    done = command("align", file)
    assert done.code == 0, done.err
    lora = tmp_path / "run" / "lora" / "pytorch_lora_weights.safetensors"
    before = load_file(lora)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {row["phase"] for row in rows} == {algorithm} and rows[-2]["margin"] is not None
    assert (tmp_path / "run" / "references").exists() == (algorithm == "refl")
    assert (rows[0].get("preferred_to_base") == 0.5) == (algorithm != "refl")
    grids = find_grids(tmp_path / "run")
    assert list(grids) == [0, 2] and read_picture(grids[0]).shape == (1, 3, 2 * 100 + 4, LABEL + 2 * 100)
    assert list((tmp_path / "run" / "trackers").glob("run/events.*"))
    assert command("align", file).code == 0
    again = load_file(lora)
    assert before.keys() == again.keys() and all(torch.equal(before[name], again[name]) for name in again)


def test_a_policy_gradient_may_judge_against_references_and_ask_several_judges(tmp_path, recipe):
    grpo = {**SMALL, "group_size": 2, "judging": "references"}
    pointwise = {"judge": str(judge_folder()), "options": {"kind": "pointwise"}, "weight": 0.5}
    file = recipe(algorithm="grpo", grpo=grpo, rewards={"first": {}, "second": pointwise})
    done = command("align", file)
    assert done.code == 0, done.err
    assert (tmp_path / "run" / "references" / "references.jsonl").exists()
    assert "margin/second" in (tmp_path / "run" / "metrics.jsonl").read_text()


CRITERIA = {"follow": {"criteria": "t2i#alignment"}, "clean": {"criteria": "t2i#quality/sharpness", "weight": 2}}


@pytest.mark.parametrize("algorithm", ["refl", "grpo", "nft"])
def test_criteria_of_one_judge_are_rewards_of_their_own(tmp_path, recipe, algorithm):
    file = recipe(algorithm=algorithm, rewards=CRITERIA, **{algorithm: {**SMALL, "group_size": 2}})
    done = command("align", file)
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    row = [row for row in rows if row["kind"] == "step"][-1]
    assert row["margin"] == pytest.approx((row["margin/follow"] + 2 * row["margin/clean"]) / 3, abs=1e-4)
    assert row["spread_within/follow"] >= 0 and -1 <= row["rewards_cosine"] <= 1
    page = (tmp_path / "run" / "report.html").read_text()
    assert "2 rewards prefer (clean, weight 2.0" in page and "<code>t2i#quality/sharpness</code>" in page
    assert '<th scope="row">clean</th>' in page
    assert command("align", file).code == 0  # it is over, and nothing is done again
    other = {**CRITERIA, "clean": {"criteria": "t2i#quality"}}
    again = command("align", recipe(algorithm=algorithm, rewards=other, **{algorithm: {**SMALL, "group_size": 2}}))
    assert again.code == 2 and "rewards.clean.criteria = 't2i#quality/sharpness'" in " ".join(again.err.split())


def test_a_judge_is_loaded_once_for_all_rewards_that_ask_it(tmp_path, recipe):
    run = load_recipe(AlignRun, recipe(rewards={**CRITERIA, "own": {"judge": str(judge_folder())}}), [])
    loaded = []

    def load(name, **options):
        loaded.append((name, options))
        return load_reward(name, **options)

    judges = load_judges(run, load, load)
    assert len(loaded) == 2 and judges["follow"][0].judge is judges["clean"][0].judge
    assert judges["clean"][0].leaves == ["quality/sharpness"] and judges["own"][1] == 1.0


def test_references_of_several_rewards_are_made_beforehand_by_all_of_them(tmp_path, recipe):
    file = recipe(rewards=CRITERIA, refl=SMALL)
    done = command("references", file)
    assert done.code == 0, done.err
    before = (tmp_path / "run" / "references" / "references.jsonl").read_text()
    assert command("align", file).code == 0
    assert (tmp_path / "run" / "references" / "references.jsonl").read_text() == before


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"algorithm": "ppo"}, "algorithm"),
        ({"report_to": ["tensorbord"]}, "there is no tracker 'tensorbord'. Known are aim"),
        ({"grpo": {"steps": 3}}, "algorithm is refl, so grpo says nothing"),
        ({"algorithm": "nft", "refl": {"steps": 3}}, "algorithm is nft, so refl says nothing"),
        ({"rewards": {"a": {"weight": 0}, "b": {"weight": 0}}}, "all rewards have the weight 0"),
        ({"rewards": {"a": {"weight": -1}}}, "rewards.a.weight"),
        ({"rewards": {"a/b": {}}}, "a reward is named 'a/b'"),
        ({"rewards": {"v1.5": {}}}, "a reward is named 'v1.5'"),
        ({"generator_options": {"num_inference_steps": 3}}, "num_inference_steps has a key of its own"),
        ({"held_out_options": {"kind": "clip"}}, "held_out_options are of a held-out judge"),
        ({"refl": {"jitter_shift": 100}}, "refl.jitter_shift is 100, and the pictures have a side of 32 pixels"),
        ({"judge": "", "rewards": {"a": {}}}, "the reward a has no judge"),
        ({"rewards": {"a": {"judge": "x"}}}, "every reward names a judge of its own"),
        ({"rewards": {"a": {"options": {"kind": "pointwise"}}}}, "options are of a judge of its own"),
        ({"rewards": {"a": {"criteria": "t2i#beauty"}}}, "the reward a: the tree of criteria 't2i' has no criterion"),
        ({"rewards": {"a": {"criteria": "t9"}}}, "the reward a: there is no tree of criteria named 't9'"),
        ({"rewards": {"a": {"judge": "nobody/here"}, "b": {}}}, "the reward a: "),
        ({"judge_options": {"criteria": "t2i"}, "rewards": {"a": {"criteria": "t2i"}}}, "has no criteria yet"),
        ({"algorithm": "grpo", "grpo": {"judging": "alone"}}, "cannot score one sample by itself"),
        ({"algorithm": "grpo", "grpo": {"window": 4}}, "window is 4"),
        ({"algorithm": "grpo", "grpo": {"group_size": 1}}, "group_size"),
    ],
)
def test_what_cannot_be_is_refused_by_its_key(recipe, changes, told):
    done = command("align", recipe(**changes))
    assert done.code == 2 and told in " ".join(done.err.split())


def test_a_policy_gradient_is_planned(recipe):
    done = command("plan", recipe(algorithm="grpo"))
    assert done.code == 0 and "memory of each GPU" in done.out


@pytest.mark.parametrize("name", ["grpo", "nft"])
def test_the_recipes_of_the_policy_gradients_are_ones(name):
    run = load_recipe(AlignRun, RECIPES / f"shapeworld_{name}.yaml", [])
    assert run.algorithm == name and run.chosen.steps == 24
    prompts = (RECIPES.parent / run.prompts).read_text().split("\n")[:-1]
    assert len(set(prompts)) == len(prompts) > 200


def test_a_run_does_not_go_on_with_other_prompts(tmp_path, recipe):
    file = recipe(refl=SMALL, references={"candidates": 2})
    assert command("align", file).code == 0
    for changed, told in (("a red circle\na blue square\n", "'a blue cross'"), ("a red circle\n", "'a blue cross'")):
        (tmp_path / "prompts.txt").write_text(changed)
        done = command("align", file)
        assert done.code == 2 and f"whose prompt 2 was {told}" in " ".join(done.err.split())
    (tmp_path / "prompts.txt").write_text("a red circle\na blue cross\na green cross\n")
    assert "whose prompt 3 was none" in " ".join(command("align", file).err.split())


def test_a_folder_is_not_claimed_by_a_recipe_that_cannot_run(tmp_path, recipe):
    nowhere = {"refl": {"lora_targets": ["nowhere"]}}
    for changes in ({"algorithm": "grpo", "grpo": {"window": 4}}, {"held_out": str(tmp_path / "nobody")}, nowhere):
        assert command("align", recipe(**changes)).code == 2
        assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_lora_that_does_not_fit_is_refused_before_references_are_made(tmp_path, recipe):
    own = {**SMALL, "steps": 1, "group_size": 2, "probe_prompts": 0}
    judged = {"judge_options": {"kind": "pointwise"}, "grid_prompts": 0}
    assert command("align", recipe(algorithm="nft", nft=own, **judged)).code == 0
    lora = (tmp_path / "run").rename(tmp_path / "first") / "lora"
    refused = command("align", recipe(refl={**SMALL, "lora_alpha": 8}, begin_with=str(lora)))
    assert refused.code == 2 and "has the alpha 2, not 8" in " ".join(refused.err.split())
    assert not (tmp_path / "run").exists()


def test_a_file_in_the_place_of_the_lora_is_refused_before_training(tmp_path, recipe):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lora").write_text("mine")
    refused = command("align", recipe(algorithm="grpo", judge_options={"kind": "pointwise"}))
    assert refused.code == 2 and "run/lora is a file" in "".join(refused.err.split("\n"))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["lora"]


QUICK = {**SMALL, "steps": 1, "group_size": 2, "probe_prompts": 0}


def test_a_run_does_not_go_on_with_other_metadata_pictures_or_votes(tmp_path, recipe):
    prompts = tmp_path / "prompts.jsonl"
    changes = {"algorithm": "nft", "nft": QUICK, "prompts": str(prompts), "grid_prompts": 0}

    def written(level: float) -> None:
        rows = [{"prompt": "a red circle", "level": level}, {"prompt": "a red circle", "level": 2.0}]
        prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))

    written(1.0)
    done = command("align", recipe(**changes))
    assert done.code == 0, done.err
    assert len((tmp_path / "run" / "prompts.jsonl").read_text().splitlines()) == 2, "metadata makes them two"
    written(-1.0)
    done = command("align", recipe(**changes))
    assert done.code == 2 and "its metadata is another" in " ".join(done.err.split())

    votes = tmp_path / "votes.jsonl"
    write_preferences(colour_preferences(4), votes)
    dpo = {
        "algorithm": "dpo",
        "dpo": {**SMALL, "preferences": str(votes)},
        "judge": "",
        "output": str(tmp_path / "dpo"),
    }
    assert command("align", recipe(**dpo, grid_prompts=0)).code == 0
    rows = [json.loads(line) for line in votes.read_text().splitlines()]
    votes.write_text("".join(json.dumps(row | {"share": 0.4}) + "\n" for row in rows))
    done = command("align", recipe(**dpo, grid_prompts=0))
    assert done.code == 2 and "whose preferences has changed" in " ".join(done.err.split())


def test_the_judge_of_a_run_is_the_one_it_began_with(tmp_path, recipe):
    own = tmp_path / "judge"
    shutil.copytree(judge_folder(), own)
    changes = {"algorithm": "nft", "nft": QUICK, "judge": str(own), "grid_prompts": 0}
    assert command("align", recipe(**changes)).code == 0
    os.utime(own / "config.json", (0, 0))
    done = command("align", recipe(**changes))
    assert done.code == 2 and "whose judge has changed" in " ".join(done.err.split())


def test_a_function_is_the_one_that_a_run_began_with(tmp_path, recipe):
    own, changes = tmp_path / "own.py", {"algorithm": "nft", "nft": QUICK, "grid_prompts": 0}
    for sign in ("", "-"):
        own.write_text(f"def make():\n    return lambda images, texts, rows: {sign}images.mean((1, 2, 3))\n")
        done = command("align", recipe(judge=f"{own}:make", **changes))
    assert done.code == 2 and "whose judge has changed" in " ".join(done.err.split())


def test_a_run_does_not_write_over_its_own_prompts_or_where_no_folder_can_be(tmp_path, recipe):
    (tmp_path / "run").mkdir()
    mine = tmp_path / "run" / "prompts.jsonl"
    mine.write_text(json.dumps({"prompt": "a red circle", "tag": "mine"}) + "\n")
    done = command("align", recipe(prompts=str(mine)))
    assert done.code == 2 and "where the run keeps its own list" in " ".join(done.err.split())
    assert json.loads(mine.read_text())["tag"] == "mine"
    done = command("align", recipe(output="/dev/null"))
    assert done.code == 2 and "the output folder /dev/null cannot be written" in " ".join(done.err.split())


def test_memory_may_be_saved_within_a_run_and_a_folder_without_a_step_binds_nobody(tmp_path, recipe):
    started = {"algorithm": "nft", "grid_prompts": 0}
    assert command("align", recipe(nft=QUICK, **started)).code == 0
    done = command("align", recipe(nft={**QUICK, "generator_batch": 1}, **started))
    assert done.code == 0, done.err
    refused = command("align", recipe(nft={**QUICK, "learning_rate": 0.5}, **started))
    assert refused.code == 2 and "learning_rate" in refused.err
    for path in [tmp_path / "run" / "metrics.jsonl", *(tmp_path / "run").glob("checkpoint-*")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert command("align", recipe(nft={**QUICK, "learning_rate": 0.5}, **started)).code == 0


def test_a_reward_without_a_gradient_is_refused_before_references_are_made(tmp_path, recipe, monkeypatch):
    (tmp_path / "own_reward.py").write_text(
        "def make():\n    return lambda images, prompts, metadata: [0.5] * len(images)\n"
    )
    done = command("align", recipe(judge=f"{tmp_path}/own_reward.py:make", refl=SMALL))
    assert done.code == 2 and "gradient" in done.err and not (tmp_path / "run").exists()
    (tmp_path / "own_reward.py").write_text(
        "def make():\n    return lambda images, texts, rows: images.mean((1, 2, 3))\n"
    )
    done = command("align", recipe(judge=f"{tmp_path}/own_reward.py:make", refl={**SMALL, "checkpointing": ["judge"]}))
    assert done.code == 2 and "has no layers that can be computed again" in " ".join(done.err.split())
    done = command("align", recipe(refl={**SMALL, "frames": 2}))
    assert done.code == 2 and "refl.frames is 2, and the videos have 1 frames" in " ".join(done.err.split())
    assert not (tmp_path / "run").exists()


def test_a_reference_that_is_damaged_is_named_with_the_line_that_makes_it_anew(tmp_path, recipe):
    file = recipe(refl=SMALL, references={"candidates": 2}, grid_prompts=0)
    assert command("align", file).code == 0
    lost = next((tmp_path / "run" / "references").glob("*.png"))
    lost.unlink()
    done = command("align", file)
    told = " ".join(done.err.split())
    assert done.code == 2 and f"Remove the line with {lost.name}" in told
    index = tmp_path / "run" / "references" / "references.jsonl"
    index.write_text("".join(line + "\n" for line in index.read_text().splitlines() if lost.name not in line))
    assert command("align", file).code == 0 and lost.exists()


def test_references_bind_a_folder_to_their_judge_before_it_has_a_step(tmp_path, recipe):
    own = {"refl": SMALL, "references": {"candidates": 2}, "grid_prompts": 0}
    assert command("references", recipe(**own)).code == 0
    other = command("align", recipe(**own, judge_options={"instruction": "t2i-bare"}))
    assert other.code == 2 and "judge_options" in other.err
    assert command("align", recipe(**{**own, "refl": {**SMALL, "learning_rate": 0.5}})).code == 0
