"""Algorithms at equal seconds: the same after a kill, tuned alike, steps by the clock, figures from the rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from snippets import ROOT
from tiny import generator_folder, judge_folder
from tiny_grid import experiment, project_recipe, rows_of, with_rows, write_recipe

from experiments import algorithms, aligned_runs
from experiments.algorithms import Algorithms, AlgorithmsRecipe, distance_from_base
from experiments.algorithms_table import AlgorithmRun, Pace, TuningRun, best_factors, front, points_of
from experiments.aligned_runs import AlarmRecord, Probe, Stopwatch, seconds_of_steps
from experiments.grid import Rows
from experiments.judge_choices import JudgeAccuracy, poisoned
from rewarddance.data.preferences import PreferenceSet
from rewarddance.errors import InputError, RewardError
from rewarddance.generators.pipelines import load_generator
from rewarddance.reward.loading import load_reward
from rewarddance.runtime.config import load_recipe, parse_recipe
from rewarddance.shapeworld.tasks import PICTURES

LOOP = {"prompts_per_step": 2, "group_size": 2, "learning_rate": 0.01, "lora_rank": 2, "lora_alpha": 2}
JUDGED = {"prompts": 2, "references": {"candidates": 3}}
METHODS = {
    "ReFL": {"algorithm": "refl", **JUDGED, "refl": LOOP | {"grad_step_range": [0.3, 0.9]}},
    "AWM": {"algorithm": "awm", "prompts": 3, "awm": LOOP | {"levels": 1}},
    "DPO": {"algorithm": "dpo", "dpo": LOOP},
}


def recipe_file(folder: Path, **changes: Any) -> Path:
    content = {
        "seeds": [3],
        "generator": str(generator_folder()),
        "num_inference_steps": 3,
        "preferences": {"train_prompts": 4, "samples": 2, "pairs": 4, "id_prompts": 4, "test_pairs": 3, "overlaid": 0},
        "judge": {"base": str(judge_folder()), "instruction": "t2i-brief", "learning_rate": 1e-3, "batch_size": 8},
        "judges": {"good": {"rewards": {3: str(judge_folder())}}, "poisoned": {"poisoned": 0.5}},
        "methods": METHODS,
        "seconds": [50],
        "tuning": {"seeds": [1], "seconds": 30, "factors": [0.5, 1], "prompts": 6},
        "pilot": 1,
        "eval": {"prompts": 6, "samples": 2, "probes": 2, "probe_prompts": 6, "probe_samples": 2},
    }
    return write_recipe(folder, content | changes)


def key(row: Any) -> tuple[Any, ...]:
    return (row.method, row.factor) if isinstance(row, TuningRun) else (row.seed, row.judge, row.budget, row.method)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("algorithms")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(algorithms, "seconds_of_steps", lambda *_, **__: (10.0, 10.0))
        methods = {name: METHODS[name] for name in ("ReFL", "DPO")}
        done = experiment("algorithms", recipe_file(folder, methods=methods), "--output", folder / "out")
    assert done.code == 0, done.err
    return folder / "out"


def test_each_method_is_tuned_and_then_runs_by_judge_and_budget(whole):
    rows = Rows(whole, Algorithms.row_kinds)
    tuned = [(name, factor) for name in ("ReFL", "DPO") for factor in (0.5, 1.0)]
    assert [key(row) for row in rows.of(TuningRun)] == tuned
    names = ("ReFL", "DPO")
    expected = [(3, judge, 50.0, name) for judge in ("good", "poisoned") for name in names]
    assert [key(row) for row in rows.of(AlgorithmRun)] == expected, "the votes differ, and so does DPO"
    best = best_factors(rows)
    for row in rows.of(AlgorithmRun):
        assert row.steps == 4 and row.learning_rate == 0.01 * best[row.method]
        assert len(row.oracle) == len(row.layouts) == 6 and row.distance > 0 and row.memory > 0.05
        seconds = [probe.seconds for probe in row.probes]
        assert seconds == sorted(seconds) and row.seconds > 0
        assert row.probes[0].oracle == pytest.approx(np.mean(row.oracle_base), abs=1e-5)  # the same pictures
    assert len({tuple(row.oracle_base) for row in rows.of(AlgorithmRun)}) == 1
    assert {row.pairs for row in rows.of(JudgeAccuracy, judge="good", seed=3)} == {None}
    assert {row.seed for row in rows.of(Pace)} == {1, 3}, "of the first judge under the seed of the tuning"
    text = (whole / "algorithms.md").read_text()
    assert "Unfinished" not in text and "## The judge poisoned, 50 seconds" in text and "## The tuning" in text
    assert "<svg" in (whole / "algorithms.svg").read_text()


def test_a_killed_comparison_goes_on_to_the_same_rows(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(algorithms, "seconds_of_steps", lambda *_, **__: (10.0, 10.0))
    probe_now, calls = aligned_runs.probe_now, []

    def interrupt(*arguments):
        calls.append(1)
        if len(calls) == 5:  # in the midst of the second run
            raise KeyboardInterrupt
        return probe_now(*arguments)

    content = yaml.safe_load(recipe_file(tmp_path).read_text())
    fewer = {"judges": {"good": content["judges"]["good"]}, "methods": {"ReFL": content["methods"]["ReFL"]}}
    path, out = recipe_file(tmp_path, **fewer), tmp_path / "out"
    monkeypatch.setattr(aligned_runs, "probe_now", interrupt)
    assert experiment("algorithms", path, "--output", out).code == 130
    assert "Unfinished: 1 of 3 cells" in (out / "algorithms.md").read_text()
    monkeypatch.setattr(aligned_runs, "probe_now", probe_now)
    assert experiment("algorithms", path, "--output", out).code == 0
    again, once = (_timeless(rows_of(folder, Algorithms.row_kinds)) for folder in (out, whole))
    assert len(again) == 3 + 1 + 2 and all(row in once for row in again)
    changed = experiment("algorithms", path, "pilot=2", "--output", out)
    assert changed.code == 2 and "pilot = 1, not 2" in changed.err


def _timeless(rows: list[dict]) -> list[dict]:
    for row in rows:
        row.pop("memory", None)
        for probe in row.get("probes", ()):
            del probe["seconds"]
    return rows


def test_the_seconds_before_a_run_and_of_a_step_are_measured(tmp_path):
    config = load_recipe(AlgorithmsRecipe, recipe_file(tmp_path)).methods["ReFL"]
    generator, judge = load_generator(str(generator_folder()), 3), load_reward(str(judge_folder()))
    before, each = seconds_of_steps(config, generator, judge, tmp_path / "pace", 3, clock="cpu", pilot=1)
    assert before > 0 and each > 0


def test_a_stopwatch_leaves_out_what_it_is_stopped_for():
    now = [0.0]
    watch = Stopwatch(lambda: now[0], before=5.0)
    now[0] = 2.0
    with watch.stopped():
        now[0] = 100.0
    now[0] = 101.0
    assert watch.seconds() == 8.0


def test_seconds_that_give_no_step_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(algorithms, "seconds_of_steps", lambda *_, **__: (10.0, 10.0))
    recipe = load_recipe(AlgorithmsRecipe, recipe_file(tmp_path, seconds=[15], tuning=None))
    with pytest.raises(InputError, match=r"ReFL takes 10\.0 seconds before its first step and 10\.0 for each"):
        Algorithms(recipe, tmp_path / "out").run()


def test_a_run_that_breaks_is_written_down_and_ends_nothing_else(tmp_path, monkeypatch):
    begun = []

    def breaks(config, *_, **__):
        begun.append(config.chosen.learning_rate)
        raise RewardError("the gradient is not finite.", "Lower learning_rate.")

    monkeypatch.setattr(algorithms, "seconds_of_steps", lambda *_, **__: (10.0, 10.0))
    monkeypatch.setattr(algorithms, "train_once", breaks)
    content = yaml.safe_load(recipe_file(tmp_path).read_text())
    fewer = {"judges": {"good": content["judges"]["good"]}, "methods": {"AWM": content["methods"]["AWM"]}}
    recipe = load_recipe(AlgorithmsRecipe, recipe_file(tmp_path, **fewer))
    text = Algorithms(recipe, tmp_path / "out").run()
    assert begun == [0.005, 0.01, 0.01] and text.count("the gradient is not finite.") == 3
    assert "rate x 0.5" in text and "good, 50 seconds" in text and "Unfinished" not in text
    Algorithms(recipe, tmp_path / "out").run()
    assert len(begun) == 3, "it would break again"


def test_an_untrained_lora_is_at_no_distance_and_a_moved_one_is():
    generator = load_generator(str(generator_folder()), 3)
    weights = generator.add_lora(2, 2)
    prompts = PICTURES.prompts("held_out", 6, 0)
    assert distance_from_base(generator, prompts, 0) == 0
    weights[1].data.fill_(0.5)
    assert distance_from_base(generator, prompts, 0) > 0


def test_a_share_of_the_votes_is_turned_round_and_the_pictures_are_the_same(whole):
    pairs = list(PreferenceSet(whole / "seed3" / "preferences" / "poisoned" / "votes.jsonl"))
    turned = poisoned(pairs, 0.25, 7)
    moved = [a.share != b.share for a, b in zip(pairs, turned, strict=True) if a.share != 0.5]
    assert 0 < sum(moved) <= round(0.25 * len(pairs)) and all(
        a.first is b.first for a, b in zip(pairs, turned, strict=True)
    )
    back = [pair.share for pair in poisoned(turned, 0.25, 7)]
    assert back == pytest.approx([pair.share for pair in pairs])


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"methods": {"a/b": {"algorithm": "refl"}}}, "name of a folder"),
        ({"methods": {"a": {"algorithm": "nft", "refl": {"group_size": 9}}}}, "refl says nothing"),
        ({"eval": {"prompts": 6, "probe_prompts": 9}}, "of 6 prompts, 9 cannot be probed"),
        ({"seconds": [50, 40]}, "rising budgets"),
        ({"tuning": {"seeds": [3], "seconds": 9}}, "seed 3 is both tuned on and reported"),
        ({"judges": {"test": {}}}, "name of the pairs"),
        ({"judges": {"x": {"training": {"colour": 1}}}}, "colour"),
        ({"clock": "sun"}, "clock"),
        ({"ways": {}}, "unknown key 'ways'"),
    ],
)
def test_a_comparison_that_cannot_be_is_refused_by_its_key(tmp_path, changes, what):
    with pytest.raises(InputError, match=what):
        parse_recipe(AlgorithmsRecipe, yaml.safe_load(recipe_file(tmp_path, **changes).read_text()), "tiny.yaml")


# -- figures -----------------------------------------------------------------------------------------------------------


def run_of(seed: int, method: str, gain: float, kind: type = AlgorithmRun, reward: float = 0.15, **own: Any) -> Any:
    base = [0.5, 0.6]
    probes = [Probe(step=s, seconds=s, oracle=0.5 + gain * s / 8, proxy=0.5, diversity=0.2) for s in (0, 4, 8)]
    named = {"judge": "good", "budget": 50.0} if kind is AlgorithmRun else {}
    plain = {"seconds": 100.0, "alarms": [], "learning_rate": 0.01, **named}
    return kind(
        seed=seed, method=method, steps=8, probes=probes, oracle_base=base, layouts=["two objects", "relation"],
        oracle=[value + gain for value in base], reward_base=[0.5, 0.5], reward=[0.5 + reward] * 2,
        diversity_base=[0.2, 0.2], diversity=[0.1, 0.2], distance=0.02, memory=1.0, **plain | own,
    )  # fmt: skip


def test_gains_are_paired_and_compared_with_the_first_method(tmp_path):
    rang = [AlarmRecord(step=4, name="drift", stop=False)]
    runs = [run_of(s, "ReFL", 0.08) for s in (2, 3)]
    runs += [run_of(2, "AWM", 0.05, alarms=rang), run_of(3, "AWM", -0.05)]
    recipe = load_recipe(AlgorithmsRecipe, recipe_file(tmp_path), ["seeds=[2, 3]", "judges={good: {}}"])
    text = with_rows(Algorithms, recipe, tmp_path / "out", runs).write()
    assert "Unfinished: 4 of 12 cells." in text and "DPO" not in text
    refl, awm = (line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith(("| ReFL", "| AWM")))
    assert refl[1:5] == ["2, 3", "0.01", "8", "100"] and refl[6:8] == ["+8.0 [+8.0, +8.0]", ""]
    assert refl[9:] == ["75 %", "+8.0 [+8.0, +8.0]", "0.020", "1.00", "0 of 2", "0 of 2"]
    assert awm[7].startswith("−8.0 [") and awm[-2:] == ["1 of 2", "1 of 2"], "P(yes) up, the oracle down: hacked"
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {point["method"]: point["front_of_seconds"] for point in results["points"]} == {"ReFL": True, "AWM": False}


def test_the_rate_that_gains_most_on_the_tuning_seeds_is_taken(tmp_path):
    rows = Rows(tmp_path, Algorithms.row_kinds)
    for seed, gains in ((1, (0.1, 0.3, 0.0)), (2, (0.1, -0.2, 0.1))):
        for factor, gain in zip((0.3, 1.0, 3.0), gains, strict=True):
            rows.add(run_of(seed, "ReFL", gain, TuningRun, factor=factor))
    rows.add(run_of(1, "AWM", 0.1, TuningRun, factor=0.3))
    rows.add(run_of(1, "AWM", 0.1, TuningRun, factor=1.0))
    assert best_factors(rows) == {"ReFL": 0.3, "AWM": 1.0}


def test_a_point_that_another_beats_in_both_is_not_on_the_front(tmp_path):
    assert front([1, 2, 3, 3], [0.1, 0.3, 0.2, 0.4]) == [True, True, False, True]
    rows = Rows(tmp_path, Algorithms.row_kinds)
    for method, gain, seconds, reward in (("A", 0.1, 10, 0.2), ("B", 0.2, 20, 0.1), ("C", 0.05, 20, 0.3)):
        rows.add(run_of(1, method, gain, seconds=seconds, reward=reward))
    points = {point.method: point for point in points_of(rows)}
    assert [points[name].front_of_seconds for name in "ABC"] == [True, True, False]
    assert [points[name].front_of_reward for name in "ABC"] == [False, True, False]


def test_eight_of_the_algorithms_are_compared_as_among_all_with_the_rates_that_were_tuned(tmp_path):
    every, eight = (load_recipe(AlgorithmsRecipe, project_recipe(name)) for name in ("algorithms", "eight_algorithms"))
    assert eight.seeds == every.seeds and [*eight.methods] == [*every.methods][:8] and [*eight.judges] == ["good"]
    for name, config in eight.methods.items():
        tuned = config.chosen.learning_rate / every.methods[name].chosen.learning_rate
        alike = {"learning_rate": 1} | ({"clip_range": 1e-4} if name == "DGPO" else {})  # as measured; the default rose
        assert round(tuned, 3) in (0.3, 1, 3)
        assert config.with_loop(**alike) == every.methods[name].with_loop(**alike)
    published = ROOT / "docs" / "results" / "rows" / "eight_algorithms.jsonl"
    study = Algorithms(eight, tmp_path, published)
    measured = [(run.seed, run.judge, run.method, run.budget) for run in study.rows.of(AlgorithmRun)]
    assert len(measured) == len(set(measured)) and set(measured) <= {(*cell.key.values(),) for cell in study.cells()}


def test_the_rows_of_eight_tuned_where_they_are_compared_are_whole(tmp_path):
    tuned = load_recipe(AlgorithmsRecipe, project_recipe("eight_algorithms_tuned"))
    assert (
        tuned.tuning is not None
        and (tuned.tuning.seconds,) == tuned.seconds
        and not set(tuned.tuning.seeds) & {*tuned.seeds}
    )
    study = Algorithms(tuned, tmp_path, ROOT / "docs" / "results" / "rows" / "eight_algorithms_tuned.jsonl")
    measured = {(run.seed, run.judge, run.method, run.budget) for run in study.rows.of(AlgorithmRun)}
    assert measured == {(*cell.key.values(),) for cell in study.cells() if cell.kind is AlgorithmRun}


def test_the_recipe_that_comes_along_has_every_algorithm_judge_and_seed(tmp_path):
    recipe = load_recipe(AlgorithmsRecipe, project_recipe("algorithms"))
    used = {config.algorithm for config in recipe.methods.values()}
    assert used == {"refl", "grpo", "nft", "awm", "dgpo", "crd", "online_dpo", "dpo"} and len(recipe.methods) == 19
    assert [*recipe.judges] == ["good", "small", "few", "biased", "poisoned", "regressive"]
    assert recipe.seeds == (70, 71, 72, 73, 74) and len(recipe.seconds) == 3
    assert recipe.tuning is not None and set(recipe.tuning.seeds) <= {4, 5, 6} and len(recipe.tuning.factors) == 3
    study = Algorithms(recipe, tmp_path)
    cells = study.cells()
    repeated = 2 * 3 * 5  # DPO with the judges small and regressive, whose votes are the good one's
    assert len(cells) == 19 * 3 + 19 * 6 * 3 * 5 - repeated and len({str(cell) for cell in cells}) == len(cells)
    first = [cell.key for cell in cells if cell.kind is AlgorithmRun][: 19 * 5]
    assert {(own["judge"], own["budget"]) for own in first} == {("good", recipe.middle)}
    assert [own["seed"] for own in first] == [seed for seed in recipe.seeds for _ in range(19)]
    quick = recipe.quick()
    assert len(quick.methods) == 19 and quick.most_steps == 2 and len(quick.seeds) == 1
