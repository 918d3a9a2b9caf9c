"""GenAI-Bench, two sets of one name: votes (arXiv 2406.04485) and ratings (arXiv 2406.13743)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rewarddance.data.fields import Fault, as_number, present, short, text
from rewarddance.data.sources.drafts import Draft, Source, as_medium, by_record, medium, vote

_SHARES = {"leftvote": 0.0, "rightvote": 1.0, "tievote": 0.5, "bothbad_vote": 0.5}


def votes_or_ratings(record: Mapping[str, Any]) -> Iterator[Draft]:
    """Votes: `prompt, left_image, right_image, vote_type`, or left_video, right_video; of edits `instruct_prompt,
    source_image, left_output_image, right_output_image`. Neither being better, good or bad, is a tie.

    Ratings: `Prompt, HumanRatings`, a list of 1 to 5 a model, and a picture in a column of each model's name: rows with
    one picture and its mean rating.
    """
    if record.get("HumanRatings") is not None:
        yield from _rated(record)
        return
    edit = record.get("source_image") is not None
    prompt = text(record, "instruct_prompt" if edit else "prompt")
    left = medium(record, "left_image", "left_output_image", "left_video", "video_left")
    right = medium(record, "right_image", "right_output_image", "right_video", "video_right")
    share = vote("vote_type", record.get("vote_type"), _SHARES)
    yield Draft(prompt, (left, right), share, image=medium(record, "source_image") if edit else None)


def _rated(record: Mapping[str, Any]) -> Iterator[Draft]:
    ratings = record["HumanRatings"]
    if not isinstance(ratings, Mapping):
        raise Fault("HumanRatings", f"is {short(ratings)}, which is no ratings by model")
    prompt = text(record, "Prompt")
    for model, given in ratings.items():
        if given is None and record.get(model) is None:  # this model made no picture for the prompt
            continue
        if not isinstance(given, list) or not given:
            raise Fault(f"HumanRatings.{model}", f"is {short(given)}, which is no list of ratings")
        rating = [as_number(value, f"HumanRatings.{model}") for value in given]
        name, picture = present(record, model)
        yield Draft(prompt, (as_medium(name, picture),), sum(rating) / len(rating), fps=(None,))


GENAI_BENCH = Source(
    "genai-bench",
    "TIGER-Lab/GenAI-Bench and BaiqiL/GenAI-Bench: *.parquet",
    by_record(votes_or_ratings),
    ("", "videos", "genaibench", "genaibench/videos"),
)
