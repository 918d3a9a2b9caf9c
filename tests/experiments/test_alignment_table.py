"""Ways to align at equal seconds: cell by cell, nothing twice, steps by the clock, figures from the rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from tiny import command, generator_folder, judge_folder

from experiments import aligned_runs as aligning
from experiments import alignment
from experiments.aligned_runs import AlarmRecord, Probe, Stopwatch
from experiments.alignment import AlignmentRecipe, compare_alignments
from experiments.alignment_table import Pace, Row, Rows, write_tables
from rewarddance.errors import InputError
from rewarddance.runtime.config import load_recipe, parse_recipe

LOOP = {"prompts_per_step": 2, "group_size": 2, "learning_rate": 0.01, "lora_rank": 2, "lora_alpha": 2}


def recipe_file(folder: Path, **changes) -> Path:
    refl = {
        "algorithm": "refl",
        "prompts": 2,
        "references": {"candidates": 3},
        "refl": LOOP | {"grad_step_range": [0.3, 0.9]},
    }
    content = {
        "seeds": [3],
        "generator": str(generator_folder()),
        "num_inference_steps": 3,
        "judges": {3: str(judge_folder())},
        "ways": {
            "ReFL": refl,
            "Flow-GRPO": {"algorithm": "grpo", "prompts": 3, "grpo": LOOP | {"window": 1, "keep_graph": True}},
            "DiffusionNFT": {"algorithm": "nft", "prompts": 3, "nft": LOOP | {"levels": 1}},
        },
        "seconds": 50,
        "pilot": 1,
        "look": {"prompts": 6, "samples": 2, "probes": 2, "probe_prompts": 6, "probe_samples": 2},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content | changes, sort_keys=False))
    return path


def test_the_table_is_made_cell_by_cell_goes_on_after_a_kill_and_ends_alike(tmp_path, monkeypatch):
    monkeypatch.setattr(alignment, "pace", lambda *_: (10.0, 10.0))  # 4 steps each, whatever the machine
    calls, own = [], alignment.run_alignment_once

    def cut_off(way, *rest):
        calls.append(way.algorithm)
        if len(calls) == 3:
            monkeypatch.setattr(aligning, "look_now", stop)
        return own(way, *rest)

    def stop(*_):
        raise KeyboardInterrupt

    look = aligning.look_now
    recipe = load_recipe(AlignmentRecipe, recipe_file(tmp_path))
    monkeypatch.setattr(alignment, "run_alignment_once", cut_off)
    with pytest.raises(KeyboardInterrupt):
        compare_alignments(recipe, tmp_path / "out")
    assert (
        calls == ["refl", "grpo", "nft"] and "Unfinished: 2 of 3 cells" in (tmp_path / "out/alignment.md").read_text()
    )
    monkeypatch.setattr(aligning, "look_now", look)
    monkeypatch.setattr(alignment, "run_alignment_once", own)
    done = command("lab", "alignment", tmp_path / "tiny.yaml", "--output", tmp_path / "out")
    assert done.code == 0, done.err
    rows = Rows(tmp_path / "out")
    assert [(row.seed, row.way) for row in rows.of(Row)] == [(3, way) for way in ("ReFL", "Flow-GRPO", "DiffusionNFT")]
    assert len(rows.of(Pace)) == 3
    for row in rows.of(Row):
        assert row.steps == 4 and [probe.step for probe in row.probes] == [0, 2, 4]
        assert len(row.oracle) == len(row.reward_base) == 6
        seconds = [probe.seconds for probe in row.probes]
        assert seconds == sorted(seconds) and row.seconds > 0
        assert row.probes[0].oracle == pytest.approx(np.mean(row.oracle_base), abs=1e-5)  # the same pictures
    one, other = (rows.first(Row, seed=3, way=way) for way in ("ReFL", "Flow-GRPO"))
    assert one and other and one.oracle_base == other.oracle_base and one.oracle != other.oracle
    text = (tmp_path / "out" / "alignment.md").read_text()
    assert "Unfinished" not in text and text.count("| 3 | 4 |") == 3
    before = (tmp_path / "out" / "rows.jsonl").read_bytes()
    assert command("lab", "alignment", tmp_path / "tiny.yaml", "--output", tmp_path / "out").out.strip() == text.strip()
    assert (tmp_path / "out" / "rows.jsonl").read_bytes() == before
    changed = command("lab", "alignment", tmp_path / "tiny.yaml", "seconds=60", "--output", tmp_path / "out")
    assert changed.code == 2 and "seconds = 50.0, not 60.0" in changed.err


def test_what_a_step_takes_is_measured_and_the_seconds_are_used(tmp_path):
    way = AlignmentRecipe.model_validate(yaml.safe_load(recipe_file(tmp_path).read_text())).ways["ReFL"]
    from rewarddance.generators.pipelines import load_generator
    from rewarddance.reward.loading import load_reward

    generator, judge = load_generator(str(generator_folder()), 3), load_reward(str(judge_folder()))
    before, each = aligning.pace(way, generator, judge, tmp_path / "pace", 3, "cpu", 1)
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
    monkeypatch.setattr(alignment, "pace", lambda *_: (10.0, 10.0))
    recipe = load_recipe(AlignmentRecipe, recipe_file(tmp_path, seconds=15))
    with pytest.raises(InputError, match=r"ReFL takes 10\.0 seconds before its first step and 10\.0 for each"):
        compare_alignments(recipe, tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"judges": {7: "x"}}, "a judge for seed 7"),
        ({"ways": {"a/b": {"algorithm": "refl"}}}, "name of a folder"),
        ({"ways": {"a": {"algorithm": "nft", "refl": {"group_size": 9}}}}, "refl says nothing"),
        ({"look": {"prompts": 6, "probe_prompts": 9}}, "of 6 prompts, 9 cannot be probed"),
        ({"clock": "sun"}, "clock"),
    ],
)
def test_a_comparison_that_cannot_be_is_refused_by_its_key(tmp_path, changes, what):
    with pytest.raises(InputError, match=what):
        parse_recipe(AlignmentRecipe, yaml.safe_load(recipe_file(tmp_path, **changes).read_text()), "tiny.yaml")


def row_of(seed: int, way: str, gain: float, alarms: int = 0) -> Row:
    base = [0.5, 0.6]
    probes = [Probe(step=s, seconds=s, oracle=0.5 + gain * s / 8, proxy=0.5, diversity=0.2) for s in (0, 4, 8)]
    return Row(
        seed=seed, way=way, steps=8, seconds=100.0, probes=probes, oracle_base=base,
        oracle=[one + gain for one in base], reward_base=[0.5, 0.5], reward=[0.6, 0.7], diversity_base=[0.2, 0.2],
        diversity=[0.1, 0.2], alarms=[AlarmRecord(step=4, name="drift", stop=False)] * alarms,
    )  # fmt: skip


def test_gains_are_paired_and_compared_with_the_first_way(tmp_path):
    rows = Rows(tmp_path)
    rows.add(Pace(seed=0, way="ReFL", before=40.0, each=1.0))
    for seed in (0, 1):
        rows.add(row_of(seed, "ReFL", 0.08))
        rows.add(row_of(seed, "NFT", 0.05, alarms=1 - seed))
    text = write_tables(["ReFL", "NFT", "GRPO"], rows, 6, tmp_path)
    assert "Unfinished: 4 of 6 cells." in text and "GRPO" not in text
    refl, nft = (line.split(" | ") for line in text.splitlines() if line.startswith(("| ReFL", "| NFT")))
    assert refl[3:8] == ["100", "40", refl[5], "+8.0 [+8.0, +8.0]", ""]
    assert nft[7].startswith("−3.0 [−3.0") and nft[8].startswith("+0.150 [") and nft[9:] == ["75 %", "1 of 2 |"]
    assert Rows(tmp_path).all == rows.all
    assert "<svg" in (tmp_path / "alignment.svg").read_text()


def test_the_recipe_that_comes_along_is_whole():
    recipe = load_recipe(AlignmentRecipe, Path(__file__).parents[2] / "recipes" / "lab_alignment.yaml")
    assert {way.algorithm for way in recipe.ways.values()} == {"refl", "grpo", "nft"} and len(recipe.seeds) == 3
