"""What each GPU holds during an alignment: weights, what training keeps, and the worst phase's activations."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor, nn

from rewarddance.alignment.recipe import AlignRun
from rewarddance.planning.counting import Counting
from rewarddance.planning.hardware import allocated
from rewarddance.planning.models import Models, count_of
from rewarddance.planning.placement import JUDGE_PHASES, judge_has_own_gpu, judge_weights, network_weights, placed
from rewarddance.planning.plan import ADAMW_STATE, MemoryPart, gathered
from rewarddance.runtime.devices import find_dtype
from rewarddance.runtime.sharding import BUCKET, outer_blocks

ACTIVATIONS = "activations"


class Memory(NamedTuple):
    """The fields of a `Plan` that say what each GPU holds."""

    memory: tuple[MemoryPart, ...]
    peaks: dict[str, int]
    judge_gpu: int

    @property
    def size(self) -> int:
        """Bytes of the fuller GPU."""
        return allocated(max(sum(part.size for part in self.memory), self.judge_gpu))


def memory_of(models: Models, run: AlignRun, counts: Sequence[Counting], processes: int) -> Memory:
    """Bytes by part and by phase. The network's weights are sharded; a LoRA is whole on each GPU."""
    network, lora = models.generator.network, set(models.trained) if run.chosen.lora_rank else set()
    shards = processes if run.chosen.sharded else 1
    parts = {}
    for name, part in models.components.items():
        n = shards if part is network else 1
        size = _shard_size(set(part.parameters()) - lora, n) + sum(weight.nbytes for weight in lora if part is network)
        parts[name] = MemoryPart(name, size, _note(next(part.parameters()), n))
        if part is network and (packed := network_weights(network, run, lora)):
            parts[name] = replace(packed, name=name)
    of_judge = tuple(
        replace(part, name=part.name.replace("judge", f"judge {number}")) if number > 1 else part
        for number, (judge, options) in enumerate(models.all_judges, start=1)
        for part in judge_weights(judge, options, run, processes)
    )
    judge = sum(part.size for part in of_judge)
    weights = placed(run, parts, () if judge_has_own_gpu(run) else of_judge)
    training = _kept_by_training(models, lora, shards)

    peaks: Counter[str] = Counter()
    for count in counts:
        peaks |= count.peaks  # the larger of both
    peaks.update(weights.moved)
    if processes > 1 and (lora or shards == 1):  # gradients are averaged in one buffer, which is then divided
        largest = max(weight.numel() for weight in models.trained)
        peaks["averaging of gradients"] = 2 * 4 * max(largest, min(BUCKET, count_of(models.trained)))
    drawn_once = not getattr(run.chosen, "refresh_every", None)
    if shards > 1 and drawn_once:  # the references are made before training, by a whole network
        loaded = find_dtype(run.dtype).itemsize * count_of(set(network.parameters()) - lora)
        later = parts[models.generator.component].size + sum(part.size for part in training)
        for phase in [phase for phase in peaks if phase.startswith("references")]:
            peaks[phase] = max(0, peaks[phase] + loaded - later)
    on_judge_gpu = JUDGE_PHASES if judge_has_own_gpu(run) else ()
    here = [phase for phase in peaks if phase not in on_judge_gpu]
    worst = max(here, key=lambda phase: peaks[phase], default="")
    activations = MemoryPart(ACTIVATIONS, peaks[worst], f"{worst}; other phases hold less, and not at the same time")
    judge_gpu = judge + max(peaks[phase] for phase in on_judge_gpu) if on_judge_gpu else 0
    return Memory((*weights.parts, *training, activations), dict(peaks), judge_gpu)


def _kept_by_training(models: Models, lora: set[nn.Parameter], shards: int) -> list[MemoryPart]:
    """What training keeps between its steps besides the weights, and the weights that it gathers."""
    network, trained_shards = models.generator.network, 1 if lora else shards
    size, note = _shard_size(models.trained, trained_shards), _note(models.trained[0], trained_shards)
    parts = [
        MemoryPart("gradients", size, f"of what is trained, {note}"),
        MemoryPart("optimiser", ADAMW_STATE * size // 4, f"AdamW, {note}"),
        MemoryPart("average", size, f"EMA, {note}"),
    ]
    if models.base_weights:
        note = f"the weights that training began from, {note}"
        parts.append(MemoryPart("before training", _shard_size(models.base_weights, shards), note))
    if shards > 1:
        blocks = [[w for w in block.parameters() if w not in lora] for block in outer_blocks(network)]
        inside = lora.union(*blocks)
        others = [weight for weight in network.parameters() if weight not in inside]
        parts.append(gathered(blocks, others, next(w for w in network.parameters() if w not in lora).element_size()))
    return parts


def _shard_size(weights: Iterable[Tensor], shards: int) -> int:
    """Bytes of the first process's shards, which are cut along the first dimension."""
    return sum(math.ceil(len(w) / shards) * w[0].nbytes if shards > 1 else w.nbytes for w in weights)


def _note(weight: Tensor, shards: int) -> str:
    return str(weight.dtype).removeprefix("torch.") + (f", in {shards} shards" if shards > 1 else "")
