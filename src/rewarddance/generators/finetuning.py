"""How a pipeline's network is trained: a LoRA on it, or all its weights; and the network that training began from."""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.func import functional_call

from rewarddance.errors import InputError, first_line
from rewarddance.runtime.checkpoint import let_others_read, writable_folder
from rewarddance.runtime.frozen_layers import keeping_less
from rewarddance.runtime.memory import blocks_of, checkpointed
from rewarddance.runtime.process_group import one_process_at_a_time
from rewarddance.runtime.sharding import gather_full_tensors, outer_blocks, shard
from rewarddance.runtime.weights import LOAD_ERRORS, check_is_safe, check_values, library_warnings, sort_metadata

LORA_FILE = "pytorch_lora_weights.safetensors"
"""What diffusers calls it."""


class FinetunedPipeline:
    """A diffusers pipeline of which one component, the denoising network, is trained.

    pipeline: with all its components. network: the one that is trained. kind: the pipeline's class, for messages.
    dtype: what the network computes in.
    """

    component: ClassVar[str] = "transformer"
    """The network's name among the pipeline's components."""
    lora_targets: Sequence[str] = ("to_q", "to_k", "to_v", "to_out.0")
    """Where LoRA goes, unless `add_lora` is told otherwise."""

    pipeline: Any
    network: Any
    kind: str
    dtype: torch.dtype
    initial_weights: dict[str, Tensor] | None = None
    """Those that training began from, where all are trained and each process has them whole."""
    _initial_network: Any = None
    _uses_initial = _mixed = False

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def _forward(self, *args: Any, **inputs: Any) -> Any:
        """The network's output, or that of the network that training began from (`as_before_training`)."""
        with torch.autocast(self.device.type, self.dtype) if self._mixed else nullcontext():
            if self._uses_initial and self._initial_network is not None:
                return self._initial_network(*args, **inputs, return_dict=False)[0]
            if self._uses_initial and self.initial_weights is not None:
                return functional_call(self.network, self.initial_weights, args, {**inputs, "return_dict": False})[0]
            return self.network(*args, **inputs, return_dict=False)[0]

    def add_lora(self, rank: int, alpha: int, targets: Sequence[str] = (), sharded: bool = False) -> list[nn.Parameter]:
        """Put a LoRA on the network; returns its weights, the only ones that train, in float32.

        targets: ends of the names of the layers that get one; the family's `lora_targets` if none are given.
        sharded: the network is in pieces over all processes, the LoRA whole on each.
        """
        places = list(targets or self.lora_targets)
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
            self._check_shardable()
            shard(self.network, self.device.type, whole=weights)
        return weights

    def _check_shardable(self) -> None:
        """Raises InputError for compiled blocks: their code would keep the weights that it was made for."""
        if any("forward" in vars(block) for block in outer_blocks(self.network)):
            raise InputError(
                f"the weights of a {self.kind} whose blocks are compiled cannot be sharded.",
                "Leave compile out of generator_options, or set sharded to false.",
            )

    def _check_carries_none(self) -> None:
        """Raises InputError where a LoRA is on the pipeline already: another one would turn it off."""
        if any(getattr(module, "peft_config", None) for module in self._lora_modules()):
            raise InputError(
                f"the {self.kind} carries a LoRA already.",
                "Load the generator anew; begin_with goes on from a LoRA that was saved.",
            )

    def check_lora(self, targets: Sequence[str]) -> None:
        """Raises InputError where the network has a LoRA already, trained on it or loaded: another one would turn it
        off; and naming the first of the targets that no layer's name ends with."""
        self._check_carries_none()
        names = [f".{name}" for name, _ in self.network.named_modules()]
        for target in targets:
            if not any(name.endswith(f".{target}") for name in names):
                raise InputError(
                    f"no LoRA can be put on {[target]}: the {self.kind}'s network has no layer of that name.",
                    f"Name layers of the network by the ends of their names, such as {', '.join(self.lora_targets)}.",
                )

    def train_all(self, sharded: bool = False) -> list[nn.Parameter]:
        """Make all of the network's weights trainable; returns them, in float32 (computed in the type of loading).

        sharded: they, and those that training began from, are in pieces over all processes; until then they are on the
        CPU, in one process of a machine after the other, for a GPU may have no room for them.
        """
        packed = [name for name, weight in self.network.named_parameters() if not weight.is_floating_point()]
        if packed:
            raise InputError(
                f"the {self.kind}'s network is quantised ({packed[0]}), and packed weights cannot be trained.",
                "Train a LoRA on it, or load it unquantised.",
            )
        self._mixed = self.dtype != torch.float32
        self._network_class = type(self.network)  # sharding gives it another
        if sharded:
            self._check_shardable()
            kind = self.device.type
            with one_process_at_a_time():
                self._initial_network = copy.deepcopy(self.network.cpu().float())
                for network in (self._initial_network, self.network.requires_grad_(True)):
                    shard(network, kind)
            return list(self.network.parameters())
        self.network.float().requires_grad_(True)
        self.initial_weights = {name: weight.detach().clone() for name, weight in self.network.named_parameters()}
        return list(self.network.parameters())

    @contextmanager
    def as_before_training(self) -> Iterator[None]:
        """Within the block the generator is the one that training began from."""
        self._uses_initial, has_lora = True, self.initial_weights is None and self._initial_network is None
        if has_lora:
            self.network.disable_adapters()
        try:
            yield
        finally:
            self._uses_initial = False
            if has_lora:
                self.network.enable_adapters()

    @contextmanager
    def merged_lora(self) -> Iterator[None]:
        """Within the block a LoRA stands in the weights themselves, for forwards without a gradient: fewer products.

        Only where that loses nothing: in whole float32 weights that are multiplied as such. A small LoRA would be
        rounded off in half precision, and by TF32, which reads ten bits of a weight.
        """
        kept = []
        if not self._uses_initial and getattr(self.network, "peft_config", None):
            layers: list[Any] = [module for module in self.network.modules() if isinstance(module, LoraLayer)]
            for layer in layers:
                weight = layer.get_base_layer().weight
                has_values = not any(parameter.is_meta for parameter in layer.parameters())
                is_whole = weight.dtype == torch.float32 and not (
                    weight.is_cuda and torch.backends.cuda.matmul.allow_tf32
                )
                if type(weight.data) is Tensor and is_whole and has_values:
                    kept.append((layer, weight, weight.data))
        try:
            with torch.no_grad():
                for layer, weight, data in kept:
                    weight.data = data + sum(layer.get_delta_weight(name) for name in layer.active_adapters)
                    layer.enable_adapters(False)
            yield
        finally:
            for layer, weight, data in kept:
                weight.data = data
                layer.enable_adapters(True)

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
                stack.enter_context(keeping_less(self.pipeline.vae.decoder))  # alike when it is computed again
                stack.enter_context(checkpointed(blocks_of(self.pipeline.vae.decoder)))
            yield

    def save_lora(self, folder: Path) -> None:
        """Write `pytorch_lora_weights.safetensors`, which plain diffusers loads with `load_lora_weights`.

        Raises InputError where a file stands in the folder's place, which diffusers would only log.
        """
        writable_folder(folder)
        config = self.network.peft_config["default"].to_dict()  # its sets would have another order in each process
        config |= {name: sorted(value) for name, value in config.items() if isinstance(value, set)}
        self.pipeline.save_lora_weights(
            folder,
            **{
                f"{self.component}_lora_layers": dict(get_peft_model_state_dict(self.network)),
                f"{self.component}_lora_adapter_metadata": config,
            },
        )
        sort_metadata(folder / LORA_FILE)
        let_others_read([folder / LORA_FILE])

    def check_lora_goes_on(self, folder: Path, rank: int, alpha: int, targets: Sequence[str] = ()) -> None:
        """Raises InputError where the LoRA in `folder` cannot be read, holds values that are not finite, or is not what
        `add_lora` would put on the network: of other layers, another rank or another alpha."""
        saved = self._saved_lora(folder)
        check_values(saved.items(), f"the LoRA of {folder}")
        ends = tuple(f".{target}" for target in targets or self.lora_targets)
        layers = {name for name, _ in self.network.named_modules() if f".{name}".endswith(ends)}
        _compare_lora({f"{layer}.lora_{side}.weight" for layer in layers for side in "AB"}, saved, folder)
        for name, weight in saved.items():
            held = weight.shape[0 if name.endswith("lora_A.weight") else 1]
            if held != rank:
                raise InputError(f"the LoRA of {folder} has the rank {held}, not {rank}.", "Give it as lora_rank.")
        trained = self._lora_alpha(folder)
        if trained is not None and trained != alpha:
            raise InputError(f"the LoRA of {folder} has the alpha {trained}, not {alpha}.", "Give it as lora_alpha.")

    def continue_lora(self, folder: Path) -> None:
        """Give the LoRA that `add_lora` put on the network the weights of one that `save_lora` wrote, to train on.

        Raises InputError where it is not of the same layers and shapes.
        """
        saved, wanted = self._saved_lora(folder), get_peft_model_state_dict(self.network)
        _compare_lora(wanted.keys(), saved, folder)
        for name, weight in wanted.items():
            if weight.shape != saved[name].shape:
                raise InputError(
                    f"{name!r} of the LoRA of {folder} has the shape {tuple(saved[name].shape)}, not "
                    f"{tuple(weight.shape)}.",
                    "Give one of this generator, and lora_rank as it was trained with.",
                )
        set_peft_model_state_dict(self.network, saved)

    def _saved_lora(self, folder: Path) -> dict[str, Tensor]:
        """The weights that `save_lora` wrote, by their layers. Raises InputError where they cannot be read."""
        path, prefix = folder / LORA_FILE, f"{self.component}."
        if not path.is_file():
            raise InputError(f"there is no LoRA in {folder}.", f"Give a folder of save_lora, which holds {LORA_FILE}.")
        try:
            return {name.removeprefix(prefix): weight for name, weight in load_file(path).items()}
        except LOAD_ERRORS as error:
            raise InputError(
                f"the LoRA of {folder} cannot be read: {first_line(error)}.", "Give a folder of save_lora."
            ) from error

    def _lora_alpha(self, folder: Path) -> int | None:
        """The alpha that `save_lora` wrote down, or None where another trainer wrote none."""
        with safe_open(folder / LORA_FILE, "pt") as file:
            written = (file.metadata() or {}).get("lora_adapter_metadata", "{}")
        return json.loads(written).get(f"{self.component}.lora_alpha")

    def load_lora(self, folder: Path) -> None:
        """Load what `save_lora`, or any diffusers trainer, wrote; frozen.

        Raises InputError where there is none, where it reaches no layer or does not go in whole, where it holds values
        that are not finite, and where the generator carries one already.
        """
        self._check_carries_none()
        what, remedy = f"the LoRA {folder}", "Give a folder of save_lora, or of a trainer for this very pipeline."
        try:
            check_is_safe(folder, what)
            held = self.pipeline.lora_state_dict(str(folder), use_safetensors=True, return_lora_metadata=True)
            before = {id(weight) for module in self._lora_modules() for weight in module.parameters()}
            with library_warnings(what):
                self.pipeline.load_lora_weights(str(folder), use_safetensors=True)
        except LOAD_ERRORS as error:
            raise InputError(f"no LoRA can be loaded from {folder}: {first_line(error)}.", remedy) from error
        tensors = held[0] if isinstance(held, tuple) else held
        check_values(tensors.items(), what)
        loaded = [
            weight
            for module in self._lora_modules()
            for name, weight in module.named_parameters()
            if "lora_" in name and id(weight) not in before
        ]
        given = [weight for name, weight in tensors.items() if not name.endswith(("alpha", "dora_scale"))]
        values = [sum(map(Tensor.numel, tensors)) for tensors in (given, loaded)]
        if values[0] != values[1] or not loaded:
            self.pipeline.unload_lora_weights()
            names = ", ".join(sorted(tensors)[:3])
            raise InputError(
                f"{what} does not fit a {self.kind}: it holds {len(given)} tensors ({names}, ...), and {len(loaded)} "
                "found their place.",
                remedy,
            )
        for weight in loaded:
            weight.requires_grad_(False)

    def _lora_modules(self) -> list[nn.Module]:
        """The components that a LoRA may reach."""
        return [module for module in self.pipeline.components.values() if isinstance(module, nn.Module)]

    def save(self, folder: Path) -> None:
        """Write the whole pipeline as a plain diffusers folder, after `train_all`. Raises InputError with a LoRA on.

        Where the weights are in pieces all processes call this, and the first one writes.
        """
        if getattr(self.network, "peft_config", None):
            raise InputError("a generator with a LoRA is not saved whole.", "Save the LoRA with save_lora.")
        if self._initial_network is None:
            self.pipeline.save_pretrained(folder)
        elif weights := gather_full_tensors(self.network.state_dict()):
            whole = self._network_class.from_config(self.network.config)
            whole.load_state_dict(weights, assign=True)
            setattr(self.pipeline, self.component, whole)
            self.pipeline.save_pretrained(folder)
            setattr(self.pipeline, self.component, self.network)


def _compare_lora(wanted: Collection[str], saved: Collection[str], folder: Path) -> None:
    """Raises InputError naming the first weight that only one of both has."""
    for name in sorted(set(wanted) ^ set(saved)):
        where = "has none in" if name in wanted else "is only in"
        raise InputError(
            f"{name!r} {where} the LoRA of {folder}.", "Give one of this generator, and lora_targets as it had."
        )
