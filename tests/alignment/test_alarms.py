"""Each alarm rings when its sign is there and says so in words; none rings on honest noise."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_refl_training import BANK, RECIPE
from tiny import BrightnessJudge, TinyGenerator, comparing
from tiny_alignment import WatchedJudge, align_by_refl, logged, with_lora

from rewarddance.alignment.alarms import DO, AlarmLog, AlarmMonitor, AlarmRecipe
from rewarddance.alignment.refl import refl_step
from rewarddance.alignment.safeguards import disagreeing
from rewarddance.runtime.tracking import Metrics
from rewarddance.types import Verdict

STEPS, N = 60, 16
LOOKS = {  # mean, deviation of pictures, deviation of steps: of the quickstart's seed 0, first 16 steps
    "brightness": (0.0936, 0.0272, 0.0086),
    "saturation": (0.0876, 0.0416, 0.0159),
    "sharpness": (0.0221, 0.0150, 0.0068),
    "contrast": (0.1130, 0.0596, 0.0276),
    "high_frequencies": (0.1009, 0.0322, 0.0189),
}


def honest(seed: int, steps: int = STEPS) -> list[dict[str, float]]:
    """A run that learns: the margin, the held-out judge's and sharpness rise, and all has the quickstart's noise."""
    rng = np.random.default_rng(seed)
    rows = []
    for step in range(steps):
        rise, prompts = step / steps, rng.normal()
        margin = rise + 0.5 * prompts
        row = {"margin": margin, "reward": float(1 / (1 + np.exp(-margin)))}
        row["held_out_margin"] = 0.7 * rise + 0.4 * prompts + 0.2 * rng.normal()
        for name, mean, noise in (("spread_within", 0.9, 0.28), ("spread_across", 1.2, 0.27)):
            row[name] = abs(mean + noise * rng.normal())
        for name, mean, noise in (("diversity_within", 0.24, 0.024), ("diversity_across", 0.257, 0.029)):
            row[name] = mean + noise * rng.normal()
        row["velocity_mse"] = 0.09 * rise
        row["source_distance"] = 0.14 + 0.01 * rise + 0.015 * rng.normal()
        row["collapsed"] = float(rng.random() < 0.02) / 8
        for name, (mean, deviation, noise) in LOOKS.items():
            row[name] = mean + noise * rng.normal() + (rise * deviation if name == "sharpness" else 0)
            row[f"{name}_deviation"] = deviation * float(np.exp(0.2 * rng.normal()))
        rows.append(row)
    return rows


def rung(rows: list[dict[str, float]], **changes: Any) -> dict[str, int]:
    """Alarms by name with the step at which each began."""
    monitor, found = AlarmMonitor(AlarmRecipe(**changes)), {}
    for step, row in enumerate(rows, start=1):
        for alarm in monitor.update(step, row):
            found.setdefault(alarm.name, alarm.step)
    return found


def hacked_at(start: int, key: str, change) -> list[dict[str, float]]:
    rows = honest(0)
    return [row if i < start else row | {key: change(row[key], i)} for i, row in enumerate(rows)]


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("spread_within", hacked_at(32, "spread_within", lambda value, _: 0.1 * value)),
        ("spread_across", hacked_at(32, "spread_across", lambda value, _: 0.1 * value)),
        ("diversity_within", hacked_at(32, "diversity_within", lambda value, _: 0.2 * value)),
        ("diversity_across", hacked_at(32, "diversity_across", lambda value, _: 0.2 * value)),
        ("collapse", hacked_at(32, "collapsed", lambda value, _: 0.9)),
        ("drift", hacked_at(32, "high_frequencies", lambda value, _: value + 0.15)),
        ("drift", hacked_at(32, "brightness", lambda value, _: value + 0.1)),
        ("distance", hacked_at(32, "velocity_mse", lambda value, _: value + 0.3)),
        ("untouched", hacked_at(32, "source_distance", lambda value, _: 0.3 * value)),
        ("repainted", hacked_at(32, "source_distance", lambda value, _: 2 * value)),
        ("held_out", hacked_at(0, "held_out_margin", lambda value, i: value - 3 * i / STEPS)),
    ],
)
def test_an_alarm_rings_within_a_window_of_its_sign_and_no_other_does(name, rows):
    found = rung(rows)
    assert list(found) == [name]
    assert 32 <= found[name] <= 32 + N + (12 if name == "held_out" else 0)


def test_distance_waits_for_no_whole_window():
    gone = hacked_at(40, "velocity_mse", lambda value, _: 0.3)
    assert rung(gone) == {"distance": 42}  # two steps of four, at 0.3, lift their mean above 0.15
    assert rung(gone, most_distance=0.31) == {}
    assert rung(hacked_at(6, "velocity_mse", lambda value, _: 0.3))["distance"] == 8
    assert "distance" not in rung(gone, off=("distance",))


def test_what_is_lost_at_once_is_seen_before_two_windows_are_over():
    for name in ("diversity_within", "diversity_across", "spread_within"):
        found = rung(hacked_at(6, name, lambda value, _: 0.1 * value))
        assert set(found) == {name} and 8 <= found[name] <= 10
    slowly = [row | {"diversity_within": row["diversity_within"] * (1 - 0.005 * i)} for i, row in enumerate(honest(2))]
    assert "diversity_within" not in rung(slowly[:50], least_diversity=0.7)


@pytest.mark.parametrize("window", [4, 8, 16])
def test_of_runs_as_noisy_as_their_figure_is_high_few_ring_and_a_true_fall_still_does(window):
    rng = np.random.default_rng(0)
    noisy = rng.exponential(1, (100, 60))
    rang = [rung([{"spread_within": float(value)} for value in run], window=window) for run in noisy]
    assert sum(map(bool, rang)) <= 10
    gone = np.abs(1 + 0.3 * rng.normal(size=(100, 60))) * np.where(np.arange(60) < 20, 1, 0.02)
    found = [rung([{"spread_within": float(value)} for value in run], window=window) for run in gone]
    assert sum(map(bool, found)) >= 98 and all(step <= 20 + window for one in found for step in one.values())


def test_p_that_is_full_while_the_margin_climbs_rings():
    rows = honest(0)
    for i, row in enumerate(rows):
        row["margin"] = 3 + max(0, i - 30) / 8
        row["reward"] = float(1 / (1 + np.exp(-row["margin"])))
    assert "saturation" in rung(rows)
    assert "saturation" not in rung([row | {"margin": 3.0} for row in rows])


def test_four_hundred_honest_runs_ring_in_fewer_than_one_of_a_hundred():
    """The false-alarm rate of all alarms together over runs of 60 steps with the quickstart's noise."""
    rang = [rung(honest(seed)) for seed in range(400)]
    assert sum(map(bool, rang)) < 4, [one for one in rang if one]


def test_an_alarm_rings_once_and_again_only_after_a_window_of_silence():
    rows = honest(1, 150)
    for i, row in enumerate(rows):
        if 40 <= i < 70 or i >= 110:
            row["collapsed"] = 1.0
    monitor = AlarmMonitor(AlarmRecipe())
    steps = [alarm.step for step, row in enumerate(rows, start=1) for alarm in monitor.update(step, row)]
    assert len(steps) == 2 and 40 < steps[0] < 60 and 110 < steps[1] < 130


def test_an_alarm_says_what_it_saw_what_to_do_and_whether_it_stops():
    rows = hacked_at(32, "spread_within", lambda value, _: 0.1 * value)
    monitor = AlarmMonitor(AlarmRecipe(stop_on=("spread_within",)))
    (alarm,) = [alarm for step, row in enumerate(rows, start=1) for alarm in monitor.update(step, row)]
    assert alarm.saw.startswith("spread within a prompt is ") and "% of the first 4 steps'" in alarm.saw
    assert alarm.do == DO["spread_within"] and alarm.stop


def test_what_is_switched_off_or_not_logged_does_not_ring():
    rows = hacked_at(32, "spread_within", lambda value, _: 0.1 * value)
    assert rung(rows, off=("spread_within",)) == {}
    assert rung([{"margin": row["margin"], "reward": row["reward"]} for row in rows]) == {}


def test_alarms_that_are_resumed_at_any_step_ring_alike(tmp_path):
    rows = hacked_at(32, "spread_within", lambda value, _: 0.1 * value)
    metrics = Metrics(tmp_path / "metrics.jsonl")
    whole = AlarmLog(AlarmRecipe(), metrics, "refl", 0)
    for step, row in enumerate(rows, start=1):
        metrics.log("refl", step, **row)
        whole.check(step, row)
    record = (tmp_path / "alarms.jsonl").read_text()
    assert [json.loads(line)["name"] for line in record.splitlines()] == ["spread_within"]
    for first in (5, 33, 50):
        again = AlarmLog(AlarmRecipe(), metrics, "refl", first)
        for step, row in enumerate(rows[first:], start=first + 1):
            again.check(step, row)
        assert (tmp_path / "alarms.jsonl").read_text() == record


def test_an_alarm_that_stops_leaves_the_checkpoint_from_before_its_window(tmp_path):
    alarms = AlarmRecipe(window=4, stop_on=("drift",), most_drift=0.2, sure=0.1)
    recipe = RECIPE.model_copy(update={"alarms": alarms, "steps": 30, "save_every": 2})
    generator = TinyGenerator()
    align_by_refl(generator, BrightnessJudge(), BANK, recipe, tmp_path)
    stopped = [json.loads(line) for line in (tmp_path / "alarms.jsonl").read_text().splitlines()][-1]
    last = max(row["step"] for row in logged(tmp_path) if row["kind"] == "step")
    assert stopped["stop"] and stopped["step"] == last < 30
    good = (last - 4) // 2 * 2
    short = TinyGenerator()
    other = recipe.model_copy(update={"alarms": AlarmRecipe(off=("drift",), stop_on=()), "steps": 30})
    folder = tmp_path / "other"

    with pytest.raises(KeyboardInterrupt):
        align_by_refl(short, WatchedJudge(2 * good), BANK, other, folder)
    kept = load_file(folder / f"checkpoint-{good}" / "ema.safetensors")
    assert all(torch.equal(kept[str(i)], weight) for i, weight in enumerate(generator.lora))


def test_the_last_step_to_be_trusted_is_from_before_the_window_of_the_alarm_itself(tmp_path):
    recipe = AlarmRecipe(window=16, stop_on=("distance",))
    watch = AlarmLog(recipe, Metrics(tmp_path / "metrics.jsonl"), "refl", 0)
    rows = hacked_at(17, "velocity_mse", lambda value, _: 0.5)
    trusted = [watch.check(step, row) for step, row in enumerate(rows[:20], start=1)]
    rang = next(step for step, last in enumerate(trusted, start=1) if last is not None)
    assert trusted[rang - 1] == rang - 4  # a quarter of a window, which is all that distance looks at


# -- the held-out judge ------------------------------------------------------------------------------------------------


def test_what_the_judge_prefers_and_the_held_out_one_does_not_is_disagreement():
    margin, held_out = torch.tensor([1.0, 1.0, -1.0, -1.0]), torch.tensor([1.0, -1.0, 1.0, -1.0])
    assert disagreeing(margin, held_out).tolist() == [False, True, False, False]


@pytest.mark.parametrize(("gate", "moved"), [(True, False), (False, True)])
def test_samples_the_held_out_judge_disagrees_about_send_no_gradient(gate, moved):
    generator, weights = with_lora()
    recipe = RECIPE.model_copy(update={"gate": gate, "loss": "linear"})

    @comparing
    def never(questions):
        return Verdict(-torch.ones(len(questions)))

    figures = refl_step(generator, BrightnessJudge(bias=9.0), BANK, recipe, seed=0, step=0, held_out=never)
    assert figures["disagreeing"] == 1.0 and figures["held_out_margin"] == -1.0
    assert any(one.grad is not None and one.grad.abs().sum() > 0 for one in weights) == moved


def test_a_held_out_judge_that_agrees_changes_nothing():
    gradients = []
    for held_out in (None, BrightnessJudge(bias=9.0)):
        generator, weights = with_lora()
        refl_step(generator, BrightnessJudge(), BANK, RECIPE, seed=0, step=0, held_out=held_out)
        gradients.append([one.grad.clone() for one in weights])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
