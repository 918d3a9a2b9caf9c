"""Runs made to be hacked and honest ones: cell by cell, and figures that follow from what the runs logged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tiny import clip_folder, command, generator_folder, judge_folder

from experiments.aligned_runs import AlarmRecord, Probe
from experiments.hacking import HackingRecipe, cells, judges_of, windows
from experiments.hacking_table import (
    JudgeRow,
    Row,
    Rows,
    Window,
    claims,
    false_alarms,
    guards,
    markdown,
    said,
    write_tables,
)
from rewarddance.errors import InputError
from rewarddance.runtime.config import load_recipe, parse_recipe

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
        },
        "ways": {
            "bare": refl | {"refl": LOOP | {"grad_step_range": [0.3, 0.9], "velocity_mse": 0}},
            "guarded": refl | {"refl": LOOP | {"grad_step_range": [0.3, 0.9], "velocity_mse": 5.0}},
            "grpo": {"algorithm": "grpo", "prompts": 3, "grpo": LOOP | {"window": 1}},
        },
        "runs": {
            "few-pairs": {"judge": "few", "meant": "hacked", "bare": "bare", "guarded": "guarded", "held_out": "clip"},
            "Flow-GRPO": {"judge": "given", "meant": "honest", "guarded": "grpo"},
        },
        "window": 4,
        "look": {"prompts": 6, "samples": 2, "probes": 2, "probe_prompts": 6, "probe_samples": 2},
    }


def test_the_table_is_made_run_by_run_and_nothing_is_done_twice(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(content(), sort_keys=False))
    done = command("lab", "hacking", path, "--output", tmp_path / "out")
    assert done.code == 0, done.err
    rows = Rows(tmp_path / "out")
    bare, guarded, honest = rows.of(Row)
    assert (bare.run, bare.guarded, guarded.guarded, honest.meant) == ("few-pairs", False, True, "honest")
    assert bare.oracle_base == guarded.oracle_base == honest.oracle_base
    assert [probe.step for probe in bare.probes] == [0, 4, 8]
    assert [window.step for window in bare.windows] == [4, 5, 6, 7, 8] and honest.windows == []
    assert {row.judge: row.pairs for row in rows.of(JudgeRow)} == {"few": 8, "clip": 16, "given": None}
    runs = tmp_path / "out" / "seed3" / "runs"
    logged = [[json.loads(line) for line in (runs / name / "metrics.jsonl").open()] for name in
              ("few-pairs-bare", "few-pairs-guarded")]  # fmt: skip
    assert not any("held_out_margin" in row for row in logged[0]) and any("held_out_margin" in row for row in logged[1])
    assert [*(tmp_path / "out" / "seed3" / "references").iterdir()] != []
    text = (tmp_path / "out" / "hacking.md").read_text()
    assert "Unfinished" not in text and "## Runs made to be hacked" in text and "of 1 runs" in text
    before = (tmp_path / "out" / "rows.jsonl").read_bytes()
    assert command("lab", "hacking", path, "--output", tmp_path / "out").out.strip() == text.strip()
    assert (tmp_path / "out" / "rows.jsonl").read_bytes() == before
    refused = command("lab", "hacking", path, "window=5", "--output", tmp_path / "out")
    assert refused.code == 2 and "window = 4, not 5" in refused.err


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"runs": {"a": {"judge": "nobody", "meant": "honest", "bare": "bare"}}}, "the judge 'nobody'"),
        ({"runs": {"a": {"judge": "few", "meant": "honest", "bare": "up"}}}, "the way 'up'"),
        ({"runs": {"a": {"judge": "few", "meant": "honest"}}}, "bare or guarded"),
        ({"runs": {"a": {"judge": "few", "meant": "honest", "bare": "bare", "held_out": "clip"}}}, "is a safeguard"),
        ({"runs": {"a": {"judge": "few", "meant": "honest", "guarded": "grpo", "held_out": "clip"}}}, "gates ReFL"),
        ({"judges": {"few": {"size": "s", "training": {"kind": "clip", "orders": 3}}}}, "the judge 'few'"),
        ({"judges": {"test": {"size": "s"}}}, "name of the pairs"),
    ],
)
def test_what_cannot_be_is_refused_by_its_name(change, what):
    with pytest.raises(InputError, match=what):
        parse_recipe(HackingRecipe, content() | change, "tiny.yaml")


def test_the_recipe_that_comes_along_has_four_hacks_and_eight_honest_runs():
    recipe = load_recipe(HackingRecipe, Path(__file__).parents[2] / "recipes" / "lab_hacking.yaml")
    todo = cells(recipe)
    meant = {name: run.meant for name, run in recipe.runs.items()}
    assert sum(meant[cell.run] == "honest" for cell in todo) == 8
    hacked = [cell for cell in todo if meant[cell.run] == "hacked"]
    assert len({cell.run for cell in hacked}) == 4 and len(hacked) == 8
    assert judges_of(recipe, 1) == ["honest"] and len(judges_of(recipe, 0)) == len(recipe.judges)
    bare, guarded = recipe.ways["bare"].refl, recipe.ways["guarded"].refl
    assert (bare.learning_rate, bare.steps) == (guarded.learning_rate, guarded.steps)


# -- figures -----------------------------------------------------------------------------------------------------------


def row_of(
    curve: list[float], gain: float = 0.0, rang: int | None = None, windows: tuple[tuple[float, float], ...] = (),
    **own: Any,
) -> Row:  # fmt: skip
    probes = [Probe(step=8 * i, seconds=i, oracle=one, proxy=0.5, diversity=0.2) for i, one in enumerate(curve)]
    base = [0.5, 0.6, 0.55, 0.65]
    told = [Window(step=8 + i, mean=m, spread=s, within=0.5, across=0.5) for i, (m, s) in enumerate(windows)]
    plain = {"run": "r", "guarded": False, "meant": "hacked", "judge": "j", "kind": "pairwise", "size": "large"}
    plain |= {"algorithm": "refl", "seed": 0, "windows": told}
    return Row(
        steps=8 * (len(curve) - 1), seconds=1.0, probes=probes,
        alarms=[] if rang is None else [AlarmRecord(step=rang, name="held_out", stop=False)],
        oracle_base=base, oracle=[one + gain for one in base], reward_base=[0.5] * 4, reward=[0.7, 0.7, 0.8, 0.8],
        diversity_base=[0.2] * 4, diversity=[0.2] * 4, **(plain | own),
    )  # fmt: skip


def test_the_gain_is_lost_where_the_oracle_is_back_at_its_start_after_its_highest():
    row = row_of([0.5, 0.45, 0.6, 0.7, 0.55, 0.5, 0.6], rang=30)
    assert row.peak.step == 24 and row.lost == 40 and row.in_time
    assert not row_of([0.5, 0.7, 0.5], rang=16).in_time  # at that very step the gain was gone
    assert row_of([0.5, 0.7, 0.6]).lost is None and not row_of([0.5, 0.7, 0.6]).in_time
    assert row_of([0.5, 0.4, 0.3]).lost == 8  # nothing was ever gained


def test_false_alarms_are_counted_among_honest_runs_with_an_exact_interval():
    rows = [row_of([0.5, 0.6], meant="honest") for _ in range(8)] + [row_of([0.5, 0.6], rang=8)]
    k, n, share = false_alarms(rows)
    assert (k, n) == (0, 8) and share is not None
    assert share.low == 0 and share.high == pytest.approx(1 - 0.025 ** (1 / 8))
    k, n, share = false_alarms([*rows, row_of([0.5, 0.6], rang=8, meant="honest")])
    assert (k, n) == (1, 9) and share is not None and share.low > 0 and share.mean == pytest.approx(1 / 9)
    assert false_alarms([]) == (0, 0, None)


def test_safeguards_are_compared_prompt_by_prompt_with_the_run_without():
    rows = [row_of([0.5], gain=-0.1), row_of([0.5], gain=0.05, guarded=True), row_of([0.5], run="other")]
    (name, figure), = guards(rows).items()  # fmt: skip
    assert name == "r" and figure.mean == pytest.approx(0.15) and figure.low == pytest.approx(0.15)


def test_the_spread_of_a_window_is_that_of_all_its_samples():
    rng = np.random.default_rng(0)
    samples = rng.uniform(size=(6, 16)) * np.linspace(0.3, 1, 6)[:, None]
    logged = [
        {
            "step": i + 1, "kind": "step", "reward": own.mean(), "spread_of_reward": own.std(),
            "spread_within": 0.1 * i, "spread_across": 0.2,
        }
        for i, own in enumerate(samples)
    ]  # fmt: skip
    found = windows([{"step": 0, "kind": "probe", "oracle": 0.5}, *logged], 4)
    assert [window.step for window in found] == [4, 5, 6]
    assert found[-1].spread == pytest.approx(samples[2:].std()) and found[-1].mean == pytest.approx(samples[2:].mean())
    assert found[-1].within == pytest.approx(0.35)
    assert windows([{"step": 1, "kind": "step", "reward": 0.5}] * 9, 4) == []


def test_the_claim_about_spread_is_told_as_it_stands_and_against_the_mean():
    seeds = range(3)
    shaken = [0.0, 0.002, -0.002]
    large = [row_of([0.5], seed=s, judge="big", windows=((0.5, 0.3), (0.6, 0.20 + shaken[s]))) for s in seeds]
    small = [
        row_of([0.5], seed=s, judge="little", size="small", windows=((0.5, 0.3), (0.98, 0.05 - shaken[s])))
        for s in seeds
    ]
    (one,) = claims([*large, *small])
    assert one.name == "big over little (size)" and one.seeds == 3
    assert said(one.as_it_stands) == "holds" and one.ratios[0] == pytest.approx(4.0, rel=0.01)
    room = 0.2 / np.sqrt(0.24) / (0.05 / np.sqrt(0.98 * 0.02))
    assert one.ratios[1] == pytest.approx(room, rel=0.02)
    (alone,) = claims([large[0], small[0]])
    assert said(alone.as_it_stands) == "undecided (one seed)"
    guarded = [row_of([0.5], judge="big", guarded=True, windows=((0.5, 0.3),)), small[0]]
    assert claims(guarded) == []


def test_kinds_are_compared_at_one_size():
    judges = [("g", "pairwise", "large"), ("r", "regressive", "large"), ("c", "clip", "small")]
    rows = [row_of([0.5], judge=j, kind=k, size=s, windows=((0.5, 0.3),)) for j, k, s in judges]
    assert [one.name for one in claims(rows)] == ["g over r (pairwise over regressive)"]


def test_the_table_tells_every_run_and_reads_its_rows_again(tmp_path):
    rows = Rows(tmp_path)
    rows.add(row_of([0.5, 0.7, 0.4], gain=-0.1, rang=12, windows=((0.5, 0.3), (0.9, 0.1))))
    rows.add(row_of([0.5, 0.6, 0.6], gain=0.05, guarded=True))
    rows.add(row_of([0.5, 0.6], gain=0.05, meant="honest", guarded=True, run="ReFL"))
    rows.add(JudgeRow(seed=0, judge="j", pairs=180, accuracy=0.7))
    rows.add(row_of([0.5, 0.4, 0.3], gain=-0.2, run="fell"))
    text = write_tables(rows, 5, tmp_path)
    assert (
        "Unfinished: 4 of 5 cells." in text
        and "| 8, nothing gained | no | hacked |" in text
        and "False alarms: in 0 of 1 runs" in text
    )
    bare = next(line for line in text.splitlines() if line.startswith("| r | off"))
    assert "+20.0 at 8" in bare and "held out 12" in bare and "| 16 | yes | hacked |" in bare
    assert "| r | +15.0 [+15.0, +15.0] |" in text and "0.900" in text and "| j | 0 | 180 | 70.0 |" in text
    again = Rows(tmp_path)
    assert again.all == rows.all and markdown(again, 5) == text
    assert "<svg" in (tmp_path / "hacking.svg").read_text()
    told = json.loads((tmp_path / "results.json").read_text())
    assert told["runs"][0]["lost"] == 16 and told["runs"][0]["in_time"] and told["false_alarms"]["of"] == 1
