"""Rapidata's comparisons of pictures and of videos, by many voters each."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from rewarddance.data.fields import Fault, as_number, text
from rewarddance.data.sources.drafts import Draft, Medium, Source, as_medium, by_record, medium, share_of

_WEIGHTED = re.compile(r"weighted_results(?:_image)?1_(\w+)")


def by_criterion(record: Mapping[str, Any]) -> Iterator[Draft | Fault]:
    """`prompt, file_name1, file_name2, weighted_results1_*, weighted_results2_*`: one row a criterion.

    Sets of pictures have them in `image1`, `image2`, with `weighted_results_image1_*` or one criterion's
    `votes_image1`, `votes_image2`. Image to video: the picture is in `prompt_asset`.
    """
    prompt = text(record, "prompt")
    media = (_picture(record, 1), _picture(record, 2))
    asset = record.get("prompt_asset")
    image = None if asset is None else as_medium("prompt_asset", asset)
    matches = [match for name in record if (match := _WEIGHTED.fullmatch(name)) and record[name] is not None]
    fields = {match[1].lower(): match[0] for match in matches} or {"": "votes_image1"}
    if not matches and record.get("votes_image1") is None:
        raise Fault("weighted_results1_*", "is missing (votes_image1 too)")
    for criterion, first in fields.items():
        second = first.replace("results1_", "results2_").replace("image1", "image2")
        try:
            if record.get(second) is None:
                raise Fault(second, "is missing")
            share = share_of(as_number(record[first], first), as_number(record[second], second), first)
            yield Draft(prompt, media, share, criterion, image)
        except Fault as fault:  # of this criterion alone: the others have their votes
            yield fault


def _picture(record: Mapping[str, Any], side: int) -> Medium:
    """The picture in the row, or the file's name; of an address the folder and the name, as in the set's own folder."""
    if record.get(f"image{side}") is not None:
        return medium(record, f"image{side}")
    field = f"file_name{side}"
    name = record.get(field)
    if isinstance(name, str) and name.lower().startswith(("http://", "https://")):
        return as_medium(field, "/".join(name.split("/")[-2:]))
    return medium(record, field)


RAPIDATA = Source(
    "rapidata",
    "Rapidata/*-human-preferences*: data/*.parquet",
    by_record(by_criterion),
    ("", "videos", "Videos", "data/videos", "../videos", "../Videos"),
)
