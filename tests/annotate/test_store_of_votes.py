"""The store of votes: each is there once, pairs that were handed out come back, and nobody gets one twice."""

from __future__ import annotations

import sqlite3
import stat
from collections import Counter

import numpy as np
import pytest
from voters import Voter, pair_of, pairs_of, store_of

from rewarddance.annotate.handing_out import BIG_STICK, take_back
from rewarddance.annotate.recipe import HandingOut
from rewarddance.annotate.store import Store, hashed
from rewarddance.annotate.voting import Refused, last_vote, progress, undo
from rewarddance.errors import InputError


def votes_in(store: Store) -> list[tuple[int, str, str]]:
    """Pair, criterion and answer of all votes that stand."""
    rows = "SELECT pair, criterion, answer FROM votes v JOIN asks ON asks.id = v.ask WHERE withdrawn IS NULL"
    return [tuple(row) for row in store.db.execute(rows)]


def test_a_store_and_what_sqlite_writes_beside_it_are_nobody_elses(tmp_path):
    store = store_of(tmp_path)
    Voter(store, "anna").run(2)
    files = sorted(tmp_path.glob("votes.sqlite*"))
    assert len(files) == 3
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_a_store_keeps_no_token_that_would_let_somebody_in(tmp_path):
    store = store_of(tmp_path)
    token = store.invite("anna")
    store.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert token.encode() not in (tmp_path / "votes.sqlite").read_bytes()
    assert store.people()[hashed(token)].name == "anna"
    again = store.invite("anna")  # the link that went to the wrong person is void
    assert store.people().keys() == {hashed(again)}


def test_people_at_once_never_get_the_same_pair(tmp_path):
    store = store_of(tmp_path, 12)
    asks = [ask for name in ("anna", "ben", "cleo") for ask in Voter(store, name).take(0.0, 4)]
    assert len({pair_of(store, ask["id"]) for ask in asks}) == 12
    assert Voter(store, "dora").take(1.0, 4) == []


def test_a_pair_that_was_not_answered_comes_back(tmp_path):
    store = store_of(tmp_path, 2, lease_seconds=60)
    anna, ben = Voter(store, "anna"), Voter(store, "ben")
    first = anna.take(0.0, 2)
    assert ben.take(59.0, 2) == []
    second = ben.take(61.0, 2)
    assert {pair_of(store, ask["id"]) for ask in second} == {pair_of(store, ask["id"]) for ask in first}
    with pytest.raises(Refused) as refused:
        anna.answer(first[0]["id"], "left", 62.0)
    assert refused.value.lost and votes_in(store) == []


def test_an_answer_that_is_late_counts_where_nobody_else_has_the_pair(tmp_path):
    store = store_of(tmp_path, 2, lease_seconds=60)
    anna = Voter(store, "anna")
    (ask,) = anna.take(0.0)
    with store.transaction() as db:
        take_back(db, 100.0)
    assert store.db.execute("SELECT state FROM asks").fetchone()["state"] == "lapsed"
    assert anna.answer(ask["id"], "left", 101.0)
    assert len(votes_in(store)) == 1 and store.count("votes") == 1
    assert pair_of(store, anna.take(102.0)[0]["id"]) != pair_of(store, ask["id"])


def test_the_same_answer_twice_is_one_vote_and_another_is_refused(tmp_path):
    store = store_of(tmp_path)
    anna = Voter(store, "anna")
    (ask,) = anna.take(0.0)
    assert anna.answer(ask["id"], "left", 1.0) is True
    assert anna.answer(ask["id"], "left", 2.0) is False
    with pytest.raises(Refused):
        anna.answer(ask["id"], "right", 3.0)
    assert len(votes_in(store)) == 1


def test_only_who_was_asked_may_answer_and_only_what_was_asked(tmp_path):
    store = store_of(tmp_path)
    anna, ben = Voter(store, "anna"), Voter(store, "ben")
    (ask,) = anna.take(0.0)
    for person, ident, answer, criterion in (
        (ben, ask["id"], "left", ""),
        (anna, "made-up", "left", ""),
        (anna, ask["id"], "a", ""),
        (anna, ask["id"], "left", "colour"),
    ):
        with pytest.raises(Refused):
            person.answer(ident, answer, 1.0, criterion)
    assert votes_in(store) == []


def test_left_and_right_are_kept_as_the_pairs_own_sides(tmp_path):
    store = store_of(tmp_path, 40)
    anna = Voter(store, "anna")
    for n in range(40):
        (ask,) = anna.take(float(n))
        anna.answer(ask["id"], "left", float(n))
        row = store.db.execute("SELECT * FROM asks JOIN pairs ON pairs.id = pair WHERE asks.id = ?", (ask["id"],))
        pair = row.fetchone()
        kept = store.db.execute("SELECT answer FROM votes WHERE ask = ?", (ask["id"],)).fetchone()["answer"]
        assert pair[kept] == ask["left"]
    assert {answer for _, _, answer in votes_in(store)} == {"a", "b"}


def test_sides_are_balanced_for_each_person(tmp_path):
    store = store_of(tmp_path, 50)
    Voter(store, "anna").run(50)
    row = store.db.execute("SELECT straight, swapped FROM people").fetchone()
    assert row["straight"] + row["swapped"] == 50
    assert abs(row["straight"] - row["swapped"]) <= BIG_STICK


def test_an_undo_takes_the_last_answer_back_and_shows_the_pair_again(tmp_path):
    store = store_of(tmp_path, 3)
    anna = Voter(store, "anna")
    first, second = anna.run(2)
    with store.transaction():
        last = last_vote(store, anna.id)
        assert undo(store, anna.id, last, 5.0) == second
        assert undo(store, anna.id, last, 5.0) is None  # a request that came twice
    assert anna.take(6.0)[0]["id"] == second and store.count("votes") == 1
    anna.answer(second, "right", 7.0)
    with store.transaction():
        assert undo(store, anna.id, last_vote(store, anna.id), 8.0) == second
        assert undo(store, anna.id, last_vote(store, anna.id), 8.0) == first
        assert last_vote(store, anna.id) is None and undo(store, anna.id, None, 8.0) is None
    assert votes_in(store) == [] and store.count("votes") == 0
    assert store.db.execute("SELECT count(*) FROM votes").fetchone()[0] == 3  # what was taken back is not forgotten


def test_a_skipped_pair_goes_to_somebody_else(tmp_path):
    store = store_of(tmp_path, 1)
    anna, ben = Voter(store, "anna"), Voter(store, "ben")
    anna.run(1, "skip")
    assert anna.take(2.0) == [] and store.count("votes") == 0
    assert len(ben.take(3.0)) == 1
    with pytest.raises(Refused), store.transaction():  # ben has it
        undo(store, anna.id, last_vote(store, anna.id), 4.0)


def test_each_criterion_is_answered_and_undone_by_itself(tmp_path):
    store, criteria = store_of(tmp_path, 2, criteria="t2i"), ("colour", "count")
    anna = Voter(store, "anna")
    (ask,) = anna.take(0.0)
    anna.answer(ask["id"], "left", 1.0, "colour", criteria)
    assert anna.take(2.0)[0] == ask | {"answered": ["colour"]}  # a reload goes on in the middle
    assert store.count("votes") == 0
    anna.answer(ask["id"], "tie", 3.0, "count", criteria)
    assert store.count("votes") == 1 and anna.take(4.0)[0]["id"] != ask["id"]
    with store.transaction():
        undo(store, anna.id, last_vote(store, anna.id), 5.0)
    assert anna.take(6.0)[0] == ask | {"answered": ["colour"]}


def test_pairs_of_the_overlap_get_their_votes_from_different_people(tmp_path):
    store = store_of(tmp_path, 40, overlap=0.5, overlap_votes=3)
    voters = [Voter(store, name) for name in ("anna", "ben", "cleo", "dora")]
    for n in range(200):
        voters[n % 4].run(1, start=float(n))
    wanted = Counter(dict(store.db.execute("SELECT id, wanted FROM pairs").fetchall()))
    assert Counter(pair for pair, _, _ in votes_in(store)) == wanted
    assert set(wanted.values()) == {1, 3} and 10 <= list(wanted.values()).count(3) <= 30
    assert store.count("votes") == store.count("wanted") == wanted.total()
    twice = "SELECT 1 FROM asks GROUP BY pair, person HAVING count(*) > 1"
    assert store.db.execute(twice).fetchone() is None


def test_test_pairs_come_to_everybody_and_are_not_counted(tmp_path):
    store = store_of(tmp_path, 20, tests=2, test_every=5)
    for name in ("anna", "ben"):
        Voter(store, name).run(12)
    tests = {row["id"] for row in store.db.execute("SELECT id FROM pairs WHERE answer IS NOT NULL")}
    cast = [pair for pair, _, _ in votes_in(store)]
    assert Counter(pair for pair in cast if pair in tests) == dict.fromkeys(tests, 2)
    assert store.count("votes") == len(cast) - 4 == 20 and store.count("wanted") == 20


def test_progress_counts_a_persons_pairs_and_the_votes_of_all(tmp_path):
    store = store_of(tmp_path, 30)
    anna, ben = Voter(store, "anna"), Voter(store, "ben")
    anna.run(10)
    ben.run(3)
    assert progress(store, anna.id) == {"yours": 10, "cast": 13, "wanted": 30}


def test_a_store_begun_otherwise_is_not_taken_up(tmp_path):
    store_of(tmp_path, 4).close()
    with pytest.raises(InputError, match="votes"):
        Store(tmp_path / "votes.sqlite", HandingOut(overlap=0.0, votes=2))
    again = Store(tmp_path / "votes.sqlite", HandingOut(overlap=0.0, policy="random"))
    assert again.handing_out.policy == "random"
    assert again.add_pairs(pairs_of(tmp_path / "pictures", 4)) == 0  # they are there


def test_a_file_that_is_no_store_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("no store")
    for path in (tmp_path / "notes.txt", tmp_path / "nowhere.sqlite"):
        with pytest.raises(InputError, match=path.name):
            Store(path)


def test_a_database_of_another_program_is_left_as_it_was(tmp_path):
    path = tmp_path / "mine.sqlite"
    with sqlite3.connect(path) as mine:
        mine.execute("CREATE TABLE notes (text TEXT)")
    mine.close()
    before = path.read_bytes()
    for handing_out in (None, HandingOut()):
        with pytest.raises(InputError, match=r"mine\.sqlite is no store"):
            Store(path, handing_out)
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["mine.sqlite"]


# -- policies ----------------------------------------------------------------------------------------------------------


def test_least_voted_gives_every_pair_a_vote_before_any_gets_a_second(tmp_path):
    store = store_of(tmp_path, 10, policy="least_voted", votes=2)
    Voter(store, "anna").run(5)
    Voter(store, "ben").run(5)
    assert set(Counter(pair for pair, _, _ in votes_in(store)).values()) == {1}


def test_random_draws_differ_between_people_and_reach_every_pair(tmp_path):
    store = store_of(tmp_path, 30, policy="random", votes=2)
    anna, ben = (list(map(lambda ask: pair_of(store, ask), Voter(store, name).run(40))) for name in ("anna", "ben"))
    assert sorted(anna) == sorted(ben) == list(range(1, 31)) and anna != ben


def test_the_highest_score_comes_first_and_what_has_none_last(tmp_path):
    store = store_of(tmp_path, 6, policy="least_sure")
    store.set_scores([(2, -0.3), (5, -0.01), (4, -0.1)])
    order = [pair_of(store, ask) for ask in Voter(store, "anna").run(6)]
    assert order[:3] == [5, 4, 2] and sorted(order[3:]) == [1, 3, 6]


def test_a_ranking_asks_about_models_that_are_close_or_unknown(tmp_path):
    store = store_of(tmp_path, 300, models=("a", "b", "c", "d"), policy="ranking")
    strength, rng = {"a": 3.0, "b": 0.2, "c": 0.0, "d": -3.0}, np.random.default_rng(0)
    voter, asked = Voter(store, "anna"), Counter[str]()
    for n in range(120):
        (ask,) = voter.take(float(n))
        pair = store.db.execute("SELECT * FROM pairs WHERE id = ?", (pair_of(store, ask["id"]),)).fetchone()
        asked["".join(sorted((pair["model_a"], pair["model_b"])))] += 1
        better = rng.random() < 1 / (1 + np.exp(strength[pair["model_a"]] - strength[pair["model_b"]]))
        left_is_a = ask["left"] == pair["a"]
        voter.answer(ask["id"], "right" if better == left_is_a else "left", float(n))
    assert asked["bc"] == max(asked.values()) and asked["ad"] == min(asked.values())
