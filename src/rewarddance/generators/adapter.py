"""What every adapter of a diffusers pipeline shares: options, guidance, noise and decoding.

An adapter reproduces its pipeline's own `__call__` step for step (tested to 1e-4 from the same noise), with gradients
where the pipeline has none. A family says only what differs.
"""

from __future__ import annotations

import copy
import inspect
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from rewarddance.errors import InputError, shown
from rewarddance.generators.finetuning import FinetunedPipeline
from rewarddance.generators.text_memory import TextMemory
from rewarddance.runtime.compilation import compile_layers
from rewarddance.runtime.config import MOST, Recipe
from rewarddance.runtime.devices import multiplies_bfloat16, on_device
from rewarddance.runtime.frozen_layers import keeping_less
from rewarddance.runtime.memory import modules_on
from rewarddance.runtime.quantised import BasePrecision
from rewarddance.runtime.sharding import outer_blocks
from rewarddance.types import OtherPixels, PixelBatch, Pixels, Prompt, Scales, as_prompts

EVERY_FAMILY = frozenset({"num_inference_steps", "guidance_scale", "height", "width", "cut_prompts", "half_sampling"})
EVERY_FAMILY |= {"base_precision", "compile"}
"""Options that every family uses. The others a family names in `uses`; elsewhere they are refused."""


class GeneratorOptions(Recipe):
    """How a generator draws, by the names and with the meanings that its pipeline's own `__call__` gives them.

    guidance_scale: None is no second branch, and the pipeline's default where the network is told the scale
    (FLUX.1-dev). true_cfg_scale: guidance by a second branch beside it (FLUX.1, Qwen-Image). negative_prompt: of the
    second branch. height, width, max_sequence_length: None is the pipeline's default. num_frames, frame_rate: of a
    video (frame_rate where the network is told it, LTX). scheduler: replaces the checkpoint's, with its settings
    (Stable Diffusion 1.5 and SDXL; Wan). cut_prompts: read the beginning of a prompt that is too long for all text
    encoders, as pipelines do without a word; else it is an error. half_sampling: a network in float32 on a processor
    that multiplies bfloat16 by itself (AVX512-BF16) samples in that, nearly twice as fast; all that has a gradient, and
    other processors, stay in float32. base_precision: of the network's frozen weights, nf4 or int8 (an extra), on which
    a LoRA can be trained; none is that of loading. compile: the network's blocks are compiled when they first run
    (`compile_layers`); not of one whose weights are sharded.
    """

    num_inference_steps: int = Field(ge=1, le=MOST)
    guidance_scale: float | None = Field(default=None, ge=0)
    true_cfg_scale: float | None = Field(default=None, ge=1)
    negative_prompt: str | None = None
    height: int | None = Field(default=None, ge=1)
    width: int | None = Field(default=None, ge=1)
    max_sequence_length: int | None = Field(default=None, ge=1)
    num_frames: int | None = Field(default=None, ge=1)
    frame_rate: int | None = Field(default=None, ge=1)
    cut_prompts: bool = False
    half_sampling: bool = False
    base_precision: BasePrecision = "none"
    compile: bool = False
    scheduler: Literal["DDIMScheduler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"] | None = None


class PipelineGenerator(FinetunedPipeline, ABC):
    """A diffusers pipeline as a Generator. Latents are the pipeline's own (packed where it packs them), in float32.

    pipeline: loaded, on its device, in the type that the network computes in. options: see `GeneratorOptions`.
    Raises InputError naming an option that the family does not use or a size that it cannot draw.
    """

    uses: ClassVar[frozenset[str]]
    """Options of the family besides EVERY_FAMILY."""
    needs_image: ClassVar[bool] = False
    """Does every prompt come with a picture? If not, none does, unless `takes_image`."""
    takes_image: ClassVar[bool] = False
    """May prompts come with a picture? Then all of a batch do, or none."""

    shared_conditioning: ClassVar[frozenset[str]] = frozenset()
    """Keys of the conditioning that are not by text."""
    encodes_alone: ClassVar[bool] = True
    """Is a text's conditioning the same whatever texts are encoded beside it? Not where it is padded to the longest."""

    timesteps: Tensor

    def __init__(self, pipeline: Any, options: GeneratorOptions) -> None:
        self.pipeline, self.options = pipeline, options
        self.network: Any = getattr(pipeline, self.component)
        self.kind, self.dtype = type(pipeline).__name__, self.network.dtype
        self._offloaded: dict[str, list[nn.Module]] = {}
        for component in pipeline.components.values():
            if isinstance(component, nn.Module):
                component.requires_grad_(False).eval()
        for name in options.model_fields_set - EVERY_FAMILY - self.uses:
            if getattr(options, name) is not None:
                raise InputError(f"a {self.kind} does not use the option {name!r}.", "Leave it out.")
        self.branch_scale = self._branch_scale()
        if options.negative_prompt is not None and self.branch_scale is None:
            raise InputError(
                "negative_prompt says nothing without guidance.", f"Set {self._scale_option}, or leave it out."
            )
        if options.compile:
            compile_layers(outer_blocks(self.network))
        self.height, self.width = self._size()
        self._latent_shape = self._noise_shape()
        self._scheduler = copy.deepcopy(pipeline.scheduler)  # whoever calls the pipeline itself does not move ours
        self._set_schedule()

    def __repr__(self) -> str:
        """Its pipeline, where that is from, its steps, guidance and size, and the other options that are no default."""
        name = f"{type(self).__name__}({self.pipeline.name_or_path!r}"
        steps = f"num_inference_steps={self.options.num_inference_steps}, guidance_scale={self.branch_scale}"
        said = {"num_inference_steps", "guidance_scale", "true_cfg_scale", "height", "width"}
        others = self.options.model_dump(exclude_defaults=True, exclude=said)
        if (dtype := next(self.network.parameters()).dtype) != torch.float32:
            others["dtype"] = str(dtype).removeprefix("torch.")
        more = "".join(f", {key}={value!r}" for key, value in others.items())
        return f"{name}, {steps}, height={self.height}, width={self.width}{more})"

    @classmethod
    def own_parts(cls, folder: Path) -> dict[str, Any]:
        """Components of a pipeline's folder that the family loads itself, by name."""
        return {}

    # -- what a family says -------------------------------------------------------------------------------------

    @abstractmethod
    def _text(self, texts: list[str]) -> Any:
        """The conditioning of texts, whatever `_network` wants of it; its rows are the texts."""

    @abstractmethod
    def _network(self, x_t: Tensor, step: int, condition: Any) -> Tensor:
        """The network's prediction for latents of which row i has row i of the condition."""

    @abstractmethod
    def _set_schedule(self) -> None:
        """Set `timesteps` as the pipeline does."""

    def _noise_shape(self) -> tuple[int, ...]:
        """Of one picture's noise, as the pipeline draws it."""
        scale = self.pipeline.vae_scale_factor
        return self.network.config.in_channels, self.height // scale, self.width // scale

    def _noise(self, rng: torch.Generator) -> Tensor:
        return torch.randn(self._latent_shape, generator=rng)

    def _default_size(self) -> tuple[int, int]:
        side = self.pipeline.default_sample_size * self.pipeline.vae_scale_factor
        return side, side

    def _multiple(self) -> int:
        """What height and width are multiples of."""
        return 2 * self.pipeline.vae_scale_factor

    def _branch_scale(self) -> float | None:
        """The scale of guidance by two branches, or None for one branch."""
        scale = self.options.guidance_scale
        return scale if scale is not None and scale > 1 else None

    @property
    def _scale_option(self) -> str:
        return "true_cfg_scale" if "true_cfg_scale" in self.uses else "guidance_scale"

    def _guided(self, toward: Tensor, away: Tensor, scale: float) -> Tensor:
        return away + scale * (toward - away)

    def _pack(self, noise: Tensor) -> Tensor:
        return noise

    def _unscaled(self, x_0: Tensor) -> Tensor:
        """What the VAE decodes."""
        config = self.pipeline.vae.config
        return x_0 / config.scaling_factor + (config.shift_factor or 0.0)

    def _scaled(self, latents: Tensor) -> Tensor:
        """What the VAE encoded, as x_0: `_unscaled` undone, but for packing."""
        config = self.pipeline.vae.config
        return (latents - (config.shift_factor or 0.0)) * config.scaling_factor

    def _frames(self, pictures: Tensor) -> PixelBatch:
        """The VAE's pictures [B, C, H, W] as [B, T, C, H, W]."""
        return pictures.unsqueeze(1)

    # -- the Generator protocol ---------------------------------------------------------------------------------

    @property
    def num_steps(self) -> int:
        return len(self.timesteps)

    @property
    def num_frames(self) -> int:
        """Of what it draws: 1 of a picture."""
        return self._option("num_frames") if "num_frames" in self.uses else 1

    @torch.no_grad()
    def encode(self, prompts: Sequence[str | Prompt]) -> Any:
        prompts = as_prompts(prompts)
        self.check_prompts(prompts)
        texts = [prompt.text for prompt in prompts]
        if self.branch_scale is not None:
            texts += self._negatives(prompts)
        return self._encoded(texts)

    def _encoded(self, texts: list[str]) -> Any:
        """`_text` of the texts, each encoded once (`TextMemory`)."""
        with ExitStack() as held:

            def encode(some: list[str]) -> Any:
                held.enter_context(self._present("text_encoders"))
                with _quiet(self.options.cut_prompts):
                    return self._text(some)

            return self._texts(texts, encode, self.device)

    def offload(self, parts: Collection[str]) -> None:
        """Keep these parts (text_encoders, vae) on the CPU while they are not in use.

        Raises InputError for a family whose prompts come with a picture, which more than these calls need them for.
        """
        if parts and self.needs_image:
            raise InputError(f"a {self.kind} begins from a picture, and keeps its parts.", "Leave offload out.")
        for part in parts:
            modules = [self.pipeline.vae] if part == "vae" else self._text_encoders()
            self._offloaded[part] = [module.to("cpu") for module in modules]

    def _text_encoders(self) -> list[nn.Module]:
        components: dict[str, Any] = self.pipeline.components
        named = {name: module for name, module in components.items() if name.startswith("text_encoder")}
        return [module for module in named.values() if isinstance(module, nn.Module)]

    def _present(self, part: str) -> AbstractContextManager[None]:
        return modules_on(self._offloaded.get(part, ()), self.device)

    @property
    def offloads_decoder(self) -> bool:
        """Is the VAE kept on the CPU while it is not in use?"""
        return "vae" in self._offloaded

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """Within the block the decoder stays where pictures are decoded, as long as a graph through it is needed.

        Such a graph keeps no more than it must (`keeping_less`).
        """
        less = keeping_less(self.pipeline.vae.decoder) if torch.is_grad_enabled() else nullcontext()
        with self._present("vae"), less:
            yield

    def keep_texts(self, folder: Path) -> None:
        """Keep encoded texts in a folder, too, which is this generator's with these options, for all processes."""
        self._texts.folder = folder

    @cached_property
    def _texts(self) -> TextMemory:
        return TextMemory(self.shared_conditioning, self.encodes_alone)

    def _negatives(self, prompts: Sequence[Prompt]) -> list[str]:
        """The texts of the second branch: a prompt's own, or else the option's."""
        return [prompt.negative or self.options.negative_prompt or "" for prompt in prompts]

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Raises InputError naming the first prompt that has a picture for nothing, lacks the one that the family
        needs, has a negative text without guidance, or is longer than any text encoder reads."""
        for prompt in prompts:
            if prompt.image is None and self.needs_image:
                raise InputError(
                    f"a {self.kind} begins from a picture, and the prompt {prompt.text!r} has none.",
                    'Give each prompt one: in a JSONL file, {"prompt": ..., "image": "first.png"}.',
                )
            if prompt.image is not None and not (self.needs_image or self.takes_image):
                raise InputError(
                    f"a {self.kind} takes no picture, and the prompt {prompt.text!r} comes with one.",
                    "Take out the image, or choose a generator of image to video or of edits.",
                )
            if prompt.negative and "negative_prompt" not in self.uses:
                raise InputError(
                    f"a {self.kind} takes no negative text, and the prompt {prompt.text!r} has one.", "Take it out."
                )
            if prompt.negative and self._branch_scale() is None:
                raise InputError(
                    f"the prompt {prompt.text!r} has a negative text, which says nothing without guidance.",
                    f"Set {self._scale_option}, or take it out.",
                )
            for text in (prompt.text, prompt.negative):
                if text and not self.options.cut_prompts:
                    self._check_length(text)

    def _check_length(self, text: str) -> None:
        """Raises InputError where every text encoder would cut the text off, with what none of them would read."""
        lost: list[tuple[int, int, str]] = []
        for tokenizer, limit in self._text_limits:
            ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
            if len(ids) <= limit:
                return
            lost.append((limit, len(ids), tokenizer.decode(ids[limit:])))
        if lost:
            limit, count, rest = max(lost)
            raise InputError(
                f"the prompt {shown(text)} has {count} tokens, and the {self.kind} reads {limit}: it would not see "
                f"{shown(rest, 60)}.",
                "Shorten it, or set generator_options cut_prompts: true to have prompts cut.",
            )

    @cached_property
    def _text_limits(self) -> list[tuple[Any, int]]:
        """Each tokenizer of the pipeline and how many tokens of a prompt it reads, learned by encoding one.

        What the family writes around a prompt (special tokens, a chat template) counts against what it reads.
        """
        heard: dict[str, tuple[int, str]] = {}
        names = [name for name in ("tokenizer", "tokenizer_2", "tokenizer_3") if getattr(self.pipeline, name, None)]
        tokenizers = {name: getattr(self.pipeline, name) for name in names}
        for name, tokenizer in tokenizers.items():
            object.__setattr__(
                self.pipeline, name, _Listening(tokenizer, lambda *at, name=name: heard.update({name: at}))
            )
        try:
            with torch.no_grad(), self._present("text_encoders"):
                self._text(["a"])
        finally:
            for name, tokenizer in tokenizers.items():
                object.__setattr__(self.pipeline, name, tokenizer)
        limits = []
        for tokenizer, length, text in (
            (tokenizers[name], *length_and_text) for name, length_and_text in heard.items()
        ):
            around = len(tokenizer(text).input_ids) - len(tokenizer("a", add_special_tokens=False).input_ids)
            limits.append((tokenizer, self._kept_tokens(length) - around))
        return limits

    def _kept_tokens(self, length: int) -> int:
        """How many of the tokens that a tokenizer cuts at `length` the network sees."""
        return length

    def init_noise(self, seeds: Sequence[int]) -> Tensor:
        """The noise that the pipeline draws from `torch.Generator().manual_seed(seed)`, for each seed."""
        noises = [self._noise(torch.Generator().manual_seed(int(seed))) for seed in seeds]
        return self._pack(on_device(torch.stack(noises), self.device))

    def predict(self, x_t: Tensor, step: int, condition: Any) -> Tensor:
        """The prediction, guided where guidance is on: both branches go through the network in one batch."""
        if self.branch_scale is None:
            return self._network(x_t, step, condition).float()
        toward, away = self._network(torch.cat([x_t, x_t]), step, condition).float().chunk(2)
        return self._guided(toward, away, self.branch_scale)

    @abstractmethod
    def advance(self, x_t: Tensor, prediction: Tensor, step: int) -> Tensor: ...

    @abstractmethod
    def predict_x0(self, x_t: Tensor, prediction: Tensor, step: int) -> Tensor: ...

    @abstractmethod
    def scales(self, step: int) -> Scales: ...

    def error_scale(self, step: int) -> float:
        return 1 / self.scales(step).sigma

    def decode(self, x_0: Tensor) -> PixelBatch:
        vae = self.pipeline.vae
        with self.decoding():
            picture = vae.decode(self._unscaled(x_0).to(vae.dtype), return_dict=False)[0]
        return self._frames((picture.float() / 2 + 0.5).clamp(0, 1))

    def check_encodes(self) -> None:
        """Raises InputError where pictures of this family cannot be encoded."""
        own, base = type(self), PipelineGenerator
        if own._unscaled is not base._unscaled and own._scaled is base._scaled:
            raise InputError(
                f"pictures are not encoded for a {self.kind} here.",
                "Take an algorithm that learns from the generator's own samples, such as online_dpo.",
            )

    @torch.no_grad()
    def encode_pictures(self, pictures: Sequence[Tensor]) -> Tensor:
        """x_0 [B, ...] of B pictures [1, C, H, W], each scaled and cut to the generator's size.

        `decode` undone: the mean of the VAE's posterior. Raises InputError for videos and families without it.
        """
        self.check_encodes()
        vae = self.pipeline.vae
        fitted = torch.cat([covering(picture, self.height, self.width) for picture in pictures])
        with self._present("vae"):
            latents = vae.encode((2 * fitted - 1).to(self.device, vae.dtype)).latent_dist.mode()
        return self._pack(self._scaled(latents.float()))

    @contextmanager
    def for_sampling(self) -> Iterator[None]:
        """Within the block forwards, which have no gradient, cost less: `merged_lora`, and `half_sampling`."""
        half = self.options.half_sampling and self.dtype == torch.float32 and multiplies_bfloat16(self.device)
        precision = torch.autocast("cpu", torch.bfloat16) if half else nullcontext()
        with self.merged_lora(), precision, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Mismatch dtype between input and weight")  # FLUX's norms are in float32
            yield

    # -- for families -------------------------------------------------------------------------------------------

    def _option(self, option: str) -> Any:
        """An option's value, or the default of the pipeline's own `__call__`."""
        given = getattr(self.options, option)
        return given if given is not None else inspect.signature(self.pipeline.__call__).parameters[option].default

    def _time(self, x_t: Tensor, step: int) -> Tensor:
        """The step's time [B] as the scheduler counts it."""
        return self.timesteps[step].expand(len(x_t))

    def _size(self) -> tuple[int, int]:
        default, multiple = self._default_size(), self._multiple()
        height, width = self.options.height or default[0], self.options.width or default[1]
        if height % multiple or width % multiple:
            nearest = [max(multiple, round(side / multiple) * multiple) for side in (height, width)]
            raise InputError(
                f"a {self.kind} draws no picture of height {height} and width {width}.",
                f"Both are multiples of {multiple}, such as {nearest[0]} and {nearest[1]}.",
            )
        return height, width

    @contextmanager
    def without_guidance(self) -> Iterator[None]:
        """Within the block one branch is encoded and predicted: what the network itself says of the noise.

        A guidance that the network is told stays as it is.
        """
        scale, self.branch_scale = self.branch_scale, None
        try:
            yield
        finally:
            self.branch_scale = scale


@contextmanager
def _quiet(quiet: bool) -> Iterator[None]:
    """Within the block diffusers does not repeat with each encoding what it cuts off, where that was asked for."""
    logger = logging.getLogger("diffusers")
    before = logger.level
    if quiet:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def covering(picture: Pixels, height: int, width: int) -> OtherPixels:
    """A picture scaled until it covers the size, and its middle. Raises InputError for a video."""
    if len(picture) > 1:
        raise InputError(f"a video of {len(picture)} frames stands where a picture is needed.", "Give pictures.")
    scale = max(height / picture.shape[-2], width / picture.shape[-1])
    if scale != 1:
        size = [max(side, round(scale * had)) for side, had in zip((height, width), picture.shape[-2:], strict=True)]
        scaled = F.interpolate(picture, size, mode="bicubic", antialias=True).clamp(0, 1)
    else:
        scaled = picture
    top, left = (scaled.shape[-2] - height) // 2, (scaled.shape[-1] - width) // 2
    return scaled[..., top : top + height, left : left + width]


class _Listening:
    """A tokenizer that tells `heard` of each call that would cut a text: at which length, and what was given."""

    def __init__(self, tokenizer: Any, heard: Callable[[int, str], None]) -> None:
        self._tokenizer, self._heard = tokenizer, heard

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, text: Any, *args: Any, **options: Any) -> Any:
        if options.get("truncation"):
            given = text if isinstance(text, str) else text[0]
            self._heard(options.get("max_length") or self._tokenizer.model_max_length, given)
        return self._tokenizer(text, *args, **options)
