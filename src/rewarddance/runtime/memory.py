"""Memory: layers that are computed again instead of kept, and which part it was that memory ran out in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from rewarddance.errors import InputError, RewardError


@contextmanager
def checkpointed(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Within the block a forward of these layers keeps its inputs only, and is done again in the backward pass.

    The libraries' own switch does nothing in eval mode, and in training mode it drops the keys and values of a prefix.
    """
    layers = list(layers)
    compiled = [vars(layer).get("forward") for layer in layers]
    for layer in layers:
        layer.forward = partial(_twice, layer.forward)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer, before in zip(layers, compiled, strict=True):
            del layer.forward
            if before is not None:
                layer.forward = before  # type: ignore[method-assign]


def _twice(forward: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
    """A forward that keeps its inputs. Lists that it writes to, such as a video decoder's cache of the frames before,
    are for the second time as they were before the first."""
    written = [one for one in (*inputs, *named.values()) if isinstance(one, list)]
    before = [list(one) for one in written]
    first = True

    def run(*inputs: Any, **named: Any) -> Any:
        nonlocal first
        if first:
            first = False
            return forward(*inputs, **named)
        copies = {id(one): list(was) for one, was in zip(written, before, strict=True)}
        again = [copies.get(id(one), one) for one in inputs]
        return forward(*again, **{name: copies.get(id(one), one) for name, one in named.items()})

    output = checkpoint(run, *inputs, use_reentrant=False, **named)
    for now, was in zip(written, before, strict=True):
        was[:] = [old if old is not new else None for old, new in zip(was, now, strict=False)]  # other layers' entries
    return output


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The innermost blocks of a network: members of module lists that have parts of their own, and no such list."""
    found: list[nn.Module] = []
    for child in network.children():
        if isinstance(child, nn.ModuleList):
            for member in child.children():
                if next(member.children(), None) is not None:
                    found += blocks_of(member) or [member]
        else:
            found += blocks_of(child)
    return found


@contextmanager
def modules_on(modules: Iterable[nn.Module], device: torch.device | str) -> Iterator[None]:
    """Within the block these modules are on the device; those that came from the CPU for it go back to it.

    No graph through them may outlive the block.
    """
    wanted = torch.device(device).type
    moved = [module for module in modules if next(module.parameters()).device.type != wanted]
    for module in moved:
        module.to(device)
    try:
        yield
    finally:
        for module in moved:
            module.to("cpu")


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether torch ran out of memory, on an accelerator or on the CPU."""
    message = str(error)
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate" in message
    )


@contextmanager
def memory_for(part: str, remedy: str) -> Iterator[None]:
    """Raises InputError naming `part` where memory runs out within the block."""
    try:
        yield
    except (RuntimeError, RewardError) as error:
        told = next((one for one in (error, error.__cause__) if is_out_of_memory(one)), None)
        if told is None:
            raise
        raise InputError(f"memory ran out in {part}: {str(told).splitlines()[0].rstrip('.')}.", remedy) from error
