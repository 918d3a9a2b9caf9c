"""Weights in pieces over all processes (FSDP2), and gradients as of one process.

torch's own fully_shard, which does on a CPU with gloo what it does on GPUs with NCCL.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from rewarddance.runtime import process_group

TOGETHER = 2**24
"""Values whose gradients are sent to the other processes in one message."""


def device_mesh(device: str | None = None) -> Any:
    """All processes in a row. device: the kind that they compute on, by default this process's own."""
    return init_device_mesh(device or process_group.device().type, (process_group.world_size(),))


def shard(network: nn.Module, device: str, whole: Iterable[nn.Parameter] = ()) -> None:
    """Split a network's weights over all processes, in place, block by block; those of `whole` stay whole on each.

    What a forward gathers it lets go at once, so that weights which were written to in between are
    gather_full_tensors anew.
    """
    mesh, ignored = device_mesh(device), set(whole)
    for module in (*outer_blocks(network), network):
        fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=ignored)


def outer_blocks(network: nn.Module) -> Iterator[nn.Module]:
    """Members of the outermost module lists: what is gather_full_tensors one at a time."""
    for child in network.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from outer_blocks(child)


def average_gradients(weights: Sequence[nn.Parameter]) -> None:
    """The mean over all processes of each gradient; those of weights in pieces are it already."""
    if process_group.world_size() == 1:
        return
    gradients = [one.grad for one in weights if one.grad is not None and not isinstance(one.grad, DTensor)]
    while gradients:
        part, size = [gradients.pop()], 0
        while gradients and (size := size + part[-1].numel()) + gradients[-1].numel() <= TOGETHER:
            part.append(gradients.pop())
        flat = torch.cat([one.flatten() for one in part])
        try:
            dist.all_reduce(flat)
        except RuntimeError as error:
            raise process_group.ProcessStopped from error
        for one, values in zip(
            part, (flat / process_group.world_size()).split([one.numel() for one in part]), strict=True
        ):
            one.copy_(values.view_as(one))


def full_tensor(value: Tensor) -> Tensor:
    """A tensor of which each process has a piece, put together on all; another as it is."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def gather_full_tensors(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The whole weights on the CPU of the first process; nothing on the others. One at a time, tied ones once."""
    found: dict[str, Tensor] = {}
    seen: dict[int, Tensor] = {}
    for name, weight in weights.items():
        if id(weight) not in seen:
            one = full_tensor(weight.detach())
            seen[id(weight)] = one.cpu() if process_group.is_main_process() else one.new_empty(0)
        if process_group.is_main_process():
            found[name] = seen[id(weight)]
    return found


@torch.no_grad()
def copy_into(places: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy whole values into weights by name; where a weight is in pieces, each process takes its own."""
    for name, place in places.items():
        place.copy_(shard_like(values[name].to(place.device, place.dtype), place))


def to_local(value: Tensor) -> Tensor:
    """What this process has of a tensor, to be read or written in place; all of one that is whole."""
    return value.to_local() if isinstance(value, DTensor) else value


def shard_like(value: Tensor, like: Tensor) -> Tensor:
    """This process's piece of a whole value, cut as `like` is; the value itself where `like` is whole."""
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
