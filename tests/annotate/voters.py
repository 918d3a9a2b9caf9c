"""Stores of small pairs, and people who answer what they are handed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rewarddance.annotate.handing_out import hand_out
from rewarddance.annotate.recipe import HandingOut
from rewarddance.annotate.store import Pair, Store
from rewarddance.annotate.voting import vote

WORDS = ("a red circle", "a blue cross", "two green squares", "a yellow star")


def picture(path: Path, level: int) -> Path:
    """A grey picture of 32 by 32 pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32), (level % 256, level // 2 % 256, 90)).save(path)
    return path


def pairs_of(folder: Path, count: int, models: Sequence[str] = ("new", "old"), tests: int = 0) -> list[Pair]:
    """Pairs of two models each, by turns; the last `tests` are test pairs, whose b is better."""
    made, m = [], len(models)
    for n in range(count + tests):
        i = n % m
        j = (i + 1 + n // m % max(m - 1, 1)) % m
        files = [picture(folder / f"{models[k]}-{n}.png", 3 * n + 40 * k) for k in (i, j)]
        answer = 1.0 if n >= count else None
        made.append(Pair(f"{WORDS[n % 4]} {n // 4}", *files, None, models[i], models[j], "tiny", answer))
    return made


def store_of(
    folder: Path, count: int = 12, tests: int = 0, models: Sequence[str] = ("new", "old"), **rule: Any
) -> Store:
    """A store of `count` pairs; nothing is voted on twice unless the rule says so."""
    store = Store(folder / "votes.sqlite", HandingOut(**({"overlap": 0.0} | rule)))
    store.add_pairs(pairs_of(folder / "pictures", count, models, tests))
    return store


class Voter:
    """A person who takes pairs one by one and answers them."""

    def __init__(self, store: Store, name: str, seed: int = 0) -> None:
        self.store, self.rng = store, np.random.default_rng([seed, sum(map(ord, name))])
        store.invite(name)
        self.id = store.db.execute("SELECT id FROM people WHERE name = ?", (name,)).fetchone()["id"]

    def take(self, now: float, count: int = 1) -> list[dict[str, Any]]:
        with self.store.transaction():
            return hand_out(self.store, self.id, count, now, self.rng)

    def answer(self, ask: str, answer: str, now: float, criterion: str = "", criteria: Sequence[str] = ("",)) -> bool:
        with self.store.transaction():
            return vote(
                self.store, self.id, ask, answer, criterion, criteria=criteria, now=now, seconds=2.0
            )  # fmt: skip

    def run(self, count: int, answer: str = "left", start: float = 0.0) -> list[str]:
        """Answer up to `count` pairs, one a second; returns the ids of the pairs."""
        done = []
        for n in range(count):
            asks = self.take(start + n)
            if not asks:
                break
            self.answer(asks[0]["id"], answer, start + n)
            done.append(asks[0]["id"])
        return done


def pair_of(store: Store, ask: str) -> int:
    return store.db.execute("SELECT pair FROM asks WHERE id = ?", (ask,)).fetchone()["pair"]
