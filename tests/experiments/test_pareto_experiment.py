"""Two rewards at several weights: the same after a kill, and a front of what no other has more of."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from tiny import edit_judge_folder, editor_folder
from tiny_grid import experiment, project_recipe, rows_of, with_rows, write_recipe

from experiments import pareto
from experiments.aligned_runs import AlarmRecord
from experiments.grid import Row
from experiments.pareto import Edited, EditProbe, JudgeTest, Pareto, ParetoRecipe, ParetoRun, front
from rewarddance.data.preferences import PreferenceSet
from rewarddance.errors import InputError
from rewarddance.runtime.config import load_recipe, parse_recipe


def recipe_file(folder: Path, **changes) -> Path:
    loop = {"prompts_per_step": 2, "group_size": 2, "steps": 2, "lora_rank": 2, "lora_alpha": 2, "levels": 1}
    counts = {"train_prompts": 3, "samples": 2, "drawn": 3, "pairs": 4, "id_prompts": 3, "ood_prompts": 1}
    content = {
        "seeds": [3],
        "generator": str(editor_folder()),
        "num_inference_steps": 3,
        "generator_options": {"height": 32, "width": 32, "max_sequence_length": 24},
        "preferences": counts | {"overlaid": 1, "test_pairs": 2},
        "judge": {"base": str(edit_judge_folder()), "instruction": "edit-brief", "batch_size": 4},
        "shares": [0.0, 0.5, 1.0],
        "align": {"algorithm": "nft", "prompts": 3, "nft": loop},
        "eval": {"prompts": 6, "samples": 2, "probes": 2, "probe_prompts": 6},
    }
    return write_recipe(folder, content | changes)


def test_the_front_is_what_no_other_point_has_more_of():
    assert front([(0.9, 0.1), (0.5, 0.5), (0.4, 0.4), (0.1, 0.9), (0.5, 0.3)]) == [True, True, False, True, False]
    assert front([(0.5, 0.5), (0.5, 0.5)]) == [True, True] and front([]) == []


def test_weights_are_measured_one_by_one_and_gone_on_with_after_a_kill(tmp_path, monkeypatch):
    path, align, calls = recipe_file(tmp_path), pareto.align_generator, []

    def interrupted(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return align(*arguments, **options)

    monkeypatch.setattr(pareto, "align_generator", interrupted)
    assert experiment("pareto", path, "--output", tmp_path / "cut").code == 130
    assert "Unfinished: 2 of 3 cells" in (tmp_path / "cut" / "pareto.md").read_text()
    monkeypatch.setattr(pareto, "align_generator", align)
    done = experiment("pareto", path, "--output", tmp_path / "cut")
    assert done.code == 0, done.err
    rows = rows_of(tmp_path / "cut", Pareto.row_kinds)
    assert experiment("pareto", path, "--output", tmp_path / "whole").code == 0
    assert rows == rows_of(tmp_path / "whole", Pareto.row_kinds)
    tests, runs = rows[:2], rows[2:]
    assert [test["judge"] for test in tests] == ["follow", "keep"] and all(test["following"] for test in tests)
    assert [run["share"] for run in runs] == [0.0, 0.5, 1.0]
    assert all(len(run["now"]["follow"]) == 6 and len(run["source_distance"]) == 2 for run in runs)
    assert runs[0]["now"] != runs[2]["now"] and runs[0]["base"] == runs[2]["base"]
    assert [probe["step"] for probe in runs[0]["probes"]] == [0, 1, 2]
    given = recipe_file(tmp_path, judges={3: str(tmp_path / "cut" / "seed3")}, shares=[1.0])
    assert experiment("pareto", given, "--output", tmp_path / "given").code == 0
    (again,) = rows_of(tmp_path / "given", Pareto.row_kinds)
    assert again == runs[2]


def test_the_two_judges_of_a_seed_learn_from_votes_on_the_same_edits(tmp_path):
    made = Pareto(load_recipe(ParetoRecipe, recipe_file(tmp_path)), tmp_path / "out")
    made.train_judges(3)
    folders = [tmp_path / "out" / "seed3" / name / "preferences" for name in ("follow", "keep")]
    follow, keep = (list(PreferenceSet(folder / "train.jsonl")) for folder in folders)
    assert {pair.prompt.text for pair in follow} == {pair.prompt.text for pair in keep}
    assert [pair.share for pair in follow] != [pair.share for pair in keep]


def row_of(seed: int, share: float, follow: float, keep: float) -> ParetoRun:
    def means(follow: float, keep: float, distance: float) -> Edited:
        return Edited(
            follow=[follow] * 2, keep=[keep] * 2, following=[follow] * 2, keeping=[keep] * 2, oracle=[follow] * 2,
            diversity=[0.1, 0.2], distance=[distance] * 2,
        )  # fmt: skip

    probes = [EditProbe(step=step, following=0.5, keeping=0.5 - step / 100, oracle=0.5) for step in (0, 8, 16)]
    return ParetoRun(
        seed=seed, share=share, seconds=9.0, now=means(follow, keep, 0.05), base=means(0.5, 0.5, 0.1), cosine=-0.25,
        source_distance=[0.1, 0.1, 0.05, 0.04], probes=probes,
        alarms=[AlarmRecord(step=20, name="untouched", stop=False)] * (share == 1.0),
    )  # fmt: skip


def test_the_tables_have_a_line_a_weight_and_one_a_run(tmp_path):
    rows: list[Row] = [
        row_of(seed, *of) for seed in (0, 1) for of in ((0.0, 0.8, 0.3), (0.5, 0.7, 0.2), (1.0, 0.2, 0.9))
    ]
    rows += [JudgeTest(seed=seed, judge="keep", following=[0.5, 0.5], keeping=[1.0, 0.8]) for seed in (0, 1)]
    recipe = load_recipe(ParetoRecipe, recipe_file(tmp_path), ["seeds=[0, 1]"])
    text = with_rows(Pareto, recipe, tmp_path / "out", rows).write()
    lines = [line.split(" | ") for line in text.splitlines() if line.startswith(("| 0 |", "| 0.5 |", "| 1 |"))]
    shares, runs = lines[:3], lines[3:]
    assert [line[4] for line in shares] == ["yes", "", "yes"] and shares[0][2].startswith("0.800 [")
    assert shares[2][5].startswith("−30.0 [") and shares[2][8:] == ["50 %", "100 %", "−0.25", "2 of 2", "2 of 2 |"]
    assert [line[:2] for line in runs] == [[f"| {share}", seed] for share in ("0", "0.5", "1") for seed in ("0", "1")]
    assert runs[-1][4:] == ["16", "untouched at 20", "0.100 to 0.040", "yes |"]
    assert "| keep: its pairs in order | 50.0 [50.0, 50.0] | 90.0 [" in text
    assert "<svg" in (tmp_path / "out" / "pareto.svg").read_text()


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"shares": [0.5, 1.5]}, "shares"),
        ({"shares": [0.5, 0.5]}, "a share stands twice"),
        ({"judges": {7: "x"}}, "a judge for seed 7"),
        ({"seeds": [0, -1]}, "'seeds.1' .* greater than or equal to 0"),
    ],
)
def test_weights_that_cannot_be_are_refused_by_their_key(tmp_path, changes, what):
    with pytest.raises(InputError, match=what):
        parse_recipe(ParetoRecipe, yaml.safe_load(recipe_file(tmp_path, **changes).read_text()), "tiny.yaml")


def test_the_recipe_that_comes_along_weighs_from_end_to_end():
    recipe = load_recipe(ParetoRecipe, project_recipe("pareto"))
    assert {0.0, 0.5, 1.0} <= set(recipe.shares) and recipe.align.algorithm == "nft"
