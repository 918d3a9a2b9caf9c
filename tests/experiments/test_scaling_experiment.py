"""Reward scaling on random checkpoints: every cell once, the same after a kill, and its tables by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from snippets import ROOT
from tiny import Done, generator_folder, judge_folder
from tiny_grid import experiment, project_recipe, rows_of, write_recipe

from experiments.grid import Rows
from experiments.hacking_table import Window
from experiments.judges_table import JudgeRun
from experiments.scaling import Scaling, ScalingRecipe
from experiments.scaling_claims import JudgePoint, claims, correlations, judge_points, out_over_in, spearman
from experiments.scaling_rows import ArmRun, ChoiceRun, StressRun
from rewarddance.errors import InputError
from rewarddance.runtime.config import load_recipe

KINDS = JudgeRun | ArmRun | ChoiceRun | StressRun


def recipe_file(folder: Path, **changes: object) -> Path:
    content = {
        "seeds": [3],
        "sizes": {"one": str(judge_folder()), "two": str(judge_folder())},
        "contexts": {"pairwise": {}, "pointwise": {"kind": "pointwise"}},
        "context_sizes": ["two"],
        "generator": str(generator_folder()),
        "judge": {"instruction": "t2i-brief", "learning_rate": 1e-3, "save_every": 2},
        "arms": {
            "NFT": {"config": {"algorithm": "nft", "prompts": 8}},
            "bare": {"safeguards": False, "config": {"algorithm": "refl", "refl": {"loss": "linear"}}},
        },
    }
    return write_recipe(folder, content | changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, Done]:
    folder = tmp_path_factory.mktemp("scaling")
    return folder / "whole", experiment("scaling", recipe_file(folder), "--quick", "--output", folder / "whole")


def test_every_judge_is_trained_chooses_is_stressed_and_aligns(whole):
    folder, done = whole
    assert done.code == 0, done.err
    judges = [("one", "pairwise"), ("two", "pairwise"), ("two", "pointwise")]
    rows = Rows(folder, KINDS)
    for kind, field, names in ((ArmRun, "arm", ["NFT", "bare"]), (ChoiceRun, "way", ["best of 8", "paths"])):
        found = [(getattr(row, field), row.size, row.cell) for row in rows.of(kind)]
        assert found == [(name, *judge) for name in names for judge in judges]
    assert [(row.size, row.cell) for row in rows.of(JudgeRun)] == judges
    for row in rows.of(StressRun):
        assert {"within 2/255", "spread left at the top"} <= set(row.figures)
        assert row.figures["within 8/255"] > 0
    for row in rows.of(ChoiceRun):
        assert len(row.gain) == 6 and row.oracle != row.oracle_base
    text = (folder / "scaling.md").read_text()
    assert "## The claims" in text and "Unfinished" not in text
    assert "$" not in (folder / "scaling.svg").read_text(), "a tick is written as a formula"


def test_a_killed_study_goes_on_to_the_same_rows(whole, tmp_path, monkeypatch):
    align, folder = Scaling.align, tmp_path / "killed"
    fewer = {"contexts": {"pairwise": {}}, "context_sizes": [], "paths": None, "stress_questions": 0}
    arms = {"bare": {"safeguards": False, "config": {"algorithm": "refl", "refl": {"loss": "linear"}}}}

    def die(self, cell, shared):
        if cell.key["size"] == "two":
            raise KeyboardInterrupt
        return align(self, cell, shared)

    monkeypatch.setattr(Scaling, "align", die)
    assert experiment("scaling", recipe_file(tmp_path, **fewer, arms=arms), "--quick", "--output", folder).code != 0
    monkeypatch.setattr(Scaling, "align", align)
    assert experiment("scaling", recipe_file(tmp_path, **fewer, arms=arms), "--quick", "--output", folder).code == 0
    again, once = (_without_seconds(rows_of(each, KINDS)) for each in (folder, whole[0]))
    assert len(again) == 6 and all(row in once for row in again)


def _without_seconds(rows: list[dict]) -> list[dict]:
    """Probes hold seconds, too."""
    for row in rows:
        for probe in row.get("probes", ()):
            del probe["seconds"]
    return rows


def test_the_projects_recipe_has_five_seeds_that_no_other_recipe_reports():
    recipe = load_recipe(ScalingRecipe, project_recipe("scaling"))
    assert len(recipe.seeds) >= 5 and not set(recipe.seeds) & set(range(50))
    assert [*recipe.sizes] == ["0.5M", "0.7M", "1M", "1.4M", "5M"]
    assert recipe.quick().seeds == recipe.seeds[:2]


def test_the_published_rows_are_of_the_projects_recipe_and_can_be_gone_on_from(tmp_path):
    published = ROOT / "docs" / "results" / "rows" / "scaling.jsonl"
    study = Scaling(load_recipe(ScalingRecipe, project_recipe("scaling")), tmp_path, published)
    cells = [(cell.kind, *cell.key.values()) for cell in study.cells()]
    keys = [(type(row), *(getattr(row, name) for name in key_of(row))) for row in study.rows.all]
    assert len(keys) == len(set(keys)) and set(keys) <= set(cells)


def key_of(row):
    return ["seed", "size", "cell", *(name for name in ("arm", "way") if hasattr(row, name))]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"context_sizes": ["three"]}, "three"),
        ({"best_of": 3, "eval": {"samples": 4}}, "4"),
        ({"contexts": {"pairwise": {"colour": 1}}}, "colour"),
        ({"paths": {"ways": 2}}, "ways"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_by_its_key(tmp_path, changes, named):
    with pytest.raises(InputError, match=named):
        load_recipe(ScalingRecipe, recipe_file(tmp_path, **changes))


def test_an_experiment_without_a_quick_form_says_so(tmp_path):
    done = experiment("judges", project_recipe("judges"), "--quick", "--output", tmp_path)
    assert done.code == 2 and "quick" in done.err


# -- the tables, by hand -----------------------------------------------------------------------------------------------


def judge_run(seed: int, size: str, inside: float, outside: float) -> JudgeRun:
    shares = {"id": [inside] * 4, "early": [0.5] * 4, "ood": [outside] * 4}
    return JudgeRun(
        seed=seed,
        size=size,
        cell="pairwise",
        parameters=10 ** (1 + int(size)),
        pairs=1,
        accuracy=shares,
        untrained=None,
        training_seconds=1,
        seconds=1,
    )


def choice_run(seed: int, size: str, gain: float) -> ChoiceRun:
    key = {"seed": seed, "size": size, "cell": "pairwise", "way": "best of 4"}
    return ChoiceRun(**key, oracle_base=[0.5] * 4, oracle=[0.5 + gain] * 4, seconds=1)


def arm_run(seed: int, size: str, spreads: list[float]) -> ArmRun:
    """One whose reward has these spreads around a half."""
    windows = [Window(step=i, mean=0.5, spread=spread, within=0.1, across=0.1) for i, spread in enumerate(spreads)]
    prompts = dict.fromkeys(
        ("oracle_base", "oracle", "reward_base", "reward", "diversity_base", "diversity"), [0.5] * 4
    )
    run = {"windows": windows, "safeguards": True, "steps": 2, "seconds": 1, "probes": [], "alarms": []}
    return ArmRun(seed=seed, size=size, cell="pairwise", arm="ReFL", **run, **prompts)


def test_a_claim_holds_where_every_seed_agrees_and_not_where_they_differ(tmp_path):
    rows = Rows(tmp_path, KINDS)
    for seed in range(3):
        for size in ("0", "1"):
            better = 0.1 * int(size) + 0.001 * seed * int(size)
            rows.add(judge_run(seed, size, 0.6 - better, 0.5 + better))
            rows.add(choice_run(seed, size, (0.2, -0.2, 0.0)[seed] * int(size)))
    found = {claim.claim: claim.verdict for claim in claims(rows, judge_points(rows), ["0", "1"], ["pairwise"])}
    assert found["accuracy out of domain: 1 over 0"] == "holds"
    assert found["accuracy in domain: 1 over 0"] == "does not"
    assert found["gain of best of 4: 1 over 0"] == "undecided"


def test_what_twice_the_parameters_bring_is_of_the_sizes_that_all_seeds_have(tmp_path):
    rows = Rows(tmp_path, KINDS)
    for seed in range(3):
        for size in range(4 if seed == 0 else 3):  # ten times the parameters each: log2(10) doublings
            rows.add(judge_run(seed, str(size), 0.5, 0.2 + 0.1 * size if size < 3 else 0.0))
            rows.add(choice_run(seed, str(size), 0.01 * seed * size))
    sizes = ["0", "1", "2", "3"]
    found = {claim.claim: claim for claim in claims(rows, judge_points(rows), sizes, ["pairwise"])}
    assert found["accuracy out of domain, per doubling of the parameters"].figure.startswith("+3.0 [")
    assert found["accuracy out of domain, per doubling of the parameters"].verdict == "holds"
    assert found["gain of best of 4, per doubling of the parameters"].verdict == "undecided"
    assert "accuracy out of domain: 2 over 0" in found and "accuracy out of domain: 3 over 2" not in found


def test_what_twice_the_parameters_bring_is_told_without_the_smallest_too(tmp_path):
    rows = Rows(tmp_path, KINDS)
    for seed in range(3):
        for size, accuracy in enumerate((0.9, 0.2, 0.3, 0.4)):
            rows.add(judge_run(seed, str(size), 0.5, accuracy))
    found = {claim.claim: claim for claim in claims(rows, judge_points(rows), ["0", "1", "2", "3"], ["pairwise"])}
    assert found["accuracy out of domain, per doubling of the parameters"].verdict == "does not"
    above = found["accuracy out of domain, per doubling above 0"]
    assert above.figure.startswith("+3.0 [") and above.verdict == "holds"


def test_a_larger_judge_is_asked_whether_its_reward_keeps_its_spread(tmp_path):
    rows = Rows(tmp_path, KINDS)
    for seed in range(3):
        for size in range(3):
            rows.add(judge_run(seed, str(size), 0.5, 0.5))
            rows.add(arm_run(seed, str(size), spreads=[0.3, 0.1 + 0.01 * size]))
    found = {claim.claim: claim for claim in claims(rows, judge_points(rows), ["0", "1", "2"], ["pairwise"])}
    spread = found["spread of the reward at the end of ReFL, per doubling of the parameters"]
    assert spread.figure.startswith("+0.3 [") and spread.verdict == "holds"
    of_room = found["spread of the reward at the end of ReFL, of what its mean allows: 2 over 0"]
    assert of_room.figure.startswith("+4.0 [") and of_room.verdict == "holds"


def test_what_foretells_a_gain_is_found_by_its_ranks():
    rng = np.random.default_rng(0)
    points = []
    for seed in range(5):
        for gain in rng.permutation(4) / 10:
            figures = {"accuracy out of domain": np.exp(gain), "accuracy in domain": rng.random()}
            points.append(JudgePoint(seed, "one", "pairwise", figures, {"ReFL": float(gain)}))
    found = {(own.figure, own.gain): own.rho for own in correlations(points)}
    assert found["accuracy out of domain", "ReFL"].mean == pytest.approx(1)
    noise = found["accuracy in domain", "ReFL"]
    assert noise.low < 0 < noise.high and noise.n == 20
    better = out_over_in(points, "ReFL")
    assert better is not None and better.low > 0
    assert out_over_in(points[:5], "ReFL") is None, "five judges are too few"


def test_a_figure_that_does_not_vary_foretells_nothing():
    assert spearman([1, 1, 1], [1, 2, 3]) == 0
    assert spearman([1, 2, 3], [2, 4, 9]) == pytest.approx(1)


def test_results_hold_claims_and_correlations_as_numbers(whole):
    results = json.loads((whole[0] / "results.json").read_text())
    assert results["done"] == results["cells"] == 3 * 6
    assert all(set(claim) == {"claim", "figure", "verdict"} for claim in results["claims"])
