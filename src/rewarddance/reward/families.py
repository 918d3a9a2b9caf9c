"""What differs between families of vision-language models: how a picture is cut up, written in a prompt, and placed.

A family says this of its own processor in a few lines of torch, so that pixels stay in the autograd graph; everything
else (templates, sharing, answers) is written once in `vlm`. A new family is one class and one line in FAMILIES.
Frames of a video are given to every family as pictures in their order.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from rewarddance.errors import InputError
from rewarddance.types import Pixels


class Encoded(NamedTuple):
    """A picture as the language model reads it: tokens [n, D], and what is added to its first layers, each [n, D]."""

    tokens: Float[Tensor, "n D"]
    deep: tuple[Float[Tensor, "n D"], ...] = ()


def resized(pixels: Float[Tensor, "T C H W"], height: int, width: int) -> Float[Tensor, "T C h w"]:
    """Bicubic with antialiasing, columns then rows, clamped after each, as Pillow does it (within 1/255); float32."""
    if pixels.shape[-2:] == (height, width):
        return pixels
    wide = F.interpolate(pixels, size=(pixels.shape[-2], width), mode="bicubic", antialias=True).clamp(0, 1)
    return F.interpolate(wide, size=(height, width), mode="bicubic", antialias=True).clamp(0, 1)


def _joined(features: Any) -> Tensor:
    """Features of all pictures end to end; transformers hands them out so (5.17), or picture by picture (5.23)."""
    return features if isinstance(features, Tensor) else torch.cat(list(features))


class Family(ABC):
    """One loaded model, seen through what its family has of its own.

    image: the content of preprocessor_config.json. max_pixels: pixels of a frame after resizing, at most.
    """

    def __init__(self, model: Any, tokenizer: Any, image: dict[str, Any], max_pixels: int | None) -> None:
        self.model, self.tokenizer, self.image, self.max_pixels = model, tokenizer, image, max_pixels
        self._mean = torch.tensor(image["image_mean"])[:, None, None]
        self._deviation = torch.tensor(image["image_std"])[:, None, None]

    @abstractmethod
    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches (before merging) of a frame of this size."""

    @abstractmethod
    def tokens(self, height: int, width: int) -> int:
        """How many tokens the language model reads of a frame of this size."""

    @abstractmethod
    def written(self, frames: Sequence[int]) -> str:
        """What the chat template's picture placeholder is replaced by: `frames` are the tokens of each frame."""

    @property
    @abstractmethod
    def placeholder(self) -> str:
        """The text by which the chat template marks a picture."""

    @abstractmethod
    def inputs(self, frames: Sequence[Tensor]) -> dict[str, Tensor]:
        """The model's own keyword arguments for pictures or frame stacks in order, in the autograd graph."""

    @abstractmethod
    def encode(self, pictures: Sequence[Tensor]) -> list[Encoded]:
        """Each picture or frame stack once through the vision tower, together, in the graph."""

    @abstractmethod
    def positions(self, ids: Sequence[int], pictures: Sequence[Tensor]) -> Int[Tensor, "axes L"]:
        """Rotary positions of a whole sequence: one axis, or three where the family counts time, rows and columns."""

    def preprocess(self, pixels: Pixels) -> Float[Tensor, "T C h w"]:
        """Resize and normalise as the family's own image processor does, differentiably, in float32."""
        pixels = pixels.to(self.model.device, torch.float32)
        pixels = resized(pixels, *self.size(pixels.shape[-2], pixels.shape[-1]))
        return (pixels - self._mean.to(pixels.device)) / self._deviation.to(pixels.device)

    @abstractmethod
    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after resizing."""


class InternVL(Family):
    """InternVL (-hf): every frame is one square tile of fixed size, 256 tokens for 448x448.

    The family's own processor cuts large pictures into up to ten tiles more; here a frame is one tile, which is what
    judging two pictures can afford.
    """

    def __init__(self, model: Any, tokenizer: Any, image: dict[str, Any], max_pixels: int | None) -> None:
        if max_pixels is not None:
            raise InputError("an InternVL judge has tiles of fixed size.", "Leave max_pixels out.")
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

    def inputs(self, frames: Sequence[Tensor]) -> dict[str, Tensor]:
        return {"pixel_values": torch.cat([self.preprocess(pixels) for pixels in frames])}

    def encode(self, pictures: Sequence[Tensor]) -> list[Encoded]:
        features = self.model.model.get_image_features(
            **self.inputs(pictures),
            vision_feature_layer=self.model.config.vision_feature_layer,
            vision_feature_select_strategy=self.model.config.vision_feature_select_strategy,
            return_dict=True,
        ).pooler_output
        return [Encoded(part.flatten(0, 1)) for part in features.split([len(pixels) for pixels in pictures])]

    def positions(self, ids: Sequence[int], pictures: Sequence[Tensor]) -> Int[Tensor, "axes L"]:
        return torch.arange(len(ids)).unsqueeze(0)


class QwenVL(Family):
    """Qwen2-VL, Qwen2.5-VL and Qwen3-VL: frames keep their shape, one token for each `merge` x `merge` patches.

    Positions count time, rows and columns (M-RoPE); Qwen3-VL also adds features of the tower's middle to the first
    layers (DeepStack).
    """

    @property
    def _edge(self) -> int:
        return self.image["patch_size"] * self.image["merge_size"]

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Multiples of one token's side, area within the processor's bounds (and `max_pixels`), shape kept."""
        bounds, edge = self.image.get("size") or {}, self._edge
        least = bounds.get("shortest_edge") or self.image["min_pixels"]
        most = bounds.get("longest_edge") or self.image["max_pixels"]
        most = min(most, self.max_pixels or most)
        if max(height, width) > 200 * min(height, width):
            raise InputError(
                f"a picture of {height}x{width} pixels is too long.", "Sides may differ 200 times at most."
            )
        high, wide = round(height / edge) * edge, round(width / edge) * edge
        if high * wide > most:
            shrink = math.sqrt(height * width / most)
            high, wide = (max(edge, math.floor(side / shrink / edge) * edge) for side in (height, width))
        elif high * wide < least:
            grow = math.sqrt(least / (height * width))
            high, wide = (math.ceil(side * grow / edge) * edge for side in (height, width))
        return high, wide

    def grid(self, height: int, width: int) -> tuple[int, int]:
        high, wide = self.size(height, width)
        return high // self.image["patch_size"], wide // self.image["patch_size"]

    def tokens(self, height: int, width: int) -> int:
        rows, columns = self.grid(height, width)
        return rows * columns // self.image["merge_size"] ** 2

    @property
    def placeholder(self) -> str:
        return "<|vision_start|><|image_pad|><|vision_end|>"

    def written(self, frames: Sequence[int]) -> str:
        return "".join(f"<|vision_start|>{'<|image_pad|>' * n}<|vision_end|>" for n in frames)

    def inputs(self, frames: Sequence[Tensor]) -> dict[str, Tensor]:
        patches, grids = [], []
        for pixels in frames:
            grid = self.grid(pixels.shape[-2], pixels.shape[-1])
            patches.append(self._patches(self.preprocess(pixels)))
            grids += [(1, *grid)] * len(pixels)
        return {"pixel_values": torch.cat(patches), "image_grid_thw": torch.tensor(grids, device=self.model.device)}

    def _patches(self, frames: Float[Tensor, "T C h w"]) -> Float[Tensor, "n values"]:
        """Patches in the order in which the tower merges them; a picture stands for a pair of equal frames."""
        merge, patch, depth = (self.image[key] for key in ("merge_size", "patch_size", "temporal_patch_size"))
        count, channels, high, wide = frames.shape
        cut = frames.view(count, channels, high // patch // merge, merge, patch, wide // patch // merge, merge, patch)
        cut = cut.permute(0, 2, 5, 3, 6, 1, 4, 7)  # frame, block row, block column, row, column, channel, y, x
        cut = cut.unsqueeze(6).expand(*[-1] * 6, depth, -1, -1)
        return cut.reshape(-1, channels * depth * patch * patch)

    def encode(self, pictures: Sequence[Tensor]) -> list[Encoded]:
        found = self.model.model.get_image_features(**self.inputs(pictures), return_dict=True)
        counts = [len(p) * self.tokens(p.shape[-2], p.shape[-1]) for p in pictures]
        tokens = _joined(found.pooler_output).split(counts)
        deep = [_joined(layer).split(counts) for layer in getattr(found, "deepstack_features", None) or ()]
        return [Encoded(part, tuple(layer[i] for layer in deep)) for i, part in enumerate(tokens)]

    def positions(self, ids: Sequence[int], pictures: Sequence[Tensor]) -> Int[Tensor, "axes L"]:
        """After the family's own get_rope_index, on the whole sequence: a suffix cannot know its own positions."""
        here = torch.tensor([ids])
        grids = [(1, *self.grid(p.shape[-2], p.shape[-1])) for p in pictures for _ in range(len(p))]
        found, _ = self.model.model.get_rope_index(
            here,
            mm_token_type_ids=(here == self.model.config.image_token_id).int(),
            image_grid_thw=torch.tensor(grids) if grids else None,
        )
        return found[:, 0]


FAMILIES: dict[str, type[Family]] = {
    "internvl": InternVL,
    "qwen2_vl": QwenVL,
    "qwen2_5_vl": QwenVL,
    "qwen3_vl": QwenVL,
}
"""By the model_type of config.json."""
