"""The colour of an object, by a dual encoder as GenEval tells it, or by whatever answers questions about pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from rewarddance.data.object_prompts import COLOURS
from rewarddance.evaluation.object_scores import Detection
from rewarddance.evaluation.visual_questions import Answerer
from rewarddance.types import Pixels

CLIP = "openai/clip-vit-large-patch14"
"""The original's."""
_TEXTS = ("a photo of a {colour} {name}", "a photo of a {colour}-colored {name}", "a photo of a {colour} object")
_GREY = 0x99 / 255
"""What is laid over the pixels of a crop that are not the object's, where its mask is known."""


class ClipColours:
    """The colour whose texts lie nearest to the crop; a colour's texts are three, averaged as unit vectors.

    clip: a `ClipReward`. Source: GenEval's evaluate_images.py, with clip_benchmark's zero-shot classifier.
    """

    def __init__(self, clip: Any) -> None:
        self.clip = clip
        self._texts: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, picture: Pixels, name: str, objects: Sequence[Detection]) -> list[str]:
        if name not in self._texts:
            texts = [form.format(colour=colour, name=name) for colour in COLOURS for form in _TEXTS]
            features = self.clip.text_features(texts).unflatten(0, (len(COLOURS), len(_TEXTS)))
            self._texts[name] = F.normalize(features.mean(1), dim=-1)
        features = torch.cat(self.clip.image_features([crop(picture, detection) for detection in objects]))
        return [COLOURS[place] for place in (features @ self._texts[name].T).argmax(1).tolist()]


class AskedColours:
    """The likeliest answer to the question after the crop's colour."""

    def __init__(self, answerer: Answerer) -> None:
        self.answerer = answerer

    def __call__(self, picture: Pixels, name: str, objects: Sequence[Detection]) -> list[str]:
        question = f"What color is the {name}?"
        return [self.answerer.choose(crop(picture, detection), question, COLOURS) for detection in objects]


def crop(picture: Pixels, detection: Detection) -> Float[Tensor, "1 3 h w"]:
    """An object cut out by its box, at least a pixel wide and high; grey where its mask says that it is not."""
    height, width = picture.shape[-2:]
    left, top = (
        min(max(round(edge), 0), size - 1) for edge, size in zip(detection.box[:2], (width, height), strict=True)
    )
    right, bottom = (
        min(max(round(edge), start + 1), size)
        for edge, start, size in zip(detection.box[2:], (left, top), (width, height), strict=True)
    )
    if detection.mask is not None:
        is_object = torch.as_tensor(detection.mask, dtype=torch.bool, device=picture.device)
        picture = picture.where(is_object, torch.tensor(_GREY, device=picture.device))
    return picture[..., top:bottom, left:right]
