"""Shares against majorities on random checkpoints: same pairs, other labels, every cell once, the same after a kill."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tiny import colour_preferences, generator_folder, judge_folder
from tiny_grid import experiment, project_recipe, rows_of, write_recipe

from experiments import judges
from experiments.disagreement import (
    Disagreement,
    DisagreementRecipe,
    figures,
    gather,
    labelled,
    markdown,
    wrong_labels,
)
from experiments.judges_table import JudgeRun
from rewarddance.errors import InputError
from rewarddance.runtime.config import load_recipe, parse_recipe


def recipe_file(folder: Path, **changes: object) -> Path:
    """A recipe of two cells of a few steps, in seconds."""
    content = {
        "seeds": [3],
        "noise": [0.2],
        "generator": str(generator_folder()),
        "num_inference_steps": 2,
        "preferences": {
            "train_prompts": 3,
            "samples": 2,
            "pairs": 8,
            "id_prompts": 2,
            "ood_prompts": 2,
            "test_pairs": 2,
            "annotators": {"votes": 4},
        },
        "judge": {
            "base": str(judge_folder()),
            "instruction": "t2i-brief",
            "learning_rate": 1e-3,
            "batch_size": 8,
            "save_every": 2,
        },
    }
    return write_recipe(folder, content | changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A comparison done in one go by the command."""
    folder = tmp_path_factory.mktemp("disagreement")
    done = experiment("disagreement", recipe_file(folder), "--output", folder / "out")
    assert done.code == 0, done.err
    assert done.out.strip() == (folder / "out" / "disagreement.md").read_text().strip()
    return folder / "out"


# -- labels ------------------------------------------------------------------------------------------------------------


def test_majorities_are_whole_and_pairs_without_one_are_not_learned():
    pairs, shares = colour_preferences(5), [0.0, 0.25, 0.5, 0.75, 1.0]
    assert [pair.share for pair in labelled(pairs, shares, "shares")] == shares
    hard = labelled(pairs, shares, "majority")
    assert [pair.share for pair in hard] == [0.0, 0.0, 1.0, 1.0]
    assert [pair.first is pairs[i].first for pair, i in zip(hard, (0, 1, 3, 4), strict=True)] == [True] * 4


def test_twice_the_noise_is_that_many_who_do_not_look():
    recipe = load_recipe(DisagreementRecipe, project_recipe("disagreement"))
    assert [recipe.voted(noise).annotators.careless for noise in recipe.noise] == [0.2, 0.4, 0.6]
    assert recipe.voted(0.1).annotators.votes == recipe.preferences.annotators.votes == 5
    with pytest.raises(InputError, match="noise"):
        parse_recipe(DisagreementRecipe, {"noise": [0.6]}, "here")


def test_all_noises_vote_on_the_same_pairs_and_more_noise_is_more_wrong(tmp_path):
    content = yaml.safe_load(recipe_file(tmp_path).read_text())
    content["preferences"] |= {"train_prompts": 6, "pairs": 30, "annotators": {"votes": 5}}
    recipe = parse_recipe(DisagreementRecipe, content | {"noise": [0.0, 0.2, 0.5]}, "here")
    votes = gather(recipe, 3, tmp_path / "seed3")
    again = gather(recipe, 3, tmp_path / "seed3")  # read, not made
    assert votes.shares == again.shares and votes.order == again.order
    assert {len(own) for own in (*votes.shares.values(), votes.order, votes.pairs)} == {180}
    assert set(votes.shares) == {"0", "0.2", "0.5"} and votes.shares["0"] != votes.shares["0.2"]
    wrong = [wrong_labels(tmp_path, [3], noise)["majority"] for noise in recipe.noise]
    assert wrong[0] < wrong[1] < wrong[2] and wrong[2] == pytest.approx(0.5, abs=0.1)
    apart = np.abs(np.array(votes.shares["0"]) - np.array(votes.order))
    assert np.mean(apart[np.array(votes.order) != 0.5]) < 0.25  # those who look mostly see it as the oracle does


def test_the_oracles_order_is_that_of_the_pictures_that_are_voted_on(tmp_path):
    content = yaml.safe_load(recipe_file(tmp_path).read_text())
    content["preferences"]["annotators"] = {"votes": 3, "noise": 0.0, "tie_within": 0.0}
    votes = gather(parse_recipe(DisagreementRecipe, content | {"noise": [0.0]}, "here"), 3, tmp_path / "seed3")
    seen = [(share, order) for share, order in zip(votes.shares["0"], votes.order, strict=True) if order != 0.5]
    assert seen and all(share == order for share, order in seen)


def crowd_recipe(folder: Path, **changes: object) -> Path:
    content = yaml.safe_load(recipe_file(folder).read_text())
    content["preferences"] |= {"train_prompts": 6, "pairs": 40, "annotators": {"votes": 3, "crowd": 8}}
    (folder / "crowd.yaml").write_text(yaml.safe_dump(content | {"noise": [0.0, 0.25]} | changes, sort_keys=False))
    return folder / "crowd.yaml"


def test_a_crowds_votes_are_weighted_and_fewer_labels_are_wrong(tmp_path):
    recipe = load_recipe(DisagreementRecipe, crowd_recipe(tmp_path))
    assert [cell.key["cell"] for cell in Disagreement(recipe, tmp_path / "out").cells()] == [
        f"{labels}-{noise}" for noise in ("0", "0.25") for labels in ("majority", "shares", "weighted")
    ]
    votes = gather(recipe, 3, tmp_path / "seed3")
    again = gather(recipe, 3, tmp_path / "seed3")  # read, not made
    assert votes.weighted == again.weighted and votes.weighted.keys() == {"0", "0.25"}
    assert {len(own) for own in (*votes.shares.values(), *votes.weighted.values(), votes.order, votes.pairs)} == {240}
    assert not any(pair.annotator for pair in votes.pairs)
    wrong = wrong_labels(tmp_path, [3], 0.25)
    assert wrong["weighted"] < wrong["majority"]
    assert labelled(votes.pairs, votes.weighted["0.25"], "weighted")[7].share == votes.weighted["0.25"][7]


def test_a_crowds_table_has_both_gains():
    recipe = load_recipe(DisagreementRecipe, project_recipe("careless_annotators"))
    rows = [
        JudgeRun(
            seed=seed, size="j", cell=f"{labels}-0.3", parameters=1, pairs=9, accuracy={"id": [right], "ood": [right]},
            untrained=None, training_seconds=1, seconds=1,
        )
        for seed in (0, 1, 2)
        for labels, right in (("majority", 0.6), ("shares", 0.65), ("weighted", 0.7))
    ]  # fmt: skip
    own = figures(recipe, rows)[0.3]
    assert own["gain"]["id"].mean == pytest.approx(0.05) and own["gain of weighted"]["ood"].mean == pytest.approx(0.1)
    text = markdown(recipe, rows, {0.1: {}, 0.2: {}, 0.3: {"majority": 0.25, "weighted": 0.125}})
    assert "3 of a crowd of 10 vote on each pair." in text and "| 30 % | 25.0 %, 12.5 % |" in text
    assert "in domain: weighted | in domain: gain of weighted |" in text and "+10.0 [+10.0, +10.0]" in text


# -- the comparison ----------------------------------------------------------------------------------------------------


def test_both_judges_of_a_cell_are_tested_alike_and_the_table_says_so(whole):
    rows = rows_of(whole, JudgeRun)
    assert [row["cell"] for row in rows] == ["majority-0.2", "shares-0.2"]
    assert [len(row["accuracy"][test]) for row in rows for test in ("id", "ood")] == [2, 2, 2, 2]
    assert rows[0]["pairs"] <= rows[1]["pairs"] == 24
    text = (whole / "disagreement.md").read_text()
    assert text.startswith("4 people vote on each pair.") and "seeds: 3." in text and "Unfinished" not in text
    assert "| noise | wrong | in domain: majority | in domain: shares | in domain: gain |" in text
    assert len([line for line in text.splitlines() if line.startswith("| 20 % |")]) == 1
    table = json.loads((whole / "results.json").read_text())
    assert (table["cells"], table["done"]) == (2, 2)
    row = table["table"][0]
    gain = row["shares"]["id"]["mean"] - row["majority"]["id"]["mean"]
    assert row["gain"]["id"]["mean"] == pytest.approx(gain) and 0 <= row["wrong"]["majority"] <= 1
    assert row["wrong"].keys() == {"majority"}  # of people who never vote again nobody knows who is careful


def test_a_finished_cell_keeps_its_reward_and_no_checkpoints(whole):
    for cell in ("majority-0.2", "shares-0.2"):
        assert (whole / "seed3" / cell / "reward" / "reward_config.json").is_file()
        assert not list((whole / "seed3" / cell).glob("checkpoint-*"))


def test_after_a_kill_only_what_is_left_is_done_with_the_same_figures(whole, tmp_path, monkeypatch):
    recipe = load_recipe(DisagreementRecipe, recipe_file(tmp_path))
    real, calls = judges.train, []

    def killed_in_the_second(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(judges, "train", killed_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        Disagreement(recipe, tmp_path / "out").run()
    assert rows_of(tmp_path / "out", JudgeRun) == rows_of(whole, JudgeRun)[:1]
    Disagreement(recipe, tmp_path / "out").run()
    assert len(calls) == 3 and rows_of(tmp_path / "out", JudgeRun) == rows_of(whole, JudgeRun)
    assert (tmp_path / "out" / "disagreement.md").read_text() == (whole / "disagreement.md").read_text()


def test_votes_that_a_kill_cut_off_are_made_anew(whole, tmp_path):
    recipe = load_recipe(DisagreementRecipe, recipe_file(tmp_path))
    before = gather(recipe, 3, tmp_path / "seed3")
    (tmp_path / "seed3" / "votes.json").unlink()
    (tmp_path / "seed3" / "preferences" / "train.jsonl").write_text("{")
    after = gather(recipe, 3, tmp_path / "seed3")
    assert after.shares == before.shares
    assert all(torch.equal(a.second, b.second) for a, b in zip(after.pairs, before.pairs, strict=True))


def test_gains_are_paired_and_missing_cells_are_left_blank(tmp_path):
    recipe = load_recipe(DisagreementRecipe, project_recipe("disagreement"))
    assert len(Disagreement(recipe, tmp_path).cells()) == 18

    def row(seed: int, cell: str, right: list[float]) -> JudgeRun:
        accuracy = {"id": right, "ood": right}
        return JudgeRun(
            seed=seed, size="j", cell=cell, parameters=1, pairs=9, accuracy=accuracy, untrained=None,
            training_seconds=1, seconds=1,
        )  # fmt: skip

    rows = [row(seed, "majority-0.1", [0.5, 0.7, 0.9]) for seed in (0, 1, 2)]
    rows += [row(seed, "shares-0.1", [0.6, 0.8, 1.0]) for seed in (0, 1, 2)] + [row(0, "majority-0.2", [0.5])]
    own = figures(recipe, rows)
    assert tuple(own[0.1]["gain"]["id"])[:3] == pytest.approx((0.1, 0.1, 0.1))
    assert own[0.2]["gain"] == {} and own[0.3]["shares"] == {}
    text = markdown(recipe, rows, {0.1: {"majority": 0.125}, 0.2: {}, 0.3: {}})
    assert "+10.0 [+10.0, +10.0]" in text and "| 10 % | 12.5 % |" in text and "| 30 % |  |  |  |  |" in text
