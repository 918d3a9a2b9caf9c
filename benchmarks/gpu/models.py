"""Judges and generators of real shapes with random weights, made on the device: nothing is downloaded or read."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from rewarddance.alignment.references import References
from rewarddance.planning.meta_judge import _picture_config, _tokenizer, read_architecture
from rewarddance.reward.families.registry import FAMILIES
from rewarddance.reward.generative import PairwiseReward
from rewarddance.reward.judge import RewardConfig
from rewarddance.reward.vlm_judge import ATTENTION, VisionLanguageModel
from rewarddance.types import Prompt

PROMPT = (
    "A wide shot of a lighthouse on a cliff at dusk, a red boat with two fishermen below it on the left, three white "
    "gulls above the water, soft light from the right, video grain, the name of the harbour painted on the boat's bow"
)


class RandomModel(VisionLanguageModel):
    """A `VisionLanguageModel` of the architecture of a name or folder, whose weights nobody trained."""

    def __init__(self, name: str, dtype: torch.dtype, device: torch.device, checkpointing: bool = False) -> None:
        config, self.folder, _ = read_architecture(name)
        torch.manual_seed(0)
        with torch.device(device):
            model: Any = AutoModelForImageTextToText.from_config(config, dtype=dtype)
        self.model, self.max_batch_tokens, self.checkpointing, self.is_checking = (
            model.eval(),
            16_384,
            checkpointing,
            False,
        )
        self.tokenizer, _ = _tokenizer(self.folder, config)
        pictures, _ = _picture_config(self.folder, config.model_type)
        self.family = FAMILIES[config.model_type](self.model, self.tokenizer, pictures, None)
        self._ids = functools.lru_cache(maxsize=65_536)(self._tokenise)
        self._language_model.config._attn_implementation = ATTENTION


def random_judge(
    name: str, device: torch.device, dtype: torch.dtype = torch.bfloat16, **options: Any
) -> PairwiseReward:
    """A pairwise judge, its weights trainable. options: of `RandomModel`."""
    return PairwiseReward(RandomModel(name, dtype, device, **options), RewardConfig())


def random_generator(name: str, device: torch.device, dtype: torch.dtype = torch.bfloat16, **options: Any) -> Any:
    """The generator of a name or folder. options: of `load_generator`."""
    from rewarddance.generators.adapter import GeneratorOptions
    from rewarddance.generators.pipelines import adapter_class
    from rewarddance.planning.meta_generator import meta_generator

    others = {name: value for name, value in options.items() if name != "num_inference_steps"}
    known = meta_generator(name, options["num_inference_steps"], dtype, **others)
    pipeline = known.pipeline
    for part, module in pipeline.components.items():
        if isinstance(module, nn.Module):
            setattr(pipeline, part, _made(module, device, dtype))
    adapter = adapter_class(name, type(pipeline).__name__)
    return adapter(pipeline, GeneratorOptions(**options))


def _made(known: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """A module of the same class and config with random weights on the device."""
    torch.manual_seed(0)
    with torch.device(device):
        if hasattr(known, "_from_config"):
            return type(known)._from_config(known.config, dtype=dtype)
        torch.set_default_dtype(dtype)  # 12 billion weights in float32 first would take twice the memory
        try:
            return type(known).from_config(known.config)
        finally:
            torch.set_default_dtype(torch.float32)


def pictures(count: int, side: int, device: torch.device, seed: int = 0) -> list[Tensor]:
    """Random pictures [1, 3, side, side], each a tensor of its own."""
    rng = torch.Generator().manual_seed(seed)
    return [torch.rand(1, 3, side, side, generator=rng).to(device) for _ in range(count)]


def bank_of(generator: Any, count: int) -> list[References]:
    """Two random references for each of `count` prompts, on the host, as a bank reads them."""
    shape = generator.init_noise([0]).shape[1:]
    rng = torch.Generator().manual_seed(1)

    def references(number: int) -> References:
        shown = tuple(torch.rand(1, 3, generator.height, generator.width, generator=rng) for _ in range(2))
        latents = torch.randn(2, *shape, generator=rng)
        return References(Prompt(f"{PROMPT}, {number}"), shown, (2 * number, 2 * number + 1), (1.0, 0.0), latents)

    return [references(number) for number in range(count)]
