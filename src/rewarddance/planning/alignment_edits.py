"""Changes of an alignment's recipe that make it fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rewarddance.alignment.forward_process import ForwardRecipe
from rewarddance.alignment.recipe import AlignRun
from rewarddance.alignment.refl_recipe import ReflRecipe
from rewarddance.planning.alignment_memory import ACTIVATIONS, memory_of
from rewarddance.planning.counting import Counting
from rewarddance.planning.hardware import CONTEXT, FRAGMENTATION, GIB
from rewarddance.planning.iterations import beside_the_step, iteration
from rewarddance.planning.models import meta_models
from rewarddance.planning.placement import precision_of, processes_of
from rewarddance.planning.plan import Edit, Plan, PlanOptions, Suggestion, suggestions

_CHECKPOINTED = {"generator": "generator", "backward": "generator", "decoder": "decoder", "judge": "judge"}
"""The part whose layers can be computed again, by the phase that then holds less."""
_ASKING = ("generator",)
"""The parts that can be so where the judge is only asked."""


def edits_that_fit(run: AlignRun, options: PlanOptions, prompts: Sequence[str], plan: Plan) -> tuple[Suggestion, ...]:
    sampled: dict[tuple[Any, ...], list[Counting]] = {}

    def size(gpus: int, changed: AlignRun) -> int:
        """Bytes of the fuller GPU; no step is counted where all else is too much already."""
        processes = processes_of(changed, gpus)
        models, recipe = meta_models(changed, options), changed.chosen
        key = changed.dtype, changed.judge_dtype, recipe.lora_rank, changed.references.batch_size, processes
        if key not in sampled:
            sampled[key] = beside_the_step(models, changed, prompts, processes)
        without_step = memory_of(models, changed, sampled[key], processes).size
        if without_step > options.hardware.memory * GIB:
            return without_step
        counts = [*sampled[key], iteration(models, changed, prompts, processes)]
        return memory_of(models, changed, counts, processes).size

    weights = sum(part.size for part in plan.memory if part.name != ACTIVATIONS)
    room = max(0.0, (options.hardware.memory - CONTEXT) * GIB / (1 + FRAGMENTATION) - weights)
    processes = processes_of(run, options.gpus)
    batches = {phase: batch for phase, batch in _batches(run, processes).items() if batch[1] > 1}
    least = {key: _least(run) if key.endswith("generator_batch") else 1 for key, _, _ in batches.values()}
    large = {phase: peak for phase, peak in plan.peaks.items() if peak > room}
    fewer: dict[str, Any] = {}
    for phase in large.keys() & batches.keys():
        key, now, _ = batches[phase]
        size_then = int(now * 0.9 * room / large[phase]) // least[key] * least[key]
        fewer[key] = min(fewer.get(key, now), max(least[key], size_then))
    same: list[Edit] = []
    if fewer and large.keys() <= batches.keys():
        effect = ", ".join(dict.fromkeys(text for key, _, text in batches.values() if key in fewer))
        same = [Edit(fewer, f"fewer at once {effect}"), Edit(least, "one at a time")]
    can, now_again = _CHECKPOINTED.values() if run.algorithm == "refl" else _ASKING, _checkpointing(run)
    again = {_CHECKPOINTED[phase] for phase in large.keys() & _CHECKPOINTED.keys()} & set(can) - now_again
    if again:
        parts = sorted(again | now_again)
        effect = f"layers computed again on the way back: {', '.join(parts)}"
        same.append(Edit({f"{run.algorithm}.checkpointing": parts}, effect))
    if processes > 1 and not run.chosen.sharded and precision_of(run.generator_options) == "none":
        same.append(Edit({f"{run.algorithm}.sharded": True}, "weights in shards over the GPUs"))
    if processes > 1 and not run.judge_sharded and precision_of(run.judge_options) == "none" and not run.offload:
        same.append(Edit({"judge_sharded": True}, "the judge in shards over the GPUs"))
    if not run.offload and not run.judge_sharded and not meta_models(run, options).generator.needs_image:
        same.append(Edit({"offload": ["text_encoders", "vae", "judge"]}, "parts off the GPU while unused, and slower"))
    other = _other_result(run, options.gpus, {key: least[key] for key in fewer})
    spread = {**least, f"{run.algorithm}.sharded": True}
    return suggestions(run, size, options, same=same, other=other, spread=lambda gpus: spread)


def _batches(run: AlignRun, processes: int) -> dict[str, tuple[str, int, str]]:
    """Of each phase that can be split: the key of its batch size, that batch size, and the effect of a smaller one."""
    recipe, samples = run.chosen, run.chosen.prompts_per_step * run.chosen.group_size // processes
    drawn = ("references.batch_size", run.references.batch_size, "drawn for the references")
    network = (f"{run.algorithm}.generator_batch", recipe.generator_batch or samples, "through the generator")
    batches: dict[str, tuple[str, int, str]] = {"generator": network, "backward": network}
    if run.asks_references:
        batches |= {"references: sampling": drawn, "references: decoding": drawn}
    if isinstance(recipe, ReflRecipe):
        batches["decoder"] = ("refl.decode_batch", recipe.decode_batch or samples, "through the decoder")
        batches["judge"] = ("refl.judge_batch", recipe.judge_batch, "before the judge")
    else:  # a rollout's samples are drawn and decoded as many together as are learned
        batches |= {"sampling": network, "decoder": network}
    return batches


def _least(run: AlignRun) -> int:
    """The fewest samples that go through the generator together: a group where a loss compares its samples."""
    recipe = run.chosen
    return recipe.group_size if isinstance(recipe, ForwardRecipe) and recipe.by_group else 1


def _checkpointing(run: AlignRun) -> set[str]:
    return set(getattr(run.chosen, "checkpointing", ()))


def _other_result(run: AlignRun, gpus: int, least: dict[str, Any]) -> list[Edit]:
    """Edits that change what is computed or learned, the gentlest first, each with the smallest batches."""
    edits = []
    if run.judge_dtype == "float32":
        edits.append(Edit({**least, "judge_dtype": "bfloat16"}, "the judge in bfloat16"))
    if run.dtype == "float32":
        edits.append(Edit({**least, "dtype": "bfloat16"}, "the generator in bfloat16"))
    if run.chosen.lora_rank and not run.chosen.sharded and precision_of(run.generator_options) == "none":
        edits.append(Edit({**least, "generator_options.base_precision": "nf4"}, "the generator's base in nf4"))
    if not run.judge_sharded and precision_of(run.judge_options) == "none":
        edits.append(Edit({**least, "judge_options.base_precision": "nf4"}, "the judge in nf4"))
    if run.chosen.lora_rank == 0:
        keys = {**least, f"{run.algorithm}.lora_rank": 32, f"{run.algorithm}.lora_alpha": 32}
        edits.append(Edit(keys, "LoRA instead of all weights: raise learning_rate"))
    if run.judge_device is None and gpus == 1:
        edits.append(Edit({**least, "judge_device": "cuda:1"}, "a second GPU for the judge", more_gpus=1))
    return edits
