"""Several processes on one run: which one this is, what all do alike, and how they wait for one another.

torchrun and accelerate launch start them and say so in the environment (RANK, WORLD_SIZE); without it there is one
process, and everything here does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from jaxtyping import Num
from torch import Tensor
from torch import distributed as dist

from rewarddance.errors import InputError, RewardDanceError

LONGEST_WAIT = timedelta(hours=1)
"""For the slowest of all: while the first process writes a large checkpoint, the others wait."""


@contextmanager
def joined() -> Iterator[None]:
    """Within the block this process belongs to those that were started together, if there are several.

    Raises InputError where the launcher was told to shard the model itself.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        yield
        return
    for variable, name in (("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")):
        if os.environ.get(variable, "false").lower() in ("true", "1"):
            raise InputError(
                f"accelerate launch was told to use {name}, but the recipe says how a model is split.",
                "Launch without it (torchrun, or accelerate launch --multi_gpu) and set judge.sharded=true.",
            )
    if device().type == "cuda":
        torch.cuda.set_device(device())
    backend = "cuda:nccl,cpu:gloo" if device().type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=LONGEST_WAIT)
    yield
    dist.destroy_process_group()  # not after an error: it would wait for processes that wait for this one


def device() -> torch.device:
    """Where this process computes: its own GPU, or the CPU where there is none or accelerate was told so."""
    if not torch.cuda.is_available() or os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("true", "1"):
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Is this the process that writes files and speaks to the user?"""
    return rank() == 0


def summed(values: Num[Tensor, "..."]) -> Num[Tensor, "..."]:
    """Elementwise sum over all processes, on the CPU."""
    total = values.detach().cpu().clone()
    if count() > 1:
        try:
            dist.all_reduce(total)
        except RuntimeError as error:
            raise RewardDanceError("another process of this run has stopped.", "What it said tells why.") from error
    return total


def wait() -> None:
    """Until all processes have come here."""
    summed(torch.zeros(1))


@contextmanager
def first_ahead() -> Iterator[None]:
    """The block by the first process, then by the others: what is wrong is said once, what it makes is there."""
    if not is_first():
        wait()
    yield
    if is_first():
        wait()


@contextmanager
def in_turn() -> Iterator[None]:
    """The block by one process of a machine after the other, where each needs much of its memory for a while."""
    turn, turns = (int(os.environ.get(name, "0")) for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    several = count() > 1
    for _ in range(turn if several else 0):
        wait()
    yield
    for _ in range(turns - turn if several else 0):
        wait()
