"""Multimodal RewardBench 2 (arXiv 2512.16899): its pairs of pictures, for evaluation only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rewarddance.data.fields import Fault, listed, optional_text, short
from rewarddance.data.sources.drafts import Draft, Medium, Source, as_medium, by_record, vote


def pair(record: Mapping[str, Any]) -> Iterator[Draft]:
    """`prompt_content, response_a, response_b, chosen` of the tasks t2i and edit: each response is one picture.

    Contents are lists of ["text", ...] and ["image", ...]. A picture in the prompt is its image.
    """
    if not record.get("prompt_content"):
        raise Fault("prompt_content", "is missing", "Build the benchmark first: the download lacks its prompts.")
    texts, images = _contents(record, "prompt_content")
    if len(images) > 1:
        raise Fault("prompt_content", f"has {len(images)} pictures; a row holds one image")
    prompt = "\n".join(texts).strip()
    if not prompt:
        raise Fault("prompt_content", "holds no text", "Build the benchmark first: the download lacks its prompts.")
    media = []
    for side in ("response_a", "response_b"):
        response = record.get(side)
        if not isinstance(response, Mapping):
            raise Fault(side, f"is {short(response)}, which is no response")
        words, pictures = _contents(response, "response_content", f"{side}.response_content")
        if len(pictures) != 1 or "".join(words).strip():
            raise Fault(
                side, f"has {len(pictures)} pictures and {len(words)} texts; a row compares one picture with one"
            )
        media.append(pictures[0])
    share = vote("chosen", record.get("chosen"), {"a": 0.0, "b": 1.0})
    image = images[0] if images else None
    yield Draft(prompt, tuple(media), share, image=image, part=optional_text(record, "prompt_source"))


def _contents(record: Mapping[str, Any], name: str, field: str = "") -> tuple[list[str], list[Medium]]:
    field = field or name
    texts: list[str] = []
    pictures: list[Medium] = []
    for part in listed(record, name)[1]:
        if not isinstance(part, list) or len(part) != 2 or not isinstance(part[1], str):
            raise Fault(field, f'holds {short(part)}, which is neither ["text", ...] nor ["image", ...]')
        if part[0] == "text":
            texts.append(part[1])
        elif part[0] == "image":
            pictures.append(as_medium(field, part[1]))
        else:
            raise Fault(field, f"holds a part of the kind {short(part[0])}")
    return texts, pictures


MMRB2 = Source(
    "mmrb2",
    "facebookresearch/MMRB2: t2i.json and edit.json",
    by_record(pair),
    ("", "images", "input_images"),
    array="pairs",
    evaluation_only="its authors made it to evaluate rewards, and what was trained on it cannot be",
)
