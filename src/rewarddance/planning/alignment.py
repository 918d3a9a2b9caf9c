"""The plan of an alignment: making the references, and ReFL's own step, on the meta device.

Of several processes one is counted, with the longest prompts and its share of a step's samples.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from rewarddance.alignment.recipe import AlignRun
from rewarddance.alignment.references import References, candidate_seeds
from rewarddance.alignment.refl import refl_step
from rewarddance.alignment.refl_recipe import ReflRecipe
from rewarddance.data.prompts import read_prompts
from rewarddance.errors import InputError
from rewarddance.generators.adapter import PipelineGenerator
from rewarddance.generators.sampling import rollout
from rewarddance.planning.counting import Counting, counting
from rewarddance.planning.hardware import CONTEXT, FRAGMENTATION, GIB, allocated
from rewarddance.planning.meta_generator import meta_generator
from rewarddance.planning.meta_judge import meta_reward
from rewarddance.planning.plan import (
    ADAMW_STATE,
    Edit,
    MemoryPart,
    Plan,
    PlanOptions,
    Suggestion,
    gathered,
    prompt_of_words,
    suggestions,
)
from rewarddance.reward.judge import Judge
from rewarddance.reward.ranking import tournament
from rewarddance.runtime.devices import find_dtype
from rewarddance.runtime.sharding import BUCKET, outer_blocks
from rewarddance.types import Prompt

ACTIVATIONS = "activations"
_CHECKPOINTED = {"generator": "generator", "backward": "generator", "decoder": "decoder", "judge": "judge"}
"""The part whose layers can be computed again, by the phase that then holds less."""
JUDGE_PHASES = ("judge", "references: encoding", "references: tournament")


@dataclass(frozen=True)
class Models:
    """A generator that is trained, its trained weights, and a frozen judge, on the meta device."""

    generator: PipelineGenerator
    trained: list[nn.Parameter]
    judge: Judge

    @property
    def components(self) -> dict[str, nn.Module]:
        """The pipeline's networks by name."""
        components = self.generator.pipeline.components
        return {name: part for name, part in components.items() if isinstance(part, nn.Module)}

    @property
    def base_weights(self) -> list[Tensor]:
        """The initial weights, which training of all weights keeps."""
        return list((self.generator.initial_weights or {}).values())

    def tensors(self) -> list[Tensor]:
        """All that is in memory before a step: weights, buffers and gradients."""
        modules = [*self.components.values(), self.judge.model]
        tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
        return [*tensors, *(w.grad for w in self.trained if w.grad is not None), *self.base_weights]


class Memory(NamedTuple):
    """The fields of a `Plan` that say what each GPU holds."""

    memory: tuple[MemoryPart, ...]
    peaks: dict[str, int]
    judge_gpu: int

    @property
    def size(self) -> int:
        """Bytes of the fuller GPU."""
        return allocated(max(sum(part.size for part in self.memory), self.judge_gpu))


def plan_alignment(run: AlignRun, options: PlanOptions) -> Plan:
    """What `rewarddance align` needs.

    Raises InputError for what the run itself would refuse, and for models whose architecture is not known.
    """
    if run.algorithm != "refl":
        raise InputError(f"plans are made of ReFL, not of {run.algorithm}.", "There is none for policy gradients yet.")
    if _judge_has_own_gpu(run):
        options = options.model_copy(update={"gpus": max(options.gpus, 2)})
    processes = processes_of(run, options.gpus)
    prompts, source = _prompts(run, options)
    judge_source = run.judge
    if Path(run.judge).name == "reward" and not Path(run.judge).is_dir():
        judge_source = f"made up, for {run.judge} is not here: {options.judge_base}"
        run = run.model_copy(update={"judge": options.judge_base})
    run = run.model_copy(update={key: _on_gpu(getattr(run, key)) for key in ("dtype", "judge_dtype")})
    models = meta_models(run)
    step, sampling = _step(models, run.refl, prompts, processes), _sampling(models, run.refl, prompts, processes)
    bank = _references(models, run, prompts)
    low, high = run.refl.first_grad_steps(models.generator.num_steps)
    flops = {"sampling": processes * sampling.flops["sampling"] * (low + high) / 2}
    flops |= {name: float(processes * count) for name, count in step.flops.items()}
    memory = _memory(models, run, [step, sampling, bank], processes)
    vlm: Any = models.judge.vlm  # type: ignore[attr-defined]
    plan = Plan(
        job="align",
        sources={"generator": run.generator, "judge": judge_source, **vlm.sources._asdict(), "prompts": source},
        parameters={
            **{name: _count(part.parameters()) for name, part in models.components.items()},
            "judge": _count(models.judge.model.parameters()),
            "trained": _count(models.trained),
        },
        tokens={"of a question, longest": float(max(vlm.lengths))},
        **memory._asdict(),
        flops=flops,
        gpu=options.hardware,
        gpus=options.gpus,
        utilisation=options.utilisation,
        seconds=sum(_seconds(run, options, name, count) for name, count in flops.items()) / processes,
        steps=run.refl.steps,
        notes=(
            f"Before the first step: references for {len(prompts)} prompts, "
            f"{_reference_seconds(run, options, bank, prompts, processes) / 3600:.2g} hours.",
            "Probes and files come on top.",
        ),
    )
    return plan if plan.fits else replace(plan, suggestions=_suggestions(run, options, prompts, plan))


def _on_gpu(dtype: str) -> str:
    return "bfloat16" if dtype == "auto" else dtype


def processes_of(run: AlignRun, gpus: int) -> int:
    """How many processes run on so many GPUs: one on each, but none on one that the judge has for itself.

    Raises InputError where they cannot share the run.
    """
    processes = 1 if _judge_has_own_gpu(run) and gpus <= 2 else gpus
    run.check_processes(processes, "cuda")
    return processes


def meta_models(run: AlignRun) -> Models:
    """Generator and judge as `rewarddance align` would load them, and what it would train."""
    options = {"guidance_scale": run.guidance_scale, **run.generator_options}
    generator = meta_generator(run.generator, run.num_inference_steps, find_dtype(run.dtype), **options)
    judge = meta_reward(run.judge, None, find_dtype(run.judge_dtype)).freeze()
    if judge.config.reasoning == "before":
        raise InputError(
            f"the judge {run.judge!r} thinks before it answers, and nobody can say for how long.",
            "Plan with one that answers first.",
        )
    refl = run.refl
    with torch.device("meta"):
        if refl.lora_rank:
            trained = generator.add_lora(refl.lora_rank, refl.lora_alpha, refl.lora_targets)
        else:
            trained = generator.train_all()
    for weight in trained:
        weight.grad = torch.empty_like(weight)
    return Models(generator, trained, judge)


# -- counting ----------------------------------------------------------------------------------------------------------


def _share(refl: ReflRecipe, processes: int) -> ReflRecipe:
    """The recipe of one process's share of a step's samples."""
    samples = refl.prompts_per_step * refl.group_size // processes
    group_size = math.gcd(samples, refl.group_size)
    share: dict[str, Any] = {"prompts_per_step": samples // group_size, "group_size": group_size}
    if refl.reference_batch is not None:
        share["reference_batch"] = refl.reference_batch // processes
    return refl.model_copy(update=share)


def _step(models: Models, refl: ReflRecipe, prompts: Sequence[str], processes: int) -> Counting:
    """ReFL's own step, with the gradient from the first sampler step on; steps without one are counted apart."""
    refl.first_grad_steps(models.generator.num_steps)
    share = _share(refl, processes).model_copy(update={"grad_step_range": (0.0, 1e-9)})
    bank = [_meta_references(models.generator, prompts[i % len(prompts)], i) for i in range(share.prompts_per_step)]
    with counting() as counts:
        counts.exclude([*models.tensors(), *(tensor for entry in bank for tensor in (*entry.pictures, entry.latents))])
        generator: Any = _CountedGenerator(models.generator, counts, refl.last_steps)
        refl_step(generator, _CountedJudge(models.judge, counts), bank, share, seed=0, step=0)
    return counts


def _sampling(models: Models, refl: ReflRecipe, prompts: Sequence[str], processes: int) -> Counting:
    """One step of sampling of a process's samples."""
    n = refl.prompts_per_step * refl.group_size // processes
    with counting() as counts:
        counts.exclude(models.tensors())
        counts.begin("sampling")
        batch = _with_picture(models.generator, [prompts[i % len(prompts)] for i in range(n)])
        rollout(models.generator, batch, list(range(n)), 1)
    return counts


def _references(models: Models, run: AlignRun, prompts: Sequence[str]) -> Counting:
    """What `build_references` does for its first prompts: one step of sampling, decoding, and a tournament.

    One batch of pictures is drawn, where the run draws several one after the other. One tournament is held, where the
    run asks all of them together; but the pictures of all are kept as the judge has encoded them.
    """
    texts = [text for text in prompts[: run.references.prompts_at_once] for _ in range(run.references.candidates)]
    batch = _with_picture(models.generator, texts[: run.references.batch_size])
    with counting() as counts, torch.no_grad():
        counts.exclude(models.tensors())
        counts.begin("references: sampling")
        latents = rollout(models.generator, batch, candidate_seeds(0, 0, len(batch)), 1).x_t
        counts.begin("references: decoding")
        pictures = models.generator.decode(latents)
        if len(batch) < len(texts):
            pictures = torch.empty(len(texts), *pictures.shape[1:], device="meta")
        counts.begin("references: encoding")
        encoded = models.judge.vlm.encode(list(pictures))  # type: ignore[attr-defined]
        counts.begin("references: tournament")
        tournament(models.judge, batch[:1], [list(pictures[: run.references.candidates])])
        del encoded
    counts.flops["references: sampling"] *= models.generator.num_steps
    return counts


class _CountedGenerator:
    """A generator whose predictions and decoding are phases. last_steps: above 1, its sampler has only these."""

    def __init__(self, generator: PipelineGenerator, counts: Counting, last_steps: int) -> None:
        self._generator, self._counts = generator, counts
        self.num_steps = last_steps if last_steps > 1 else generator.num_steps

    def __getattr__(self, name: str) -> Any:
        return getattr(self._generator, name)

    def predict(self, x_t: Tensor, step: int, condition: Any) -> Tensor:
        self._counts.begin("generator")
        if torch.is_grad_enabled():
            return self._generator.predict(x_t, step, condition)
        lengths = [leaf.shape for leaf in tree_leaves(condition) if isinstance(leaf, Tensor)]
        key = "predict", self._generator._uses_initial, x_t.shape, *lengths
        return self._counts.repeated(key, lambda: self._generator.predict(x_t, step, condition))

    def decode(self, x_0: Tensor) -> Tensor:
        self._counts.begin("decoder")
        if torch.is_grad_enabled():
            return self._generator.decode(x_0)
        return self._counts.repeated(("decode", x_0.shape), lambda: self._generator.decode(x_0))


class _CountedJudge:
    """A judge whose answers are a phase."""

    def __init__(self, judge: Judge, counts: Counting) -> None:
        self._judge, self._counts = judge, counts
        self.vlm, self.needs_reference = judge.vlm, judge.needs_reference  # type: ignore[attr-defined]

    def __call__(self, questions: Any) -> Any:
        self._counts.begin("judge")
        return self._judge(questions)


def _meta_references(generator: PipelineGenerator, text: str, number: int) -> References:
    """Two references of a prompt on the meta device."""
    shape = generator.init_noise([0]).shape[1:]
    frames = generator._option("num_frames") if "num_frames" in generator.uses else 1
    pictures = tuple(torch.empty(frames, 3, generator.height, generator.width, device="meta") for _ in range(2))
    latents = torch.empty(2, *shape, device="meta")
    (prompt,) = _with_picture(generator, [text])
    return References(prompt, pictures, (2 * number, 2 * number + 1), (1.0, 0.0), latents)


def _with_picture(generator: PipelineGenerator, texts: Sequence[str]) -> list[Prompt]:
    """Prompts, with one picture of the video's size where the generator needs it."""
    image = torch.zeros(1, 3, generator.height, generator.width) if generator.needs_image else None
    return [Prompt(text, image=image) for text in texts]


# -- memory and time ---------------------------------------------------------------------------------------------------


def _memory(models: Models, run: AlignRun, counts: Sequence[Counting], processes: int) -> Memory:
    """Bytes by part and by phase. The network's weights are sharded; a LoRA is whole on each GPU."""
    network, lora = models.generator.network, set(models.trained) if run.refl.lora_rank else set()
    shards = processes if run.refl.sharded else 1
    parts = {}
    for name, part in models.components.items():
        n = shards if part is network else 1
        size = _shard_size(set(part.parameters()) - lora, n) + sum(weight.nbytes for weight in lora if part is network)
        parts[name] = MemoryPart(name, size, _note(next(part.parameters()), n))
    judge = sum(weight.nbytes for weight in models.judge.model.parameters())
    if not _judge_has_own_gpu(run):
        parts["judge"] = MemoryPart("judge", judge, run.judge_dtype)
    training = _kept_by_training(models, lora, shards)

    peaks: Counter[str] = Counter()
    for count in counts:
        peaks |= count.peaks  # the larger of both
    if processes > 1 and (lora or shards == 1):  # gradients are averaged in one buffer, which is then divided
        largest = max(weight.numel() for weight in models.trained)
        peaks["averaging of gradients"] = 2 * 4 * max(largest, min(BUCKET, _count(models.trained)))
    if shards > 1 and not run.refl.refresh_every:  # the references are made before training, by a whole network
        loaded = find_dtype(run.dtype).itemsize * _count(set(network.parameters()) - lora)
        later = parts[models.generator.component].size + sum(part.size for part in training)
        for phase in [phase for phase in peaks if phase.startswith("references")]:
            peaks[phase] = max(0, peaks[phase] + loaded - later)
    on_judge_gpu = JUDGE_PHASES if _judge_has_own_gpu(run) else ()
    worst = max((phase for phase in peaks if phase not in on_judge_gpu), key=lambda phase: peaks[phase])
    activations = MemoryPart(ACTIVATIONS, peaks[worst], f"{worst}; other phases hold less, and not at the same time")
    judge_gpu = judge + max(peaks[phase] for phase in on_judge_gpu) if on_judge_gpu else 0
    return Memory((*parts.values(), *training, activations), dict(peaks), judge_gpu)


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


def _judge_has_own_gpu(run: AlignRun) -> bool:
    """Has the judge a GPU of its own?"""
    return run.judge_device is not None and run.judge_device != (run.device or "cuda")


def _count(weights: Iterable[Tensor]) -> int:
    return sum(weight.numel() for weight in weights)


def _seconds(run: AlignRun, options: PlanOptions, phase: str, flops: float) -> float:
    """The time of so many operations on one GPU."""
    half = (run.judge_dtype if phase == "judge" else run.dtype) == "bfloat16"
    return options.hardware.seconds(flops, half, options.utilisation)


def _reference_seconds(
    run: AlignRun, options: PlanOptions, bank: Counting, prompts: Sequence[str], processes: int
) -> float:
    """The time to make the references of all prompts, which the processes make in parallel."""
    at_once = run.references.prompts_at_once
    drawn = min(run.references.batch_size, run.references.candidates * min(at_once, len(prompts)))
    sampling = bank.flops["references: sampling"] * run.references.candidates / drawn
    tournament = float(bank.flops["references: tournament"])
    seconds = _seconds(run, options, "sampling", sampling) + _seconds(run, options, "judge", tournament)
    turns, parts = math.ceil(len(prompts) / at_once / processes), math.ceil(len(prompts) / at_once)
    return len(prompts) * seconds * turns / parts


def _prompts(run: AlignRun, options: PlanOptions) -> tuple[list[str], str]:
    """Texts, the longest first, and where they come from."""
    if run.prompts.is_file():
        texts = dict.fromkeys(prompt.text for prompt in read_prompts(run.prompts))
        return sorted(texts, key=len, reverse=True), f"{len(texts)} of {run.prompts}"
    n = run.refl.prompts_per_step
    source = f"made up, for {run.prompts} is not here: {n} of {options.prompt_words} words"
    return [prompt_of_words(options.prompt_words)] * n, source


# -- suggestions -------------------------------------------------------------------------------------------------------


def _suggestions(run: AlignRun, options: PlanOptions, prompts: Sequence[str], plan: Plan) -> tuple[Suggestion, ...]:
    sampled: dict[tuple[Any, ...], list[Counting]] = {}

    def size(gpus: int, changed: AlignRun) -> int:
        """Bytes of the fuller GPU; no step is counted where all else is too much already."""
        processes = processes_of(changed, gpus)
        models, refl = meta_models(changed), changed.refl
        key = changed.dtype, changed.judge_dtype, refl.lora_rank, changed.references.batch_size, processes
        if key not in sampled:
            sampled[key] = [_sampling(models, refl, prompts, processes), _references(models, changed, prompts)]
        without_step = _memory(models, changed, sampled[key], processes).size
        if without_step > options.hardware.memory * GIB:
            return without_step
        return _memory(models, changed, [*sampled[key], _step(models, refl, prompts, processes)], processes).size

    weights = sum(part.size for part in plan.memory if part.name != ACTIVATIONS)
    room = max(0.0, (options.hardware.memory - CONTEXT) * GIB / (1 + FRAGMENTATION) - weights)
    processes = processes_of(run, options.gpus)
    batches = {phase: batch for phase, batch in _batches(run, processes).items() if batch[1] > 1}
    least = {key: 1 for key, _, _ in batches.values()}
    large = {phase: peak for phase, peak in plan.peaks.items() if peak > room}
    fewer: dict[str, Any] = {}
    for phase in large.keys() & batches.keys():
        key, now, _ = batches[phase]
        fewer[key] = min(fewer.get(key, now), max(1, int(now * 0.9 * room / large[phase])))
    same: list[Edit] = []
    if fewer and large.keys() <= batches.keys():
        effect = ", ".join(dict.fromkeys(text for key, _, text in batches.values() if key in fewer))
        same = [Edit(fewer, f"fewer at once {effect}"), Edit(least, "one at a time")]
    again = {_CHECKPOINTED[phase] for phase in large.keys() & _CHECKPOINTED.keys()} - set(run.refl.checkpointing)
    if again:
        parts = sorted({*again, *run.refl.checkpointing})
        same.append(Edit({"refl.checkpointing": parts}, f"layers computed again on the way back: {', '.join(parts)}"))
    if processes > 1 and not run.refl.sharded:
        same.append(Edit({"refl.sharded": True}, "weights in shards over the GPUs"))
    other = _other_result(run, options.gpus, dict.fromkeys(fewer, 1))
    spread = {**least, "refl.sharded": True}
    return suggestions(run, size, options, same=same, other=other, spread=lambda gpus: spread)


def _batches(run: AlignRun, processes: int) -> dict[str, tuple[str, int, str]]:
    """Of each phase that can be split: the key of its batch size, that batch size, and the effect of a smaller one."""
    refl, samples = run.refl, run.refl.prompts_per_step * run.refl.group_size // processes
    drawn = ("references.batch_size", run.references.batch_size, "drawn for the references")
    network = ("refl.generator_batch", refl.generator_batch or samples, "through the generator")
    return {
        "decoder": ("refl.decode_batch", refl.decode_batch or samples, "through the decoder"),
        "judge": ("refl.judge_batch", refl.judge_batch, "before the judge"),
        "generator": network,
        "backward": network,
        "references: sampling": drawn,
        "references: decoding": drawn,
    }


def _other_result(run: AlignRun, gpus: int, least: dict[str, Any]) -> list[Edit]:
    """Edits that change what is computed or learned, the gentlest first, each with the smallest batches."""
    edits = []
    if run.judge_dtype == "float32":
        edits.append(Edit({**least, "judge_dtype": "bfloat16"}, "the judge in bfloat16"))
    if run.dtype == "float32":
        edits.append(Edit({**least, "dtype": "bfloat16"}, "the generator in bfloat16"))
    if run.refl.lora_rank == 0:
        keys = {**least, "refl.lora_rank": 32, "refl.lora_alpha": 32}
        edits.append(Edit(keys, "LoRA instead of all weights: raise learning_rate"))
    if run.judge_device is None and gpus == 1:
        edits.append(Edit({**least, "judge_device": "cuda:1"}, "a second GPU for the judge", more_gpus=1))
    return edits
