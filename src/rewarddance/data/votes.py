"""Votes of several people on the same pairs, weighed by how often each of them seems to be right.

After Dawid and Skene (1979), with one figure a person: what the order of a pair probably is follows from the votes on
it, and how often a person is right from the probable orders of the pairs, by turns, until nothing moves. Nobody says
who is careless; who agrees with the others no more often than a coin is not heard.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rewarddance.data.fields import digest_of
from rewarddance.data.preferences import PreferenceRow, PreferenceSet, rows_into
from rewarddance.errors import InputError
from rewarddance.runtime.checkpoint import writable_folder

_BEFORE = 4.0
"""With so many votes of an average person each begins: two votes say little of who cast them."""
_LEAST, _MOST = 0.5, 0.99
"""Nobody is taken to mean the opposite of what they say, nor to be always right."""
_ROUNDS = 200
_NAMED = 10
"""Annotators that are named, those least often right."""


class Weighed(NamedTuple):
    """share: [pairs], the probability that b is better. accuracy: [people], the share of a person's votes that are
    right; 0.5 of those who need not have looked."""

    share: np.ndarray
    accuracy: np.ndarray


def weigh(pair: np.ndarray, person: np.ndarray, vote: np.ndarray) -> Weighed:
    """Shares of pairs and accuracies of people from V votes.

    pair, person: [V] whole numbers from 0, what was voted on and by whom. vote: [V], 1 for b, 0 for a, what lies
    between for less of it; 0.5 is a tie, and says nothing of its person. Of a pair with ties alone the share is 0.5.
    """
    pairs, people = int(pair.max()) + 1, int(person.max()) + 1
    said = np.abs(2 * vote - 1)
    count = np.bincount(person, said, people)
    accuracy, share = np.full(people, 0.75), np.full(pairs, 0.5)
    for _ in range(_ROUNDS):
        trust = np.log(accuracy / (1 - accuracy))
        before, share = share, 1 / (1 + np.exp(-np.bincount(pair, (2 * vote - 1) * trust[person], pairs)))
        if np.abs(share - before).max() < 1e-6:
            break
        right = np.bincount(person, said * np.where(vote > 0.5, share[pair], 1 - share[pair]), people)
        average = right.sum() / max(float(count.sum()), 1e-9)
        accuracy = np.clip((right + _BEFORE * average) / (count + _BEFORE), _LEAST, _MOST)
    return Weighed(share, accuracy)


def weigh_votes(source: Path, output: Path) -> dict[str, Any]:
    """Write each pair of a preferences file once, with its weighed share; returns what was found of the annotators.

    Rows are votes on one pair if they have the same prompt, files, image, criterion and source, whichever of the
    files is a. A second vote of the same person on the same pair does not count, and is counted aloud. Of reasons, a
    pair gets those of a vote for the side that is ahead. Raises InputError for a row without an annotator, for a file
    with no pair that several have voted on, and for an output that is there.
    """
    if output.suffix.lower() not in (".jsonl", ".parquet"):
        raise InputError(f"the output {output} is no table.", "Let its name end in .jsonl or .parquet.")
    if output.exists():
        raise InputError(f"the output {output} exists.", "Choose another, or move it away.")
    rows = PreferenceSet(source)
    votes = _Votes()
    for place in range(len(rows)):
        votes.add(place, rows.row(place), source)
    pair, person = np.array(votes.pair, np.int64), np.array(votes.person, np.int64)
    vote, place = np.array(votes.vote), np.array(votes.place, np.int64)
    several = int((np.bincount(pair) > 1).sum())
    if not several:
        raise InputError(
            f"no pair of {source} has votes of several annotators.",
            "A row is one vote, and rows of the same pair name the same prompt and files.",
        )
    share, accuracy = weigh(pair, person, vote)
    writable_folder(output.parent)
    unfinished = output.with_name(f".unfinished-{output.name}")
    with rows_into(unfinished) as write:
        for row in _written(rows, pair, place, share, output.parent):
            write(row)
    unfinished.replace(output)
    heard = np.bincount(person)
    order = np.argsort(accuracy, kind="stable")
    plain = np.bincount(pair, vote) / np.bincount(pair)
    names = list(votes.people)
    return {
        "votes": len(pair),
        "repeated": votes.repeated,
        "pairs": len(share),
        "voted_on_by_several": several,
        "turned": int(((np.sign(plain - 0.5) * np.sign(share - 0.5)) < 0).sum()),
        "annotators": len(names),
        "not_heard": int((accuracy <= _LEAST).sum()),
        "mean_accuracy": round(float(np.average(accuracy, weights=heard)), 4),
        "least_accurate": [
            {"annotator": names[n], "votes": int(heard[n]), "accuracy": round(float(accuracy[n]), 4)}
            for n in order[:_NAMED]
        ],
    }


class _Votes:
    """Votes as they are read: numbers for pairs and people, in a few hundred bytes of memory a vote."""

    def __init__(self) -> None:
        self.pair, self.person, self.place = array("q"), array("q"), array("q")
        self.vote = array("d")
        self.pairs: dict[bytes, int] = {}
        self.people: dict[str, int] = {}
        self.seen: set[tuple[int, int]] = set()
        self.repeated = 0

    def add(self, place: int, row: PreferenceRow, source: Path) -> None:
        if not row.annotator:
            raise InputError(
                f"row {place + 1} of {source} has no annotator: {row.prompt!r}.", "Say in each row who voted."
            )
        pair = self.pairs.setdefault(_key(row), len(self.pairs))
        person = self.people.setdefault(row.annotator, len(self.people))
        if (pair, person) in self.seen:
            self.repeated += 1
            return
        self.seen.add((pair, person))
        self.pair.append(pair)
        self.person.append(person)
        self.place.append(place)
        self.vote.append(1 - row.share if _turned(row) else row.share)


def _key(row: PreferenceRow) -> bytes:
    files = sorted((str(row.media_a.resolve()), str(row.media_b.resolve())))
    return digest_of(row.prompt, *files, str(row.image), row.criterion, row.source)


def _turned(row: PreferenceRow) -> bool:
    """Do its files stand in the other order than that in which votes are counted?"""
    return str(row.media_a.resolve()) > str(row.media_b.resolve())


def _written(
    rows: PreferenceSet, pair: np.ndarray, place: np.ndarray, share: np.ndarray, folder: Path
) -> Iterator[dict[str, Any]]:
    """Each pair as it stands in a preferences file in `folder`, by its first row; pairs in the order they came."""
    order = np.argsort(pair, kind="stable")
    begins = np.flatnonzero(np.concatenate([[True], pair[order][1:] != pair[order][:-1]]))
    for number, own in enumerate(np.split(place[order], begins[1:])):
        first = rows.row(int(own[0]))
        value = float(share[number])
        value = 1 - value if _turned(first) else value
        written = first.written(folder) | {"share": round(value, 6)}
        written.pop("annotator", None)
        yield written | _reasons([rows.row(int(one)) for one in own], _turned(first), value)


def _reasons(votes: list[PreferenceRow], turned: bool, share: float) -> dict[str, str]:
    """The reasons of the first vote for the side that is ahead, where the files stand `turned` or not; {} where nobody
    gave one."""
    for vote in votes:
        alike = _turned(vote) == turned
        ahead = (vote.share - 0.5) * (share - 0.5) * (1 if alike else -1) > 0
        if ahead and (vote.reason or vote.reason_swapped):
            told = (vote.reason, vote.reason_swapped) if alike else (vote.reason_swapped, vote.reason)
            return {key: text for key, text in zip(("reason", "reason_swapped"), told, strict=True) if text}
    return {}
