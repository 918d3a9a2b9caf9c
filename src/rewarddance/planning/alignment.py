"""The plan of an alignment: making the references, and the algorithm's own step, on the meta device.

Of several processes one is counted, with the longest prompts and its share of a step's samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rewarddance.alignment.recipe import AlignRun
from rewarddance.errors import InputError
from rewarddance.planning.alignment_edits import edits_that_fit
from rewarddance.planning.alignment_memory import memory_of
from rewarddance.planning.counting import Counting
from rewarddance.planning.hardware import Work, bound_by_memory
from rewarddance.planning.iterations import beside_the_step, iteration
from rewarddance.planning.models import Models, count_of, judge_to_plan_with, meta_models, planning_prompts
from rewarddance.planning.placement import judge_has_own_gpu, processes_of
from rewarddance.planning.plan import Plan, PlanOptions


def plan_alignment(run: AlignRun, options: PlanOptions) -> Plan:
    """What `rewarddance align` needs.

    Raises InputError for what the run itself would refuse, and for models whose architecture is not known.
    """
    if run.algorithm == "dpo":
        raise InputError(
            "no plan is made of dpo, which learns from pictures that are there.",
            "Plan online_dpo with the same generator: its updates hold as much, and it samples besides.",
        )
    if judge_has_own_gpu(run):
        options = options.model_copy(update={"gpus": max(options.gpus, 2)})
    processes = processes_of(run, options.gpus)
    prompts, source = planning_prompts(run.prompts, run.chosen.prompts_per_step, options)
    run = run.model_copy(update={key: _on_gpu(getattr(run, key)) for key in ("dtype", "judge_dtype")})
    models = meta_models(run, options)
    step, beside = iteration(models, run, prompts, processes), beside_the_step(models, run, prompts, processes)
    work = _work(models, run, step, beside, processes)
    seconds = {phase: _seconds(run, options, phase, done) for phase, done in work.items()}
    references = _reference_seconds(run, options, beside[-1], prompts, processes) if run.asks_references else 0.0
    refreshed = references / run.refl.refresh_every if run.refl.refresh_every else 0.0
    memory = memory_of(models, run, [step, *beside], processes)
    vlm: Any = models.judges[0][0].vlm  # type: ignore[attr-defined]
    plan = Plan(
        job="align",
        sources={
            "generator": run.generator,
            **_judge_sources(run, options),
            **vlm.sources._asdict(),
            "prompts": source,
        },
        parameters={
            **{name: count_of(part.parameters()) for name, part in models.components.items()},
            "judge": sum(count_of(judge.model.parameters()) for judge, _ in models.all_judges),
            "trained": count_of(models.trained),
        },
        tokens={"of a question, longest": float(max(models.lengths))},
        **memory._asdict(),
        flops={phase: done.flops for phase, done in work.items()},
        traffic={phase: done.traffic for phase, done in work.items()},
        gpu=options.hardware,
        gpus=options.gpus,
        utilisation=options.utilisation,
        seconds=sum(seconds.values()) / processes + refreshed,
        bound_by_memory=bound_by_memory(options.hardware, work, seconds),
        steps=run.chosen.steps,
        notes=(*_notes(run, references, len(prompts)), "Probes and files come on top."),
    )
    return plan if plan.fits else replace(plan, suggestions=edits_that_fit(run, options, prompts, plan))


def _on_gpu(dtype: str) -> str:
    return "bfloat16" if dtype == "auto" else dtype


def _judge_sources(run: AlignRun, options: PlanOptions) -> dict[str, str]:
    """Where each judge is from, or what stands for it."""
    names = {"judge": run.judge, "held-out judge": run.held_out}
    names |= {f"judge of {name}": reward.judge for name, reward in run.rewards.items()}
    return {what: judge_to_plan_with(name, options)[1] for what, name in names.items() if name}


def _work(models: Models, run: AlignRun, step: Counting, beside: Sequence[Counting], processes: int) -> dict[str, Work]:
    """What a step takes on all GPUs together, by phase."""
    phases = {phase: _times(processes, step.work(phase)) for phase in step.flops}
    if run.algorithm != "refl":
        return phases
    low, high = run.refl.first_grad_steps(models.generator.num_steps)
    return {"sampling": _times(processes * (low + high) / 2, beside[0].work("sampling"))} | phases


def _times(factor: float, work: Work) -> Work:
    return Work(factor * work.flops, factor * work.traffic)


def _notes(run: AlignRun, references: float, prompts: int) -> tuple[str, ...]:
    """What is done before the first step and again. references: seconds to make those of all prompts."""
    if not run.asks_references:
        return ()
    said = f"references for {prompts} prompts, {references / 3600:.2g} hours"
    if not run.refl.refresh_every:
        return (f"Before the first step: {said}.",)
    again = f"and again every {run.refl.refresh_every} steps, which is in the time of a step"
    return (f"Before the first step, {again}: {said}.",)


def _seconds(run: AlignRun, options: PlanOptions, phase: str, work: Work) -> float:
    """The time of a phase's work on one GPU."""
    half = (run.judge_dtype if phase == "judge" else run.dtype) == "bfloat16"
    return options.hardware.seconds(work.flops, half, options.utilisation, work.traffic)


def _reference_seconds(
    run: AlignRun, options: PlanOptions, bank: Counting, prompts: Sequence[str], processes: int
) -> float:
    """The time to make the references of all prompts, which the processes make in parallel."""
    at_once = run.references.prompts_at_once
    drawn = min(run.references.batch_size, run.references.candidates * min(at_once, len(prompts)))
    sampling = _times(run.references.candidates / drawn, bank.work("references: sampling"))
    tournament = bank.work("references: tournament")
    seconds = _seconds(run, options, "sampling", sampling) + _seconds(run, options, "judge", tournament)
    turns, parts = math.ceil(len(prompts) / at_once / processes), math.ceil(len(prompts) / at_once)
    return len(prompts) * seconds * turns / parts
