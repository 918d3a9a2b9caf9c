"""What every adapter of a diffusers pipeline shares: options, guidance, noise, decoding and training.

An adapter reproduces its pipeline's own `__call__` step for step (tested to 1e-4 from the same noise), with gradients
where the pipeline has none. A family says only what differs.
"""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from rewarddance.errors import InputError
from rewarddance.runtime.config import Recipe
from rewarddance.runtime.memory import blocks_of, checkpointed
from rewarddance.runtime.process_group import one_process_at_a_time
from rewarddance.runtime.sharding import gather_full_tensors, shard
from rewarddance.types import PixelBatch, Prompt, Scales, as_prompts

EVERY_FAMILY = frozenset({"num_inference_steps", "guidance_scale", "height", "width"})
"""Options that every family uses. The others a family names in `uses`; elsewhere they are refused."""


class GeneratorOptions(Recipe):
    """How a generator draws, by the names and with the meanings that its pipeline's own `__call__` gives them.

    guidance_scale: None is no second branch, and the pipeline's default where the network is told the scale
    (FLUX.1-dev). true_cfg_scale: guidance by a second branch beside it (FLUX.1, Qwen-Image). negative_prompt: of the
    second branch. height, width, max_sequence_length: None is the pipeline's default. num_frames, frame_rate: of a
    video (frame_rate where the network is told it, LTX). scheduler: replaces the checkpoint's, with its settings
    (Stable Diffusion 1.5 and SDXL; Wan).
    """

    num_inference_steps: int = Field(ge=1)
    guidance_scale: float | None = Field(default=None, ge=0)
    true_cfg_scale: float | None = Field(default=None, ge=1)
    negative_prompt: str | None = None
    height: int | None = Field(default=None, ge=1)
    width: int | None = Field(default=None, ge=1)
    max_sequence_length: int | None = Field(default=None, ge=1)
    num_frames: int | None = Field(default=None, ge=1)
    frame_rate: int | None = Field(default=None, ge=1)
    scheduler: Literal["DDIMScheduler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"] | None = None


class PipelineGenerator(ABC):
    """A diffusers pipeline as a Generator. Latents are the pipeline's own (packed where it packs them), in float32.

    pipeline: loaded, on its device, in the type that the network computes in. options: see `GeneratorOptions`.
    Raises InputError naming an option that the family does not use or a size that it cannot draw.
    """

    uses: ClassVar[frozenset[str]]
    """Options of the family besides EVERY_FAMILY."""
    part: ClassVar[str] = "transformer"
    """The component that is trained."""
    adapted: Sequence[str] = ("to_q", "to_k", "to_v", "to_out.0")
    """Where LoRA goes, unless `add_lora` is told otherwise."""
    needs_picture: ClassVar[bool] = False
    """Does every prompt come with a picture? If not, none does."""

    timesteps: Tensor

    def __init__(self, pipeline: Any, options: GeneratorOptions) -> None:
        self.pipeline, self.options = pipeline, options
        self.network: Any = getattr(pipeline, self.part)
        self.kind, self.dtype, self._kind = type(pipeline).__name__, self.network.dtype, type(self.network)
        self._before: dict[str, Tensor] | None = None
        self._base: Any = None
        self._stepped_back = self._mixed = False
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
        self.height, self.width = self._size()
        self._latent_shape = self._noise_shape()
        self._scheduler = copy.deepcopy(pipeline.scheduler)  # whoever calls the pipeline itself does not move ours
        self._set_schedule()

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

    def _frames(self, pictures: Tensor) -> PixelBatch:
        """The VAE's pictures [B, C, H, W] as [B, T, C, H, W]."""
        return pictures.unsqueeze(1)

    # -- the Generator protocol ---------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def num_steps(self) -> int:
        return len(self.timesteps)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str | Prompt]) -> Any:
        prompts = as_prompts(prompts)
        self.check_prompts(prompts)
        texts = [prompt.text for prompt in prompts]
        if self.branch_scale is not None:
            texts += self._negatives(prompts)
        return self._text(texts)

    def _negatives(self, prompts: Sequence[Prompt]) -> list[str]:
        """The texts of the second branch: a prompt's own, or else the option's."""
        return [prompt.negative or self.options.negative_prompt or "" for prompt in prompts]

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Raises InputError naming the first prompt that has a picture for nothing, lacks the one that the family
        needs, or has a negative text without guidance."""
        for prompt in prompts:
            if prompt.image is None and self.needs_picture:
                raise InputError(
                    f"a {self.kind} begins from a picture, and the prompt {prompt.text!r} has none.",
                    'Give each prompt one: in a JSONL file, {"prompt": ..., "image": "first.png"}.',
                )
            if prompt.image is not None and not self.needs_picture:
                raise InputError(
                    f"a {self.kind} takes no picture, and the prompt {prompt.text!r} comes with one.",
                    "Take out the image, or choose a generator of image to video.",
                )
            if prompt.negative and self._branch_scale() is None:
                raise InputError(
                    f"the prompt {prompt.text!r} has a negative text, which says nothing without guidance.",
                    f"Set {self._scale_option}, or take it out.",
                )

    def init_noise(self, seeds: Sequence[int]) -> Tensor:
        """The noise that the pipeline draws from `torch.Generator().manual_seed(seed)`, for each seed."""
        noises = [self._noise(torch.Generator().manual_seed(int(seed))) for seed in seeds]
        return self._pack(torch.stack(noises).to(self.device))

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

    def decode(self, x_0: Tensor) -> PixelBatch:
        vae = self.pipeline.vae
        picture = vae.decode(self._unscaled(x_0).to(vae.dtype), return_dict=False)[0]
        return self._frames((picture.float() / 2 + 0.5).clamp(0, 1))

    # -- for families -------------------------------------------------------------------------------------------

    def _own(self, option: str) -> Any:
        """An option's value, or the default of the pipeline's own `__call__`."""
        given = getattr(self.options, option)
        return given if given is not None else inspect.signature(self.pipeline.__call__).parameters[option].default

    def _forward(self, *args: Any, **inputs: Any) -> Any:
        """The network's output, or that of the network that training began from (`as_before_training`)."""
        with torch.autocast(self.device.type, self.dtype) if self._mixed else nullcontext():
            if self._stepped_back and self._base is not None:
                return self._base(*args, **inputs, return_dict=False)[0]
            if self._stepped_back and self._before is not None:
                return functional_call(self.network, self._before, args, {**inputs, "return_dict": False})[0]
            return self.network(*args, **inputs, return_dict=False)[0]

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

    # -- what training needs ------------------------------------------------------------------------------------

    def add_lora(self, rank: int, alpha: int, targets: Sequence[str] = (), sharded: bool = False) -> list[nn.Parameter]:
        """Put a LoRA on the network; returns its weights, the only ones that train, in float32.

        targets: ends of the names of the layers that get one; the family's `adapted` if none are given. sharded: the
        network is in pieces over all processes, the LoRA whole on each.
        """
        places = list(targets or self.adapted)
        self.check_lora(targets)
        config = LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights=True, target_modules=places)
        try:
            self.network.add_adapter(config)
        except ValueError as error:  # a layer of a kind that takes none
            raise InputError(f"no LoRA can be put on {places}: {error}.", "Name linear layers.") from error
        weights = [weight for weight in self.network.parameters() if weight.requires_grad]
        for weight in weights:
            weight.data = weight.data.float()  # small steps would be lost in half precision; peft casts at the border
        if sharded:
            shard(self.network, self.device.type, whole=weights)
        return weights

    def check_lora(self, targets: Sequence[str]) -> None:
        """Raises InputError naming the first of the targets that no layer's name ends with."""
        names = [f".{name}" for name, _ in self.network.named_modules()]
        for target in targets:
            if not any(name.endswith(f".{target}") for name in names):
                raise InputError(
                    f"no LoRA can be put on {[target]}: the {self.kind}'s network has no layer of that name.",
                    f"Name layers of the network by the ends of their names, such as {', '.join(self.adapted)}.",
                )

    def train_all(self, sharded: bool = False) -> list[nn.Parameter]:
        """Make all of the network's weights trainable; returns them, in float32 (computed in the type of loading).

        sharded: they, and those that training began from, are in pieces over all processes; until then they are on the
        CPU, in one process of a machine after the other, for a GPU may have no room for them.
        """
        self._mixed = self.dtype != torch.float32
        if sharded:
            kind = self.device.type
            with one_process_at_a_time():
                self._base = copy.deepcopy(self.network.cpu().float())
                for network in (self._base, self.network.requires_grad_(True)):
                    shard(network, kind)
            return list(self.network.parameters())
        self.network.float().requires_grad_(True)
        self._before = {name: weight.detach().clone() for name, weight in self.network.named_parameters()}
        return list(self.network.parameters())

    @contextmanager
    def as_before_training(self) -> Iterator[None]:
        """Within the block the generator is the one that training began from."""
        self._stepped_back, has_lora = True, self._before is None and self._base is None
        if has_lora:
            self.network.disable_adapters()
        try:
            yield
        finally:
            self._stepped_back = False
            if has_lora:
                self.network.enable_adapters()

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
    def checkpointed(self, network: bool = True, decoder: bool = True) -> Iterator[None]:
        """Within the block their layers keep their inputs only, and are computed again on the way back.

        The network by diffusers' own switch; the decoder block by block, which keeps less than the switch and works
        where there is none. Raises InputError for a network without the switch.
        """
        with ExitStack() as stack:
            if network:
                try:
                    self.network.enable_gradient_checkpointing()
                except ValueError as error:
                    raise InputError(
                        f"the layers of a {self.kind} cannot be computed again: {error}.",
                        "Leave generator out of checkpointing.",
                    ) from error
                stack.callback(self.network.disable_gradient_checkpointing)
            if decoder:
                stack.enter_context(checkpointed(blocks_of(self.pipeline.vae.decoder)))
            yield

    def save_lora(self, folder: Path) -> None:
        """Write `pytorch_lora_weights.safetensors`, which plain diffusers loads with `load_lora_weights`."""
        self.pipeline.save_lora_weights(
            folder,
            **{
                f"{self.part}_lora_layers": dict(get_peft_model_state_dict(self.network)),
                f"{self.part}_lora_adapter_metadata": self.network.peft_config["default"].to_dict(),
            },
        )

    def load_lora(self, folder: Path) -> None:
        """Load what `save_lora`, or any diffusers trainer, wrote. Raises InputError where there is none."""
        try:
            self.pipeline.load_lora_weights(str(folder))
        except (OSError, ValueError) as error:
            raise InputError(f"no LoRA can be loaded from {folder}: {error}.", "Give a folder of save_lora.") from error

    def save(self, folder: Path) -> None:
        """Write the whole pipeline as a plain diffusers folder, after `train_all`. Raises InputError with a LoRA on.

        Where the weights are in pieces all processes call this, and the first one writes.
        """
        if getattr(self.network, "peft_config", None):
            raise InputError("a generator with a LoRA is not saved whole.", "Save the LoRA with save_lora.")
        if self._base is None:
            self.pipeline.save_pretrained(folder)
        elif weights := gather_full_tensors(self.network.state_dict()):
            whole = self._kind.from_config(self.network.config)
            whole.load_state_dict(weights, assign=True)
            setattr(self.pipeline, self.part, whole)
            self.pipeline.save_pretrained(folder)
            setattr(self.pipeline, self.part, self.network)
