"""Human Preference Dataset, v2 (arXiv 2306.09341) and v3 (arXiv 2508.03789)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from rewarddance.data.fields import Fault, as_number, listed, text
from rewarddance.data.sources.drafts import Draft, Medium, Source, as_medium, by_record, medium, ranked, share_of


def pair(record: Mapping[str, Any]) -> Iterator[Draft]:
    """`prompt, path1, path2, choice_dist`: path1 is the preferred picture.

    The authors sort `choice_dist` before they use it: its larger count is path1's, whichever stands first. It may be
    a list, the text of one, or null, where nobody was counted and path1 simply is preferred. Pairs of edits have the
    picture that both were made from in `path_src`.
    """
    votes = record.get("choice_dist")
    if isinstance(votes, str):
        try:
            votes = json.loads(votes) if votes.strip() else None
        except ValueError:
            raise Fault("choice_dist", f"is the text {votes!r}, which is no list of votes") from None
    share = 0.0
    if votes is not None:
        if not isinstance(votes, list) or len(votes) != 2:
            raise Fault("choice_dist", f"is {votes!r}; two counts of votes are needed")
        more, fewer = sorted((as_number(count, "choice_dist") for count in votes), reverse=True)
        share = share_of(more, fewer, "choice_dist")
    source = medium(record, "path_src") if record.get("path_src") not in (None, "") else None
    yield Draft(text(record, "prompt"), (medium(record, "path1"), medium(record, "path2")), share, image=source)


def choice_or_ranks(record: Mapping[str, Any]) -> Iterator[Draft]:
    """train.json: `image_path` (or `file_path`) of two and `human_preference`, 1 for the better. test.json: of several
    and `rank`, the mean, lower is better; `raw_annotations` have each annotator's, and then the shares are theirs."""
    prompt = text(record, "prompt")
    field, paths = listed(record, "image_path", "file_path")
    media = [as_medium(field, path) for path in paths]
    if record.get("human_preference") is not None:
        _, chosen = listed(record, "human_preference")
        if sorted(map(str, chosen)) != ["0", "1"] or len(media) != 2:
            raise Fault("human_preference", f"is {chosen!r} of {len(media)} pictures; one 0 and one 1 are needed")
        yield Draft(prompt, (media[0], media[1]), float(chosen[1]))
        return
    yield from ranked(prompt, media, _ranks(record, media))


def _ranks(record: Mapping[str, Any], media: list[Medium]) -> list[list[float]]:
    annotations = [entry for entry in record.get("raw_annotations") or [] if isinstance(entry, dict)]
    rankings = [entry["rank"] for entry in annotations if entry.get("rank")]
    lists = rankings or [listed(record, "rank")[1]]
    field = "raw_annotations" if rankings else "rank"
    for ranks in lists:
        if not isinstance(ranks, list) or len(ranks) != len(media):
            raise Fault(field, f"is {ranks!r}, which is no rank for each of {len(media)} pictures")
    return [[as_number(rank, field) for rank in ranks] for ranks in lists]


HPDV3 = Source("hpdv3", "MizzenAI/HPDv3: train.json or test.json", by_record(pair), ("", "images"), first_wins=True)
HPDV2 = Source("hpdv2", "ymhao/HPDv2: train.json or test.json", by_record(choice_or_ranks), ("", "train", "test"))
