"""Which pair is handed to whom. A pair that was handed out is leased: unanswered, it comes back.

Nobody gets a pair twice, and a pair is out or answered `wanted` times at most, however many people ask at once. Call
these within a transaction of the store.
"""

from __future__ import annotations

import secrets
import sqlite3
from typing import Any

import numpy as np

from rewarddance.annotate.recipe import HandingOut
from rewarddance.annotate.store import Store
from rewarddance.evaluation.bradley_terry import gains

BIG_STICK = 3
"""A person's pairs that were swapped and those that were not differ by so many at most."""
_OPEN = "taken < wanted AND answer IS NULL"
_NEW = "NOT EXISTS (SELECT 1 FROM asks WHERE asks.pair = pairs.id AND person = :person AND state <> 'lapsed')"


def hand_out(store: Store, person: int, count: int, now: float, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Up to `count` pairs for a person, those first that they have already; each as the page shows it."""
    db, rule = store.db, store.handing_out
    take_back(db, now)
    until = now + rule.lease_seconds
    db.execute("UPDATE asks SET until = ? WHERE person = ? AND state = 'open'", (until, person))
    open_asks = "SELECT * FROM asks WHERE person = ? AND state = 'open' ORDER BY handed, id LIMIT ?"
    asks = db.execute(open_asks, (person, count)).fetchall()
    decided = store.get("decided") is not None if rule.compare else False
    for place in range(len(asks), 0 if decided else count):
        pair = _next_test(db, rule, person) or _next_pair(db, rule, person, rng)
        if pair is None:
            break
        swapped = draw_side(db, person, rng)
        ask = secrets.token_urlsafe(12)
        moment = now + place * 1e-6  # the order in which they are shown
        db.execute("INSERT INTO asks VALUES (?, ?, ?, ?, ?, ?, 'open')", (ask, pair, person, swapped, moment, until))
        db.execute("UPDATE pairs SET taken = taken + 1 WHERE id = ?", (pair,))
        db.execute("UPDATE people SET asked = asked + 1 WHERE id = ?", (person,))
        asks.append(db.execute("SELECT * FROM asks WHERE id = ?", (ask,)).fetchone())
    return [shown_ask(db, ask) for ask in asks]


def take_back(db: sqlite3.Connection, now: float) -> None:
    """Let leases that have run out lapse; what was answered of them stays."""
    for ask in db.execute("SELECT id, pair FROM asks WHERE state = 'open' AND until < ?", (now,)).fetchall():
        db.execute("UPDATE asks SET state = 'lapsed' WHERE id = ?", (ask["id"],))
        db.execute("UPDATE pairs SET taken = taken - 1 WHERE id = ?", (ask["pair"],))


def draw_side(db: sqlite3.Connection, person: int, rng: np.random.Generator) -> int:
    """1 where b is shown on the left: a fair coin, unless one side is BIG_STICK ahead (Soares and Wu, 1983)."""
    row = db.execute("SELECT straight, swapped FROM people WHERE id = ?", (person,)).fetchone()
    ahead = row["swapped"] - row["straight"]
    swapped = int(rng.random() < 0.5) if abs(ahead) < BIG_STICK else int(ahead < 0)
    column = "swapped" if swapped else "straight"
    db.execute(f"UPDATE people SET {column} = {column} + 1 WHERE id = ?", (person,))
    return swapped


def shown_ask(db: sqlite3.Connection, ask: sqlite3.Row) -> dict[str, Any]:
    """What the page is told: prompt and opaque ids, left and right. Nothing of models, files or policies."""
    pair = db.execute("SELECT prompt, a, b, image FROM pairs WHERE id = ?", (ask["pair"],)).fetchone()
    sides = (pair["b"], pair["a"]) if ask["swapped"] else (pair["a"], pair["b"])
    voted = db.execute("SELECT criterion FROM votes WHERE ask = ? AND withdrawn IS NULL", (ask["id"],)).fetchall()
    content = {"id": ask["id"], "prompt": pair["prompt"], "left": sides[0], "right": sides[1], "image": pair["image"]}
    return content | {"answered": [row["criterion"] for row in voted]}


# -- policies ----------------------------------------------------------------------------------------------------------


def _next_test(db: sqlite3.Connection, rule: HandingOut, person: int) -> int | None:
    """A test pair that the person has not seen, where it is its turn."""
    asked = db.execute("SELECT asked FROM people WHERE id = ?", (person,)).fetchone()["asked"]
    if asked % rule.test_every != rule.test_every // 2:
        return None
    row = db.execute(
        f"SELECT id FROM pairs WHERE answer IS NOT NULL AND {_NEW} ORDER BY rank LIMIT 1", {"person": person}
    ).fetchone()
    return None if row is None else row["id"]


def _next_pair(db: sqlite3.Connection, rule: HandingOut, person: int, rng: np.random.Generator) -> int | None:
    """The pair that the policy wants next of those that the person has not seen, or None."""
    if rule.overlap_votes > 1 and rng.random() < rule.overlap:  # what others have begun is brought to its end
        row = _first(db, f"{_OPEN} AND taken > 0", "rank", person)
        if row is not None:
            return row
    if rule.policy == "least_voted" and not rule.compare:
        return _first(db, _OPEN, "taken, rank", person)
    if rule.policy in ("least_sure", "disagreement") and (pair := _highest_scored(db, person)) is not None:
        return pair
    if rule.policy == "ranking" and (pair := _most_informative(db, person)) is not None:
        return pair
    start = float(rng.random())
    pair = _first(db, f"{_OPEN} AND rank >= :start", "rank", person, start=start)
    return pair if pair is not None else _first(db, _OPEN, "rank", person)


def _first(db: sqlite3.Connection, where: str, order: str, person: int, **values: Any) -> int | None:
    query = f"SELECT id FROM pairs WHERE {where} AND {_NEW} ORDER BY {order} LIMIT 1"
    row = db.execute(query, {"person": person, **values}).fetchone()
    return None if row is None else row["id"]


def _highest_scored(db: sqlite3.Connection, person: int) -> int | None:
    return _first(db, f"{_OPEN} AND score IS NOT NULL", "score DESC, rank", person)


def _most_informative(db: sqlite3.Connection, person: int) -> int | None:
    """A pair of the two models whose comparison tells most of the ranking, of those that are left for the person."""
    models, wins, waiting = matchups(db)
    if len(models) < 2:
        return None
    gain = gains(wins, waiting)
    order = [divmod(int(place), len(models)) for place in np.argsort(-gain, axis=None, kind="stable")]
    for i, j in order:
        if i < j and (pair := _of_models(db, models[i], models[j], person)) is not None:
            return pair
    return None


def _of_models(db: sqlite3.Connection, first: str, second: str, person: int) -> int | None:
    where = f"{_OPEN} AND model_a = :model_a AND model_b = :model_b"
    pair = _first(db, where, "rank", person, model_a=first, model_b=second)
    return pair if pair is not None else _first(db, where, "rank", person, model_a=second, model_b=first)


def matchups(db: sqlite3.Connection) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The models; how often each beat each [m, m], a tie half for both; and how many votes on each two are awaited."""
    named = "SELECT DISTINCT model_a FROM pairs WHERE model_a <> '' UNION SELECT DISTINCT model_b FROM pairs "
    models = [row[0] for row in db.execute(f"{named} WHERE model_b <> '' ORDER BY 1")]
    place = {model: number for number, model in enumerate(models)}
    wins, waiting = np.zeros((len(models),) * 2), np.zeros((len(models),) * 2)
    counted = (
        "SELECT model_a, model_b, v.answer, count(*) AS n FROM votes v JOIN asks ON asks.id = v.ask "
        "JOIN pairs ON pairs.id = asks.pair WHERE withdrawn IS NULL AND pairs.answer IS NULL "
        "AND v.answer <> 'skip' GROUP BY 1, 2, 3"
    )
    for row in db.execute(counted):
        i, j = place.get(row["model_a"]), place.get(row["model_b"])
        if i is not None and j is not None:
            share = {"a": 0.0, "b": 1.0}.get(row["answer"], 0.5)
            wins[i, j] += (1 - share) * row["n"]
            wins[j, i] += share * row["n"]
    out = "SELECT model_a, model_b FROM asks JOIN pairs ON pairs.id = asks.pair WHERE state = 'open'"
    for row in db.execute(out):
        i, j = place.get(row["model_a"]), place.get(row["model_b"])
        if i is not None and j is not None:
            waiting[i, j] += 1
            waiting[j, i] += 1
    return models, wins, waiting
