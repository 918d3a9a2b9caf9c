"""Flow-Factory's remote reward: `POST /compute`, as its `RemoteRewardClient` speaks it.

One prompt and one picture (PNG in base64) or video (a list of frames) a sample. A condition image is what the prompt
came with. Beside "prompt" and "image", "kwargs" may hold "reference_b64", one picture a sample, and "instruction". The
client takes a number a sample or an error, so one question that fails is an error of the request, which its trainer
raises.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rewarddance.errors import InputError, RewardDanceError
from rewarddance.serve.judge import ServedJudge
from rewarddance.serve.pictures import RequestPictures
from rewarddance.serve.protocol import (
    Outcome,
    Protocol,
    Request,
    as_json,
    asked_prompt,
    each,
    items_of,
    json_object,
    probability,
    rates,
    text_of,
)
from rewarddance.types import Question


def read(body: bytes, pictures: RequestPictures, judge: ServedJudge, most: int) -> Request:
    content = json_object(body)
    prompts = items_of(content, "prompt", most)
    options = content.get("kwargs") or {}
    if not isinstance(options, dict):
        raise InputError("kwargs are no mapping.", "Correct them.")
    if content.get("condition_videos"):
        raise InputError("no instruction shows the video that a prompt comes with.", "Leave condition_videos out.")
    images, videos = _column(content, "image", prompts), _column(content, "video", prompts)
    sources, references = _column(content, "condition_images", prompts), _column(options, "reference_b64", prompts)
    instruction = text_of(options, "instruction")

    def question(number: int) -> Question:
        name = f"sample {number}"
        if (images[number] is None) == (videos[number] is None):
            raise InputError(f"{name} has not one of image and video.", "Send one.")
        if images[number] is not None:
            candidate = pictures.from_base64(images[number], f"the image of {name}")
        else:
            candidate = pictures.from_frames(videos[number], f"the video of {name}")
        source, reference = sources[number] or [], references[number]
        if not isinstance(source, list) or len(source) > 1:
            raise InputError(f"{name} has not one condition image.", "Send [] or one.")
        image = pictures.from_base64(source[0], f"the condition image of {name}") if source else None
        other = None if reference is None else pictures.from_base64(reference, f"the reference of {name}")
        fps = rates(judge, pictures, candidate, other)
        return judge.question(asked_prompt(prompts[number], image=image), candidate, other, instruction, fps)

    return Request(each([lambda number=number: question(number) for number in range(len(prompts))]))


def write(request: Request, outcomes: Sequence[Outcome], judge: ServedJudge) -> bytes:
    for number, outcome in enumerate(outcomes):
        if isinstance(outcome, RewardDanceError):
            return as_json({"error": f"sample {number}: {outcome}"})
    return as_json({"rewards": [probability(outcome) for outcome in outcomes if not isinstance(outcome, Exception)]})


PROTOCOL = Protocol("/compute", read, write)


def _column(content: dict[str, Any], key: str, prompts: Sequence[Any]) -> list[Any]:
    """One item a prompt, None where the column is not there."""
    items = content.get(key)
    if items is None or items == []:
        return [None] * len(prompts)
    if not isinstance(items, list) or len(items) != len(prompts):
        raise InputError(f"there are not as many of {key} as of prompt.", "Send one for each sample.")
    return items
