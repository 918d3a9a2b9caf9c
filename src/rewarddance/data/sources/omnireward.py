"""Omni-RewardBench (arXiv 2510.23451): its pairs of pictures and of videos."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from rewarddance.data.fields import Fault, text
from rewarddance.data.media import PICTURE_SUFFIXES, VIDEO_SUFFIXES
from rewarddance.data.sources.drafts import Draft, Medium, Source, by_record, medium, vote

_SHARES = {"response1": 0.0, "response2": 1.0, "tie": 0.5}


def by_criterion(record: Mapping[str, Any]) -> Iterator[Draft]:
    """`prompt, response1, response2, criteria, criteria_preference`; the criterion is a sentence. Edits: `image`."""
    edit = record.get("image") is not None or record.get("image_path") is not None
    yield Draft(
        text(record, "prompt"),
        (_response(record, "response1"), _response(record, "response2")),
        vote("criteria_preference", record.get("criteria_preference"), _SHARES),
        text(record, "criteria"),
        medium(record, "image", "image_path") if edit else None,
    )


def _response(record: Mapping[str, Any], name: str) -> Medium:
    response = medium(record, name, f"{name}_path")
    if isinstance(response.given, str):
        suffix = PurePosixPath(response.given.strip()[-256:]).suffix.lower()
        if suffix not in PICTURE_SUFFIXES | VIDEO_SUFFIXES:
            raise Fault(
                name, "is text or sound: it is of a task without pictures", "Import the tasks that make pictures."
            )
    return response


OMNIREWARD = Source(
    "omnirewardbench",
    "HongbangYuan/OmniRewardBench: */*.parquet",
    by_record(by_criterion),
    ("", "media_data", "../media_data"),
)
