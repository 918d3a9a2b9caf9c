"""InternVL (-hf): one square tile a frame."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from rewarddance.errors import InputError
from rewarddance.reward.families.family import Encoded, KnownFamily
from rewarddance.reward.families.processor_files import read_object


def check_format(folder: Path, name: str) -> None:
    """Raises InputError where a folder is in InternVL's own format, which runs code of its repository."""
    try:
        kind = read_object(folder / "config.json").get("model_type")
    except (OSError, ValueError):  # what is wrong with it is said where it is loaded
        return
    if kind == "internvl_chat":
        raise InputError(
            f"the judge {name!r} is in InternVL's own format ({kind}).",
            "Take the folder for transformers, whose name ends in -hf, or convert it with transformers' "
            "convert_internvl_weights_to_hf.py.",
        )


class InternVL(KnownFamily):
    """InternVL (-hf): every frame is one square tile of fixed size, 256 tokens for 448x448.

    The family's own processor cuts large pictures into up to ten tiles more; here a frame is one tile, which is what
    judging two pictures can afford.
    """

    def __init__(self, model: Any, tokenizer: Any, image: dict[str, Any], max_pixels: int | None) -> None:
        if max_pixels is not None:
            raise InputError("an InternVL judge has tiles of fixed size.", "Leave max_pixels out.")
        for token in ("start_image_token", "end_image_token", "context_image_token"):
            if getattr(tokenizer, token, None) is None:
                raise InputError(f"the tokenizer of an InternVL judge names no {token}.", "Take its original files.")
        super().__init__(model, tokenizer, image, max_pixels)

    def size(self, height: int, width: int) -> tuple[int, int]:
        return self.image["size"]["height"], self.image["size"]["width"]

    def grid(self, height: int, width: int) -> tuple[int, int]:
        (rows, columns), (high, wide) = self.model.config.vision_config.patch_size, self.size(height, width)
        return high // rows, wide // columns

    def tokens(self, height: int, width: int) -> int:
        return self.model.config.image_seq_length

    @property
    def placeholder(self) -> str:
        return self.tokenizer.context_image_token

    def written(self, frames: Sequence[int]) -> str:
        start, end = self.tokenizer.start_image_token, self.tokenizer.end_image_token
        return "\n".join(f"{start}{self.placeholder * n}{end}" for n in frames)

    def image_settings(self) -> dict[str, Any]:
        # its processor cuts into patches whatever the file says; of one patch it makes the tile that is read here
        return {"crop_to_patches": False, "min_patches": 1, "max_patches": 1}

    def picture_inputs(self, frames: Sequence[Tensor]) -> dict[str, Tensor]:
        return {"pixel_values": torch.cat([self.preprocess(pixels) for pixels in frames])}

    def encode(self, pictures: Sequence[Tensor]) -> list[Encoded]:
        features = self.model.model.get_image_features(
            **self.picture_inputs(pictures),
            vision_feature_layer=self.model.config.vision_feature_layer,
            vision_feature_select_strategy=self.model.config.vision_feature_select_strategy,
            return_dict=True,
        ).pooler_output
        return [Encoded(part.flatten(0, 1)) for part in features.split([len(pixels) for pixels in pictures])]

    def positions(self, ids: Sequence[int], pictures: Sequence[Tensor]) -> Int[Tensor, "axes L"]:
        return torch.arange(len(ids)).unsqueeze(0)

    @property
    def layers(self) -> nn.ModuleList:
        return self.model.model.vision_tower.encoder.layer
