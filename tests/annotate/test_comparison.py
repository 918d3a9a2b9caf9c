"""A blind comparison of two models: the rule by which it ends, and its report."""

from __future__ import annotations

import numpy as np
import pytest
from voters import Voter, pair_of, pairs_of, store_of

from rewarddance.annotate.comparison import note_decision, standing
from rewarddance.annotate.report import write_report
from rewarddance.annotate.sources import compared
from rewarddance.annotate.store import Store
from rewarddance.errors import InputError


def ask_people(store: Store, better: float, seed: int = 0) -> int:
    """Pairs until the comparison ends, where the new model is better with this probability."""
    rng, voters = np.random.default_rng(seed), [Voter(store, name) for name in ("anna", "ben")]
    for n in range(1000):
        asks = voters[n % 2].take(float(n))
        if not asks:
            return n
        row = store.db.execute("SELECT * FROM pairs WHERE id = ?", (pair_of(store, asks[0]["id"]),)).fetchone()
        new = row["a"] if row["model_a"] == "new" else row["b"]
        wins = rng.random() < better
        voters[n % 2].answer(asks[0]["id"], "left" if (asks[0]["left"] == new) == wins else "right", float(n))
        with store.transaction():
            note_decision(store)
    raise AssertionError("it did not end")


def test_a_clear_difference_ends_the_comparison_early(tmp_path):
    store = store_of(tmp_path, 200, compare=("new", "old"))
    asked = ask_people(store, 0.85)
    found = standing(store)
    assert asked < 100 and found.decision is not None and found.decision.low > 0 and found.ended
    result = write_report(store.path, tmp_path / "report.html")["comparison"]
    assert result["better"] == "new" and result["decided_after"] == asked
    page = (tmp_path / "report.html").read_text()
    assert "new is better" in page and found.rule in page.replace("&#39;", "'") and "<script" not in page


def test_where_there_is_no_difference_all_pairs_are_asked_and_none_is_found(tmp_path):
    store = store_of(tmp_path, 60, compare=("new", "old"))
    assert ask_people(store, 0.5) >= 60
    found = standing(store)
    assert found.decision is None and found.ended and len(found.moments) == found.planned == 60
    page = write_report(store.path, tmp_path / "report.html")
    assert page["comparison"]["better"] is None and "Undecided" in (tmp_path / "report.html").read_text()


def test_the_rule_is_stated_before_the_first_vote(tmp_path):
    store = store_of(tmp_path, 20, compare=("new", "old"))
    rule = standing(store).rule
    result = write_report(store.path, tmp_path / "report.html")
    assert result["comparison"]["rule"] == rule and "20 pairs" in rule and result["votes"] == 0
    ask_people(store, 0.9)
    assert standing(store).rule == rule


def test_a_comparison_takes_pairs_of_its_models_evenly_over_prompts(tmp_path):
    pairs = pairs_of(tmp_path, 60, models=("new", "old", "other"))
    chosen = compared(pairs, ("new", "old"), 10, seed=0)
    assert len(chosen) == 10 == len({pair.prompt for pair in chosen})
    assert all({pair.model_a, pair.model_b} == {"new", "old"} for pair in chosen)
    with pytest.raises(InputError, match="'nobody'"):
        compared(pairs, ("new", "nobody"), 10, seed=0)
