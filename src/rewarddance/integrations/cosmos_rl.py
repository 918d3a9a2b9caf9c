"""A judge in the reward service of cosmos-rl (`cosmos_rl_reward`, beside the package of that name).

In `cosmos_rl_reward/model/__init__.py`::

    from rewarddance.integrations.cosmos_rl import JudgeReward

and in the service's TOML `reward_type = "rewarddance"` with `endpoint_url`, the server's address, or `model_path`, the
judge's name or folder. References are a subclass's, registered under a `reward_name` of its own.
"""

from __future__ import annotations

import time
from typing import Any, ClassVar

from torch import Tensor

from rewarddance.errors import InputError
from rewarddance.integrations.scorer import AnyReferences, Scorer, channels_first, subclass


class _JudgeReward:
    """P("yes") of each picture of a request, under `scores["rewarddance"]`.

    references, options: class attributes, as `Scorer` takes them. A failure is raised: the service logs it and has no
    score for the trainer, which keeps asking.
    """

    NEEDS_LATENT_DECODER = False
    reward_name = "rewarddance"
    references: ClassVar[AnyReferences] = None
    options: ClassVar[dict[str, Any]] = {}

    def __init__(
        self, model_path: str = "", device: str = "cuda", dtype: Any = "float32", endpoint_url: str = "", **others: Any
    ) -> None:
        super().__init__()
        if not (endpoint_url or model_path):
            raise InputError(f"the reward {self.reward_name!r} has no judge.", "Set endpoint_url or model_path.")
        self.judge, self.device, self.dtype = endpoint_url or model_path, device, dtype

    def set_up(self) -> None:
        self.scorer = Scorer(self.judge, self.references, device=self.device, dtype=self.dtype, **self.options)

    def calculate_reward(self, images: Tensor, metadata: dict[str, Any]) -> dict[str, Any]:
        """Scores of pictures (uint8 [B, H, W, 3] or [B, 3, H, W]) or decoded videos (uint8 [B, 3, T, H, W])."""
        start = time.monotonic()
        prompts = metadata.get("prompts")
        prompts = [prompts] if isinstance(prompts, str) else list(prompts or [])
        if images.ndim == 5:
            media: Any = [channels_first(video, f"video {number}") for number, video in enumerate(images)]
        else:
            media = images.cpu().numpy() if images.ndim == 4 and images.shape[-1] == 3 else images
        scores = self.scorer(media, prompts)
        return {
            "scores": {self.reward_name: scores},
            "input_info": metadata.get("input_info", {}),
            "duration": f"{time.monotonic() - start:.2f}",
            "decoded_duration": metadata.get("decode_duration", "N/A"),
            "type": self.reward_name,
        }


def __getattr__(name: str) -> type:
    """The handler, on the service's own class and registered there, made when it is first asked for."""
    if name != "JudgeReward":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cosmos_rl_reward.handler.registry import RewardRegistry  # type: ignore[import-not-found]
    from cosmos_rl_reward.handler.reward_base import BaseRewardHandler  # type: ignore[import-not-found]

    if name not in globals():
        globals()[name] = RewardRegistry.register()(subclass(_JudgeReward, BaseRewardHandler))
    return globals()[name]
