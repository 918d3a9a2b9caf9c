"""Votes of several people: the careless are found out by the votes alone, and not heard."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sets import as_jsonl, put
from tiny import command

from rewarddance.data.preferences import PreferenceSet
from rewarddance.data.votes import weigh, weigh_votes
from rewarddance.errors import InputError


def crowd(careless: int, pairs: int = 600, people: int = 10, each: int = 3, seed: int = 0):
    """Votes on pairs with a known order by people who are right 9 times of 10, or as a coin is."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, pairs)
    accuracy = np.where(np.arange(people) < careless, 0.5, 0.9)
    who = np.stack([rng.choice(people, each, replace=False) for _ in range(pairs)])
    right = rng.random(who.shape) < accuracy[who]
    votes = np.where(right, truth[:, None], 1 - truth[:, None]).astype(float)
    return np.repeat(np.arange(pairs), each), who.ravel(), votes.ravel(), truth


@pytest.mark.parametrize("careless", [2, 4, 6])
def test_who_does_not_look_is_found_out_and_fewer_labels_are_wrong(careless):
    pair, person, vote, truth = crowd(careless)
    found = weigh(pair, person, vote)
    assert found.accuracy[:careless].max() < 0.65 and found.accuracy[careless:].min() > 0.75
    majority = np.bincount(pair, vote) / 3
    wrong, before = np.mean((found.share > 0.5) != truth), np.mean((majority > 0.5) != truth)
    assert wrong < before * 0.85
    sure = np.abs(found.share - 0.5) > 0.4  # and a share means what it says
    assert np.mean((found.share > 0.5)[sure] != truth[sure]) < 0.1


def test_equally_careful_people_are_weighed_alike():
    pair, person, vote, _ = crowd(careless=0)
    found = weigh(pair, person, vote)
    assert np.ptp(found.accuracy) < 0.1
    assert ((found.share > 0.5) == (np.bincount(pair, vote) / 3 > 0.5)).all()


def test_ties_are_no_order_and_say_nothing_of_a_person():
    pair, person = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 0, 2, 0, 3])
    found = weigh(pair, person, np.array([0.5, 0.5, 1.0, 0.5, 0.0, 0.5]))
    assert found.share[0] == 0.5 and found.share[1] > 0.6 and found.share[2] < 0.4
    nine = weigh(np.zeros(10, int), np.arange(10), np.array([0.5] * 9 + [1.0]))
    assert 0.5 < nine.share[0] <= 0.55, "nine ties are not overruled by a tenth vote"
    assert found.accuracy[1] == found.accuracy[2] == found.accuracy[3]
    assert weigh(np.array([0]), np.array([0]), np.array([0.5])).share.tolist() == [0.5]


def test_who_always_says_the_opposite_is_not_turned_around():
    pair, person, vote, _ = crowd(careless=0, each=3, people=4)
    vote = np.where(person == 0, 1 - vote, vote)
    assert weigh(pair, person, vote).accuracy[0] == 0.5


def row(pair: int, who: str, share: float, turned: bool = False, **more) -> dict:
    a, b = f"{2 * pair}.png", f"{2 * pair + 1}.png"
    files = {"media_a": b, "media_b": a} if turned else {"media_a": a, "media_b": b}
    return {"prompt": f"p{pair}"} | files | {"share": 1 - share if turned else share, "annotator": who} | more


@pytest.fixture
def folder(tmp_path) -> Path:
    put(tmp_path, *[f"{n}.png" for n in range(8)])
    return tmp_path


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_votes_become_one_row_a_pair_whichever_side_they_name_first(folder, ending):
    votes = [row(0, "x", 1.0), row(0, "y", 1.0, turned=True), row(1, "x", 0.0, turned=True), row(0, "z", 1.0)]
    votes += [row(1, "y", 0.0), row(2, "z", 0.5), row(0, "x", 1.0), row(0, "x", 0.0, criterion="style")]
    said = weigh_votes(as_jsonl(folder / "votes.jsonl", votes), folder / "new" / f"out.{ending}")
    assert (said["votes"], said["repeated"], said["pairs"], said["voted_on_by_several"]) == (7, 1, 4, 2)
    assert (said["annotators"], said["turned"]) == (3, 0)
    assert {one["annotator"] for one in said["least_accurate"]} == {"x", "y", "z"}
    assert not list((folder / "new").glob(".*"))
    found = PreferenceSet(folder / "new" / f"out.{ending}")
    rows = [found.row(n) for n in range(4)]
    assert [one.prompt for one in rows] == ["p0", "p1", "p2", "p0"] and not any(one.annotator for one in rows)
    assert rows[0].share > 0.95 and rows[1].share > 0.9 and rows[2].share == 0.5 and rows[3].criterion == "style"
    assert rows[1].media_a.name == "3.png"  # as its first row has them


def test_a_pair_keeps_the_reasons_of_the_side_that_is_ahead(folder):
    told = {"reason": "b is red", "reason_swapped": "a is blue"}
    votes = [row(0, "x", 0.0, reason="wrong"), row(0, "y", 1.0, turned=True, **told), row(0, "z", 1.0)]
    votes += [row(1, "x", 0.5, reason="alike"), row(1, "y", 0.5)]
    weigh_votes(as_jsonl(folder / "votes.jsonl", votes), folder / "out.jsonl")
    first, second = map(json.loads, (folder / "out.jsonl").read_text().splitlines())
    assert (first["reason"], first["reason_swapped"]) == ("a is blue", "b is red")
    assert "reason" not in second


def test_what_cannot_be_weighed_is_refused_by_name(folder):
    alone = as_jsonl(folder / "alone.jsonl", [row(0, "x", 1.0), row(1, "y", 0.0)])
    with pytest.raises(InputError, match="votes of several"):
        weigh_votes(alone, folder / "out.jsonl")
    nobody = as_jsonl(folder / "nobody.jsonl", [row(0, "x", 1.0), row(0, "", 1.0)])
    with pytest.raises(InputError, match=r"row 2 of .*no annotator"):
        weigh_votes(nobody, folder / "out.jsonl")
    with pytest.raises(InputError, match="no table"):
        weigh_votes(alone, folder / "out.csv")
    with pytest.raises(InputError, match="exists"):
        weigh_votes(nobody, alone)
    assert not (folder / "out.jsonl").exists()


def test_the_command_says_who_is_not_heard(folder):
    rng, votes = np.random.default_rng(0), []
    put(folder, *[f"{n}.png" for n in range(80)])
    for pair in range(40):
        votes += [row(pair, who, 1.0) for who in ("a", "b", "c")] + [row(pair, "coin", float(rng.integers(2)))]
    as_jsonl(folder / "votes.jsonl", votes)
    done = command("data", "weigh", folder / "votes.jsonl", "--output", folder / "out.jsonl")
    assert done.code == 0, done.err
    said = json.loads(done.out)
    assert said["least_accurate"][0]["annotator"] == "coin" and said["pairs"] == 40
    again = command("data", "weigh", folder / "votes.jsonl", "--output", folder / "out.jsonl")
    assert again.code == 2 and "exists" in again.err
