"""What a person answers: votes, skips, and taking the last one back. Call these within a transaction of the store."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from rewarddance.annotate.store import Store
from rewarddance.errors import InputError

ANSWERS = ("left", "right", "tie", "bad", "skip")
"""tie: equally good; bad: both are; skip: no answer."""
_LONGEST = 3600.0
"""Seconds beyond which a person was away."""


class Refused(InputError):
    """An answer that cannot be taken. lost: the pair is no longer the person's; the page goes on with another."""

    def __init__(self, what: str, remedy: str, lost: bool = False) -> None:
        super().__init__(what, remedy)
        self.lost = lost


def vote(
    store: Store,
    person: int,
    ask: str,
    answer: str,
    criterion: str,
    *,
    criteria: Sequence[str],
    now: float,
    seconds: float | None,
) -> bool:
    """Record an answer; True where it is new, False where the same one is there already.

    criterion: one of `criteria`, which are [""] where there is one question. A pair is done when all have their answer,
    and a skip is the answer to all that are left. seconds: that the person looked at it, by the browser.

    Raises Refused for an answer to what was not asked of this person, for another answer than the one that stands, and
    where the pair was meanwhile handed to somebody else.
    """
    db = store.db
    row = db.execute("SELECT * FROM asks WHERE id = ?", (ask,)).fetchone()
    if row is None or row["person"] != person:
        raise Refused("this pair was not handed to you.", "Reload the page.", lost=True)
    if answer not in ANSWERS or criterion not in criteria:
        raise Refused("this is no answer to the question.", f"Answer {', '.join(ANSWERS)}, to its criteria.")
    stands = "SELECT answer FROM votes WHERE ask = ? AND criterion = ? AND withdrawn IS NULL"
    stored = _as_stored(answer, row["swapped"])
    if (standing := db.execute(stands, (ask, criterion)).fetchone()) is not None:
        if standing["answer"] == stored:
            return False
        raise Refused("this pair has your answer.", "Undo it first.", lost=True)
    if row["state"] == "lapsed":
        _lease_again(db, row)
    time_taken = None if seconds is None else min(max(float(seconds), 0.0), _LONGEST)
    for name in criteria if answer == "skip" else (criterion,):
        if db.execute(stands, (ask, name)).fetchone() is None:
            entry = (ask, name, stored, now, time_taken)
            db.execute("INSERT INTO votes (ask, criterion, answer, at, seconds) VALUES (?, ?, ?, ?, ?)", entry)
    _settle(db, row, len(criteria))
    return True


def last_vote(store: Store, person: int) -> int | None:
    """The number of the person's last answer that stands; None where there is none."""
    stands = "SELECT max(v.id) AS last FROM votes v JOIN asks ON asks.id = v.ask WHERE person = ? AND withdrawn IS NULL"
    return store.db.execute(stands, (person,)).fetchone()["last"]


def undo(store: Store, person: int, number: int | None, now: float) -> str | None:
    """Take back the person's last answer, of this number; returns the id of the pair it was on, which is open again.

    A request that comes twice takes back one answer: where that is not the last one any more, nothing is done. Then,
    and where there is none (None), returns None. Raises Refused where it was a skip and somebody else has the pair by
    now.
    """
    db = store.db
    if number is None or number != last_vote(store, person):
        return None
    last = db.execute("SELECT ask, answer, at FROM votes WHERE id = ?", (number,)).fetchone()
    ask = db.execute("SELECT * FROM asks WHERE id = ?", (last["ask"],)).fetchone()
    if ask["state"] in ("skipped", "lapsed"):  # it had gone back
        _lease_again(db, ask)
    elif ask["state"] == "done":
        _count(db, ask, -1)
    taken_back = "UPDATE votes SET withdrawn = ? WHERE withdrawn IS NULL AND ask = ? AND "
    if last["answer"] == "skip":  # of all criteria that were left
        db.execute(taken_back + "answer = 'skip' AND at = ?", (now, ask["id"], last["at"]))
    else:
        which = "id = (SELECT max(id) FROM votes WHERE ask = ? AND withdrawn IS NULL)"
        db.execute(taken_back + which, (now, ask["id"], ask["id"]))
    first = "SELECT coalesce(min(handed), ?) AS first FROM asks WHERE person = ? AND state = 'open' AND id <> ?"
    earliest = db.execute(first, (now, person, ask["id"])).fetchone()["first"] - 1e-3  # shown before those that wait
    until = now + store.handing_out.lease_seconds
    db.execute("UPDATE asks SET state = 'open', handed = ?, until = ? WHERE id = ?", (earliest, until, ask["id"]))
    return ask["id"]


def progress(store: Store, person: int) -> dict[str, int]:
    """Pairs that the person has voted on, and votes that all have cast and that are wanted."""
    done = store.db.execute("SELECT done FROM people WHERE id = ?", (person,)).fetchone()["done"]
    return {"yours": done, "cast": store.count("votes"), "wanted": store.count("wanted")}


def _as_stored(answer: str, swapped: int) -> str:
    """The answer as it is kept, whichever side a was on: a, b, tie, bad or skip."""
    if answer not in ("left", "right"):
        return answer
    return "b" if (answer == "right") != bool(swapped) else "a"


def _lease_again(db: sqlite3.Connection, ask: sqlite3.Row) -> None:
    """Take up a lapsed lease whose pair nobody else has. Raises Refused where somebody has."""
    free = "SELECT 1 FROM pairs WHERE id = ? AND (taken < wanted OR answer IS NOT NULL)"
    another = "SELECT 1 FROM asks WHERE pair = ? AND person = ? AND state <> 'lapsed' AND id <> ?"
    other_lease = db.execute(another, (ask["pair"], ask["person"], ask["id"])).fetchone()
    if other_lease or not db.execute(free, (ask["pair"],)).fetchone():
        raise Refused("the pair was handed to somebody else meanwhile.", "Go on with the next one.", lost=True)
    db.execute("UPDATE pairs SET taken = taken + 1 WHERE id = ?", (ask["pair"],))
    db.execute("UPDATE asks SET state = 'open' WHERE id = ?", (ask["id"],))


def _settle(db: sqlite3.Connection, ask: sqlite3.Row, criteria: int) -> None:
    """Close a pair all of whose criteria have their answer; one that was only skipped goes back to the others."""
    answers = db.execute("SELECT answer FROM votes WHERE ask = ? AND withdrawn IS NULL", (ask["id"],)).fetchall()
    if len(answers) < criteria:
        return
    skipped = all(row["answer"] == "skip" for row in answers)
    db.execute("UPDATE asks SET state = ? WHERE id = ?", ("skipped" if skipped else "done", ask["id"]))
    if skipped:
        db.execute("UPDATE pairs SET taken = taken - 1 WHERE id = ?", (ask["pair"],))
    else:
        _count(db, ask, 1)


def _count(db: sqlite3.Connection, ask: sqlite3.Row, change: int) -> None:
    """Keep the counts: of the person's pairs, and of all votes, which leaves test pairs out."""
    db.execute("UPDATE people SET done = done + ? WHERE id = ?", (change, ask["person"]))
    counted = "name = 'votes' AND EXISTS (SELECT 1 FROM pairs WHERE id = ? AND answer IS NULL)"
    db.execute(f"UPDATE counts SET value = value + ? WHERE {counted}", (change, ask["pair"]))
