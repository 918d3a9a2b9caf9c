"""Forwards in step: processes that hold a model's weights in pieces run its layers equally often and in one order.

What each of them reads may differ, so before every pass they say whether they still have something to read. One that
has nothing sends a blank along, whose gradient is zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rewarddance.reward.prefix_cache import Prefix
from rewarddance.runtime.process_group import sum_over_processes

if TYPE_CHECKING:
    from rewarddance.reward.prefill import Prefill

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

    def blank_picture(self, prefill: Prefill, with_graph: bool) -> None:
        """A pass of the vision tower. with_graph: where others have one."""
        pixels = torch.zeros(1, 3, BLANK, BLANK, device=prefill.device)
        self._keep(pixels, with_graph, lambda leaf: prefill.family.encode([leaf])[0].tokens)

    def blank_text(self, prefill: Prefill, with_graph: bool) -> None:
        """A pass of the language model over one token."""
        model = prefill.model
        width = model.get_input_embeddings().weight.shape[1]
        embeds = torch.zeros(1, 1, width, device=prefill.device, dtype=model.dtype)
        positions = prefill.family.positions((0,), ()).to(prefill.device).unsqueeze(1)
        extra = {"prefix": Prefix(), "attention_mask": embeds.new_zeros(1, 1, 1, 1), "use_cache": False}
        extra["position_ids"] = positions if len(positions) > 1 else positions[0]
        self._keep(embeds, with_graph, lambda leaf: model.get_decoder()(inputs_embeds=leaf, **extra).last_hidden_state)

    def _keep(self, leaf: Tensor, with_graph: bool, forward: Any) -> None:
        if with_graph and torch.is_grad_enabled():
            self.leaves.append(leaf.requires_grad_())
            self.ends.append(forward(leaf).sum())
        else:
            with torch.no_grad():
                forward(leaf)
