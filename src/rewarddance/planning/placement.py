"""Where the weights of an alignment are: whole, packed, in shards, or on the device for some phases only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from rewarddance.alignment.recipe import AlignRun
from rewarddance.planning.plan import MemoryPart, gathered
from rewarddance.reward.judge import Judge
from rewarddance.runtime.quantised import quantised_bytes, unpacked_bytes
from rewarddance.runtime.sharding import outer_blocks

JUDGE_PHASES = ("judge", "references: encoding", "references: tournament")
DECODER_PHASES = ("decoder", "references: decoding")
TEXTS = "encoding of texts"
"""The phase in which only text encoders come to the device, where they are offloaded."""


class Placement(NamedTuple):
    """parts: weights that stay on each GPU. moved: bytes that a phase brings to it, by the phase."""

    parts: tuple[MemoryPart, ...]
    moved: Counter[str]


def precision_of(options: Mapping[str, Any]) -> Any:
    """`base_precision` among the options of a generator or a judge."""
    return options.get("base_precision", "none")


def judge_has_own_gpu(run: AlignRun) -> bool:
    """Has the judge a GPU of its own?"""
    return run.judge_device is not None and _gpu(run.judge_device) not in (None, _gpu(run.device or "cuda"))


def _gpu(device: str) -> int | None:
    """The number of a GPU, 0 where none is said; None of the CPU."""
    kind, _, number = device.partition(":")
    return None if kind == "cpu" else int(number or 0)


def processes_of(run: AlignRun, gpus: int) -> int:
    """How many processes run on so many GPUs: one on each, but none on one that the judge has for itself.

    Raises InputError where they cannot share the run.
    """
    processes = 1 if judge_has_own_gpu(run) and gpus <= 2 else gpus
    run.check_processes(processes, "cuda")
    return processes


def judge_weights(judge: Judge, options: Mapping[str, Any], run: AlignRun, processes: int) -> tuple[MemoryPart, ...]:
    """A frozen judge's weights on each GPU: whole, packed, or its shard and what is gathered of it at a time.

    options: that it is loaded with.
    """
    if run.judge_sharded:
        return shards_of_judge(judge, run.judge_dtype, processes)
    return (frozen_weights("judge", judge.model, run.judge_dtype, precision_of(options)),)


def frozen_weights(name: str, model: nn.Module, dtype: str, precision: Any) -> MemoryPart:
    """A model's weights, whole or packed."""
    if precision == "none":
        return MemoryPart(name, sum(weight.nbytes for weight in model.parameters()), _note(dtype, precision))
    size = quantised_bytes(model, precision) + unpacked_bytes(model, precision)
    return MemoryPart(name, size, _note(dtype, precision))


def shards_of_judge(judge: Judge, dtype: str, processes: int) -> tuple[MemoryPart, ...]:
    """A judge's shard on each GPU, and what is gathered of it at a time."""
    total = sum(weight.nbytes for weight in judge.model.parameters())
    blocks = [list(block.parameters()) for block in outer_blocks(judge.model)]
    inside = {weight for block in blocks for weight in block}
    others = [weight for weight in judge.model.parameters() if weight not in inside]
    whole = gathered(blocks, others, others[0].element_size())
    note = f"{dtype}, in {processes} shards"
    return MemoryPart("judge", -(-total // processes), note), MemoryPart("judge, gathered", whole.size, whole.note)


def network_weights(network: nn.Module, run: AlignRun, lora: set[nn.Parameter]) -> MemoryPart | None:
    """A network's packed weights with the LoRA on them; None where they are not packed."""
    precision = precision_of(run.generator_options)
    if precision == "none":
        return None
    size = quantised_bytes(network, precision, lora) + unpacked_bytes(network, precision)
    return MemoryPart("", size + sum(weight.nbytes for weight in lora), _note(run.dtype, precision))


def placed(run: AlignRun, parts: Mapping[str, MemoryPart], judge: tuple[MemoryPart, ...]) -> Placement:
    """Which of the weights stay, and which phases bring those that are offloaded."""
    stay, moved = [], Counter[str]()
    encoders = [part for name, part in parts.items() if name.startswith("text_encoder")]
    for name, part in parts.items():
        if "text_encoders" in run.offload and part in encoders:
            moved[TEXTS] += part.size
        elif "vae" in run.offload and name == "vae":
            moved.update(dict.fromkeys(DECODER_PHASES, part.size))
        else:
            stay.append(part)
    if "judge" in run.offload:
        moved.update(dict.fromkeys(JUDGE_PHASES, sum(part.size for part in judge)))
    else:
        stay += judge
    return Placement(tuple(stay), moved)


def _note(dtype: str, precision: str) -> str:
    return dtype if precision == "none" else f"{precision}, one weight at a time unpacked to {dtype}"
