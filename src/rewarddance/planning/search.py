"""The plan of a search: its own method with its budget on the first prompts, on the meta device."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rewarddance.errors import InputError
from rewarddance.generators.adapter import PipelineGenerator
from rewarddance.planning.alignment_memory import ACTIVATIONS
from rewarddance.planning.counting import Counting, counting
from rewarddance.planning.hardware import bound_by_memory
from rewarddance.planning.meta_generator import meta_generator
from rewarddance.planning.models import (
    count_of,
    judge_to_plan_with,
    meta_judge_of,
    planning_prompts,
    with_picture,
)
from rewarddance.planning.phases import AskedJudge, CountedGenerator
from rewarddance.planning.placement import frozen_weights, precision_of, shards_of_judge
from rewarddance.planning.plan import MemoryPart, Plan, PlanOptions, Suggestion
from rewarddance.reward.judge import Judge
from rewarddance.runtime.config import Recipe
from rewarddance.runtime.devices import find_dtype
from rewarddance.search.judging import Candidate
from rewarddance.search.recipe import Budget, JudgingName
from rewarddance.search.run import Search

HELD_OUT = "held-out judge"


@dataclass(frozen=True)
class SearchSetting:
    """A search, as its plan needs to know it.

    dtype: of all weights. method: a recipe of one of METHODS. batch_size: pictures that are made together, of
    prompts_at_once prompts. judge_sharded: the judges' weights are split over all GPUs, of which the first searches.
    judges: names and options of "judge" and, if there is one, of HELD_OUT, which is asked about the winners.
    """

    generator: str
    num_inference_steps: int
    generator_options: Mapping[str, Any]
    judges: Mapping[str, tuple[str, Mapping[str, Any]]]
    dtype: str
    prompts: Path
    method: Recipe
    budget: Budget
    judging: JudgingName | None
    batch_size: int
    prompts_at_once: int
    judge_sharded: bool
    judge_apart: bool


def plan_search(setting: SearchSetting, options: PlanOptions) -> Plan:
    """What `rewarddance search` needs. A step of the plan is one batch of prompts.

    Where it does not fit, with fewer pictures at once that do. Raises InputError for what the run itself would refuse,
    for models whose architecture is not known, and for a budget in seconds alone: what it buys is known on the machine.
    """
    plan, fewer = _planned(setting, options), setting
    while not plan.fits and fewer.batch_size > 1:
        batch = fewer.batch_size // 2
        fewer = replace(fewer, batch_size=batch, prompts_at_once=min(batch, fewer.prompts_at_once))
        if (smaller := _planned(fewer, options)).fits:
            keys = (f"batch_size={batch}", f"prompts_at_once={fewer.prompts_at_once}")
            effect = "fewer pictures at once; a method that looks at a batch's pictures together may find others"
            return replace(plan, suggestions=(Suggestion(keys, plan.gpus, smaller.size, effect),))
    return plan


def _planned(setting: SearchSetting, options: PlanOptions) -> Plan:
    """`plan_search`, without suggestions."""
    budget = setting.budget
    if budget.evaluations is None and budget.samples is None and budget.questions is None:
        raise InputError("a budget in seconds cannot be planned.", "Give one in samples, evaluations or questions.")
    if setting.judge_sharded and options.gpus == 1:
        raise InputError("a sharded judge needs several processes.", "Give --gpus 2 or more, or leave it out.")
    if setting.judge_apart:
        options = options.model_copy(update={"gpus": max(options.gpus, 2)})
    dtype = _on_gpu(setting.dtype)
    generator = meta_generator(
        setting.generator, setting.num_inference_steps, find_dtype(dtype), **setting.generator_options
    )
    judges = {
        what: meta_judge_of(generator, name, dtype, options, changes)
        for what, (name, changes) in setting.judges.items()
    }
    prompts, source = planning_prompts(setting.prompts, setting.prompts_at_once, options)
    at_once = min(setting.prompts_at_once, len(prompts))
    asked = with_picture(generator, prompts[:at_once])
    models = {name: part for name, part in generator.pipeline.components.items() if isinstance(part, nn.Module)}
    models |= {what: judge.model for what, judge in judges.items()}
    with counting() as counts:
        counts.exclude(w for part in models.values() for w in (*part.parameters(), *part.buffers()))
        counts.begin("sampling")
        _search_first(setting, generator, judges, asked, counts)
    memory, judge_gpu = _memory_of(setting, options, generator, judges, counts)
    work = {phase: counts.work(phase) for phase in counts.flops}
    gpu, half = options.hardware, dtype == "bfloat16"
    seconds = {phase: gpu.seconds(done.flops, half, options.utilisation, done.traffic) for phase, done in work.items()}
    vlms: list[Any] = [judge.vlm for judge in judges.values()]  # type: ignore[attr-defined]
    of_judges = {what: judge_to_plan_with(name, options)[1] for what, (name, _) in setting.judges.items()}
    lengths = [length for vlm in vlms for length in vlm.lengths]
    return Plan(
        job="search",
        sources={"generator": setting.generator, **of_judges, **vlms[0].sources._asdict(), "prompts": source},
        parameters={name: count_of(part.parameters()) for name, part in models.items()},
        tokens={"of a question, longest": float(max(lengths, default=0))},
        memory=memory,
        peaks=dict(counts.peaks),
        judge_gpu=judge_gpu,
        flops={phase: float(done.flops) for phase, done in work.items()},
        traffic={phase: float(done.traffic) for phase, done in work.items()},
        gpu=gpu,
        gpus=options.gpus,
        utilisation=options.utilisation,
        seconds=sum(seconds.values()),
        bound_by_memory=bound_by_memory(gpu, work, seconds),
        steps=math.ceil(len(prompts) / at_once),
        notes=(f"A step is a search for {at_once} prompts at once, on one GPU.", "Pictures and files come on top."),
    )


def _on_gpu(dtype: str) -> str:
    return "bfloat16" if dtype == "auto" else dtype


def _memory_of(
    setting: SearchSetting,
    options: PlanOptions,
    generator: PipelineGenerator,
    judges: Mapping[str, Judge],
    counts: Counting,
) -> tuple[tuple[MemoryPart, ...], int]:
    """Bytes by part on the GPU that searches, and on the judge's own if it has one."""
    dtype = _on_gpu(setting.dtype)
    parts = []
    for name, part in generator.pipeline.components.items():
        if isinstance(part, nn.Module):
            precision = precision_of(setting.generator_options) if part is generator.network else "none"
            parts.append(frozen_weights(name, part, dtype, precision))
    of_judge: list[MemoryPart] = []
    for name, judge in judges.items():
        if setting.judge_sharded:
            of_judge += [
                replace(part, name=part.name.replace("judge", name))
                for part in shards_of_judge(judge, dtype, options.gpus)
            ]
        else:
            precision = precision_of(setting.judges[name][1])
            of_judge.append(frozen_weights(name, judge.model, dtype, precision))
    here = {phase: peak for phase, peak in counts.peaks.items() if not (setting.judge_apart and phase == "judge")}
    worst = max(here, key=lambda phase: here[phase])
    activations = MemoryPart(ACTIVATIONS, here[worst], f"{worst}; other phases hold less, and not at the same time")
    if setting.judge_apart:
        return (*parts, activations), sum(part.size for part in of_judge) + counts.peaks["judge"]
    return (*parts, *of_judge, activations), 0


def _search_first(
    setting: SearchSetting, generator: Any, judges: Mapping[str, Any], asked: Any, counts: Counting
) -> None:
    """The search for the first prompts. All pictures seem equally good; what is counted does not depend on it.

    So the first sample wins, and what the held-out judge is asked of other winners is asked afterwards.
    """
    counted: Any = CountedGenerator(generator, counts)
    counted.predicting = "sampling"
    answering: dict[str, Any] = {what: AskedJudge(judge, counts) for what, judge in judges.items()}
    held_out = answering.get(HELD_OUT)
    search = Search(
        counted, answering["judge"], setting.method, setting.budget,
        judging=setting.judging, batch_size=setting.batch_size, prompts_at_once=len(asked), held_out=held_out,
    )  # fmt: skip
    found = search(asked, range(len(asked)))
    if held_out:
        others = [Candidate(torch.empty_like(result.first.pixels), {"winner": True}) for result in found]
        search.held_out_margins(asked, [result.first for result in found], others)
