"""Weights that are sharded over all processes (FSDP2), and gradients averaged over them.

torch's own fully_shard, which does on a CPU with gloo what it does on GPUs with NCCL.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from rewarddance.runtime import process_group

BUCKET = 2**24
"""How many values of gradients are exchanged with the other processes at a time."""


def device_mesh(device: str | None = None) -> Any:
    """All processes in one dimension. device: the type that they compute on, by default this process's own."""
    return init_device_mesh(device or process_group.device().type, (process_group.world_size(),))


def shard(network: nn.Module, device: str, whole: Iterable[nn.Parameter] = ()) -> None:
    """Split a network's weights over all processes, in place, block by block; those of `whole` stay whole on each.

    What a forward gathers is freed at once, so that the next one sees weights that were written to in between.
    """
    mesh, ignored = device_mesh(device), set(whole)
    for module in (*outer_blocks(network), network):
        fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=ignored)


def is_sharded(network: nn.Module) -> bool:
    """Did `shard` split its weights? Then all processes call it equally often."""
    return isinstance(network, FSDPModule)


def outer_blocks(network: nn.Module) -> Iterator[nn.Module]:
    """Members of the outermost module lists, whose weights are gathered one block at a time."""
    for child in network.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from outer_blocks(child)


def average_gradients(weights: Sequence[nn.Parameter]) -> None:
    """Replace each gradient by its mean over all processes; FSDP has done so for sharded weights."""
    n = process_group.world_size()
    gradients = [w.grad for w in weights if w.grad is not None and not isinstance(w.grad, DTensor)]
    while n > 1 and gradients:
        bucket, size = [gradients.pop()], 0
        while gradients and (size := size + bucket[-1].numel()) + gradients[-1].numel() <= BUCKET:
            bucket.append(gradients.pop())
        flat = torch.cat([grad.flatten() for grad in bucket])
        with process_group.waiting():
            dist.all_reduce(flat)
        for grad, mean in zip(bucket, (flat / n).split([grad.numel() for grad in bucket]), strict=True):
            grad.copy_(mean.view_as(grad))


@torch.no_grad()
def all_finite(weights: Sequence[Tensor]) -> bool:
    """Are all values finite, on all processes? All of them call this alike."""
    local = [shard for shard in map(to_local, weights) if shard.numel()]  # a small weight has no rows for every process
    norms = torch._foreach_norm(local, float("inf")) if local else ()
    by_device: dict[torch.device, list[Tensor]] = {}
    for norm in norms:
        by_device.setdefault(norm.device, []).append(norm.float())
    mine = all(bool(torch.isfinite(torch.stack(of_one)).all()) for of_one in by_device.values())  # one wait for a GPU
    return all(process_group.gather_objects(mine))


def full_tensor(value: Tensor) -> Tensor:
    """A sharded tensor gathered on every process; any other tensor as it is."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def gather_full_tensors(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The whole weights on the CPU of the first process; nothing on the others. One at a time, tied ones once."""
    gathered: dict[int, Tensor] = {}
    for weight in weights.values():
        if id(weight) not in gathered:
            full = full_tensor(weight.detach())
            gathered[id(weight)] = full.cpu() if process_group.is_main_process() else full.new_empty(0)
    return {name: gathered[id(w)] for name, w in weights.items()} if process_group.is_main_process() else {}


@torch.no_grad()
def copy_into(weights: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy full values into weights by name; of a sharded weight each process takes its shard."""
    for name, weight in weights.items():
        weight.copy_(shard_like(values[name].to(weight.device, weight.dtype), weight))


def to_local(value: Tensor) -> Tensor:
    """This process's shard of a tensor, to be read or written in place; all of one that is not sharded."""
    return value.to_local() if isinstance(value, DTensor) else value


def shard_like(value: Tensor, like: Tensor) -> Tensor:
    """This process's shard of a full value, split as `like` is; the value itself where `like` is not sharded."""
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
