"""A judge inside other people's loops, by the convention that flow_grpo has made common among GRPO trainers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rewarddance.data.media import Media, as_pixels
from rewarddance.errors import InputError
from rewarddance.reward.ranking import tournament, win_rates
from rewarddance.types import Pixels, Prompt, Question, as_prompts

if TYPE_CHECKING:
    from rewarddance.protocols import RewardModel


@torch.no_grad()
def rewards_of(
    judge: RewardModel,
    images: Sequence[Media] | torch.Tensor | np.ndarray,
    prompts: Sequence[str | Prompt],
    metadata: Sequence[Any] | None = None,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Scores [N] in [0, 1] of N images under their prompts, and {"margins": [N]}; float32 arrays, without a graph.

    A judge that scores each image by itself gives P("yes") of each. One that needs a reference compares the images of
    one prompt with each other, all ordered pairs: the score is the win rate, the margin the mean of half the
    difference of both orders' margins; of each prompt a call then holds at least two images.

    images: a float tensor [N, 3, H, W] (or videos [N, T, 3, H, W]) in [0, 1], a uint8 array [N, H, W, 3], or a list of
    pictures such as PIL's. metadata: not read. Raises InputError where there is not one prompt for each image, for a
    single image of a prompt, and naming an image that is none.
    """
    pixels = [as_pixels(image, f"image {number}") for number, image in enumerate(images)]
    prompts = as_prompts(prompts)
    if len(pixels) != len(prompts):
        raise InputError(
            f"there are {len(pixels)} images and {len(prompts)} prompts.", "Give one prompt for each image."
        )
    if not judge.needs_reference:
        verdict = judge([Question(prompt, image) for prompt, image in zip(prompts, pixels, strict=True)])
        return _array(verdict.probability), {"margins": _array(verdict.margin)}
    groups: dict[Prompt, list[int]] = {}
    for number, prompt in enumerate(prompts):
        groups.setdefault(prompt, []).append(number)
    for prompt, numbers in groups.items():
        if len(numbers) < 2:
            raise InputError(
                f"the prompt {prompt.text!r} comes with one image, and a pairwise judge compares a prompt's images.",
                "Give two or more of each prompt in a call, or take a judge of kind 'pointwise'.",
            )
    grouped: list[list[Pixels]] = [[pixels[number] for number in numbers] for numbers in groups.values()]
    scores, margins = torch.zeros(len(pixels)), torch.zeros(len(pixels))
    for numbers, ranking in zip(groups.values(), tournament(judge, [*groups], grouped), strict=True):
        scores[numbers] = win_rates(ranking.margins[None])[0]
        margins[numbers] = (ranking.margins - ranking.margins.T).sum(1) / (2 * (len(numbers) - 1))
    return _array(scores), {"margins": _array(margins)}


def _array(values: torch.Tensor) -> np.ndarray:
    return values.float().cpu().numpy()
