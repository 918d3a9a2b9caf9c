"""ImageRewardDB (arXiv 2304.05977)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations, groupby
from typing import Any

from rewarddance.data.fields import Fault, as_number, listed, number, text
from rewarddance.data.sources.drafts import LONGEST, Converted, Draft, Source, as_medium, convert_record, medium, ranked
from rewarddance.data.tables import Row


def pairs(rows: Iterable[Row]) -> Iterator[Converted]:
    """`prompt_id, prompt, image_path, rank` a picture: all pairs of one prompt_id, whose rows stand together.

    Lower rank is better. The release of the paper's test set, `prompt, generations, ranking` a prompt, is taken too.
    """
    finished: set[int] = set()
    for key, together in groupby(rows, _prompt_id):
        if key is None:
            for place, content in together:
                yield from convert_record(place, content, _generations)
            continue
        group: list[tuple[int, Draft]] = []
        for place, content in together:
            (picture,) = convert_record(place, content, _picture)
            if isinstance(picture.draft, Fault):
                yield picture
            elif len(group) == LONGEST:
                yield Converted(place, Fault("prompt_id", f"{key!r} has more than {LONGEST} pictures"))
            else:
                group.append((place, picture.draft))
        if hash(key) in finished and group:
            yield Converted(group[0][0], Fault("prompt_id", f"{key!r} stood further up; pairs with those are not made"))
        finished.add(hash(key))
        if len(group) == 1:
            yield Converted(group[0][0], Fault("prompt_id", f"{key!r} has no other picture to compare with"))
        for (_, a), (place, b) in combinations(group, 2):
            yield Converted(place, next(ranked(a.prompt, a.media + b.media, [[a.value, b.value]])))


def _prompt_id(row: Row) -> str | None:
    value = row.content.get("prompt_id") if isinstance(row.content, dict) else None
    return str(value) if isinstance(value, str | int) and value != "" else None


def _picture(record: Mapping[str, Any]) -> Iterator[Draft]:
    yield Draft(text(record, "prompt"), (medium(record, "image_path", "image"),), number(record, "rank"))


def _generations(record: Mapping[str, Any]) -> Iterator[Draft]:
    if "generations" not in record:
        raise Fault("prompt_id", "is missing")
    media = [as_medium("generations", path) for path in listed(record, "generations")[1]]
    ranks = [as_number(rank, "ranking") for rank in listed(record, "ranking")[1]]
    if len(ranks) != len(media):
        raise Fault("ranking", f"has {len(ranks)} ranks for {len(media)} pictures")
    yield from ranked(text(record, "prompt"), media, [ranks])


IMAGEREWARDDB = Source("imagerewarddb", "THUDM/ImageRewardDB: the .json of each part", pairs, ("", "images"))
