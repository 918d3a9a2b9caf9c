"""The table of judges on random checkpoints: every cell once, the same after kills, and its figures by hand."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from tiny import BrightnessJudge, Done, clip_folder, generator_folder, judge_folder
from tiny_grid import experiment, project_recipe, rows_of, with_rows, write_recipe

from experiments import trained_judges
from experiments.grid import Rows
from experiments.judges import Judges, JudgesRecipe
from experiments.judges_table import LARGER, JudgeRun, gains, judges_of, steps
from experiments.trained_judges import by_prompt
from rewarddance.evaluation.statistics import Interval
from rewarddance.reward import train
from rewarddance.runtime.config import load_recipe
from rewarddance.types import Preference

CELLS = {
    "clip": {"kind": "clip", "base": "", "learning_rate": 1e-4},
    "regressive": {"kind": "regressive"},
    "reasons": {"kind": "pairwise", "reasoning": "after"},
}


def recipe_file(folder: Path, **changes: object) -> Path:
    """A recipe of three cells of four steps, in seconds."""
    content = {
        "seeds": [3],
        "sizes": {"one": str(judge_folder())},
        "generator": str(generator_folder()),
        "num_inference_steps": 2,
        "preferences": {
            "train_prompts": 4,
            "samples": 2,
            "pairs": 4,
            "id_prompts": 3,
            "ood_prompts": 3,
            "test_pairs": 2,
            "reasons": True,
        },
        "judge": {"instruction": "t2i-brief", "learning_rate": 1e-3, "batch_size": 4, "epochs": 1, "save_every": 2},
        "cells": CELLS | {"clip": CELLS["clip"] | {"base": str(clip_folder())}},
        "tables": {
            "kinds": {"CLIP": "clip", "regressive": "regressive", "pairwise": "reasons"},
            "contexts": {"+ reasons": "reasons"},
        },
    }
    return write_recipe(folder, content | changes)


def figures(folder: Path) -> list[dict]:
    return rows_of(folder, JudgeRun)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, Done]:
    """A table in one go: its folder, and what the command said."""
    folder = tmp_path_factory.mktemp("judges")
    return folder / "whole", experiment("judges", recipe_file(folder), "--output", folder / "whole")


def test_every_cell_is_in_the_table_trained_and_where_it_can_be_zero_shot(whole):
    folder, done = whole
    assert done.code == 0, done.err
    assert [(row["size"], row["cell"]) for row in figures(folder)] == [
        ("clip", "clip"),
        ("one", "regressive"),
        ("one", "reasons"),
    ]
    for row in figures(folder):
        assert {name: len(own) for name, own in row["accuracy"].items()} == {"id": 3, "early": 3, "ood": 3}
        assert (row["untrained"] is None) == (row["cell"] == "regressive")
        assert row["pairs"] == 16
    assert any(row["untrained"] not in (None, row["accuracy"]) for row in figures(folder))
    found = json.loads((folder / "results.json").read_text())
    assert (found["cells"], found["done"], len(found["judges"])) == (3, 3, 3)
    assert set(found["judges"][0]["seeds"]["3"]["accuracy"]["ood"]) == {"mean", "low", "high", "n"}


def test_the_command_prints_the_markdown_of_the_folder_with_its_figure(whole):
    folder, done = whole
    text = (folder / "judges.md").read_text()
    assert done.out == text + "\n" and "Unfinished" not in text and "(judges.svg)" in text
    assert "| + reasons | one (0.2M) | 1 | " in text and "| pairwise, over regressive | one (0.2M) | 1 | " in text
    assert (folder / "judges.svg").read_text().count("<svg") == 1


def test_what_is_left_of_a_cell_is_its_reward_and_its_metrics(whole):
    folder, _ = whole
    left = {path.name for path in (folder / "seed3" / "one" / "reasons").iterdir()}
    assert left == {"reward", "metrics.jsonl"}
    assert json.loads((folder / "seed3" / "one" / "reasons" / "reward" / "reward_config.json").read_text())[
        "reasoning"
    ] == "after"  # fmt: skip


def killed(function, at: int):
    """`function`, cut off the `at`th time."""
    calls = itertools.count(1)

    def stand_in(*arguments, **named):
        if next(calls) == at:
            raise KeyboardInterrupt
        return function(*arguments, **named)

    return stand_in


def test_a_table_killed_anywhere_ends_with_the_same_figures_once_each(whole, tmp_path, monkeypatch):
    kills = [
        (trained_judges, "gather_preferences", 1),
        (Judges, "write", 2),  # the second cell is written down
        (trained_judges, "agreement", 14),  # the third cell is trained and half measured
    ]
    for owner, name, at in kills:
        monkeypatch.setattr(owner, name, killed(getattr(owner, name), at))
    steps_taken, real = [], train.accumulate_gradient

    def accumulate_gradient(model, reward, micro_batches):
        steps_taken.append(micro_batches[0].step)
        if len(steps_taken) == 8:  # the last step of the second cell: its checkpoint of step 2 is there
            raise KeyboardInterrupt
        return real(model, reward, micro_batches)

    monkeypatch.setattr(train, "accumulate_gradient", accumulate_gradient)
    codes: list[int] = []
    while not codes or (codes[-1] == 130 and len(codes) < 9):
        codes.append(experiment("judges", recipe_file(tmp_path), "--output", tmp_path / "killed").code)
    assert codes == [130] * 4 + [0]
    assert figures(tmp_path / "killed") == figures(whole[0])
    assert steps_taken == [0, 1, 2, 3, 0, 1, 2, 3, 2, 3, 0, 1, 2, 3]
    assert all(row.training_seconds > 0 for row in Rows(tmp_path / "killed", JudgeRun).of(JudgeRun))


def only(**options: object) -> dict:
    """One cell, in one table."""
    return {"cells": {"a": options}, "tables": {"t": {"x": "a"}}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tables": {"t": {"x": "clop"}}}, "the table 't' has the cell 'clop', which is not among the cells"),
        ({"tables": {"t": {"x": "clip"}}}, "the cell 'regressive' stands in no table"),
        ({"sizes": {"a/b": "shapeworld-judge"}}, "'a/b' is to be the name of a folder"),
        (only(kind="clip", reasoning="after"), "the key 'reasoning' in the cell 'a' has the value 'after'"),
        (only(learning_rat=1), "unknown key 'learning_rat' in the cell 'a'"),
        (only(instruction="t3i"), "there is no instruction named 't3i'"),
        ({"preferences": {"reasons": False}}, "the cell 'reasons' learns reasons, but preferences.reasons is false"),
        ({"sizes": {"one": "no-such-judge"}}, "there is no checkpoint at 'no-such-judge'"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is(changes, message, tmp_path):
    done = experiment("judges", recipe_file(tmp_path, **changes), "--output", tmp_path / "lab")
    assert done.code == 2 and message in done.err, done.err
    assert not (tmp_path / "lab").exists()


def test_the_recipe_isolates_one_part_of_the_context_after_the_other():
    recipe = load_recipe(JudgesRecipe, project_recipe("judges"))
    rows = {label: recipe.training(cell) for label, cell in recipe.tables["contexts"].items()}
    told = {label: (own.kind, own.instruction, own.reasoning) for label, own in rows.items()}
    assert told == {
        "bare": ("pointwise", "t2i-bare", "none"),
        "+ instruction": ("pointwise", "t2i-brief", "none"),
        "+ reference": ("pairwise", "t2i-brief", "none"),
        "+ reasons": ("pairwise", "t2i-brief", "after"),
    }
    assert [recipe.training(cell).kind for cell in recipe.tables["kinds of reward"].values()] == [
        "clip",
        "regressive",
        "pointwise",
        "pairwise",
    ]


def test_what_two_rows_share_is_trained_once_and_clip_at_one_size_only(tmp_path):
    recipe = load_recipe(JudgesRecipe, project_recipe("judges"))
    keys = [tuple(cell.key.values()) for cell in Judges(recipe, tmp_path).cells()]
    assert len(keys) == len(set(keys)) == 3 * (1 + 2 * 5)
    bases = [recipe.bases()[size, cell] for _, size, cell in keys[:3]]
    assert bases == ["shapeworld-clip", "shapeworld-judge-small", "shapeworld-judge-small"]
    assert [seed for seed, *_ in keys] == sorted(seed for seed, *_ in keys)


def row(seed: int, cell: str, right: list[float], size: str = "large", seconds: float = 10.0) -> JudgeRun:
    """A cell whose prompts were all answered like this in each test set, by a base at chance."""
    sets = dict.fromkeys(("id", "early", "ood"), right)
    chance = dict.fromkeys(sets, [0.5] * len(right))
    return JudgeRun(
        seed=seed, size=size, cell=cell, parameters=1_400_000, pairs=100, accuracy=sets, untrained=chance,
        training_seconds=seconds, seconds=seconds,
    )  # fmt: skip


def test_what_a_step_brings_is_paired_by_prompt():
    before = [row(seed, "a", [0.2, 0.8, seed / 10]) for seed in range(3)]
    after = [row(seed, "b", [0.3, 0.9, seed / 10 + 0.1]) for seed in range(3)]
    found = gains(before, after)["ood"]
    assert found[:3] == pytest.approx((0.1, 0.1, 0.1))
    own = judges_of(before)[0].accuracy["ood"]
    assert own.high - own.low > 0.3  # the prompts themselves differ much more


def test_steps_go_down_each_table_and_up_in_size_over_the_seeds_that_both_have():
    tables = {"t": {"first": "a", "second": "b"}}
    rows = [row(0, "a", [0.5], "small"), row(0, "b", [0.6], "small"), row(1, "a", [0.7], "small")]
    rows += [row(0, "a", [0.9]), row(1, "a", [0.9])]
    found = [(step.table, step.name, step.seeds, round(step.gains["id"].mean, 3)) for step in steps(tables, rows)]
    assert found == [("t", "second, over first", 1, 0.1), (LARGER, "a, large over small", 2, 0.3)]


def test_an_accuracy_and_its_interval_stay_within_0_and_100():
    found = judges_of([row(0, "a", [0.7, 0.9]), row(1, "a", [1.0, 1.0])])[0].accuracy["id"]
    assert found == Interval(found.mean, 0.0, 1.0, 4) and found.mean == pytest.approx(0.9)


def test_an_unfinished_table_has_the_rows_that_there_are(tmp_path):
    recipe = load_recipe(JudgesRecipe, recipe_file(tmp_path, sizes={"large": str(judge_folder())}))
    text = with_rows(Judges, recipe, tmp_path / "out", [row(0, "regressive", [0.25, 0.75])]).write()
    assert text.startswith("Unfinished: 1 of 3 cells.") and "1 seed (0)" in text
    assert "| regressive | large (1.4M) | 1 | 50.0 [0.0, 100.0] |" in text and "| pairwise" not in text
    assert json.loads((tmp_path / "out" / "results.json").read_text())["done"] == 1


def test_each_prompts_pairs_are_averaged_in_the_order_in_which_prompts_come():
    dark, light = torch.full((1, 3, 4, 4), 0.2), torch.full((1, 3, 4, 4), 0.8)
    pairs = [Preference("x", dark, light, 1.0), Preference("y", dark, light, 0.0), Preference("x", dark, light, 0.0)]
    assert by_prompt(BrightnessJudge(bias=3.0), pairs) == [0.5, 0.0]
