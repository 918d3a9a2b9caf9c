"""What a source makes of a public set's records: rows in our terms, media still as the set gives them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from itertools import combinations
from typing import Any, NamedTuple

from rewarddance.data.fields import Fault, present, short
from rewarddance.data.tables import Row
from rewarddance.errors import InputError

LONGEST = 64
"""Pictures that one record may rank: n of them make n (n - 1) / 2 pairs."""


class Medium(NamedTuple):
    """A picture or video: the field it stands in, and the path or the bytes there."""

    field: str
    given: str | bytes


@dataclass(frozen=True)
class Draft:
    """One row to be; fields that are not explained here are those of a preferences row.

    media: a and b, or the one that has a score.
    value: the share of votes for b, or the score.
    fps: of each of the media.
    part: of the source, where it distinguishes some.
    date: when the vote was cast, as the set says it.
    rationale: why, in the voter's own words.
    """

    prompt: str
    media: tuple[Medium, ...]
    value: float
    criterion: str = ""
    image: Medium | None = None
    fps: tuple[float | None, ...] = (None, None)
    annotator: str = ""
    part: str = ""
    date: str = ""
    rationale: str = ""


class Converted(NamedTuple):
    """What became of a record, or of a part of it. number: the record's place in its file, from 1."""

    number: int
    draft: Draft | Fault


@dataclass(frozen=True)
class Source:
    """A public set by name.

    about: where it is published and which of its files to give.
    convert: its records to rows.
    folders: where media lie below the media root, tried in this order.
    array: the key of the list of records in a JSON object.
    first_wins: the first picture is always the preferred one, so the import swaps half of the pairs.
    evaluation_only: why no reward may be trained on it, "" if one may.
    """

    name: str
    about: str
    convert: Callable[[Iterable[Row]], Iterator[Converted]]
    folders: tuple[str, ...] = ("",)
    array: str = ""
    first_wins: bool = False
    evaluation_only: str = ""


def by_record(
    convert: Callable[[Mapping[str, Any]], Iterable[Draft | Fault]],
) -> Callable[[Iterable[Row]], Iterator[Converted]]:
    """`convert` of one record as that of a stream; what it raises becomes the fault of its record alone."""

    def stream(rows: Iterable[Row]) -> Iterator[Converted]:
        for number, content in rows:
            yield from convert_record(number, content, convert)

    return stream


def convert_record(
    number: int,
    content: Mapping[str, Any] | InputError,
    convert: Callable[[Mapping[str, Any]], Iterable[Draft | Fault]],
) -> list[Converted]:
    """The drafts of a record and the faults of its parts, or its one fault."""
    try:
        if isinstance(content, InputError):
            raise Fault("", content.what.removesuffix("."), content.remedy)
        drafts = list(convert(content))
        if not drafts:
            raise Fault("", "it holds nothing to compare")
    except Fault as fault:
        return [Converted(number, fault)]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:  # in what is nested
        why = f"it has another form than this source's ({type(error).__name__}: {error})"
        return [Converted(number, Fault("", why))]
    beside = dated_and_explained(content) if isinstance(content, Mapping) else {}
    return [Converted(number, _filled(draft, beside) if isinstance(draft, Draft) else draft) for draft in drafts]


def _filled(draft: Draft, beside: Mapping[str, str]) -> Draft:
    """A draft with what its source did not say of itself: a vote's own date goes before its task's."""
    return replace(draft, **{name: value for name, value in beside.items() if not getattr(draft, name)})


_DATES = ("created_at", "date", "timestamp", "tstamp")
_RATIONALES = ("rationale", "reason", "reasoning", "justification", "explanation")


def dated_and_explained(record: Mapping[str, Any]) -> dict[str, str]:
    """The date and the voter's own reason of a record, in whatever of the usual columns they stand, as texts."""
    found: dict[str, str] = {}
    for key, names in (("date", _DATES), ("rationale", _RATIONALES)):
        value = next((value for name in names if (value := record.get(name)) is not None and value != ""), None)
        if isinstance(value, date):  # a datetime is one, too
            found[key] = value.isoformat()
        elif isinstance(value, int | float) and not isinstance(value, bool) and key == "date":
            found[key] = str(value)
        elif isinstance(value, str) and value.strip():
            found[key] = value.strip()
    return found


def medium(record: Mapping[str, Any], *names: str) -> Medium:
    """The picture or video in the first of these fields that is there: a path, bytes, or datasets' struct of both."""
    name, value = present(record, *names)
    return as_medium(name, value)


def as_medium(name: str, value: Any) -> Medium:
    """A path, bytes, or {"bytes", "path"} as a Medium. Raises Fault that names the field."""
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes | str) and value and (isinstance(value, bytes) or value.strip()):
        if isinstance(value, str) and ("\0" in value or any("\ud800" <= character <= "\udfff" for character in value)):
            raise Fault(name, f"is {short(value)}, which no path can be")
        if isinstance(value, str) and value.lower().startswith(("http://", "https://")):
            raise Fault(name, f"is the address {short(value)}, no file", "Download the media, and give --media-root.")
        return Medium(name, value)
    why = "is empty" if value in ("", b"", None) else f"is {short(value)}, which is no picture"
    raise Fault(name, why, "Give a path, or the bytes of a file.")


def vote(field: str, value: Any, shares: Mapping[str, float]) -> float:
    """The share that a word stands for, case aside. Raises Fault that names the field and the words it knows."""
    word = value.strip().casefold() if isinstance(value, str) else value
    if isinstance(word, str) and word in shares:
        return shares[word]
    raise Fault(field, f"is {short(value)}, which is none of {', '.join(shares)}")


def share_of(first: float, second: float, field: str) -> float:
    """The share of votes for the second, of two counts or shares that need not sum to one."""
    if first < 0 or second < 0 or first + second == 0:
        raise Fault(field, f"says {first:g} votes against {second:g}, of which no share can be made")
    return second / (first + second)


def ranked(prompt: str, media: Sequence[Medium], ranks: Sequence[Sequence[float]]) -> Iterator[Draft]:
    """All pairs of a ranked list. ranks: one list an annotator, lower is better; equal ranks are half a vote each."""
    if not 2 <= len(media) <= LONGEST:
        raise Fault(media[0].field if media else "", f"has {len(media)} pictures; 2 to {LONGEST} can be compared")
    for first, second in combinations(range(len(media)), 2):
        votes = [0.5 if rank[first] == rank[second] else float(rank[second] < rank[first]) for rank in ranks]
        yield Draft(prompt, (media[first], media[second]), sum(votes) / len(votes))
