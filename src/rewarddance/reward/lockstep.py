"""Forwards in step: processes that hold a model's weights in pieces run its layers equally often and in one order.

What each of them reads may differ, so before every pass they say whether they still have something to read. One that
has nothing sends a blank along, whose gradient is zero.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rewarddance.reward.prefix_cache import Prefix
from rewarddance.runtime.process_group import sum_over_processes

BLANK = 32
"""Side of a blank picture in pixels, before a family resizes it."""


class Lockstep:
    """One turn of all processes, from its first pass to its last; then the way back through its graphs.

    leaves, ends: where the graphs of this process's blanks begin and end.
    """

    def __init__(self) -> None:
        self.leaves: list[Tensor] = []
        self.ends: list[Tensor] = []

    def any_process(self, *flags: bool) -> tuple[bool, ...]:
        """Of each flag, whether any process has it set. All processes call this alike."""
        return tuple(map(bool, sum_over_processes(torch.tensor(flags, dtype=torch.int32)).tolist()))

    def blank_picture(self, reading: Any, wanted: bool) -> None:
        """A pass of the vision tower. wanted: with a graph, where others have one."""
        pixels = torch.zeros(1, 3, BLANK, BLANK, device=reading.device)
        self._keep(pixels, wanted, lambda leaf: reading.family.encode([leaf])[0].tokens)

    def blank_text(self, reading: Any, wanted: bool) -> None:
        """A pass of the language model over one token."""
        model = reading.model
        width = model.get_input_embeddings().weight.shape[1]
        embeds = torch.zeros(1, 1, width, device=reading.device, dtype=model.dtype)
        positions = reading.family.positions((0,), ()).to(reading.device).unsqueeze(1)
        extra = {"prefix": Prefix(), "attention_mask": embeds.new_zeros(1, 1, 1, 1), "use_cache": False}
        extra["position_ids"] = positions if len(positions) > 1 else positions[0]
        self._keep(embeds, wanted, lambda leaf: model.get_decoder()(inputs_embeds=leaf, **extra).last_hidden_state)

    def _keep(self, leaf: Tensor, wanted: bool, forward: Any) -> None:
        if wanted and torch.is_grad_enabled():
            self.leaves.append(leaf.requires_grad_())
            self.ends.append(forward(leaf).sum())
        else:
            with torch.no_grad():
                forward(leaf)
