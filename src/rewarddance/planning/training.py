"""The plan of a judge's training: the recipe's own step, on shapes."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from rewarddance.errors import InputError
from rewarddance.jobs.train import TrainRun
from rewarddance.planning.counting import Counting, counting
from rewarddance.planning.hardware import GIB
from rewarddance.planning.meta_judge import meta_reward, tokens_of
from rewarddance.planning.plan import (
    Change,
    Part,
    Plan,
    PlanOptions,
    Tries,
    changed_run,
    looked_at,
    tried,
    with_losses,
    written,
)
from rewarddance.reward.parallel import layers_of
from rewarddance.reward.recipe import JudgeRecipe
from rewarddance.reward.trainable import Trainable
from rewarddance.types import Preference

OPTIMISER = 8
"""Bytes of AdamW's two averages for each trained weight."""
MOST_GPUS = 256


class TrainingPlanner:
    """Plans runs of `rewarddance train`."""

    def __init__(self, options: PlanOptions) -> None:
        self.options, self.gpu = options, options.hardware

    def plan(self, run: TrainRun) -> Plan:
        """Raises InputError for what the run itself would refuse, and for a base of which no figures are known."""
        recipe, gpus = run.judge, self.options.gpus
        check(recipe, gpus)
        student = sketch(recipe)
        pairs, total, told = looked_at(run.preferences, self.options, recipe.reasoning != "none")
        counts = sorted(((*tokens_of(student.reward, pair), pair) for pair in pairs), key=lambda one: one[0])
        longest, middle = counts[-1], counts[len(counts) // 2]
        flops = {part: count * recipe.batch_size for part, count in flops_of(student, middle[2]).items()}
        sources = student.reward.vlm.sources  # type: ignore[attr-defined]
        plan = Plan(
            job="train",
            sources={"judge": recipe.base, **sources._asdict(), "pairs": told},
            parameters=parameters_of(student),
            tokens={
                "a pair, mean": sum(tokens for tokens, *_ in counts) / len(counts),
                "the longest pair": float(longest[0]),
                "of its pictures, each once": float(longest[1]),
            },
            memory=memory_of(recipe, gpus, longest[2]),
            flops=flops,
            gpu=self.gpu,
            gpus=gpus,
            utilisation=self.options.utilisation,
            seconds=self.gpu.seconds(sum(flops.values()), recipe.dtype == "bf16", self.options.utilisation) / gpus,
            steps=None if total is None else math.ceil(total / recipe.batch_size * recipe.epochs),
            notes=("Time is that of the steps: reading pictures and evaluations at checkpoints come on top.",),
        )
        return plan if plan.fits else replace(plan, changes=self.changes(run, plan.size, longest[2]))

    def changes(self, run: TrainRun, size: int, longest: Preference) -> tuple[Change, ...]:
        """The first change that fits and teaches the same; where there is none, one that teaches otherwise, and the
        number of GPUs with which nothing else has to change."""

        def of(changed: TrainRun) -> int:
            return self._size(changed.judge, self.options.gpus, longest)

        same, other = _same(run.judge, self.options.gpus), _other(run.judge)
        if found := tried(run, size, same, of, self.gpu.memory):
            return (Change(found.keys, self.options.gpus, found.size, f"{found.told}; the result is the same"),)
        changes = []
        if found := tried(run, size, [*same, *other], of, self.gpu.memory):
            changes.append(Change(found.keys, self.options.gpus, found.size, found.told))
        return (*changes, *self._more_gpus(run, longest))

    def _more_gpus(self, run: TrainRun, longest: Preference) -> list[Change]:
        count = 2 * self.options.gpus
        while count <= min(MOST_GPUS, run.judge.batch_size):
            keys = {
                "judge.sharded": True,
                "judge.checkpointing": True,
                "judge.gradient_accumulation_steps": run.judge.batch_size // count,
            }
            size = self._size(changed_run(run, keys).judge, count, longest)
            if size <= self.gpu.memory * GIB:
                return [Change(written(keys), count, size, "more GPUs; the result is the same")]
            count *= 2
        return []

    def _size(self, recipe: JudgeRecipe, gpus: int, longest: Preference) -> int:
        """Bytes on each GPU; where what is kept between steps is too much already, no step is made, and it is that."""
        kept = with_losses(sum(part.size for part in kept_by(sketch(recipe), recipe, gpus)))
        if kept > self.gpu.memory * GIB:
            return kept
        return with_losses(sum(part.size for part in memory_of(recipe, gpus, longest)))


def check(recipe: JudgeRecipe, gpus: int) -> None:
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


def sketch(recipe: JudgeRecipe) -> Trainable:
    """The judge as it would be trained, in one piece and on the meta device."""
    config, whole = recipe.reward_config(), recipe.model_copy(update={"sharded": False})
    with torch.device("meta"):
        return Trainable(lambda dtype: meta_reward(recipe.base, config, dtype), whole)


def parameters_of(student: Trainable) -> dict[str, int]:
    """How many weights there are: of the model, of its vision tower, of the LoRA on it, and how many are trained."""
    named = dict(student.reward.model.named_parameters())
    tower = {id(weight) for weight in student.reward.model.get_encoder(modality="image").parameters()}
    added = sum(weight.numel() for name, weight in named.items() if "lora_" in name)
    found = {
        "model": sum(weight.numel() for weight in named.values()) - added,
        "vision tower": sum(w.numel() for name, w in named.items() if id(w) in tower and "lora_" not in name),
        "trained": sum(weight.numel() for weight in named.values() if weight.requires_grad),
    }
    return found | ({"LoRA": added} if added else {})


def flops_of(student: Trainable, pair: Preference) -> dict[str, float]:
    """Of a pair in training, forward and backward; the latter with what checkpointing computes again."""
    counted = _step(student, [pair])
    backward = float(counted.flops.pop("backward"))
    return {"forward": float(sum(counted.flops.values())), "backward": backward}


def kept_by(student: Trainable, recipe: JudgeRecipe, gpus: int) -> list[Part]:
    """What each GPU holds of weights, gradients and optimiser. Raises InputError for what the run would refuse."""
    check(recipe, gpus)
    weights = list(student.reward.model.parameters())
    trained = [weight for weight in weights if weight.requires_grad]
    pieces = gpus if recipe.sharded else 1
    over = f", in {gpus} pieces" if recipe.sharded else ""
    gradients = sum(weight.nbytes for weight in trained)
    parts = [
        Part("weights", sum(weight.nbytes for weight in weights) // pieces, _precisions(weights) + over),
        Part("gradients", gradients // pieces, "of what is trained, float32" + over),
        Part("optimiser", OPTIMISER * sum(weight.numel() for weight in trained) // pieces, "AdamW, float32" + over),
    ]
    if recipe.sharded:
        parts.append(
            Part("gather_full_tensors", _gathered(student, recipe), "what stands outside of layers, and two layers")
        )
    elif gpus > 1:
        parts.append(Part("DDP's buckets", gradients, "gradients once more, to be averaged"))
    return parts


def memory_of(recipe: JudgeRecipe, gpus: int, longest: Preference) -> tuple[Part, ...]:
    """What each GPU holds at the worst moment of a step whose pairs are all as the longest; gradients all there.

    Raises InputError for what the run would refuse.
    """
    student = sketch(recipe)
    parts = kept_by(student, recipe, gpus)
    if recipe.sharded and recipe.dtype == "bf16":
        _compute_as_gathered(student)
    portion = math.ceil(recipe.batch_size / (gpus * recipe.gradient_accumulation_steps))
    counted = _step(student, [_again(longest) for _ in range(portion)], recipe.sharded)
    again = "layers' inputs" if recipe.checkpointing else "all that the backward pass needs"
    return (
        *parts,
        Part("vision tower", counted.at_peak.get("vision", 0), f"activations: {again}; {portion} pairs at once"),
        Part("language model", counted.at_peak.get("text", 0), f"activations: {again}"),
        Part("logits and loss", counted.at_peak.get("other", 0), "of the answers, and of reasons"),
        Part("backward pass", counted.at_peak.get("backward", 0), "gradients on their way, one layer computed again"),
    )


def _step(student: Trainable, pairs: Sequence[Preference], in_pieces: bool = False) -> Counting:
    """Forward and backward of these pairs in one portion, the gradients of portions before it being there."""
    reward: Any = student.reward
    trained = [weight for weight in reward.model.parameters() if weight.requires_grad]
    budget = reward.vlm.tokens_at_once
    for weight in trained:
        weight.grad = None if in_pieces else torch.empty_like(weight)
    with counting() as counted, ExitStack() as stack:
        counted.known([*reward.model.parameters(), *(w.grad for w in trained if w.grad is not None)])
        for weight in trained if in_pieces else ():  # summed over all processes and cut as soon as they are there
            stack.callback(weight.register_post_accumulate_grad_hook(_forget).remove)
        stack.callback(_phases(counted, reward.vlm))
        reward.vlm.tokens_at_once = sys.maxsize if in_pieces else budget
        reward.loss(pairs).backward()
    reward.vlm.tokens_at_once = budget
    reward.model.zero_grad(set_to_none=True)
    return counted


def _forget(weight: torch.Tensor) -> None:
    weight.grad = None


def _phases(counted: Counting, vlm: Any) -> Callable[[], None]:
    """Tell the towers apart; returns what undoes it."""

    def within(name: str, phase: str) -> None:
        method = getattr(vlm, name)

        def run(*args: Any, **kwargs: Any) -> Any:
            with counted.during(phase):
                return method(*args, **kwargs)

        setattr(vlm, name, run)

    within("encode", "vision")
    within("_through_text", "text")
    return lambda: [delattr(vlm, name) for name in ("encode", "_through_text")]  # type: ignore[return-value]


def _again(pair: Preference) -> Preference:
    """Other pictures of the same sizes: equal tensors would be read once."""
    image = pair.prompt.image
    prompt = replace(pair.prompt, image=None if image is None else torch.empty_like(image))
    return replace(pair, prompt=prompt, first=torch.empty_like(pair.first), second=torch.empty_like(pair.second))


def _gathered(student: Trainable, recipe: JudgeRecipe) -> int:
    """Bytes of weights that are whole at once where they are kept in pieces (FSDP2).

    The layer that computes and the one fetched meanwhile; what stands outside of layers throughout a step; and of both
    the gradients, as computed and in the float32 in which they are summed.
    """
    layers = layers_of(student.module)
    inside = {id(weight) for layer in layers for weight in layer.parameters()}
    outside = [weight for weight in student.module.parameters() if id(weight) not in inside]

    def whole(weights: Sequence[nn.Parameter], copies: int) -> int:
        size = 2 if recipe.dtype == "bf16" else 4
        return sum(w.numel() * (copies * size + (size + 4 if w.requires_grad else 0)) for w in weights)

    return whole(outside, 1) + max((whole(list(layer.parameters()), 2) for layer in layers), default=0)


def _compute_as_gathered(student: Trainable) -> None:
    """FSDP's mixed precision gathers all but a judge's own weights in bfloat16."""
    own = {id(weight) for weight in student.reward.own_weights().values()}
    for weight in student.reward.model.parameters():
        if id(weight) not in own:
            weight.data = weight.data.to(torch.bfloat16)


def _precisions(weights: Sequence[nn.Parameter]) -> str:
    kinds = {}
    for weight in weights:
        kinds[weight.dtype] = kinds.get(weight.dtype, 0) + weight.numel()
    return ", ".join(f"{count / 1e9:.2f}B in {str(kind).removeprefix('torch.')}" for kind, count in kinds.items())


def _same(recipe: JudgeRecipe, gpus: int) -> Tries:
    """Changes after which a run learns the very same, cheapest first."""
    tries: Tries = []
    most = recipe.batch_size // gpus
    parts = recipe.gradient_accumulation_steps
    if not recipe.checkpointing:
        tries.append(({"judge.checkpointing": True}, "layers computed twice: a third more time"))
    while parts < most:
        parts = min(2 * parts, most)
        tries.append(({"judge.gradient_accumulation_steps": parts}, "fewer pairs at once"))
    if gpus > 1 and not recipe.sharded:
        tries.append(({"judge.sharded": True}, "weights in pieces over the GPUs"))
    return tries


def _other(recipe: JudgeRecipe) -> Tries:
    """Changes of what is learned, the gentlest first."""
    tries: Tries = []
    if recipe.dtype == "fp32":
        tries.append(({"judge.dtype": "bf16"}, "computed in bfloat16"))
    if recipe.lora_rank == 0:
        tries.append(
            ({"judge.lora_rank": 64, "judge.lora_alpha": 128}, "LoRA instead of all weights: raise learning_rate")
        )
    if not recipe.freeze_vision_tower:
        tries.append(({"judge.freeze_vision_tower": True}, "the vision tower is not trained"))
    if "qwen" in recipe.base.lower() and (recipe.max_pixels or 2**30) > 262_144:
        tries.append(({"judge.max_pixels": 262_144}, "smaller pictures"))
    return tries
