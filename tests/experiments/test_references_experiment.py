"""References good and bad on random checkpoints: whose they are, every cell once, the same after a kill."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import generator_folder, judge_folder
from tiny_grid import experiment, project_recipe, rows_of, with_rows, write_recipe

from experiments import references
from experiments.references import ArmRun, ReferenceQuality, ReferencesRecipe, kept
from rewarddance.alignment.references import ReferenceRecipe, References, candidate_seeds
from rewarddance.runtime.config import load_recipe
from rewarddance.types import Prompt

ARMS = {
    "bottom-1-of-4": {"generator": "flow", "references": {"candidates": 4, "keep": 1, "keep_from": "bottom"}},
    "top-1-of-4": {"generator": "flow", "references": {"candidates": 4, "keep": 1}},
    "top-2-of-2": {"generator": "flow", "references": {"candidates": 2, "keep": 2}},
}


def recipe_file(folder: Path, **changes: object) -> Path:
    """A recipe of three cells of two steps, in seconds."""
    content = {
        "seeds": [3],
        "generators": {"flow": {"name": str(generator_folder()), "num_inference_steps": 2}},
        "arms": ARMS,
        "judges": {3: str(judge_folder())},
        "refl_prompts": 2,
        "refl": {"steps": 2, "prompts_per_step": 1, "group_size": 2, "lora_rank": 2, "lora_alpha": 2, "save_every": 1},
        "prompts": 6,
        "samples": 2,
    }
    return write_recipe(folder, content | changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A comparison done in one go by the command."""
    folder = tmp_path_factory.mktemp("references")
    done = experiment("references", recipe_file(folder), "--output", folder / "out")
    assert done.code == 0, done.err
    assert done.out.strip() == (folder / "out" / "references.md").read_text().strip()
    return folder / "out"


def bank(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "references.jsonl").read_text().splitlines()]


# -- which references --------------------------------------------------------------------------------------------------


def test_the_bottom_of_a_ranking_is_its_last_places_and_the_top_its_first():
    ranking = References(
        Prompt("a"),
        tuple(torch.full((1, 3, 2, 2), i / 4) for i in range(4)),
        (7, 5, 6, 4),
        (3.0, 2.0, 1.0, 0.0),
        torch.arange(4.0),
    )
    worst = kept(ranking, ReferenceRecipe(candidates=4, keep=2, keep_from="bottom"))
    assert (worst.seeds, worst.wins, worst.latents.tolist()) == ((6, 4), (1, 0), [2, 3])
    assert [float(picture.mean()) for picture in worst.pictures] == [0.5, 0.75]
    best = kept(ranking, ReferenceRecipe(candidates=4, keep=1))
    assert (best.seeds, best.wins, len(best.pictures)) == ((7,), (3,), 1)


def test_arms_that_keep_others_of_the_same_candidates_share_their_tournament(whole):
    places = sorted(place.name for place in (whole / "seed3" / "references").iterdir())
    assert places == ["flow-2", "flow-4"]
    assert [len(row["seeds"]) for row in bank(whole / "seed3" / "references" / "flow-4")] == [4, 4]


def test_fewer_candidates_are_the_first_of_the_more(whole):
    for place, row in enumerate(bank(whole / "seed3" / "references" / "flow-2")):
        assert sorted(row["seeds"]) == sorted(candidate_seeds(3, place, 4)[:2])


def test_the_judge_that_was_given_is_the_one_that_is_asked(whole):
    assert not (whole / "seed3" / "judge").exists()


# -- cells -------------------------------------------------------------------------------------------------------------


def test_an_interrupted_comparison_ends_with_the_same_figures(whole, tmp_path, monkeypatch):
    recipe, calls = load_recipe(ReferencesRecipe, whole.parent / "tiny.yaml"), []

    def cut(run, **places):
        calls.append(1)
        if len(calls) == 2:
            align(replace(run, recipe=run.recipe.model_copy(update={"steps": 1})), **places)
            raise KeyboardInterrupt
        return align(run, **places)

    align = references.align_generator
    monkeypatch.setattr(references, "align_generator", cut)
    with pytest.raises(KeyboardInterrupt):
        ReferenceQuality(recipe, tmp_path).run()
    assert len(rows_of(tmp_path, ArmRun)) == 1
    assert (tmp_path / "seed3" / "top-1-of-4" / "checkpoint-1").exists()
    ReferenceQuality(recipe, tmp_path).run()
    assert rows_of(tmp_path, ArmRun) == rows_of(whole, ArmRun) and len(calls) == 4
    assert not list(tmp_path.glob("seed3/*/checkpoint-*")) and list(tmp_path.glob("seed3/*/lora"))


def test_a_seed_without_a_judge_trains_one_as_the_quickstart_does(tmp_path):
    few = {"train_prompts": 2, "samples": 2, "id_prompts": 1, "ood_prompts": 1, "test_pairs": 1, "pairs": 2}
    judge = {"base": str(judge_folder()), "instruction": "t2i-brief", "batch_size": 4, "epochs": 1}
    changes = {"judges": {}, "arms": {"top-2-of-2": ARMS["top-2-of-2"]}, "preferences": few, "judge": judge}
    done = experiment("references", recipe_file(tmp_path, **changes), "--output", tmp_path / "out")
    assert done.code == 0, done.err
    seed = tmp_path / "out" / "seed3"
    assert (seed / "judge" / "reward").is_dir() and not list((seed / "judge").glob("checkpoint-*"))
    assert (seed / "preferences" / "train.jsonl").is_file()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"refl": {"reference_mse": 0.5}}, "reference_mse denoises the references themselves"),
        ({"arms": {"a": {"generator": "unet"}}}, "'unet', which is not among them"),
        ({"arms": {"a b": {"generator": "flow"}}}, "name of a folder"),
        ({"arms": {"a": {"generator": "flow", "references": {"candidates": 2, "keep": 3}}}}, "3 cannot be kept"),
        ({"judges": {4: "x"}}, "a judge for seed 4"),
        ({"judges": {3: "nowhere"}}, "nowhere"),
        ({"generators": {"flow": {"name": "nowhere"}}}, "nowhere"),
        ({"refl": {"last_steps": 9}}, "last_steps is 9"),
        ({"generators": {"flow": {"name": "shapeworld-generator", "refl": {"lat": 1}}}}, "'lat'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_done(tmp_path, changes, told):
    done = experiment("references", recipe_file(tmp_path, **changes), "--output", tmp_path / "out")
    assert done.code == 2 and told in " ".join(done.err.split())
    assert not (tmp_path / "out" / "config.yaml").exists()


# -- the table ---------------------------------------------------------------------------------------------------------


def run_of(arm: str, seed: int, gain: float) -> ArmRun:
    base = [0.5, 0.6, 0.7]
    return ArmRun(
        seed=seed, arm=arm, steps=2, references=[0.8, 0.9], oracle_base=base, oracle=[value + gain for value in base],
        reward_base=[0.5] * 3, reward=[0.6] * 3, diversity_base=[0.2] * 3, diversity=[0.1] * 3, seconds=1.0,
    )  # fmt: skip


def test_gains_are_over_the_base_and_over_the_generators_first_arm(tmp_path):
    one = {"name": str(generator_folder())}
    arms = {"worse": {"generator": "flow"}, "better": {"generator": "flow"}, "other": {"generator": "unet"}}
    changes = {"generators": {"flow": one, "unet": one}, "arms": arms, "seeds": [1, 2, 3], "judges": {}}
    runs = [run_of("worse", s, 0.01 * s) for s in (1, 2)] + [run_of("better", s, 0.05 + 0.01 * s) for s in (1, 2, 3)]
    recipe = load_recipe(ReferencesRecipe, recipe_file(tmp_path, **changes))
    text = with_rows(ReferenceQuality, recipe, tmp_path / "out", [*runs, run_of("other", 1, 0.1)]).write()
    worse, better, other = json.loads((tmp_path / "out" / "results.json").read_text())["table"]
    assert worse["gain"]["mean"] == pytest.approx(0.015)
    assert worse["over_first"] is None and other["over_first"] is None
    assert better["over_first"]["mean"] == pytest.approx(0.05)
    assert better["over_first"]["n"] == 6 and better["seeds"] == [1, 2, 3]
    assert better["diversity_kept"] == pytest.approx(0.5) and better["reward_gain"]["mean"] == pytest.approx(0.1)
    assert text.startswith("Unfinished: 6 of 9 cells.") and "seeds: 1, 2, 3." in text
    assert "| flow | better | 85.0 [" in text and "| +5.0 [" in text and "| 50 % |" in text
    assert np.isfinite(other["gain"]["low"])


def test_the_recipe_compares_the_papers_four_kinds_and_a_second_generator(tmp_path):
    recipe = load_recipe(ReferencesRecipe, project_recipe("references"))
    chosen = [
        (arm.references.keep_from, arm.references.keep, arm.references.candidates)
        for arm in recipe.arms.values()
        if arm.generator == "flow"
    ]
    assert chosen == [("bottom", 2, 16), ("top", 2, 2), ("top", 2, 6), ("top", 2, 16)]
    arms = [cell.key["arm"] for cell in ReferenceQuality(recipe, tmp_path).cells()]
    assert len(arms) == 21 and arms[12:15] == ["unet-top-2-of-16"] * 3
    assert [recipe.refl_of(name).reference_mse for name in recipe.generators] == [0, 0, 1, 1]
