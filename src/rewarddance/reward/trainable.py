"""A judge made ready to be trained: which weights learn, in which precision, whole or sharded, and their files.

All weights, or LoRA (2106.09685) on every linear layer of what is trained but the output heads. What is trained is kept
in float32 and so is the optimiser; with bf16 the layers compute in bfloat16, and what is frozen is kept so, too.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rewarddance.errors import InputError
from rewarddance.reward.judge import HEAD_FILE, Judge
from rewarddance.reward.parallel import ForwardDispatch, shard
from rewarddance.reward.recipe import JudgeRecipe
from rewarddance.runtime.checkpoint import replacing
from rewarddance.runtime.process_group import barrier, device, is_main_process, one_process_at_a_time
from rewarddance.runtime.sharding import copy_into, device_mesh, gather_full_tensors
from rewarddance.runtime.weights import load_module, read_tensors

if TYPE_CHECKING:  # it takes seconds to load, and only a LoRA needs it
    from peft import PeftModel

ADAPTER = "adapter"
"""The folder beside a delivered reward's weights that holds the LoRA which was merged into them, as PEFT's files."""
ADAPTER_FILE = "adapter_model.safetensors"


class Trainable:
    """A judge with the weights that its recipe trains.

    reward: the judge, in training mode. adapter: the LoRA on it, or None. module: by which it is called in training.
    """

    def __init__(self, build: Callable[[torch.dtype], Judge], recipe: JudgeRecipe) -> None:
        """build: loads the judge with weights of the given precision, on the CPU."""
        self._build, self.recipe = build, recipe
        half = recipe.dtype == "bfloat16"
        mesh = device_mesh() if recipe.sharded else None
        with one_process_at_a_time() if recipe.sharded else nullcontext():
            self.reward = build(torch.bfloat16 if half and recipe.lora_rank else torch.float32)
            if recipe.sharded and not self.reward.vlm.family.caches_prefix:  # type: ignore[attr-defined]
                raise InputError(
                    f"the judge {recipe.base!r} is read question by question, which processes cannot do in step.",
                    "Set sharded to false, or choose another base.",
                )
            frozen = vision_tower(self.reward.model) if recipe.freeze_vision_tower else None
            if frozen is not None:
                frozen.requires_grad_(False)
            self.adapter = _with_lora(self.reward, recipe, frozen) if recipe.lora_rank else None
            if half:
                _compute_in_half(self.reward)
            self.module = ForwardDispatch(self.reward).train()
            if recipe.sharded:
                shard(self.module, mesh, half)

    # -- files, together with the other processes ------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write the trained weights in full precision: a plain save_pretrained folder, or of LoRA PEFT's own files."""
        own_weights = gather_full_tensors(self.reward.own_weights())
        weights = gather_full_tensors(self._saved_weights()) if self.module.sharded or self.adapter else None
        if not is_main_process():
            return
        if self.adapter is not None:
            _write_adapter(self.adapter, weights or {}, folder)
        else:
            self.reward.model.save_pretrained(folder, state_dict=weights)
        if own_weights:
            save_file(own_weights, folder / HEAD_FILE)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote. Raises InputError naming a checkpoint that cannot be read."""
        what, remedy = f"the checkpoint {folder}", "Remove it; an older one is taken."
        own_weights, weights = self.reward.own_weights(), self._saved_weights()
        with one_process_at_a_time() if self.module.sharded else nullcontext():
            if self.adapter is not None:
                saved = read_tensors(folder / ADAPTER_FILE, what, weights, remedy)
            else:
                saved = load_module(type(self.reward.model), folder, what, remedy, dtype=torch.float32).state_dict()
            copy_into(weights, saved)
            copy_into(own_weights, read_tensors(folder / HEAD_FILE, what, own_weights, remedy) if own_weights else {})

    def deliver(self, folder: Path, checkpoint: Path) -> Judge:
        """Write a checkpoint's weights as a reward: a plain folder, LoRA merged into it and beside it. Frozen.

        Where the weights are sharded, only the first process returns a judge that is whole.
        """
        reward = self.reward
        if not self.module.sharded:
            self.load(checkpoint)
            self._finish(folder)
        elif is_main_process():
            unsharded = Trainable(self._build, self.recipe.model_copy(update={"sharded": False}))
            unsharded.load(checkpoint)
            unsharded._finish(folder)
            reward = unsharded.reward
        barrier()
        return reward

    def _finish(self, folder: Path) -> None:
        with replacing(folder) if is_main_process() else nullcontext() as written:
            if self.adapter is not None and self.recipe.base_precision != "none":
                if written:  # rounded weights take no LoRA: it stays beside them, and the base where it was
                    _write_adapter(self.adapter, self._saved_weights(), written)
                if self.recipe.dtype == "bfloat16":
                    _without_autocast(self.reward)
                self.reward.freeze()
                if written:
                    self.reward.save(written)
                return
            if self.adapter is not None:
                if written:
                    _write_adapter(self.adapter, self._saved_weights(), written / ADAPTER)
                self.adapter.merge_and_unload()
            if self.recipe.dtype == "bfloat16":
                _store_in_half(self.reward)
            self.reward.freeze()
            if written:
                self.reward.save(written)

    def _saved_weights(self) -> dict[str, Tensor]:
        """The tensors that `save` writes, by their names there, without the reward's own weights."""
        if self.adapter is not None:
            from peft.utils import get_peft_model_state_dict

            return get_peft_model_state_dict(self.adapter, save_embedding_layers=False)
        own_names = self.reward.own_weights()
        return {name: w for name, w in self.reward.model.state_dict(keep_vars=True).items() if name not in own_names}


def vision_tower(model: Any) -> nn.Module:
    """The part of a transformers model that reads pictures. Raises InputError naming a model that has none apart."""
    tower = model.get_encoder(modality="image")
    if tower is model or tower is model.base_model:
        raise InputError(
            f"the vision tower of a {type(model).__name__} cannot be frozen: it has none that stands apart.",
            "Set freeze_vision_tower to false, or choose another base.",
        )
    return tower


def _with_lora(reward: Judge, recipe: JudgeRecipe, frozen: nn.Module | None) -> PeftModel:
    """LoRA on every linear layer outside of what is frozen and of the output heads; own weights are trained whole."""
    from peft import LoraConfig, get_peft_model

    own_weights = reward.own_weights()
    left_out = {reward.model.get_output_embeddings(), *(frozen.modules() if frozen is not None else ())}
    targets = [
        name
        for name, module in reward.model.named_modules()
        if isinstance(module, nn.Linear) and module not in left_out and f"{name}.weight" not in own_weights
    ]
    alpha = recipe.lora_alpha or recipe.lora_rank
    adapter = get_peft_model(reward.model, LoraConfig(r=recipe.lora_rank, lora_alpha=alpha, target_modules=targets))
    adapter.peft_config["default"].base_model_name_or_path = recipe.base
    for weight in own_weights.values():
        weight.requires_grad_(True)
    return adapter  # type: ignore[return-value]


def _write_adapter(adapter: PeftModel, weights: dict[str, Tensor], folder: Path) -> None:
    """PEFT's own two files: its PeftModel.from_pretrained reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    replace(adapter.peft_config["default"], inference_mode=True).save_pretrained(str(folder))
    save_file({name: w.detach().cpu().contiguous() for name, w in weights.items()}, folder / ADAPTER_FILE)


def _compute_in_half(reward: Judge) -> None:
    """bfloat16 within the towers, by autocast; heads and margins stay outside of it. Frozen weights are stored so."""
    for weight in _base_weights(reward):
        weight.data = weight.data.to(torch.float32 if weight.requires_grad else torch.bfloat16)
    for tower in reward.model.base_model.children():
        tower.forward = torch.autocast(device().type, torch.bfloat16)(tower.forward)


def _store_in_half(reward: Judge) -> None:
    """All weights but the reward's own in bfloat16, and computed with as they are."""
    for weight in _base_weights(reward):
        weight.data = weight.data.to(torch.bfloat16)
    _without_autocast(reward)


def _without_autocast(reward: Judge) -> None:
    for tower in reward.model.base_model.children():
        del tower.forward


def _base_weights(reward: Judge) -> list[nn.Parameter]:
    """The model's weights without the reward's own. Those of a quantised base are packed integers, and stay so."""
    own_ids = {id(weight) for weight in reward.own_weights().values()}
    return [weight for weight in reward.model.parameters() if id(weight) not in own_ids and weight.is_floating_point()]
