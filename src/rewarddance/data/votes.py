"""Votes of several people on the same pairs, weighed by how often each of them seems to be right.

After Dawid and Skene (1979), with one figure a person: what the order of a pair probably is follows from the votes on
it, and how often a person is right from the probable orders of the pairs, by turns, until nothing moves. Nobody says
who is careless; who agrees with the others no more often than a coin would does not count.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rewarddance.data.fields import fingerprint
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
    """What votes amount to.

    share: [pairs], the probability that b is better; ties count as a half, each as one vote of all.
    accuracy: [people], the share of a person's votes that are right; 0.5 is that of a coin.
    """

    share: np.ndarray
    accuracy: np.ndarray


def weigh(pair: np.ndarray, person: np.ndarray, vote: np.ndarray) -> Weighed:
    """Shares of pairs and accuracies of people from V votes.

    pair, person: [V] whole numbers from 0, what was voted on and by whom. vote: [V], 1 for b, 0 for a, what lies
    between for less of it; 0.5 is a tie, and says nothing of its person. Of a pair with ties alone the share is 0.5.
    """
    pairs, people = int(pair.max()) + 1, int(person.max()) + 1
    weight = np.abs(2 * vote - 1)
    count = np.bincount(person, weight, people)
    accuracy, share = np.full(people, 0.75), np.full(pairs, 0.5)
    for _ in range(_ROUNDS):
        trust = np.log(accuracy / (1 - accuracy))
        before, share = share, 1 / (1 + np.exp(-np.bincount(pair, (2 * vote - 1) * trust[person], pairs)))
        if np.abs(share - before).max() < 1e-6:
            break
        right = np.bincount(person, weight * np.where(vote > 0.5, share[pair], 1 - share[pair]), people)
        average = right.sum() / max(float(count.sum()), 1e-9)
        accuracy = np.clip((right + _BEFORE * average) / (count + _BEFORE), _LEAST, _MOST)
    tied = np.bincount(pair, 1 - weight, pairs) / np.bincount(pair, minlength=pairs)
    return Weighed(0.5 * tied + (1 - tied) * share, accuracy)


def weigh_votes(source: Path, output: Path) -> dict[str, Any]:
    """Write each pair of a preferences file once, with its weighed share; returns what the votes say of the annotators.

    Rows are votes on one pair if they have the same prompt, files, image, criterion and source, whichever of the files
    is a. A second vote of the same person on the same pair does not count, and is reported. Of reasons, a pair gets
    those of a vote for the side that is ahead. Raises InputError for a row without an annotator, for a file with no
    pair that several have voted on, and for an output that exists.
    """
    if output.suffix.lower() not in (".jsonl", ".parquet"):
        raise InputError(f"the output {output} is no table.", "Let its name end in .jsonl or .parquet.")
    if output.exists():
        raise InputError(f"the output {output} exists.", "Choose another, or move it away.")
    rows = PreferenceSet(source)
    votes = _read_votes(rows, source)
    pairs = np.bincount(votes.pair)
    if not (pairs > 1).any():
        raise InputError(
            f"no pair of {source} has votes of several annotators.",
            "A row is one vote, and rows of the same pair name the same prompt and files.",
        )
    share, accuracy = weigh(votes.pair, votes.person, votes.vote)
    writable_folder(output.parent)
    unfinished = output.with_name(f".unfinished-{output.name}")
    with rows_into(unfinished) as write:
        for row in _weighed_rows(rows, votes, share, output.parent):
            write(row)
    unfinished.replace(output)
    counts = np.bincount(votes.person)
    plain = np.bincount(votes.pair, votes.vote) / pairs
    return {
        "votes": len(votes.pair),
        "repeated": votes.repeated,
        "pairs": len(share),
        "voted_on_by_several": int((pairs > 1).sum()),
        "turned": int(((np.sign(plain - 0.5) * np.sign(share - 0.5)) < 0).sum()),
        "annotators": len(votes.people),
        "not_heard": int((accuracy <= _LEAST).sum()),
        "mean_accuracy": round(float(np.average(accuracy, weights=counts)), 4),
        "least_accurate": [
            {"annotator": votes.people[n], "votes": int(counts[n]), "accuracy": round(float(accuracy[n]), 4)}
            for n in np.argsort(accuracy, kind="stable")[:_NAMED]
        ],
    }


class Votes(NamedTuple):
    """V votes, repeated ones left out.

    pair, person: [V] whole numbers from 0, what was voted on and by whom.
    vote: [V], 1 for b, 0 for a, with the files of a pair in the order of their names.
    place: [V], the row in the preferences file.
    people: the annotators' names.
    repeated: how many votes were left out.
    """

    pair: np.ndarray
    person: np.ndarray
    vote: np.ndarray
    place: np.ndarray
    people: list[str]
    repeated: int


def _read_votes(rows: PreferenceSet, source: Path) -> Votes:
    pairs: dict[bytes, int] = {}
    people: dict[str, int] = {}
    seen: dict[tuple[int, int], None] = {}
    vote, place = array("d"), array("q")
    for number in range(len(rows)):
        row = rows.row(number)
        if not row.annotator:
            raise InputError(
                f"row {number + 1} of {source} has no annotator: {row.prompt!r}.", "Say in each row who voted."
            )
        files = sorted((str(row.media_a.resolve()), str(row.media_b.resolve())))
        pair = fingerprint(row.prompt, *files, str(row.image), row.criterion, row.source)
        key = pairs.setdefault(pair, len(pairs)), people.setdefault(row.annotator, len(people))
        if key not in seen:
            seen[key] = None
            place.append(number)
            vote.append(1 - row.share if _swapped(row) else row.share)
    pair, person = np.array(list(seen), np.int64).reshape(-1, 2).T
    return Votes(pair, person, np.array(vote), np.array(place, np.int64), list(people), len(rows) - len(seen))


def _swapped(row: PreferenceRow) -> bool:
    """Do its files stand in the other order than that in which votes are counted?"""
    return str(row.media_a.resolve()) > str(row.media_b.resolve())


def _weighed_rows(rows: PreferenceSet, votes: Votes, share: np.ndarray, folder: Path) -> Iterator[dict[str, Any]]:
    """Each pair as it stands in a preferences file in `folder`, by its first row; pairs in the order they came."""
    order = np.argsort(votes.pair, kind="stable")
    ends = np.cumsum(np.bincount(votes.pair))[:-1]
    for value, places in zip(share.tolist(), np.split(votes.place[order], ends), strict=True):
        cast = [rows.row(int(place)) for place in places]
        swapped = _swapped(cast[0])
        value = 1 - value if swapped else value
        written = cast[0].written(folder) | {"share": round(value, 6)}
        written.pop("annotator", None)
        yield written | _reasons(cast, swapped, value)


def _reasons(votes: list[PreferenceRow], swapped: bool, share: float) -> dict[str, str]:
    """The reasons of the first vote for the side that is ahead, the files `swapped` or not; {} without one."""
    for vote in votes:
        alike = _swapped(vote) == swapped
        ahead = (vote.share - 0.5) * (share - 0.5) * (1 if alike else -1) > 0
        if ahead and (vote.reason or vote.reason_swapped):
            texts = (vote.reason, vote.reason_swapped) if alike else (vote.reason_swapped, vote.reason)
            return {key: text for key, text in zip(("reason", "reason_swapped"), texts, strict=True) if text}
    return {}
