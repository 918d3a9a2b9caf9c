"""A plan for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from rewarddance.planning.hardware import CONTEXT, FRAGMENTATION, GIB
from rewarddance.planning.plan import Plan


def print_plan(plan: Plan) -> None:
    """Print the memory of each GPU by part, and all else below it, to standard output."""
    console = Console()
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("memory of each GPU")
    table.add_column("GiB", justify="right")
    table.add_column("")
    for part in plan.memory:
        table.add_row(part.name, _gib(part.size), part.note)
    overhead = plan.size - sum(part.size for part in plan.memory)
    table.add_row("overhead", _gib(overhead), f"{CONTEXT:g} GiB context, {FRAGMENTATION:.0%} gaps: assumed")
    table.add_section()
    verdict = "fits" if plan.fits else "does not fit"
    table.add_row("all", _gib(plan.size), f"of {plan.gpu.memory:g} on {plan.gpus} x {plan.gpu.name}: {verdict}")
    console.print(table)
    for line in _lines(plan):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _lines(plan: Plan) -> Iterator[str]:
    """The lines below the table."""
    yield ""
    if plan.judge_gpu:
        yield f"the judge's own GPU: at most {_gib(plan.judge_gpu)} GiB"
    if plan.peaks:
        peaks = sorted(plan.peaks.items(), key=lambda peak: -peak[1])
        yield "peak of each phase beside weights, GiB: " + ", ".join(f"{name} {_gib(size)}" for name, size in peaks)
    yield "parameters: " + ", ".join(f"{name} {_count(count)}" for name, count in plan.parameters.items())
    yield "tokens: " + ", ".join(f"{name} {count:.0f}" for name, count in plan.tokens.items())
    total = sum(plan.flops.values())
    large = ", ".join(f"{name} {count / 1e12:.4g}" for name, count in plan.flops.items() if count > 0.001 * total)
    yield f"TFLOP a step: {total / 1e12:.4g} ({large})"
    if plan.bound_by_memory:
        moved = ", ".join(f"{name} {plan.traffic[name] / 1e12:.3g}" for name in plan.bound_by_memory)
        yield f"bound by memory, {plan.gpu.bandwidth:g} GB/s: {moved} TB a step"
    run = f", {_duration(plan.steps * plan.seconds)} for {plan.steps} steps" if plan.steps else ""
    bound = ", or of memory's bandwidth" if plan.traffic else ""
    yield f"time at {plan.utilisation:.0%} of the peak{bound}: {_duration(plan.seconds)} a step{run}"
    gpu = plan.gpu
    yield f"peak: {gpu.bf16:g} TFLOP/s in bfloat16, {gpu.fp32:g} in float32, {gpu.bandwidth:g} GB/s ({gpu.source})"
    yield from plan.notes
    yield from (f"{name}: {source}" for name, source in plan.sources.items())
    if plan.fits:
        return
    yield ""
    failed = "Nothing that was tried makes it fit: take a larger GPU or a smaller model."
    yield "To make it fit:" if plan.suggestions else failed
    for suggestion in plan.suggestions:
        gpus = f" --gpus {suggestion.gpus}" if suggestion.gpus != plan.gpus else ""
        yield f"  {' '.join(suggestion.keys)}{gpus}  ->  {_gib(suggestion.size)} GiB ({suggestion.effect})"


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}"


def _count(weights: int) -> str:
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if weights >= unit:
            return f"{weights / unit:.2f}{name}"
    return str(weights)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"
