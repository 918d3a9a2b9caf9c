"""A judge in UniRL: a reward backend, by Hydra's `_target_`. Exists where unirl is installed::

    reward:
      _target_: unirl.reward.service.RewardService
      backend:
        _target_: rewarddance.integrations.unirl.JudgeReward
        judge: shapeworld-judge
        references: references

UniRL's own remote backend talks to `rewarddance serve` too, without this file.
"""

from __future__ import annotations

import functools
from typing import Any

from rewarddance.errors import InputError
from rewarddance.integrations.scorer import Scorer, channels_first, subclass


class _JudgeReward:
    """P("yes") against the prompts' references, or of each sample by itself; with group, win rates in a group.

    judge: a name, a folder or a server's address. references: see `References`. group: by the request's `group_ids`;
    a group must then come whole, not spread over workers. input_kind: "image" or "video". device: "auto" is cuda where
    there is one. options: of `Scorer` and `load_reward`. What samples were edited from is `primitives["image"]`.
    """

    canonical_model_name = "rewarddance"

    def __init__(
        self,
        judge: Any,
        references: Any = None,
        *,
        group: bool = False,
        input_kind: str = "image",
        device: str = "auto",
        **options: Any,
    ) -> None:
        self.input_kind = input_kind
        place = None if device == "auto" else device
        self._make = functools.partial(Scorer, judge, references, group=group, device=place, **options)
        super().__init__(device=device)  # type: ignore[call-arg]  it loads the model

    def _load_model(self) -> None:
        self.scorer = self._make()

    def _compute_model_rewards(self, request: Any) -> list[float]:
        """Scores of a RewardRequest's samples, in their order."""
        media = request.videos if request.is_video else request.images
        if media is None:
            raise InputError(f"the request has no {self.input_kind}.", "Set input_kind to what is generated.")
        if request.is_video:
            media = [channels_first(video, f"video {number}") for number, video in enumerate(media)]
        source = request.primitives.get("image")
        sources = None if source is None else source.pixels
        return self.scorer(media, request.prompts, sources=sources, groups=request.group_ids)


def __getattr__(name: str) -> type:
    """The backend, on UniRL's own class, made when it is first asked for."""
    if name != "JudgeReward":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from unirl.reward.local.base import LocalRewardBackend  # type: ignore[import-not-found]

    return globals().setdefault(name, subclass(_JudgeReward, LocalRewardBackend))
