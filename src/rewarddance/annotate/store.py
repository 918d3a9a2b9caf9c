"""The store of votes: one SQLite file, in which a vote that was acknowledged is there, once, whatever is killed.

SQLite in WAL mode with `synchronous=FULL`: a transaction that is committed is on the disk. One thread writes; the
report and a judge that learns read beside it. The file is nobody else's (0600).
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rewarddance.annotate.recipe import HandingOut
from rewarddance.errors import InputError, shown
from rewarddance.runtime.config import parse_recipe

VERSION = 1
_SCHEMA = """
CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE people (
  id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, token TEXT UNIQUE, owner INTEGER NOT NULL DEFAULT 0,
  straight INTEGER NOT NULL DEFAULT 0, swapped INTEGER NOT NULL DEFAULT 0, asked INTEGER NOT NULL DEFAULT 0,
  done INTEGER NOT NULL DEFAULT 0);
CREATE TABLE media (id TEXT PRIMARY KEY, path TEXT NOT NULL UNIQUE, fps REAL) WITHOUT ROWID;
CREATE TABLE pairs (
  id INTEGER PRIMARY KEY, prompt TEXT NOT NULL, a TEXT NOT NULL REFERENCES media, b TEXT NOT NULL REFERENCES media,
  image TEXT REFERENCES media, model_a TEXT NOT NULL, model_b TEXT NOT NULL, source TEXT NOT NULL,
  answer REAL, wanted INTEGER NOT NULL, taken INTEGER NOT NULL DEFAULT 0, rank REAL NOT NULL, score REAL,
  UNIQUE (prompt, a, b, image));
CREATE INDEX open_by_rank ON pairs (rank) WHERE taken < wanted AND answer IS NULL;
CREATE INDEX open_by_votes ON pairs (taken, rank) WHERE taken < wanted AND answer IS NULL;
CREATE INDEX open_by_score ON pairs (score DESC, rank) WHERE taken < wanted AND answer IS NULL;
CREATE INDEX open_by_models ON pairs (model_a, model_b, rank) WHERE taken < wanted AND answer IS NULL;
CREATE INDEX begun ON pairs (rank) WHERE taken < wanted AND taken > 0 AND answer IS NULL;
CREATE INDEX tests ON pairs (rank) WHERE answer IS NOT NULL;
CREATE TABLE asks (
  id TEXT PRIMARY KEY, pair INTEGER NOT NULL REFERENCES pairs, person INTEGER NOT NULL REFERENCES people,
  swapped INTEGER NOT NULL, handed REAL NOT NULL, until REAL NOT NULL, state TEXT NOT NULL) WITHOUT ROWID;
CREATE UNIQUE INDEX once_each ON asks (pair, person) WHERE state <> 'lapsed';
CREATE INDEX waiting ON asks (until) WHERE state = 'open';
CREATE INDEX waiting_of ON asks (person, handed) WHERE state = 'open';
CREATE TABLE votes (
  id INTEGER PRIMARY KEY AUTOINCREMENT, ask TEXT NOT NULL REFERENCES asks, criterion TEXT NOT NULL,
  answer TEXT NOT NULL, at REAL NOT NULL, seconds REAL, withdrawn REAL);
CREATE UNIQUE INDEX one_vote ON votes (ask, criterion) WHERE withdrawn IS NULL;
CREATE TABLE counts (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO counts VALUES ('votes', 0), ('wanted', 0);
"""
_COMPATIBLE = ("policy", "test_every", "lease_seconds")
"""What may be changed of an existing store."""


class Pair(NamedTuple):
    """Two candidates to vote on.

    a, b: files, or folders of frames. image: what both were made from. model_a, model_b: who made them, "" if unknown.
    answer: of a test pair the share of votes for b that is right: 0, 0.5 or 1. fps: of a and b, where it is known.
    """

    prompt: str
    a: Path
    b: Path
    image: Path | None = None
    model_a: str = ""
    model_b: str = ""
    source: str = ""
    answer: float | None = None
    fps: tuple[float | None, float | None] = (None, None)


class Person(NamedTuple):
    """Who votes. owner: may see the report."""

    id: int
    name: str
    owner: bool


class Store:
    """An open store of votes.

    path: is made where it is not there and `handing_out` is given. Raises InputError where it is no store, or was begun
    with other settings.
    """

    def __init__(self, path: Path, handing_out: HandingOut | None = None) -> None:
        self.path, new = path, not path.exists()
        if new and handing_out is None:
            raise InputError(f"there is no store of votes at {path}.", "Begin one with `rewarddance annotate`.")
        try:
            if new:
                path.parent.mkdir(parents=True, exist_ok=True)
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))  # -wal and -shm get its mode
            self.db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
            self.db.row_factory = sqlite3.Row
            known = self._read_version()
            if not known and (handing_out is None or (not new and path.stat().st_size > 0)):
                raise InputError(f"{path} is no store of votes.", "Choose another.")
            self.db.execute("PRAGMA journal_mode=WAL")  # it is written into the file, which by now is ours
            self.db.execute("PRAGMA synchronous=FULL")
            self.db.execute("PRAGMA foreign_keys=ON")
            if handing_out is not None and not known:
                with self.transaction():
                    for statement in _SCHEMA.split(";"):
                        self.db.execute(statement)
                    self.set("version", VERSION)
                    self.set("id", secrets.token_hex(4))
                    self.set("handing_out", handing_out.model_dump(mode="json"))
        except (sqlite3.DatabaseError, OSError) as error:
            raise InputError(f"the store of votes {path} cannot be opened: {error}.", "Choose another.") from error
        self.handing_out = self._settle(handing_out)

    def _read_version(self) -> bool:
        known = self.db.execute("SELECT 1 FROM sqlite_master WHERE name = 'settings'").fetchone()
        version = self.get("version") if known else None
        if version not in (None, VERSION):
            raise InputError(f"{self.path} is a store of version {version}.", f"This version reads {VERSION}.")
        return version is not None

    def _settle(self, wanted: HandingOut | None) -> HandingOut:
        """What is in force: the store's own, with what may be changed taken from `wanted`."""
        kept = parse_recipe(HandingOut, self.get("handing_out"), str(self.path))
        if wanted is None or wanted == kept:
            return kept
        stored, given = kept.model_dump(mode="json"), wanted.model_dump(mode="json")
        for key in given:
            if key not in _COMPATIBLE and stored[key] != given[key]:
                raise InputError(
                    f"{self.path} was begun with {key} = {stored[key]!r}, not {given[key]!r}.",
                    "Choose another --store, or give what it was begun with.",
                )
        with self.transaction():
            self.set("handing_out", given)
        return wanted

    def close(self) -> None:
        self.db.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing; on the disk when the block is left."""
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield self.db
        except BaseException:
            self.db.execute("ROLLBACK")
            raise
        self.db.execute("COMMIT")

    def get(self, key: str) -> Any:
        row = self.db.execute("SELECT value FROM settings WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row["value"])

    def set(self, key: str, value: Any) -> None:
        self.db.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (key, json.dumps(value)))

    def count(self, name: str) -> int:
        """votes: that stand, on all pairs but tests; a pair with several criteria counts once it is done. wanted: in
        all."""
        return self.db.execute("SELECT value FROM counts WHERE name = ?", (name,)).fetchone()["value"]

    # -- people --------------------------------------------------------------------------------------------------------

    def invite(self, name: str, owner: bool = False) -> str:
        """A new token of a person, whose earlier one is void; of the token only its hash is kept."""
        token = secrets.token_urlsafe(24)
        with self.transaction() as db:
            db.execute("INSERT OR IGNORE INTO people (name, owner) VALUES (?, ?)", (name, int(owner)))
            db.execute("UPDATE people SET token = ?, owner = ? WHERE name = ?", (hashed(token), int(owner), name))
        return token

    def uninvite(self, name: str) -> None:
        """A person's link is void; what they voted stays."""
        with self.transaction() as db:
            db.execute("UPDATE people SET token = NULL WHERE name = ?", (name,))

    def admit_local(self) -> Person:
        """The person at this machine, who needs no token."""
        with self.transaction() as db:
            db.execute("INSERT OR IGNORE INTO people (name, owner) VALUES ('local', 1)")
            return Person(db.execute("SELECT id FROM people WHERE name = 'local'").fetchone()["id"], "local", True)

    def people(self) -> dict[str, Person]:
        """Who has a token, by its hash."""
        rows = self.db.execute("SELECT token, id, name, owner FROM people WHERE token IS NOT NULL")
        return {row["token"]: Person(row["id"], row["name"], bool(row["owner"])) for row in rows}

    # -- pairs ---------------------------------------------------------------------------------------------------------

    def add_pairs(self, pairs: Iterable[Pair]) -> int:
        """Add those that are not there yet; returns how many were added. Their order is drawn from the seed.

        Of two alike the first counts. Raises InputError naming a test pair (with an answer) that is one to vote on.
        """
        rule, added = self.handing_out, 0
        with self.transaction() as db:
            rng = np.random.default_rng([rule.seed, db.execute("SELECT count(*) FROM pairs").fetchone()[0]])
            for pair in pairs:
                wanted = rule.overlap_votes if rng.random() < rule.overlap else rule.votes
                image = None if pair.image is None else self._medium(pair.image, None)
                media = (self._medium(pair.a, pair.fps[0]), self._medium(pair.b, pair.fps[1]))
                row = (pair.prompt, *media, image, pair.model_a, pair.model_b, pair.source, pair.answer)
                there = self._find(pair.prompt, *media, image)
                if there is not None and there["answer"] is None and pair.answer is not None:
                    raise InputError(
                        f"the test pair {pair.a} and {pair.b} ({shown(pair.prompt)}) is one that people vote on.",
                        f"Leave it out of the tests, or begin another store than {self.path}.",
                    )
                if there is not None:
                    continue
                db.execute(
                    "INSERT INTO pairs (prompt, a, b, image, model_a, model_b, source, answer, wanted, rank) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (*row, wanted, float(rng.random())),
                )
                added += 1
                if pair.answer is None:
                    db.execute("UPDATE counts SET value = value + ? WHERE name = 'wanted'", (wanted,))
        return added

    def _find(self, prompt: str, a: str, b: str, image: str | None) -> sqlite3.Row | None:
        query = "SELECT answer FROM pairs WHERE prompt = ? AND image IS ? AND ((a = ? AND b = ?) OR (a = ? AND b = ?))"
        return self.db.execute(query, (prompt, image, a, b, b, a)).fetchone()

    def _medium(self, path: Path, fps: float | None) -> str:
        """The opaque id of a file: it says nothing of who made it."""
        name = str(path.resolve())
        self.db.execute("INSERT OR IGNORE INTO media VALUES (?, ?, ?)", (secrets.token_urlsafe(12), name, fps))
        return self.db.execute("SELECT id FROM media WHERE path = ?", (name,)).fetchone()["id"]

    def media(self) -> dict[str, tuple[Path, float | None]]:
        """The file of each opaque id, and its frames a second."""
        return {row["id"]: (Path(row["path"]), row["fps"]) for row in self.db.execute("SELECT * FROM media")}

    def set_scores(self, scores: Sequence[tuple[int, float]]) -> None:
        """How much each pair (by its id) is wanted next, by a judge; pairs not named have none."""
        with self.transaction() as db:
            db.execute("UPDATE pairs SET score = NULL WHERE score IS NOT NULL")
            db.executemany("UPDATE pairs SET score = ? WHERE id = ?", [(score, pair) for pair, score in scores])


def hashed(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
