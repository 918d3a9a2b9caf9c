"""Two rewards at several weights: the same after a kill, and a front of what no other has more of."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from tiny import generator_folder, judge_folder
from tiny_grid import experiment, project_recipe, rows_of, with_rows, write_recipe

from experiments import pareto
from experiments.pareto import LittlePaint, Pareto, ParetoRecipe, ParetoRun, front, painted
from rewarddance.errors import InputError
from rewarddance.runtime.config import load_recipe, parse_recipe
from rewarddance.types import Question


def recipe_file(folder: Path, **changes) -> Path:
    loop = {"prompts_per_step": 2, "group_size": 2, "steps": 2, "lora_rank": 2, "lora_alpha": 2, "levels": 1}
    content = {
        "seeds": [3],
        "generator": str(generator_folder()),
        "num_inference_steps": 3,
        "judges": {3: str(judge_folder())},
        "shares": [0.0, 0.5, 1.0],
        "align": {"algorithm": "nft", "prompts": 3, "nft": loop},
        "eval": {"prompts": 6, "samples": 2, "probe_prompts": 6},
    }
    return write_recipe(folder, content | changes)


def test_the_front_is_what_no_other_point_has_more_of():
    assert front([(0.9, 0.1), (0.5, 0.5), (0.4, 0.4), (0.1, 0.9), (0.5, 0.3)]) == [True, True, False, True, False]
    assert front([(0.5, 0.5), (0.5, 0.5)]) == [True, True] and front([]) == []


def test_an_empty_picture_has_most_of_the_plain_reward():
    empty = torch.full((1, 3, 8, 8), 0.7)
    drawn = empty.clone()
    drawn[..., 2:5, 2:5] = 0.1
    assert painted(torch.cat([empty, drawn])).tolist() == pytest.approx([0.0, 0.6 * 9 / 64])
    drawn.requires_grad_()
    margin = LittlePaint()([Question("a cross", drawn, empty)]).margin
    assert margin.item() == pytest.approx(-20 * 0.6 * 9 / 64)
    margin.sum().backward()
    assert drawn.grad is not None and drawn.grad[..., 2:5, 2:5].min() > 0  # brighter is nearer to the background


def test_weights_are_measured_one_by_one_and_gone_on_with_after_a_kill(tmp_path, monkeypatch):
    path, proxy, calls = recipe_file(tmp_path), pareto.proxy, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return proxy(*arguments)

    monkeypatch.setattr(pareto, "proxy", interrupted)
    assert experiment("pareto", path, "--output", tmp_path / "cut").code == 130
    assert "Unfinished: 1 of 3 cells" in (tmp_path / "cut" / "pareto.md").read_text()
    monkeypatch.setattr(pareto, "proxy", proxy)
    done = experiment("pareto", path, "--output", tmp_path / "cut")
    assert done.code == 0, done.err
    assert experiment("pareto", path, "--output", tmp_path / "whole").code == 0
    rows = rows_of(tmp_path / "cut", Pareto.row_kinds)
    assert rows == rows_of(tmp_path / "whole", Pareto.row_kinds)
    assert [row["share"] for row in rows] == [0.0, 0.5, 1.0] and all(len(row["first"]) == 6 for row in rows)
    assert rows[0]["first"] != rows[2]["first"] and rows[0]["first_base"] == rows[2]["first_base"]


def row_of(seed: int, share: float, first: float, second: float) -> ParetoRun:
    half = [0.5, 0.5]
    return ParetoRun(
        seed=seed, share=share, seconds=9.0, first=[first] * 2, first_base=half, second=[second] * 2, second_base=half,
        oracle=[0.5 + first / 10] * 2, oracle_base=half, diversity=[0.1, 0.2], diversity_base=[0.2, 0.2], cosine=-0.25,
        alarms=["traded at 20"] * (share == 1.0),
    )  # fmt: skip


def test_the_table_has_a_line_a_weight_and_says_which_are_on_the_front(tmp_path):
    rows = [row_of(seed, *of) for seed in (0, 1) for of in ((0.0, 0.8, 0.3), (0.5, 0.7, 0.2), (1.0, 0.2, 0.9))]
    recipe = load_recipe(ParetoRecipe, recipe_file(tmp_path), ["seeds=[0, 1]", "judges={}"])
    text = with_rows(Pareto, recipe, tmp_path / "out", rows).write()
    lines = [line.split(" | ") for line in text.splitlines() if line.startswith(("| 0 ", "| 0.5 ", "| 1 "))]
    assert [line[4] for line in lines] == ["yes", "", "yes"] and lines[0][2].startswith("0.800 [")
    assert lines[2][5].startswith("+2.0 [") and lines[2][6:] == ["75 %", "−0.25", "2 of 2 |"]
    assert "<svg" in (tmp_path / "out" / "pareto.svg").read_text()


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"shares": [0.5, 1.5]}, "shares"),
        ({"shares": [0.5, 0.5]}, "a share stands twice"),
        ({"second": "follow"}, "the first reward's name"),
        ({"judges": {7: "x"}}, "a judge for seed 7"),
    ],
)
def test_weights_that_cannot_be_are_refused_by_their_key(tmp_path, changes, what):
    with pytest.raises(InputError, match=what):
        parse_recipe(ParetoRecipe, yaml.safe_load(recipe_file(tmp_path, **changes).read_text()), "tiny.yaml")


def test_the_recipe_that_comes_along_weighs_from_end_to_end():
    recipe = load_recipe(ParetoRecipe, project_recipe("pareto"))
    assert recipe.shares[0] == 0 and recipe.shares[-1] == 1 and recipe.align.algorithm == "nft"
