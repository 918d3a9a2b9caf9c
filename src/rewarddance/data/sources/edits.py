"""Preferences about edits: EditReward (arXiv 2509.26346), and the benchmark of EditScore (arXiv 2509.23909)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rewarddance.data.fields import Fault, as_number, listed, text
from rewarddance.data.sources.drafts import Draft, Medium, Source, as_medium, by_record, medium, vote

_SHARES = {"leftvote": 0.0, "rightvote": 1.0, "tie": 0.5, "tievote": 0.5}
_LEFT_RIGHT = {"instruction_following": "instruction_following", "quality_aesthetic": "quality"}
_DIMENSIONS = {"dim1": "instruction_following", "dim2": "quality"}
_DIMENSION_CRITERIA = {"overall": "", "prompt_following": "prompt_following", "consistency": "consistency"}


def edit_reward(record: Mapping[str, Any]) -> Iterator[Draft | Fault]:
    """`instruction, source_img, left_output_image, right_output_image, vote_type`, as it is published; or `prompt,
    path_src, path1, path2`, as its training code takes it, where path1 is preferred unless `tie_case` says otherwise.

    Beside the vote, a row each for following the instruction and for quality, where both pictures have that score: the
    higher one is better, and equal ones are a tie.
    """
    if record.get("path1") is not None:
        media = medium(record, "path1"), medium(record, "path2")
        prompt, source = text(record, "prompt"), medium(record, "path_src")
        share = 0.5 if record.get("tie_case") else 0.0
        scores = {name: (f"model1_{key}_score", f"model2_{key}_score") for key, name in _DIMENSIONS.items()}
    else:
        media = medium(record, "left_output_image"), medium(record, "right_output_image")
        prompt, source = text(record, "instruction"), medium(record, "source_img")
        share = vote("vote_type", record.get("vote_type"), _SHARES)
        scores = {name: (f"left_{key}_score", f"right_{key}_score") for key, name in _LEFT_RIGHT.items()}
    yield Draft(prompt, media, share, image=source)
    for criterion, names in scores.items():
        if any(record.get(name) is None for name in names):
            continue
        try:
            first, second = (as_number(record[name], name) for name in names)
        except Fault as fault:  # of this criterion alone: the vote stands
            yield fault
            continue
        better = 0.5 if first == second else float(second > first)
        yield Draft(prompt, media, better, criterion, image=source)


def edit_score(record: Mapping[str, Any]) -> Iterator[Draft]:
    """`instruction, input_image, output_images, dimension, task_type`: the first of two output images is preferred."""
    field, given = listed(record, "output_images")
    if len(given) != 2:
        raise Fault(field, f"has {len(given)} pictures; a row compares two")
    first, second = (as_medium(field, picture) for picture in given)
    dimension = record.get("dimension")
    if dimension not in _DIMENSION_CRITERIA:
        raise Fault("dimension", f"is {dimension!r}, which is none of {', '.join(_DIMENSION_CRITERIA)}")
    media: tuple[Medium, ...] = (first, second)
    yield Draft(
        text(record, "instruction"),
        media,
        0.0,
        _DIMENSION_CRITERIA[dimension],
        image=medium(record, "input_image"),
        part=text(record, "task_type"),
    )


EDITREWARD = Source(
    "editreward",
    "TIGER-Lab/EditReward-Data: data/*.parquet, or the train.json of its training code",
    by_record(edit_reward),
    ("", "images"),
    first_wins=True,
)
EDITSCORE_BENCH = Source(
    "editscore-bench",
    "EditScore/EditReward-Bench: *.parquet",
    by_record(edit_score),
    first_wins=True,
    evaluation_only="its authors made it to evaluate rewards, and what was trained on it cannot be",
)
