"""A judge that learns while people vote: its rounds, after a kill too, and what it chooses."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import judge_folder
from voters import Voter, pair_of, store_of

from rewarddance.annotate.cast import read_votes, weighed
from rewarddance.annotate.choosing import disagreement, least_sure
from rewarddance.annotate.learning import LEARNED, LearningPlan, due, learn_round, score_once
from rewarddance.annotate.store import Store
from rewarddance.data.preferences import PreferenceSet
from rewarddance.errors import InputError
from rewarddance.reward.instructions import load_tree
from rewarddance.reward.loading import load_reward
from rewarddance.runtime.checkpoint import newest_complete

TRAINING = {"instruction": "t2i-brief", "batch_size": 4, "save_every": 1, "learning_rate": 1e-3}


def plan_of(store: Store, policy: str = "least_sure", retrain: int = 8) -> LearningPlan:
    folder = store.path.parent / "judges"
    return LearningPlan(
        store=store.path, judge=str(judge_folder()), policy=policy, retrain=retrain, judges=2, training=TRAINING,
        folder=folder,
    )  # fmt: skip


def scores_of(store: Store) -> dict[int, float | None]:
    return dict(store.db.execute("SELECT id, score FROM pairs ORDER BY id").fetchall())


def test_least_sure_is_highest_at_one_half_and_disagreement_where_judges_differ():
    margins = np.array([[0.0, 3.0, 3.0], [0.0, 3.0, -3.0]])
    assert least_sure(margins) == pytest.approx([0.0, 0.5 - 1 / (1 + np.exp(-3.0)), 0.0])
    found = disagreement(margins)
    assert found[:2] == pytest.approx([0.0, 0.0]) and found[2] == found.max() > 0.4


@pytest.mark.parametrize(("policy", "members"), [("least_sure", 1), ("disagreement", 2)])
def test_a_round_trains_scores_what_waits_and_is_then_over(tmp_path, policy, members):
    store = store_of(tmp_path, 20, policy=policy, overlap=0.0)
    anna = Voter(store, "anna")
    assert due(store, 8) is None
    anna.run(9, "right")
    assert due(store, 8) == 8
    plan = plan_of(store, policy)
    reward = learn_round(plan, store, 8)
    assert load_reward(str(reward)) is not None and due(store, 8) is None
    assert len(list((tmp_path / "judges" / f"votes-000008-{store.get('id')}").glob("judge-*"))) == members
    voted = {row["pair"] for row in store.db.execute("SELECT pair FROM asks WHERE state = 'done'")}
    scores = scores_of(store)
    assert {pair for pair, score in scores.items() if score is None} == voted
    best = max((pair for pair in scores if pair not in voted), key=lambda pair: scores[pair])
    assert pair_of(store, anna.take(50.0)[0]["id"]) == best
    assert store.get(LEARNED) == {"votes": 8, "judge": str(reward)}


def test_a_judge_learns_from_votes_by_criteria_the_mean_by_the_trees_weights(tmp_path):
    tree = load_tree("t2i")
    assert sum(tree.leaf_weights.values()) == pytest.approx(1)
    assert tree.leaf_weights["alignment/count"] == pytest.approx(2 / 3 / 5)
    assert tree.leaf_weights["quality/artefacts"] == pytest.approx(1 / 3 * 2 / 3)
    store = store_of(tmp_path, 12, policy="least_sure", overlap=0.0, criteria="t2i")
    anna = Voter(store, "anna")
    plan = plan_of(store)
    score_once(plan, store)
    chosen = max(scores_of(store).items(), key=lambda item: item[1])[0]
    (first,) = anna.take(1.0)
    assert pair_of(store, first["id"]) == chosen  # the judge chooses the pair, and its criteria are asked one by one
    for number, leaf in enumerate(tree.leaves):
        anna.answer(first["id"], "right" if number else "left", 2.0 + number, leaf, tuple(tree.leaves))
    learn_round(plan, store, 1)
    (row,) = PreferenceSet(plan.folder / f"votes-000001-{store.get('id')}" / "votes.jsonl", for_training=True)
    shares = {criterion: share for (_, criterion), share in weighed(read_votes(store)).share.items()}
    assert sorted(set(shares.values())) == [0.25, 0.75]  # one vote by one person is not trusted whole
    assert row.share == pytest.approx(sum(tree.leaf_weights[leaf] * shares[leaf] for leaf in tree.leaves), abs=1e-6)
    assert row.criterion == ""


def test_a_round_that_was_killed_goes_on_with_the_votes_it_began_with(tmp_path, monkeypatch):
    store = store_of(tmp_path, 20, policy="least_sure")
    anna = Voter(store, "anna")
    anna.run(8, "right")
    plan = plan_of(store)
    monkeypatch.setattr(
        "rewarddance.annotate.learning.score_waiting", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        learn_round(plan, store, 8)
    monkeypatch.undo()
    folder = plan.folder / f"votes-000008-{store.get('id')}"
    votes = (folder / "votes.jsonl").read_text()
    assert due(store, 8) == 8 and newest_complete(folder / "judge-0") is None
    anna.run(3, "left", start=60.0)
    learn_round(plan, store, 8)
    assert (folder / "votes.jsonl").read_text() == votes and due(store, 8) is None


def test_before_the_first_round_the_judge_as_it_is_chooses(tmp_path):
    store = store_of(tmp_path, 6, policy="least_sure")
    score_once(plan_of(store), store)
    assert all(score is not None and score <= 0 for score in scores_of(store).values())


def test_a_key_of_the_training_that_there_is_not_is_named(tmp_path):
    plan = plan_of(store_of(tmp_path, 2)).model_copy(update={"training": {"learning_rat": 1}})
    with pytest.raises(InputError, match="learning_rat"):
        plan.recipe  # noqa: B018
