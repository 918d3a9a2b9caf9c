"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: frames of any shape, cut into patches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rewarddance.errors import InputError
from rewarddance.reward.families.family import Encoded, KnownFamily, Parts


class QwenVL(KnownFamily):
    """Qwen2-VL, Qwen2.5-VL and Qwen3-VL: frames keep their shape, one token for each `merge` x `merge` patches.

    Positions count time, rows and columns (M-RoPE); Qwen3-VL also adds features of the tower's middle to the first
    layers (DeepStack).
    """

    @property
    def _edge(self) -> int:
        return self.image["patch_size"] * self.image["merge_size"]

    @property
    def _bounds(self) -> tuple[int, int]:
        """Fewest and most pixels of a frame after resizing."""
        bounds = self.image.get("size") or {}
        least = bounds.get("shortest_edge") or self.image["min_pixels"]
        most = bounds.get("longest_edge") or self.image["max_pixels"]
        return least, min(most, self.max_pixels or most)

    def image_settings(self) -> dict[str, Any]:
        if self.max_pixels is None:
            return {}
        least, most = self._bounds  # `size` is what transformers reads now, the other two what it read before
        return {"size": {"shortest_edge": least, "longest_edge": most}, "min_pixels": least, "max_pixels": most}

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Multiples of one token's side, area within the processor's bounds (and `max_pixels`), shape kept."""
        (least, most), edge = self._bounds, self._edge
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

    def picture_inputs(self, frames: Sequence[Tensor]) -> dict[str, Tensor]:
        patches, grids = [], []
        for pixels in frames:
            grid = self.grid(pixels.shape[-2], pixels.shape[-1])
            patches.append(self._patches(self.preprocess(pixels)))
            grids += [(1, *grid)] * len(pixels)
        return {"pixel_values": torch.cat(patches), "image_grid_thw": torch.tensor(grids, device=self.model.device)}

    def model_inputs(self, parts: Parts, pictures: Sequence[Tensor], prefix_tokens: Sequence[int]) -> dict[str, Tensor]:
        inputs = super().model_inputs(parts, pictures, prefix_tokens)
        return inputs | {"mm_token_type_ids": (inputs["input_ids"] == self.model.config.image_token_id).int()}

    def _patches(self, frames: Float[Tensor, "T C h w"]) -> Float[Tensor, "n values"]:
        """Patches in the order in which the tower merges them; a picture stands for a pair of equal frames."""
        merge, patch, depth = (self.image[key] for key in ("merge_size", "patch_size", "temporal_patch_size"))
        count, channels, high, wide = frames.shape
        patches = frames.view(
            count, channels, high // patch // merge, merge, patch, wide // patch // merge, merge, patch
        )
        patches = patches.permute(0, 2, 5, 3, 6, 1, 4, 7)  # frame, block row, block column, row, column, channel, y, x
        patches = patches.unsqueeze(6).expand(*[-1] * 6, depth, -1, -1)
        return patches.reshape(-1, channels * depth * patch * patch)

    def encode(self, pictures: Sequence[Tensor]) -> list[Encoded]:
        features = self.model.model.get_image_features(**self.picture_inputs(pictures), return_dict=True)
        counts = [len(p) * self.tokens(p.shape[-2], p.shape[-1]) for p in pictures]
        tokens = _concatenated(features.pooler_output).split(counts)
        deep = [_concatenated(layer).split(counts) for layer in getattr(features, "deepstack_features", None) or ()]
        return [Encoded(part, tuple(layer[i] for layer in deep)) for i, part in enumerate(tokens)]

    def positions(self, ids: Sequence[int], pictures: Sequence[Tensor]) -> Int[Tensor, "axes L"]:
        """After the family's own get_rope_index, on the whole sequence: a suffix cannot know its own positions."""
        input_ids = torch.tensor([ids])
        grids = [(1, *self.grid(p.shape[-2], p.shape[-1])) for p in pictures for _ in range(len(p))]
        positions, _ = self.model.model.get_rope_index(
            input_ids,
            mm_token_type_ids=(input_ids == self.model.config.image_token_id).int(),
            image_grid_thw=torch.tensor(grids) if grids else None,
        )
        return positions[:, 0]

    @property
    def layers(self) -> nn.ModuleList:
        return self.model.model.visual.blocks


def _concatenated(features: Any) -> Tensor:
    """Features of all pictures end to end; transformers hands them out so (5.17), or picture by picture (5.23)."""
    return features if isinstance(features, Tensor) else torch.cat(list(features))
