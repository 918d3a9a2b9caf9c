"""A judge in Flow-Factory: two classes for `reward_model` in its YAML::

    rewards:
      - name: judge
        reward_model: rewarddance.integrations.flow_factory.PointwiseReward
        judge: http://localhost:8000
        references: references
        batch_size: 16

`PointwiseReward` scores each sample by itself or against its prompt's reference; `GroupwiseReward` gives the win rates
of a group, every pair asked in both orders. Both exist where flow_factory is installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rewarddance.errors import InputError
from rewarddance.integrations.scorer import Scorer, subclass


class _Reward:
    """What the two have in common. Keys beside Flow-Factory's own are in `config.extra_kwargs`.

    judge: a name, a folder or a server's address. required_fields: what is gathered for a group over several ranks,
    where it is not prompt and image ([prompt, video], or [prompt, image, condition_images]). All others are options of
    `Scorer` and `load_reward`; device and dtype are Flow-Factory's own.
    """

    use_tensor_inputs = True  # floats, not pictures of 8 bits
    required_fields: tuple[str, ...] = ("prompt", "image")
    group = False
    device: Any
    dtype: torch.dtype

    def __init__(self, config: Any, accelerator: Any) -> None:
        super().__init__(config, accelerator)  # type: ignore[call-arg]
        options = dict(config.extra_kwargs)
        if "judge" not in options:
            raise InputError(f"the reward {config.name!r} has no judge.", "Add judge: a name, a folder or an address.")
        self.required_fields = tuple(options.pop("required_fields", self.required_fields))
        self.scorer = Scorer(
            options.pop("judge"), **{"group": self.group, "device": str(self.device), "dtype": self.dtype} | options
        )

    def __call__(
        self,
        prompt: list[str],
        image: Sequence[Any] | None = None,
        video: Sequence[Any] | None = None,
        condition_images: Sequence[Any] | None = None,
    ) -> Any:
        """Scores [N]. image: N of [C, H, W]; video: N of [T, C, H, W]; condition_images: of each sample one at most."""
        from flow_factory.rewards.abc import RewardModelOutput  # type: ignore[import-not-found]

        media = video if image is None else image
        if media is None:
            raise InputError("the samples have neither image nor video.", "Name them in required_fields.")
        sources = None if condition_images is None else [_only(images) for images in condition_images]
        groups = [0] * len(prompt) if self.group else None
        scores = self.scorer(media, prompt, sources=sources, groups=groups)
        return RewardModelOutput(rewards=torch.tensor(scores), extra_info={})


class _PointwiseReward(_Reward):
    __doc__ = _Reward.__doc__


class _GroupwiseReward(_Reward):
    __doc__ = _Reward.__doc__
    group = True


def _only(images: Sequence[Any]) -> Any:
    if len(images) > 1:
        raise InputError(f"a sample has {len(images)} condition images.", "A judge is shown one source picture.")
    return images[0] if len(images) else None


def __getattr__(name: str) -> type:
    """The two classes, on Flow-Factory's own, made when they are first asked for."""
    if name not in ("PointwiseReward", "GroupwiseReward"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from flow_factory.rewards import abc  # type: ignore[import-not-found]

    made = subclass(globals()[f"_{name}"], getattr(abc, f"{name}Model"))
    return globals().setdefault(name, made)
