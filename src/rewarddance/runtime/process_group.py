"""Several processes on one run: which one this is, what they exchange, and how they wait for one another.

torchrun and accelerate launch start them and say so in the environment (RANK, WORLD_SIZE); without it there is one
process, and everything here does nothing. accelerate.PartialState would join the processes as soon as it is asked
anything; here they are joined when a run begins, with a store of our own in which the first to fail is known.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from jaxtyping import Num
from torch import Tensor
from torch import distributed as dist

from rewarddance.errors import InputError, RewardDanceError

LONGEST_WAIT = timedelta(hours=1)
"""While the first process writes a large checkpoint, the others wait."""

T = TypeVar("T")


class ProcessStopped(RewardDanceError):
    """A process waited for another one that is gone."""

    def __init__(self) -> None:
        super().__init__("another process of this run has stopped.", "What it said tells why.")


def started_processes() -> int:
    """How many processes torchrun or accelerate started for this run, which may not have joined yet; else 1."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def init_process_group() -> Iterator[None]:
    """Joins the processes that were started together, if there are several, for the length of the block.

    Where the block fails, the first process that fails raises its error, and the others exit silently. Raises
    InputError where the launcher was told to shard the model itself, or started more processes than there are GPUs.
    """
    if started_processes() < 2 or dist.is_initialized():
        yield
        return
    for variable, name in (("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")):
        if os.environ.get(variable, "false").lower() in ("true", "1"):
            raise InputError(
                f"accelerate launch was told to use {name}, but the recipe says how a model is split.",
                "Launch without it (torchrun, or accelerate launch --multi_gpu) and set sharded=true in the recipe: "
                "judge.sharded=true to train, refl.sharded=true (grpo, nft) to align.",
            )
    if device().type == "cuda":
        if (local_rank := int(os.environ.get("LOCAL_RANK", "0"))) >= torch.cuda.device_count():
            raise InputError(
                f"process {local_rank + 1} of this machine has no GPU: {torch.cuda.device_count()} are here.",
                "Start one process a GPU.",
            )
        torch.cuda.set_device(device())
    backend = "cuda:nccl,cpu:gloo" if device().type == "cuda" else "gloo"
    store, index, count = next(dist.rendezvous("env://", timeout=LONGEST_WAIT))
    dist.init_process_group(backend, store=store, rank=index, world_size=count, timeout=LONGEST_WAIT)
    try:
        yield
    except (RewardDanceError, RuntimeError) as error:
        lost_another = isinstance(error, RuntimeError) and (isinstance(error, dist.DistError) or "gloo" in str(error))
        if not _is_first_to_fail(store) and (lost_another or isinstance(error, RewardDanceError)):
            sys.exit(2)
        if lost_another:
            raise ProcessStopped from error
        raise
    dist.destroy_process_group()  # not after an error: it would wait for processes that wait for this one


def _is_first_to_fail(store: Any) -> bool:
    try:
        return store.add("failed", 1) == 1
    except RuntimeError:  # the process that held the store is gone, so it failed before
        return False


@contextmanager
def waiting() -> Iterator[None]:
    """Around communication with the other processes. Raises ProcessStopped where one of them is gone."""
    try:
        yield
    except RuntimeError as error:
        raise ProcessStopped from error


def device() -> torch.device:
    """Where this process computes: its own GPU, or the CPU where there is none or accelerate was told so."""
    if not torch.cuda.is_available() or os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("true", "1"):
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main_process() -> bool:
    """Is this the process that writes files and speaks to the user?"""
    return rank() == 0


def sum_over_processes(values: Num[Tensor, "..."]) -> Num[Tensor, "..."]:
    """Elementwise sum over all processes, on the CPU."""
    total = values.detach().cpu().clone()
    if world_size() > 1:
        with waiting():
            dist.all_reduce(total)
    return total


def mean_over_processes(figures: Mapping[str, float]) -> dict[str, float]:
    """Each figure's mean over all processes; whole numbers, which all have alike, as they are."""
    names = [name for name, value in figures.items() if not isinstance(value, int)]
    if world_size() == 1 or not names:
        return dict(figures)
    total = sum_over_processes(torch.tensor([figures[name] for name in names], dtype=torch.float64))
    return {**figures, **dict(zip(names, (total / world_size()).tolist(), strict=True))}


def local_shard(rows: T, parts: int = 1) -> T:
    """This process's share of rows (a list or a tensor) that all processes have alike.

    The rows are `parts` equal parts, and each process has an equal share of each part.
    """
    if world_size() == 1:
        return rows
    sequence: Any = rows
    share = len(sequence) // (parts * world_size())
    starts = [(part * world_size() + rank()) * share for part in range(parts)]
    mine = [i for start in starts for i in range(start, start + share)]
    return sequence[mine] if isinstance(rows, Tensor) else [sequence[i] for i in mine]  # type: ignore[return-value]


def all_gather(rows: Num[Tensor, "b ..."], parts: int = 1) -> Num[Tensor, "B ..."]:
    """All rows, of which each process has its `local_shard`, in their order. Without graph."""
    if world_size() == 1:
        return rows
    mine = rows.detach().contiguous()
    shards = [torch.empty_like(mine) for _ in range(world_size())]
    with waiting():
        dist.all_gather(shards, mine)
    by_part = [shard.unflatten(0, (parts, -1)) for shard in shards]  # of each process [parts, share, ...]
    return torch.stack(by_part, dim=1).flatten(0, 2)


def gather_objects(value: T) -> list[T]:
    """The value of each process, in their order; anything that can be pickled."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    with waiting():
        dist.all_gather_object(values, value)
    return values


def barrier() -> None:
    """Wait until all processes have come here."""
    sum_over_processes(torch.zeros(1))


@contextmanager
def main_process_first() -> Iterator[None]:
    """The block runs in the first process, then in the others: an error is reported once, and its files are there."""
    if not is_main_process():
        barrier()
    yield
    if is_main_process():
        barrier()


@contextmanager
def one_process_at_a_time() -> Iterator[None]:
    """The block runs in one process of a machine after the other, where it needs much of the machine's memory."""
    turn, turns = (int(os.environ.get(name, "0")) for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    several = world_size() > 1
    for _ in range(turn if several else 0):
        barrier()
    yield
    for _ in range(turns - turn if several else 0):
        barrier()
