"""Runs of the main job put together over seeds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_grid import experiment

from experiments.intervals import interval_over_seeds, intervals_over_seeds
from rewarddance.evaluation.statistics import Interval, interval
from rewarddance.jobs.quickstart import QuickstartRecipe
from rewarddance.runtime.config import save_recipe


def figure(mean: float, half: float = 0.02) -> dict[str, Any]:
    return Interval(mean, mean - half, mean + half, 10)._asdict()


def finished(folder: Path, seed: int, gain: float, task: str = "t2v", gsb: bool = True, **keys: Any) -> Path:
    """A run's config.yaml and summary.json with figures of our own."""
    folder.mkdir()
    save_recipe(QuickstartRecipe.model_validate({"seed": seed, "task": task, **keys}), folder / "config.yaml")
    arms = {"sft": figure(0.4), "best_of_n": figure(0.6), "refl": figure(0.4 + gain)}
    better = {"good": 30, "same": 60, "bad": 10, "gsb": figure(0.2)}
    summary = {
        "name": folder.name,
        "seed": seed,
        "task": task,
        "machine": "one",
        "n": 8,
        "judge": {f"{when}_{test}": figure(0.8) for when in ("accuracy", "untrained") for test in ("id", "ood")},
        "oracle": {**arms, "gain_best_of_n": figure(0.2), "gain_refl": figure(gain)},
        "by_category": {"direction": arms, "size_change": arms},
        "quality": arms,
        "correct": arms,
        "reward": arms,
        "diversity": {"sft": figure(0.2), "refl": figure(0.15)},
        "hacking": {"hacked": False, "sentence": "It was not."},
        "seconds": 600.0,
        "seconds_by_stage": {},
        "cpu_seconds_by_stage": {"judge": 200.0, "refl": 300.0},
        "peak_memory_gib": 1.0,
    }
    if gsb:
        summary["gsb"] = better | {"by_category": {"direction": better}}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_each_seed_has_its_line_and_all_have_one(tmp_path):
    runs = [finished(tmp_path / f"run{seed}", seed, 0.05 + 0.01 * seed) for seed in (2, 0, 1)]
    done = experiment("seeds", *runs)
    assert done.code == 0, done.err
    lines = [line for line in done.out.splitlines() if line.startswith("|")]
    table = dict(zip(cells(lines[0]), zip(*map(cells, lines[2:6]), strict=True), strict=True))
    assert table[""] == ("seed 0", "seed 1", "seed 2", "all seeds")
    assert table["ReFL"][:3] == ("+5.0 [+3.0, +7.0]", "+6.0 [+4.0, +8.0]", "+7.0 [+5.0, +9.0]")
    assert table["ReFL"][3] == "+6.0 [+3.5, +8.5]", "4.303 x 1 / sqrt 3 either way"
    assert table["best of 8"][3] == "+20.0 [+19.0, +21.0]", "seeds that agree are no surer than their prompts"
    assert table["diversity"][3] == "75 %" and table["time"][3] == "10 min 00 s"
    kinds = {cells(line)[0]: cells(line) for line in lines[6:]}
    assert kinds["CPU seconds"][1:] == ["judge", "refl", "all"] and kinds["one"][1:] == ["200", "300", "500"]
    assert kinds["direction"][3] == "46.0 [43.5, 48.5]" and kinds["direction"][4] == "+20.0 [+19.0, +21.0]"
    assert kinds["size change"][4] == "", "where it was not told"


def test_what_went_on_from_refl_has_its_column_and_its_gains_by_layout(tmp_path):
    runs = []
    for seed in (0, 1):
        runs.append(finished(tmp_path / str(seed), seed, 0.03, task="t2i"))
        summary = json.loads((runs[-1] / "summary.json").read_text())
        for group in ("oracle", "quality", "correct", "reward", "diversity"):
            summary[group]["nft"] = figure(0.5)
        summary["diversity"]["nft"] = figure(0.19)
        summary["oracle"]["gain_nft"] = figure(0.08 + 0.02 * seed)
        summary["by_layout"] = {"two objects": {"best_of_n": figure(0.2), "refl": figure(0.03), "nft": figure(0.06)}}
        summary["aligned"] = "nft"
        for arms in summary["by_category"].values():
            arms["nft"] = figure(0.5)
        summary["alarms"] = [{"phase": "nft", "step": 7, "kind": "alarm", "name": "drift"}] if seed else []
        (runs[-1] / "summary.json").write_text(json.dumps(summary))
    lines = [cells(line) for line in experiment("seeds", *runs).out.splitlines() if line.startswith("|")]
    table = dict(zip(lines[0], zip(*lines[2:5], strict=True), strict=True))
    assert table["then DiffusionNFT"][:2] == ("+8.0 [+6.0, +10.0]", "+10.0 [+8.0, +12.0]")
    assert table["alarms"] == ("", "drift at nft 7", "1") and table["diversity"][0] == "95 %"
    layouts = next(i for i, line in enumerate(lines) if line[0] == "gain of then DiffusionNFT")
    assert lines[layouts][1] == "two objects" and lines[layouts + 2][:2] == ["seed 0", "+6.0 [+4.0, +8.0]"]


def test_one_run_is_its_own_table_and_one_without_good_same_bad_has_none(tmp_path):
    done = experiment("seeds", finished(tmp_path / "one", 3, 0.05, gsb=False))
    lines = [cells(line) for line in done.out.splitlines() if line.startswith("|")]
    assert lines[2][0] == "seed 3" and lines[3][:2] == ["", "base"], "no line over seeds"
    assert dict(zip(lines[0], lines[2], strict=True))["good, same, bad"] == ""


def test_runs_that_do_not_belong_together_are_refused_by_name(tmp_path):
    one = finished(tmp_path / "one", 0, 0.05)
    same = finished(tmp_path / "same", 0, 0.05)
    other = finished(tmp_path / "other", 1, 0.05, refl_prompts=7)
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    for second, said in ((same, "the same seed, 0"), (other, "more than their seed"), (unfinished, "is missing")):
        done = experiment("seeds", one, second)
        assert done.code == 2 and said in done.err and second.name in done.err


def test_an_interval_over_seeds_from_intervals_is_that_from_values():
    rng = np.random.default_rng(0)
    values = [rng.normal(mean, 1, 400) for mean in (0.0, 1.0, 3.0)]
    halves = [1.96 * own.std(ddof=1) / 20 for own in values]
    known = [
        Interval(own.mean(), own.mean() - half, own.mean() + half, 400)
        for own, half in zip(values, halves, strict=True)
    ]
    assert intervals_over_seeds(known) == pytest.approx(interval_over_seeds(values))
    assert intervals_over_seeds(known[:1]) == known[0]
    few = [own[:9] - own[:9].mean() for own in values]  # alike by luck: what is left is that of all units
    told = intervals_over_seeds([interval(own) for own in few])
    assert told == pytest.approx(interval_over_seeds(few), abs=1e-6)
    with pytest.raises(ValueError, match="of each seed"):
        intervals_over_seeds([])


def test_parts_of_alignment_that_pull_apart_have_tables_of_their_own(tmp_path):
    runs = []
    for seed in (0, 1):
        runs.append(finished(tmp_path / str(seed), seed, 0.03, task="edit", guidance_scale=None))
        summary = json.loads((runs[-1] / "summary.json").read_text())
        for part, sft in (("following", 0.3), ("keeping", 0.8)):
            arms = {"sft": figure(sft), "best_of_n": figure(0.6), "refl": figure(sft + 0.1 * seed)}
            gains = {"gain_best_of_n": figure(0.2), "gain_refl": figure(0.1 * seed)}
            summary.setdefault("parts", {})[part] = arms | gains
            summary.setdefault("parts_by_category", {})[part] = {"direction": arms}
        (runs[-1] / "summary.json").write_text(json.dumps(summary))
    done = experiment("seeds", *runs)
    assert done.code == 0, done.err
    lines = {cells(line)[0]: cells(line)[1:] for line in done.out.splitlines() if line.startswith("|")}
    assert lines["following"][0].startswith("30.0 [") and lines["keeping"][0].startswith("80.0 [")
    assert lines["keeping"][2].startswith("+5.0 [")
    assert lines["direction, following"][2].startswith("35.0 [")
    assert "size change, keeping" not in lines
