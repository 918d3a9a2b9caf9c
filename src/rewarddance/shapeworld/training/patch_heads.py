"""Dense supervision for the small bases: what each 4x4 patch of a picture shows. The heads are dropped after training.

Without it, a small vision tower was near chance on questions after twelve minutes, and a small generator still drew
ragged shapes after 100,000 pictures (docs/lab_log.md).
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rewarddance.shapeworld.render import shape_mask
from rewarddance.shapeworld.scenes import CANVAS, COLOURS, SHAPES, Scene, Thing


class PatchHeads(torch.nn.Module):
    """Heads on a network's 64 patch tokens: is the patch painted, and the shape, colour and size of what it shows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = torch.nn.ModuleList([torch.nn.Linear(width, n) for n in (len(SHAPES), len(COLOURS), 2)])
        self.painted = torch.nn.Linear(width, 2)

    def loss(self, patches: Tensor, labels: Tensor) -> Tensor:
        """patches [N, 64, D]; labels [N, 64, 4], -1 background, -2 not known."""
        known, painted = labels[..., 0] > -2, labels[..., 0] > -1
        total = F.cross_entropy(self.painted(patches[known]).float(), painted[known].long())
        for head, target in zip(self.heads, labels[painted].T[:3], strict=True):
            total = total + F.cross_entropy(head(patches[painted]).float(), target)
        return total

    @torch.no_grad()
    def accuracy(self, patches: Tensor, labels: Tensor) -> float:
        """Share of painted patches whose shape, colour and size are all predicted right."""
        painted = labels[..., 0] > -1
        predicted = torch.stack([head(patches[painted]).argmax(-1) for head in self.heads], -1)
        return (predicted == labels[painted][:, :3]).all(-1).float().mean().item()


def patch_labels(scene: Scene, marked: Collection[Thing] = ()) -> np.ndarray:
    """What each 4x4 patch mostly shows, [64, 4] numbers; -1 where it is background.

    The columns are shape, colour, size, and 1 where the object is one of the `marked`.
    """
    labels = np.full((4, CANVAS, CANVAS), -1, dtype=np.int64)
    for thing in scene:
        square = labels[:, thing.y : thing.y + thing.side, thing.x : thing.x + thing.side]
        label = (
            SHAPES.index(thing.shape),
            list(COLOURS).index(thing.colour),
            int(thing.size == "large"),
            int(thing in marked),
        )
        square[:, shape_mask(thing.shape, thing.side)] = np.asarray(label)[:, None]
    patches = labels.reshape(4, 8, 4, 8, 4).swapaxes(2, 3).reshape(4, 64, 16)
    painted = (patches[0] > -1).sum(1) >= 4
    return np.ascontiguousarray(np.where(painted, patches.max(2), -1).T)
