"""A plan for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from rewarddance.planning.hardware import CONTEXT, GIB, LOST
from rewarddance.planning.plan import Plan


def print_plan(plan: Plan) -> None:
    """To standard output: memory by part, and under it all else that was found."""
    console = Console()
    console.print(plan_table(plan))
    for line in lines(plan):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def plan_table(plan: Plan) -> Table:
    """Memory of each GPU by part, in GiB."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("memory of each GPU")
    table.add_column("GiB", justify="right")
    table.add_column("")
    for part in plan.memory:
        table.add_row(part.name, gib(part.size), part.told)
    lost = plan.size - sum(part.size for part in plan.memory)
    table.add_row("lost", gib(lost), f"{CONTEXT:g} GiB context, {LOST:.0%} gaps: assumed")
    verdict = "fits" if plan.fits else "does not fit"
    table.add_section()
    table.add_row("all", gib(plan.size), f"of {plan.gpu.memory:g} on {plan.gpus} x {plan.gpu.name}: {verdict}")
    return table


def lines(plan: Plan) -> Iterator[str]:
    """What stands under the table."""
    yield ""
    if plan.beside:
        yield f"the judge's own GPU: at most {gib(plan.beside)} GiB"
    if plan.moments:
        yield "worst moments beside weights, GiB: " + ", ".join(
            f"{name} {gib(size)}" for name, size in sorted(plan.moments.items(), key=lambda one: -one[1])
        )
    yield "parameters: " + ", ".join(f"{name} {amount(count)}" for name, count in plan.parameters.items())
    yield "tokens: " + ", ".join(f"{name} {count:.0f}" for name, count in plan.tokens.items())
    total = sum(plan.flops.values())
    yield (
        f"TFLOP a step: {total / 1e12:.4g} ("
        + ", ".join(f"{name} {count / 1e12:.4g}" for name, count in plan.flops.items() if count > 0.001 * total)
        + ")"
    )
    yield f"time at {plan.utilisation:.0%} of the peak: {seconds(plan.seconds)} a step" + (
        f", {seconds(plan.steps * plan.seconds)} for {plan.steps} steps" if plan.steps else ""
    )
    yield from plan.notes
    for name, source in plan.sources.items():
        yield f"{name}: {source}"
    if not plan.fits:
        yield ""
        yield (
            "To make it fit:"
            if plan.changes
            else "Nothing that was tried makes it fit: take a larger GPU or a smaller model."
        )
    for change in plan.changes:
        where = f" --gpus {change.gpus}" if change.gpus != plan.gpus else ""
        yield f"  {' '.join(change.keys)}{where}  ->  {gib(change.size)} GiB ({change.told})"


def gib(size: int) -> str:
    return f"{size / GIB:.2f}"


def amount(count: int) -> str:
    """Of weights, in words that people use."""
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:.2f}{name}"
    return str(count)


def seconds(length: float) -> str:
    if length < 120:
        return f"{length:.2g} s"
    return f"{length / 60:.3g} min" if length < 7200 else f"{length / 3600:.3g} h"
