"""Methods at equal seconds: the same after a kill, steps by the clock, figures from the rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from tiny import generator_folder, judge_folder
from tiny_grid import experiment, project_recipe, with_rows, write_recipe

from experiments import aligned_runs, alignment
from experiments.aligned_runs import AlarmRecord, Probe, Stopwatch, seconds_of_steps
from experiments.alignment import Alignment, AlignmentRecipe, MethodRun, Pace
from experiments.grid import Rows
from rewarddance.errors import InputError
from rewarddance.generators.pipelines import load_generator
from rewarddance.reward.loading import load_reward
from rewarddance.runtime.config import load_recipe, parse_recipe

LOOP = {"prompts_per_step": 2, "group_size": 2, "learning_rate": 0.01, "lora_rank": 2, "lora_alpha": 2}


def recipe_file(folder: Path, **changes) -> Path:
    refl = {"algorithm": "refl", "prompts": 2, "references": {"candidates": 3}}
    content = {
        "seeds": [3],
        "generator": str(generator_folder()),
        "num_inference_steps": 3,
        "judges": {3: str(judge_folder())},
        "methods": {
            "ReFL": refl | {"refl": LOOP | {"grad_step_range": [0.3, 0.9]}},
            "Flow-GRPO": {"algorithm": "grpo", "prompts": 3, "grpo": LOOP | {"window": 1, "keep_graph": True}},
            "DiffusionNFT": {"algorithm": "nft", "prompts": 3, "nft": LOOP | {"levels": 1}},
        },
        "seconds": 50,
        "pilot": 1,
        "eval": {"prompts": 6, "samples": 2, "probes": 2, "probe_prompts": 6, "probe_samples": 2},
    }
    return write_recipe(folder, content | changes)


def test_an_interrupted_run_goes_on_from_its_probe_and_all_methods_are_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(alignment, "seconds_of_steps", lambda *_, **__: (10.0, 10.0))  # 4 steps each
    algorithms, probe_now, run_once = [], aligned_runs.probe_now, alignment.run_alignment_once

    def interrupt(*_):
        raise KeyboardInterrupt

    def cut_off(config, *rest, **named):
        algorithms.append(config.algorithm)
        if len(algorithms) == 3:
            monkeypatch.setattr(aligned_runs, "probe_now", interrupt)
        return run_once(config, *rest, **named)

    path, out = recipe_file(tmp_path), tmp_path / "out"
    monkeypatch.setattr(alignment, "run_alignment_once", cut_off)
    assert experiment("alignment", path, "--output", out).code == 130 and algorithms == ["refl", "grpo", "nft"]
    assert "Unfinished: 2 of 3 cells" in (out / "alignment.md").read_text()
    monkeypatch.setattr(aligned_runs, "probe_now", probe_now)
    done = experiment("alignment", path, "--output", out)
    assert done.code == 0, done.err
    rows = Rows(out, Alignment.row_kinds)
    assert [row.method for row in rows.of(MethodRun)] == ["ReFL", "Flow-GRPO", "DiffusionNFT"]
    assert len(rows.of(Pace)) == 3
    for row in rows.of(MethodRun):
        assert row.steps == 4 and [probe.step for probe in row.probes] == [0, 2, 4]
        assert len(row.oracle) == len(row.reward_base) == 6
        seconds = [probe.seconds for probe in row.probes]
        assert seconds == sorted(seconds) and row.seconds > 0
        assert row.probes[0].oracle == pytest.approx(np.mean(row.oracle_base), abs=1e-5)  # the same pictures
    refl, grpo, _ = rows.of(MethodRun)
    assert refl.oracle_base == grpo.oracle_base and refl.oracle != grpo.oracle
    text = (out / "alignment.md").read_text()
    assert "Unfinished" not in text and text.count("| 3 | 4 |") == 3 and done.out.strip() == text.strip()
    changed = experiment("alignment", path, "seconds=60", "--output", out)
    assert changed.code == 2 and "seconds = 50.0, not 60.0" in changed.err


def test_the_seconds_before_a_run_and_of_a_step_are_measured(tmp_path):
    config = load_recipe(AlignmentRecipe, recipe_file(tmp_path)).methods["ReFL"]
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
    monkeypatch.setattr(alignment, "seconds_of_steps", lambda *_, **__: (10.0, 10.0))
    recipe = load_recipe(AlignmentRecipe, recipe_file(tmp_path, seconds=15))
    with pytest.raises(InputError, match=r"ReFL takes 10\.0 seconds before its first step and 10\.0 for each"):
        Alignment(recipe, tmp_path / "out").run()


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"judges": {7: "x"}}, "a judge for seed 7"),
        ({"methods": {"a/b": {"algorithm": "refl"}}}, "name of a folder"),
        ({"methods": {"a": {"algorithm": "nft", "refl": {"group_size": 9}}}}, "refl says nothing"),
        ({"eval": {"prompts": 6, "probe_prompts": 9}}, "of 6 prompts, 9 cannot be probed"),
        ({"clock": "sun"}, "clock"),
        ({"ways": {}}, "unknown key 'ways'"),
    ],
)
def test_a_comparison_that_cannot_be_is_refused_by_its_key(tmp_path, changes, what):
    with pytest.raises(InputError, match=what):
        parse_recipe(AlignmentRecipe, yaml.safe_load(recipe_file(tmp_path, **changes).read_text()), "tiny.yaml")


def run_of(seed: int, method: str, gain: float, alarms: int = 0) -> MethodRun:
    base = [0.5, 0.6]
    probes = [Probe(step=s, seconds=s, oracle=0.5 + gain * s / 8, proxy=0.5, diversity=0.2) for s in (0, 4, 8)]
    return MethodRun(
        seed=seed, method=method, steps=8, seconds=100.0, probes=probes, oracle_base=base,
        oracle=[value + gain for value in base], reward_base=[0.5, 0.5], reward=[0.6, 0.7], diversity_base=[0.2, 0.2],
        diversity=[0.1, 0.2], alarms=[AlarmRecord(step=4, name="drift", stop=False)] * alarms,
    )  # fmt: skip


def test_gains_are_paired_and_compared_with_the_first_method(tmp_path):
    runs = [run_of(s, "ReFL", 0.08) for s in (0, 1)] + [run_of(s, "DiffusionNFT", 0.05, 1 - s) for s in (0, 1)]
    recipe = load_recipe(AlignmentRecipe, recipe_file(tmp_path), ["seeds=[0, 1]", "judges={}"])
    pace = Pace(seed=0, method="ReFL", before=40.0, each=1.0)
    text = with_rows(Alignment, recipe, tmp_path / "out", [pace, *runs]).write()
    assert "Unfinished: 4 of 6 cells." in text and "GRPO" not in text
    refl, nft = (line.split(" | ") for line in text.splitlines() if line.startswith(("| ReFL", "| Diff")))
    assert refl[3:8] == ["100", "40", refl[5], "+8.0 [+8.0, +8.0]", ""]
    assert nft[7].startswith("−3.0 [−3.0") and nft[8].startswith("+0.150 [") and nft[9:] == ["75 %", "1 of 2 |"]
    assert "<svg" in (tmp_path / "out" / "alignment.svg").read_text()


def test_the_recipe_that_comes_along_is_whole():
    recipe = load_recipe(AlignmentRecipe, project_recipe("alignment"))
    assert {config.algorithm for config in recipe.methods.values()} == {"refl", "grpo", "nft"}
    assert len(recipe.seeds) == 3
