"""Trainers' own classes and calls: the real ones where they are installed, else small ones written from their code.

A stand-in has a trainer's names, signatures and forms of pictures, read in its repository at the commit named beside
it, and calls a reward as the trainer does. It says nothing of what else the trainer does.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from abc import ABC, abstractmethod
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

MODULES = {
    "flow_factory.rewards.abc": "flow_factory",
    "unirl.reward.local.base": "unirl",
    "cosmos_rl_reward.handler.registry": "cosmos_rl",
    "cosmos_rl_reward.handler.reward_base": "cosmos_rl",
}
"""Foreign modules that a plug-in imports, and the plug-in."""


def provide(monkeypatch: Any, plug_in: str, name: str) -> Any:
    """A class of a plug-in, on its trainer's own where that is installed, else on a stand-in; gone after the test."""
    for module_name, of in MODULES.items():
        if of != plug_in or _installed(module_name):
            continue
        parts = module_name.split(".")
        for depth in range(1, len(parts)):
            parent = ".".join(parts[:depth])
            if parent not in sys.modules:
                monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
        module = ModuleType(module_name)
        vars(module).update(STAND_INS[module_name])
        monkeypatch.setitem(sys.modules, module_name, module)
        monkeypatch.setattr(sys.modules[module_name.rpartition(".")[0]], parts[-1], module, raising=False)
    home = vars(importlib.import_module(f"rewarddance.integrations.{plug_in}"))
    home.pop(name, None)
    made = home["__getattr__"](name)
    home.pop(name, None)
    monkeypatch.setitem(home, name, made)
    return made


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


# -- flow_grpo (ac4c86e) and DiffusionNFT (24af555): flow_grpo/rewards.py ----------------------------------------------


def multi_score(device: Any, score_dict: dict[str, float], score_functions: dict[str, Any]) -> Any:
    """Their loop over rewards; they have `score_functions` in the function's own body."""
    made = {}
    for name in score_dict:
        factory = score_functions[name]
        made[name] = factory(device) if "device" in factory.__code__.co_varnames else factory()

    def score(images: Any, prompts: Any, metadata: Any, only_strict: bool = True) -> tuple[dict, dict]:
        total: list[Any] = []
        details = {}
        for name, weight in score_dict.items():
            scores, _ = made[name](images, prompts, metadata)
            details[name] = scores
            weighed = [weight * one for one in scores]
            total = weighed if not total else [a + b for a, b in zip(total, weighed, strict=True)]
        return details | {"avg": total}, {}

    return score


# -- Pref-GRPO (3e787f6): fastvideo/rewards/dispatcher.py --------------------------------------------------------------


def pref_grpo_dispatcher() -> ModuleType:
    """The module, with a reward of its own that gives 0.25."""
    module = ModuleType("dispatcher")

    def build_reward_inputs(reward_weights: dict[str, float]) -> dict[str, list[dict]]:
        return {"clip": []} if "clip" in reward_weights else {}

    class RewardDispatcher:
        def __init__(self, *, args: Any, device: Any, reward_weights: dict[str, float], modality: str = "image"):
            unknown = [name for name in reward_weights if name not in module.SUPPORTED_REWARDS]
            if unknown:
                raise ValueError(f"Unsupported reward name: {unknown[0]}")
            self.device, self.reward_weights = torch.device(device), reward_weights

        def build_reward_inputs(self) -> dict[str, list[dict]]:
            return module.build_reward_inputs(self.reward_weights)

        def compute_rewards(self, reward_inputs: dict[str, list[dict]]) -> tuple[dict, dict]:
            if not reward_inputs or not any(reward_inputs.values()):
                raise ValueError("No reward inputs provided.")
            own = torch.full((len(reward_inputs["clip"]),), 0.25)
            return {"clip": own}, {"CLIP_score": own.numpy()}

    vars(module).update(
        SUPPORTED_REWARDS={"clip"}, build_reward_inputs=build_reward_inputs, RewardDispatcher=RewardDispatcher
    )
    return module


# -- Flow-Factory (a0b2bc5): rewards/abc.py, hparams/reward_args.py, rewards/reward_processor.py -----------------------


class _BaseRewardModel(ABC):
    required_fields: tuple[str, ...] = ()
    use_tensor_inputs = False

    def __init__(self, config: Any, accelerator: Any) -> None:
        self.accelerator, self.config = accelerator, config
        self.device = accelerator.device if config.device == torch.device("cuda") else config.device
        self.dtype, self.model = config.dtype, None

    @abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


class _PointwiseRewardModel(_BaseRewardModel):
    required_fields = ("image", "prompt")


class _GroupwiseRewardModel(_BaseRewardModel):
    required_fields = ("image", "prompt")


def reward_arguments(**extra: Any) -> SimpleNamespace:
    """What a reward's YAML becomes: unknown keys in extra_kwargs; here on the CPU."""
    return SimpleNamespace(
        name="judge", device=torch.device("cuda"), dtype=torch.float32, batch_size=16, extra_kwargs=extra
    )


def accelerator() -> SimpleNamespace:
    return SimpleNamespace(device=torch.device("cpu"))


# -- UniRL (1a7b501): reward/base.py, reward/local/base.py, types/reward.py --------------------------------------------


class _LocalRewardBackend:
    input_kind = "image"
    canonical_model_name = None

    def __init__(
        self,
        model_name: Any = None,
        device: str = "cuda",
        dtype: Any = torch.float16,
        batch_size: int = 8,
        **kwargs: Any,
    ):
        self.model_name, self.device, self.dtype = self.canonical_model_name, device, dtype
        self.batch_size, self.model_kwargs = batch_size, kwargs
        self._load_model()  # type: ignore[attr-defined]
        self._is_loaded = True

    def compute_rewards(self, request: Any) -> Any:
        rewards = self._compute_model_rewards(request)  # type: ignore[attr-defined]
        return SimpleNamespace(rewards=rewards, successes=[True] * len(rewards), errors=[None] * len(rewards))


class RewardRequest:
    """A request for pictures [B, C, H, W] or videos (of each [T, C, H, W]) and what they were made from."""

    def __init__(self, prompts: list[str], generated: Any, group_ids: Any = None, source: Tensor | None = None) -> None:
        self.prompts, self.group_ids, self.is_video = prompts, group_ids, isinstance(generated, list)
        self.primitives = {} if source is None else {"image": SimpleNamespace(pixels=source)}
        self._generated = generated

    @property
    def images(self) -> Any:
        from PIL import Image

        arrays = (self._generated.permute(0, 2, 3, 1) * 255).round().byte().numpy()
        return None if self.is_video else [Image.fromarray(array) for array in arrays]

    @property
    def videos(self) -> Any:
        return [video.permute(1, 0, 2, 3).contiguous() for video in self._generated] if self.is_video else None


# -- miles_diffusion (2929e49): utils/types.py, rollout/rm_hub/__init__.py, utils/misc.py ------------------------------


def miles_sample(prompt: str, pixels: Tensor) -> SimpleNamespace:
    """A Sample with its picture as [C, T, H, W]."""
    return SimpleNamespace(prompt=prompt, generated_output=pixels.transpose(0, 1), reward=None, metadata={})


async def batched_async_rm(custom_rm: Any, samples: list[Any]) -> list[float]:
    return await custom_rm(SimpleNamespace(custom_rm_path="my_reward.custom_rm"), samples)


# -- verl-omni (a1139baf): reward_loop/reward_manager/multi.py ---------------------------------------------------------


def sub_reward(function: Any, extra: dict[str, Any], required: bool, **sample: Any) -> float:
    """One sample by one of several rewards; a failure of one that is not required counts as 0.0 there."""
    try:
        return float(function(**sample, **extra)["score"])
    except Exception as error:
        if required:
            raise RuntimeError(f"Required sub-reward failed: {error}") from error
        return 0.0


# -- cosmos-rl (89f2e5b5): reward_service/cosmos_rl_reward/handler -----------------------------------------------------


class _BaseRewardHandler:
    reward_name = "base"

    def __init__(self, **kwargs: Any) -> None:
        self.score_pool = self.threading_pool = None

    @classmethod
    def get_instance(cls, **kwargs: Any) -> Any:
        if not hasattr(cls, "_instance"):
            cls._instance = cls(**kwargs)
        return cls._instance

    @classmethod
    def initialize(cls, **kwargs: Any) -> None:
        cls.get_instance(**kwargs).set_up()


class _RewardRegistry:
    _REWARD_REGISTRY: dict[str, type] = {}  # noqa: RUF012  as theirs is

    @classmethod
    def register(cls, *, allow_override: bool = False) -> Any:
        def decorator(handler: Any) -> Any:
            cls._REWARD_REGISTRY[handler.reward_name] = handler
            return handler

        return decorator

    @classmethod
    def get_reward_class(cls, reward_type: str) -> type:
        return cls._REWARD_REGISTRY[reward_type]


STAND_INS: dict[str, dict[str, Any]] = {
    "flow_factory.rewards.abc": {
        "PointwiseRewardModel": _PointwiseRewardModel,
        "GroupwiseRewardModel": _GroupwiseRewardModel,
        "RewardModelOutput": SimpleNamespace,
    },
    "unirl.reward.local.base": {"LocalRewardBackend": _LocalRewardBackend},
    "cosmos_rl_reward.handler.registry": {"RewardRegistry": _RewardRegistry},
    "cosmos_rl_reward.handler.reward_base": {"BaseRewardHandler": _BaseRewardHandler},
}


def uint8(pixels: Tensor) -> np.ndarray:
    """Pictures [N, 1, 3, H, W] in [0, 1] as [N, H, W, 3] of 8 bits."""
    return (pixels[:, 0].permute(0, 2, 3, 1) * 255).round().byte().numpy()


def written(folder: Path, pixels: Tensor) -> list[str]:
    """The pictures as files; their paths."""
    from rewarddance.data.media import write_picture

    paths = [folder / f"{number}.png" for number in range(len(pixels))]
    for path, picture in zip(paths, pixels, strict=True):
        write_picture(picture, path)
    return [str(path) for path in paths]
