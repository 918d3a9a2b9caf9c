"""The plan of a judge's training: the recipe's own step on the meta device."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from rewarddance.errors import InputError
from rewarddance.planning.counting import Counting, counting
from rewarddance.planning.hardware import GIB, allocated
from rewarddance.planning.meta_judge import meta_reward, tokens_of
from rewarddance.planning.plan import (
    ADAMW_STATE,
    Edit,
    MemoryPart,
    Plan,
    PlanOptions,
    Suggestion,
    gathered,
    on_meta,
    sample_pairs,
    suggestions,
)
from rewarddance.reward.parallel import layers_of
from rewarddance.reward.recipe import JudgeRecipe
from rewarddance.reward.trainable import Trainable
from rewarddance.types import Preference

GRADIENTS = "gradients"


def plan_training(recipe: JudgeRecipe, preferences: Path, options: PlanOptions) -> Plan:
    """What `rewarddance train` needs on a preferences file, which may be missing.

    Raises InputError for what the run itself would refuse, and for a base whose architecture is not known.
    """
    gpu, gpus = options.hardware, options.gpus
    check_gpus(recipe, gpus)
    student = meta_student(recipe)
    pairs, total, source = sample_pairs(preferences, options, recipe.reasoning != "none")
    counts = sorted(((*tokens_of(student.reward, pair), pair) for pair in pairs), key=lambda count: count[0])
    (most_tokens, picture_tokens, longest), (_, _, median) = counts[-1], counts[len(counts) // 2]
    flops = {part: count * recipe.batch_size for part, count in flops_of(student, median).items()}
    plan = Plan(
        job="train",
        sources={"judge": recipe.base, **student.reward.vlm.sources._asdict(), "pairs": source},  # type: ignore[attr-defined]
        parameters=parameters_of(student),
        tokens={
            "a pair, mean": sum(tokens for tokens, *_ in counts) / len(counts),
            "the longest pair": float(most_tokens),
            "of its pictures, each once": float(picture_tokens),
        },
        memory=memory_of(recipe, gpus, longest),
        flops=flops,
        gpu=gpu,
        gpus=gpus,
        utilisation=options.utilisation,
        seconds=gpu.seconds(sum(flops.values()), recipe.dtype == "bfloat16", options.utilisation) / gpus,
        steps=None if total is None else math.ceil(math.ceil(total / recipe.batch_size) * recipe.epochs),
        notes=("Time is that of the steps: reading pictures and evaluations at checkpoints come on top.",),
    )
    return plan if plan.fits else replace(plan, suggestions=_suggestions(recipe, options, longest))


def check_gpus(recipe: JudgeRecipe, gpus: int) -> None:
    """Raises InputError for what `rewarddance train` would refuse on so many GPUs."""
    if recipe.sharded and gpus == 1:
        raise InputError("a sharded judge needs several GPUs.", "Give --gpus 2 or more, or set judge.sharded=false.")
    if recipe.batch_size < recipe.gradient_accumulation_steps * gpus:
        raise InputError(
            f"a batch_size of {recipe.batch_size} cannot be shared by {gpus} GPUs in "
            f"{recipe.gradient_accumulation_steps} parts each.",
            f"Set judge.batch_size to {recipe.gradient_accumulation_steps * gpus} or more, or lower "
            "judge.gradient_accumulation_steps.",
        )


def meta_student(recipe: JudgeRecipe) -> Trainable:
    """The judge as it would be trained, unsharded and on the meta device."""
    config, whole = recipe.reward_config(), recipe.model_copy(update={"sharded": False})
    with torch.device("meta"):
        return Trainable(partial(meta_reward, recipe.base, config), whole)


def parameters_of(student: Trainable) -> dict[str, int]:
    """How many weights there are: in the model, its vision tower, those trained, and the LoRA if there is one."""
    named = dict(student.reward.model.named_parameters())
    tower = {id(weight) for weight in student.reward.model.get_encoder(modality="image").parameters()}
    lora = sum(weight.numel() for name, weight in named.items() if "lora_" in name)
    counts = {
        "model": sum(weight.numel() for weight in named.values()) - lora,
        "vision tower": sum(w.numel() for name, w in named.items() if id(w) in tower and "lora_" not in name),
        "trained": sum(weight.numel() for weight in named.values() if weight.requires_grad),
    }
    return counts | ({"LoRA": lora} if lora else {})


def flops_of(student: Trainable, pair: Preference) -> dict[str, float]:
    """Operations of a pair in training, forward and backward; the latter with what checkpointing computes again."""
    flops = _step(student, [pair]).flops
    backward = float(flops.pop("backward"))
    return {"forward": float(sum(flops.values())), "backward": backward}


def kept_between_steps(student: Trainable, recipe: JudgeRecipe, gpus: int) -> list[MemoryPart]:
    """What each GPU holds of weights, gradients and optimiser. Raises InputError for what the run would refuse."""
    check_gpus(recipe, gpus)
    weights = list(student.reward.model.parameters())
    trained = [weight for weight in weights if weight.requires_grad]
    shards = gpus if recipe.sharded else 1
    note = f", in {gpus} shards" if recipe.sharded else ""
    gradients = sum(weight.nbytes for weight in trained)
    state = ADAMW_STATE * sum(weight.numel() for weight in trained)
    parts = [
        MemoryPart("weights", sum(weight.nbytes for weight in weights) // shards, _precisions(weights) + note),
        MemoryPart(GRADIENTS, gradients // shards, "of what is trained, float32" + note),
        MemoryPart("optimiser", state // shards, "AdamW, float32" + note),
    ]
    if recipe.sharded:
        layers = [list(layer.parameters()) for layer in layers_of(student.module)]
        inside = {weight for layer in layers for weight in layer}
        others = [weight for weight in student.module.parameters() if weight not in inside]
        parts.append(gathered(layers, others, 2 if recipe.dtype == "bfloat16" else 4))
    elif gpus > 1:
        parts.append(MemoryPart("DDP's buckets", gradients, "gradients once more, to be averaged"))
    return parts


def memory_of(recipe: JudgeRecipe, gpus: int, longest: Preference) -> tuple[MemoryPart, ...]:
    """What each GPU holds at the worst moment of a step whose pairs are all as long as the longest, with gradients.

    Raises InputError for what the run would refuse.
    """
    student = meta_student(recipe)
    parts = kept_between_steps(student, recipe, gpus)
    if recipe.sharded and recipe.dtype == "bfloat16":
        _store_as_gathered(student)
    batch = _at_once(student, recipe, gpus, longest)
    is_whole_step = gpus == 1 and len(batch) == recipe.batch_size
    counts = _step(student, batch, "sharded" if recipe.sharded else "new" if is_whole_step else "before")
    at_peak = counts.at_peak
    if is_whole_step:  # gradients come while activations go, and are all there when the optimiser takes its step
        of_all = next(part.size for part in parts if part.name == GRADIENTS)
        at_peak = at_peak if counts.peak > of_all else {GRADIENTS: of_all}
        then = MemoryPart(GRADIENTS, at_peak.get(GRADIENTS, 0), "those that are there at the worst moment, float32")
        parts = [then if part.name == GRADIENTS else part for part in parts]
    kept = "layers' inputs" if recipe.checkpointing else "all that the backward pass needs"
    return (
        *parts,
        MemoryPart("vision tower", at_peak.get("vision", 0), f"activations: {kept}; {len(batch)} pairs at once"),
        MemoryPart("language model", at_peak.get("text", 0), f"activations: {kept}"),
        MemoryPart("logits and loss", at_peak.get("other", 0), "of the answers, and of reasons"),
        MemoryPart("backward pass", at_peak.get("backward", 0), "gradients on their way, one layer computed again"),
    )


def _at_once(student: Trainable, recipe: JudgeRecipe, gpus: int, longest: Preference) -> Sequence[Preference]:
    """Pairs whose graph is held together: a part of a process's share, all as long as the longest."""
    share = [
        on_meta(longest) for _ in range(math.ceil(recipe.batch_size / (gpus * recipe.gradient_accumulation_steps)))
    ]
    return share if recipe.sharded else student.reward.split_by_tokens(share)[0]


def _step(
    student: Trainable, pairs: Sequence[Preference], gradients: Literal["before", "new", "sharded"] = "before"
) -> Counting:
    """Forward and backward of these pairs at once.

    gradients: "before": those of earlier pairs are in memory, and these are added. "new": there are none before, and
    they are counted as they come. "sharded": each is reduced to shards as soon as it is computed.
    """
    reward: Any = student.reward
    trained = [weight for weight in reward.model.parameters() if weight.requires_grad]
    budget, is_sharded = reward.vlm.max_batch_tokens, gradients == "sharded"
    for weight in trained:
        weight.grad = torch.empty_like(weight) if gradients == "before" else None
    with counting() as counts, _phases(counts, reward.vlm), ExitStack() as stack:
        counts.exclude([*reward.model.parameters(), *(w.grad for w in trained if w.grad is not None)])
        if gradients != "before":
            hook = _drop_gradient if is_sharded else partial(_count_gradient, counts)
            for weight in trained:
                stack.callback(weight.register_post_accumulate_grad_hook(hook).remove)
        reward.vlm.max_batch_tokens, reward.vlm.fixed_budget = sys.maxsize if is_sharded else budget, is_sharded
        reward.loss(pairs).backward()
    reward.vlm.max_batch_tokens = budget
    reward.model.zero_grad(set_to_none=True)
    return counts


def _drop_gradient(weight: torch.Tensor) -> None:
    weight.grad = None


def _count_gradient(counts: Counting, weight: torch.Tensor) -> None:
    assert weight.grad is not None
    counts.move(weight.grad, "backward", GRADIENTS)


@contextmanager
def _phases(counts: Counting, vlm: Any) -> Iterator[None]:
    """Within the block the vision tower and the language model are phases of their own."""

    def in_phase(method: Any, phase: str, *args: Any, **kwargs: Any) -> Any:
        with counts.during(phase):
            return method(*args, **kwargs)

    for name, phase in (("encode", "vision"), ("_language_model_forward", "text")):
        setattr(vlm, name, partial(in_phase, getattr(vlm, name), phase))
    try:
        yield
    finally:
        del vlm.encode, vlm._language_model_forward


def _store_as_gathered(student: Trainable) -> None:
    """FSDP's mixed precision gathers all but a judge's own weights in bfloat16."""
    own_weights = {id(weight) for weight in student.reward.own_weights().values()}
    for weight in student.reward.model.parameters():
        if id(weight) not in own_weights:
            weight.data = weight.data.to(torch.bfloat16)


def _precisions(weights: Sequence[nn.Parameter]) -> str:
    counts: Counter[torch.dtype] = Counter()
    for weight in weights:
        counts[weight.dtype] += weight.numel()
    return ", ".join(f"{count / 1e9:.2f}B in {str(dtype).removeprefix('torch.')}" for dtype, count in counts.items())


def _suggestions(recipe: JudgeRecipe, options: PlanOptions, longest: Preference) -> tuple[Suggestion, ...]:
    def size(gpus: int, changed: JudgeRecipe) -> int:
        """Bytes on each GPU; no step is counted where what is kept between steps is too much already."""
        kept = allocated(sum(part.size for part in kept_between_steps(meta_student(changed), changed, gpus)))
        if kept > options.hardware.memory * GIB:
            return kept
        return allocated(sum(part.size for part in memory_of(changed, gpus, longest)))

    def spread(gpus: int) -> dict[str, Any]:
        return {
            "sharded": True,
            "checkpointing": True,
            "gradient_accumulation_steps": recipe.batch_size // gpus,
        }

    at_once = len(_at_once(meta_student(recipe), recipe, options.gpus, longest))
    same = _same_result(recipe, options.gpus, at_once)
    other = [*same, *_other_result(recipe)]
    return suggestions(recipe, size, options, same=same, other=other, spread=spread, prefix="judge.")


def _same_result(recipe: JudgeRecipe, gpus: int, at_once: int) -> list[Edit]:
    """Edits that change nothing in what is learned, the cheapest first. at_once: pairs whose graph is held together."""
    edits = []
    if not recipe.checkpointing:
        edits.append(Edit({"checkpointing": True}, "layers computed twice: a third more time"))
    most = recipe.batch_size // gpus
    parts = max(recipe.gradient_accumulation_steps, most // at_once)  # fewer parts are split further as it is
    while parts < most:
        parts = min(2 * parts, most)
        edits.append(Edit({"gradient_accumulation_steps": parts}, "fewer pairs at once"))
    if gpus > 1 and not recipe.sharded:
        edits.append(Edit({"sharded": True}, "weights in shards over the GPUs"))
    return edits


def _other_result(recipe: JudgeRecipe) -> list[Edit]:
    """Edits that change what is learned, the gentlest first."""
    edits = []
    if recipe.dtype == "float32":
        edits.append(Edit({"dtype": "bfloat16"}, "computed in bfloat16"))
    if recipe.lora_rank == 0:
        edits.append(Edit({"lora_rank": 64, "lora_alpha": 128}, "LoRA instead of all weights: raise learning_rate"))
    if not recipe.freeze_vision_tower:
        edits.append(Edit({"freeze_vision_tower": True}, "the vision tower is not trained"))
    if "qwen" in recipe.base.lower() and (recipe.max_pixels or 2**30) > 262_144:
        edits.append(Edit({"max_pixels": 262_144}, "smaller pictures"))
    return edits
