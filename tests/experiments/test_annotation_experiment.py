"""Policies of handing out on random checkpoints: every cell once, the same after a kill; and what the table says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny import generator_folder, judge_folder
from tiny_grid import experiment, project_recipe, rows_of, write_recipe

from experiments.annotation import AnnotationRecipe
from experiments.annotation_table import PolicyRun, annotation_report, gain, saved, slope, verdict
from experiments.preference_head import fit_head
from rewarddance.errors import InputError
from rewarddance.evaluation.statistics import Interval
from rewarddance.runtime.config import load_recipe, parse_recipe

POLICIES = ["random", "least_sure", "disagreement", "ranking"]


def recipe_file(folder: Path) -> Path:
    """A recipe of a few votes, in seconds."""
    content = {
        "seeds": [3],
        "policies": POLICIES,
        "votes": [12, 20],
        "crowds": 1,
        "heads": 2,
        "base": str(judge_folder()),
        "generator": str(generator_folder()),
        "num_inference_steps": 2,
        "preferences": {
            "train_prompts": 4,
            "samples": 2,
            "pairs": 8,
            "id_prompts": 2,
            "ood_prompts": 2,
            "test_pairs": 2,
            "annotators": {"votes": 5, "crowd": 5, "careless": 0.2},
        },
    }
    return write_recipe(folder, content)


def test_every_policy_is_measured_once_and_the_same_after_a_kill(tmp_path):
    recipe, out = recipe_file(tmp_path), tmp_path / "out"
    assert experiment("annotation", recipe, "--output", out).code == 0
    rows = rows_of(out, PolicyRun)
    assert [row["policy"] for row in rows] == POLICIES
    for row in rows:
        assert row["votes"] == [12, 20] and all(0 < pairs <= 20 for pairs in row["pairs"])
        assert all(0 <= share <= 1 for test in ("id", "ood") for own in row["accuracy"][test] for share in own)
    text = (out / "rows.jsonl").read_text()
    (out / "rows.jsonl").write_text("".join(line + "\n" for line in text.splitlines()[:2]))
    assert experiment("annotation", recipe, "--output", out).code == 0
    assert rows_of(out, PolicyRun) == rows
    table = (out / "annotation.md").read_text()
    assert all(policy in table for policy in POLICIES) and "<svg" in (out / "annotation.svg").read_text()
    assert json.loads((out / "results.json").read_text())["done"] == 4


def test_the_recipe_that_comes_along_is_whole():
    recipe = load_recipe(AnnotationRecipe, project_recipe("annotation"))
    assert len(recipe.seeds) == 3 and recipe.preferences.annotators.crowd == 10
    with pytest.raises(InputError, match="random"):
        parse_recipe(AnnotationRecipe, {"policies": ["least_sure", "random"]}, "here")


def made_up(policy: str, seed: int, ahead: float) -> PolicyRun:
    """A policy whose accuracy rises by 5 points with twice the votes, and is `ahead` once it chooses."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 0.001, 40)
    curve = [0.6, 0.65 + ahead, 0.7 + ahead]
    accuracy = {test: [(level + noise).tolist() for level in curve] for test in ("id", "ood")}
    votes, pairs = [50, 100, 200], [50.0, 100.0, 200.0]
    return PolicyRun(
        seed=seed, seconds=1.0, policy=policy, votes=votes, pairs=pairs, wrong=[0.1] * 3, accuracy=accuracy
    )


def test_votes_saved_follow_from_the_gain_and_what_twice_the_votes_bring():
    random, better = (
        [made_up(name, seed, ahead) for seed in range(3)] for name, ahead in (("random", 0.0), ("x", 0.05))
    )
    per_doubling = slope(random, "id")
    assert per_doubling.mean == pytest.approx(0.05, abs=1e-3)
    found = gain(random, better, "id")
    assert found.mean == pytest.approx(0.05, abs=1e-3)
    assert saved(found, per_doubling).mean == pytest.approx(0.5, abs=0.01)  # one doubling ahead: half the votes
    report = annotation_report(["random", "x"], [*random, *better])
    assert report.results["id"]["policies"]["x"]["saved"]["mean"] == pytest.approx(0.5, abs=0.01)


def test_a_policy_that_saves_nothing_is_said_to():
    doubling = Interval(0.05, 0.04, 0.06, 3)
    for better, word in ((Interval(0.0, -0.01, 0.01, 3), "undecided"), (Interval(-0.02, -0.03, -0.01, 3), "none")):
        assert verdict(better, saved(better, doubling)).startswith(word)
    assert "not told" in verdict(
        Interval(0.01, 0.0, 0.02, 3), saved(Interval(0.01, 0.0, 0.02, 3), Interval(0, -1, 1, 3))
    )


def test_a_head_recovers_what_the_votes_were_made_from():
    rng = np.random.default_rng(0)
    w, difference = rng.normal(size=6), rng.normal(size=(4000, 6))
    share = (rng.random(4000) < 1 / (1 + np.exp(-difference @ w))).astype(float)
    assert np.corrcoef(fit_head(difference, share), w)[0, 1] > 0.99
