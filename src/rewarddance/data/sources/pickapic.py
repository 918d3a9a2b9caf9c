"""Pick-a-Pic, v1 and v2 (arXiv 2305.01569)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rewarddance.data.fields import Fault, number, optional_text, text
from rewarddance.data.sources.drafts import Draft, Source, by_record, medium, share_of


def pair(record: Mapping[str, Any]) -> Iterator[Draft]:
    """`caption, jpg_0, jpg_1, label_0, label_1`: the pictures are in the rows; labels of 0.5 are a tie."""
    if record.get("has_label") is False:
        raise Fault("has_label", "is false: nobody voted")
    if record.get("jpg_0") is None and record.get("image_0_url") is not None:
        raise Fault("jpg_0", "is missing: this is the version without pictures", "Download the one with pictures.")
    share = share_of(number(record, "label_0"), number(record, "label_1"), "label_0")
    media = (medium(record, "jpg_0"), medium(record, "jpg_1"))
    yield Draft(text(record, "caption"), media, share, annotator=optional_text(record, "user_id"))


PICKAPIC_V1 = Source("pickapic-v1", "yuvalkirstain/pickapic_v1: data/*.parquet", by_record(pair))
PICKAPIC_V2 = Source("pickapic-v2", "yuvalkirstain/pickapic_v2: data/*.parquet", by_record(pair))
