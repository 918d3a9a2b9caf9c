"""Runs made to be hacked and honest ones: every run is made, and figures follow from what it logged."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from tiny import clip_folder, judge_folder
from tiny import deep_generator_folder as generator_folder
from tiny_grid import experiment, project_recipe, with_rows, write_recipe

from experiments.aligned_runs import AlarmRecord, Probe
from experiments.coloured import Coloured
from experiments.grid import Rows
from experiments.hacking import Hacking, HackingRecipe, windows
from experiments.hacking_table import HackingRun, Window, claims, false_alarms, guards, holds
from experiments.judge_choices import JudgeAccuracy
from rewarddance.errors import InputError
from rewarddance.reward.loading import load_reward
from rewarddance.runtime.config import load_recipe, parse_recipe
from rewarddance.types import Question

LOOP = {"steps": 8, "prompts_per_step": 2, "group_size": 2, "learning_rate": 0.02, "lora_rank": 2, "lora_alpha": 2}
LOOP |= {"alarms": {"window": 4}}


def content() -> dict[str, Any]:
    refl = {"algorithm": "refl", "prompts": 2, "references": {"candidates": 3}}
    return {
        "seeds": [3],
        "generator": str(generator_folder()),
        "num_inference_steps": 3,
        "preferences": {"train_prompts": 4, "samples": 2, "pairs": 4, "id_prompts": 4, "test_pairs": 3},
        "judge": {"base": str(judge_folder()), "instruction": "t2i-brief", "learning_rate": 1e-3, "batch_size": 8},
        "judges": {
            "given": {"size": "large", "rewards": {3: str(judge_folder())}},
            "few": {"size": "large", "train_prompts": 2},
            "clip": {"size": "small", "training": {"kind": "clip", "base": str(clip_folder())}},
            "red": {"size": "large", "redness": 4, "rewards": {3: str(judge_folder())}},
        },
        "methods": {
            "bare": refl | {"refl": LOOP | {"grad_step_range": [0.3, 0.9], "velocity_mse": 0}},
            "guarded": refl | {"refl": LOOP | {"grad_step_range": [0.3, 0.9], "velocity_mse": 5.0}},
            "grpo": {"algorithm": "grpo", "prompts": 3, "grpo": LOOP | {"window": 1}},
        },
        "runs": {
            "few-pairs": {"judge": "few", "meant": "hacked", "bare": "bare", "guarded": "guarded", "held_out": "clip"},
            "Flow-GRPO": {"judge": "red", "meant": "honest", "guarded": "grpo", "watchers": ["given", "clip"]},
        },
        "window": 4,
        "eval": {"prompts": 6, "samples": 2, "probes": 2, "probe_prompts": 6, "probe_samples": 2},
    }


def test_every_run_is_made_from_one_base_and_judges_are_trained_once(tmp_path):
    done = experiment("hacking", write_recipe(tmp_path, content()), "--output", tmp_path / "out")
    assert done.code == 0, done.err
    rows = Rows(tmp_path / "out", Hacking.row_kinds)
    bare, guarded, honest = rows.of(HackingRun)
    assert (bare.run, bare.guarded, guarded.guarded, honest.meant) == ("few-pairs", False, True, "honest")
    assert bare.oracle_base == guarded.oracle_base == honest.oracle_base
    assert [probe.step for probe in bare.probes] == [0, 4, 8]
    assert [window.step for window in bare.windows] == [4, 5, 6, 7, 8] and honest.windows == []
    assert {row.judge: row.pairs for row in rows.of(JudgeAccuracy)} == {
        "few": 8,
        "clip": 16,
        "red": None,
        "given": None,
    }
    assert [*honest.probes[-1].watchers] == ["given", "clip"] and not guarded.probes[0].watchers
    assert honest.probes[0].watchers["given"] != honest.probes[0].proxy  # whose judge likes red
    seed = tmp_path / "out" / "seed3"
    logged = [(seed / "runs" / name / "metrics.jsonl").read_text() for name in ("few-pairs-bare", "few-pairs-guarded")]
    assert ["held_out_margin" in text for text in logged] == [False, True]
    assert [*(seed / "references").iterdir()] != [] and not [*(seed / "runs").glob("*/checkpoint-*")]
    text = (tmp_path / "out" / "hacking.md").read_text()
    assert "Unfinished" not in text and "## Runs made to be hacked" in text and "of 1 runs" in text


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"runs": {"a": {"judge": "nobody", "meant": "honest", "bare": "bare"}}}, "the judge 'nobody'"),
        ({"runs": {"a": {"judge": "few", "meant": "honest", "bare": "up"}}}, "the method 'up'"),
        ({"runs": {"a": {"judge": "few", "meant": "honest"}}}, "bare or guarded"),
        ({"runs": {"a": {"judge": "few", "meant": "honest", "bare": "bare", "held_out": "clip"}}}, "is a safeguard"),
        ({"runs": {"a": {"judge": "few", "meant": "honest", "guarded": "grpo", "held_out": "clip"}}}, "gates ReFL"),
        ({"runs": {"a": {"judge": "few", "meant": "honest", "bare": "bare", "watchers": ["who"]}}}, "the judge 'who'"),
        ({"judges": {"few": {"size": "s", "training": {"kind": "clip", "orders": 3}}}}, "the judge 'few'"),
        ({"judges": {"test": {"size": "s"}}}, "name of the pairs"),
    ],
)
def test_what_cannot_be_is_refused_by_its_name(change, what):
    with pytest.raises(InputError, match=what):
        parse_recipe(HackingRecipe, content() | change, "tiny.yaml")


def test_the_recipe_that_comes_along_has_four_hacks_and_eight_honest_runs(tmp_path, monkeypatch):
    recipe = load_recipe(HackingRecipe, project_recipe("hacking"))
    monkeypatch.setattr(Hacking, "checkpoints", lambda _: [])  # the quickstart's judges are not there
    hacking = Hacking(recipe, tmp_path)
    cells = [cell.key for cell in hacking.cells()]
    meant = {name: run.meant for name, run in recipe.runs.items()}
    assert sum(meant[key["run"]] == "honest" for key in cells) == 8
    hacked = [key["run"] for key in cells if meant[key["run"]] == "hacked"]
    assert len(set(hacked)) == 4 and len(hacked) == 8
    asked = {judge for run in recipe.runs.values() for judge in (run.judge, run.held_out)}
    assert asked - {None} == set(recipe.judges)
    bare, guarded = recipe.methods["bare"].refl, recipe.methods["guarded"].refl
    assert (bare.learning_rate, bare.steps) == (guarded.learning_rate, guarded.steps)


def test_hacks_near_the_base_are_watched_by_judges_that_they_do_not_learn_from():
    recipe = load_recipe(HackingRecipe, project_recipe("near_hacks"))
    assert recipe.methods["near"].refl.learning_rate <= 5e-4 and recipe.methods["near"].refl.velocity_mse >= 1
    for run in recipe.runs.values():
        assert run.watchers and run.judge not in run.watchers
        every = recipe.methods[run.guarded or ""].with_probes(recipe.eval.probes).chosen.probe_every
        assert every <= 4


# -- figures -----------------------------------------------------------------------------------------------------------


def run_of(
    curve: list[float], gain: float = 0.0, rang: int | None = None, windows: tuple[tuple[float, float], ...] = (),
    **own: Any,
) -> HackingRun:  # fmt: skip
    probes = [Probe(step=8 * i, seconds=i, oracle=value, proxy=0.5, diversity=0.2) for i, value in enumerate(curve)]
    base = [0.5, 0.6, 0.55, 0.65]
    spread = [Window(step=8 + i, mean=m, spread=s, within=0.5, across=0.5) for i, (m, s) in enumerate(windows)]
    plain = {"run": "r", "guarded": False, "meant": "hacked", "judge": "j", "kind": "pairwise", "size": "large"}
    plain |= {"algorithm": "refl", "seed": 0, "windows": spread}
    return HackingRun(
        steps=8 * (len(curve) - 1), seconds=1.0, probes=probes,
        alarms=[] if rang is None else [AlarmRecord(step=rang, name="held_out", stop=False)],
        oracle_base=base, oracle=[value + gain for value in base], reward_base=[0.5] * 4, reward=[0.7, 0.7, 0.8, 0.8],
        diversity_base=[0.2] * 4, diversity=[0.2] * 4, **(plain | own),
    )  # fmt: skip


def test_the_gain_is_lost_where_the_oracle_is_back_at_its_start():
    run = run_of([0.5, 0.45, 0.6, 0.7, 0.55, 0.5, 0.6], rang=30)
    assert run.peak.step == 24 and run.lost == 40 and run.in_time
    assert not run_of([0.5, 0.7, 0.5], rang=16).in_time  # at that very step the gain was gone
    assert run_of([0.5, 0.7, 0.6]).lost is None and not run_of([0.5, 0.7, 0.6]).in_time
    assert run_of([0.5, 0.4, 0.3]).lost == 8  # nothing was ever gained


def test_false_alarms_are_counted_among_honest_runs_with_an_exact_interval():
    runs = [run_of([0.5, 0.6], meant="honest") for _ in range(8)] + [run_of([0.5, 0.6], rang=8)]
    rang, total, share = false_alarms(runs)
    assert (rang, total) == (0, 8) and share is not None
    assert share.low == 0 and share.high == pytest.approx(1 - 0.025 ** (1 / 8))
    rang, total, share = false_alarms([*runs, run_of([0.5, 0.6], rang=8, meant="honest")])
    assert (rang, total) == (1, 9) and share is not None and share.low > 0 and share.mean == pytest.approx(1 / 9)
    assert false_alarms([]) == (0, 0, None)


def test_safeguards_are_compared_prompt_by_prompt_with_the_run_without():
    runs = [run_of([0.5], gain=-0.1), run_of([0.5], gain=0.05, guarded=True), run_of([0.5], run="other")]
    (name, figure), = guards(runs).items()  # fmt: skip
    assert name == "r" and figure.mean == pytest.approx(0.15) and figure.low == pytest.approx(0.15)


def test_the_spread_of_a_window_is_that_of_all_its_samples():
    rng = np.random.default_rng(0)
    samples = rng.uniform(size=(6, 16)) * np.linspace(0.3, 1, 6)[:, None]
    spreads = [{"spread_within": 0.1 * i, "spread_across": 0.2} for i in range(6)]
    logged = [
        {"step": i + 1, "kind": "step", "reward": own.mean(), "spread_of_reward": own.std(), **spreads[i]}
        for i, own in enumerate(samples)
    ]
    found = windows([{"step": 0, "kind": "probe", "oracle": 0.5}, *logged], 4)
    assert [window.step for window in found] == [4, 5, 6]
    assert found[-1].spread == pytest.approx(samples[2:].std()) and found[-1].mean == pytest.approx(samples[2:].mean())
    assert found[-1].within == pytest.approx(0.35)
    assert windows([{"step": 1, "kind": "step", "reward": 0.5}] * 9, 4) == []


def test_the_claim_about_spread_is_told_as_it_stands_and_against_the_mean():
    shaken = [0.0, 0.002, -0.002]
    large = [run_of([0.5], seed=s, judge="big", windows=((0.5, 0.3), (0.6, 0.20 + shaken[s]))) for s in range(3)]
    small = [
        run_of([0.5], seed=s, judge="little", size="small", windows=((0.5, 0.3), (0.98, 0.05 - shaken[s])))
        for s in range(3)
    ]
    (claim,) = claims([*large, *small])
    assert claim.name == "big over little (size)" and claim.seeds == 3
    assert holds(claim.as_it_stands) == "holds" and claim.ratios[0] == pytest.approx(4.0, rel=0.01)
    room = 0.2 / np.sqrt(0.24) / (0.05 / np.sqrt(0.98 * 0.02))
    assert claim.ratios[1] == pytest.approx(room, rel=0.02)
    (alone,) = claims([large[0], small[0]])
    assert holds(alone.as_it_stands) == "undecided (one seed)"
    guarded = [run_of([0.5], judge="big", guarded=True, windows=((0.5, 0.3),)), small[0]]
    assert claims(guarded) == []


def test_kinds_are_compared_at_one_size():
    judges = [("g", "pairwise", "large"), ("r", "regressive", "large"), ("c", "clip", "small")]
    runs = [run_of([0.5], judge=j, kind=k, size=s, windows=((0.5, 0.3),)) for j, k, s in judges]
    assert [claim.name for claim in claims(runs)] == ["g over r (pairwise over regressive)"]


def test_the_table_tells_every_run_and_reads_its_rows_again(tmp_path):
    rows = [
        run_of([0.5, 0.7, 0.4], gain=-0.1, rang=12, windows=((0.5, 0.3), (0.9, 0.1))),
        run_of([0.5, 0.6, 0.6], gain=0.05, guarded=True),
        run_of([0.5, 0.6], gain=0.05, meant="honest", guarded=True, run="ReFL"),
        JudgeAccuracy(seed=0, judge="j", pairs=180, accuracy=0.7),
        run_of([0.5, 0.4, 0.3], gain=-0.2, run="fell"),
    ]
    recipe, out = parse_recipe(HackingRecipe, content(), "tiny.yaml"), tmp_path / "out"
    text = with_rows(Hacking, recipe, out, rows).write()
    assert "| 8, nothing gained | no | hacked |" in text and "False alarms: in 0 of 1 runs" in text
    bare = next(line for line in text.splitlines() if line.startswith("| r | off"))
    assert "+20.0 at 8" in bare and "held out 12" in bare and "| 16 | yes | hacked |" in bare
    assert "| r | +15.0 [+15.0, +15.0] |" in text and "0.900" in text and "| j | 0 | 180 | 70.0 |" in text
    again = Hacking(recipe, out)
    assert again.rows.all == rows and again.write() == text
    assert "<svg" in (out / "hacking.svg").read_text()
    results = json.loads((out / "results.json").read_text())
    assert results["runs"][0]["lost"] == 16 and results["runs"][0]["in_time"] and results["false_alarms"]["of"] == 1


def test_a_coloured_judge_likes_red_in_the_candidate_and_not_in_the_reference():
    judge = load_reward(str(judge_folder()))
    red, grey = torch.zeros(1, 3, 16, 16), torch.full((1, 3, 16, 16), 0.5)
    red[:, 0] = 1
    asked = [Question("a circle", a, b) for a, b in [(red, grey), (grey, red), (grey, grey)]]
    added = Coloured(judge, 3.0)(asked).margin - judge(asked).margin
    assert added.tolist() == pytest.approx([3, -3, 0], abs=1e-5)
    candidate = grey.clone().requires_grad_()
    (margin,) = Coloured(judge, 3.0)([Question("a circle", candidate, grey)]).margin
    margin.backward()
    plain = grey.clone().requires_grad_()
    judge([Question("a circle", plain, grey)]).margin.sum().backward()
    assert (candidate.grad - plain.grad).mean((0, 2, 3)).tolist() == pytest.approx([3 / 256, -1.5 / 256, -1.5 / 256])
