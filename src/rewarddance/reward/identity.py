"""What a run writes down of the rewards that it asks, so that it goes on with no other."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from types import CodeType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rewarddance.reward.function_reward import FunctionReward, code_digest, is_factory
from rewarddance.reward.instructions import template_file
from rewarddance.reward.judge import Judge
from rewarddance.reward.remote.addresses import is_address, load_remote
from rewarddance.reward.remote.served import ServedReward
from rewarddance.runtime.checkpoint import checkpoint_digest
from rewarddance.runtime.files import is_there

_VALUES = 1 << 16
"""Of a larger tensor so many values are read, evenly spaced."""


def reward_digest(name: str, part: object = None, **options: Any) -> str:
    """Of a reward, by name or as the object `part` in its place.

    Of a checkpoint its files' sizes and times, and the words of an instruction or tree of criteria that somebody wrote
    for it; of a factory the file that it stands in, of a judge behind `rewarddance serve` the mark that its server has
    made of its weights and options. Behind another server it is known by its address alone. Of an object see
    `object_digest`. options: of `load_reward`. Raises InputError where there is no such checkpoint or server.
    """
    if isinstance(part, Judge):
        config = part.config.model_dump()
        asked = part.config.model_dump_json() + checkpoint_digest(part.name_or_path or "") + words_digest(config)
        return hashlib.blake2b(asked.encode(), digest_size=16).hexdigest()
    if isinstance(part, FunctionReward):
        return object_digest((part.function, part.images, part.videos))
    if part is not None and not isinstance(part, ServedReward):
        return object_digest(part)
    if is_address(name):
        served = part or (load_remote(name, **options) if name.startswith("http") else None)
        return served.info.mark if isinstance(served, ServedReward) else ""
    return code_digest(name) if is_factory(name) else checkpoint_digest(name) + words_digest(options)


def words_digest(options: Mapping[str, Any]) -> str:
    """Of the instruction and the tree of criteria among the options of a judge, as far as they are files; else ""."""
    named = [options.get(key) for key in ("instruction", "criteria")]
    files = [template_file(name) for name in named if isinstance(name, str)]
    words = b"".join(file.read_bytes() for file in files if is_there(file) and file.is_file())
    return hashlib.blake2b(words, digest_size=16).hexdigest() if words else ""


def object_digest(value: object) -> str:
    """Of a reward that is an object: its code, and what it holds.

    Of a function the compiled code, its defaults and the values that it has closed over; of an instance its class and
    its attributes, but for those whose names begin with an underscore; of weights some values of each tensor. What code
    calls in other places and reads from global names is not looked at.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in _parts(value, set()):
        digest.update(part)
    return digest.hexdigest()


def _parts(value: Any, within: set[int]) -> Iterator[bytes]:
    """The bytes that a value is known by. within: ids of what it stands in, which are not gone into again."""
    yield type(value).__qualname__.encode()
    if isinstance(value, Tensor | np.ndarray):
        yield from _numbers(value)
    elif value is None or isinstance(value, bool | int | float | complex | str | bytes | PurePath | torch.dtype):
        yield repr(value).encode()
    elif id(value) not in within:
        within = within | {id(value)}
        if isinstance(value, set | frozenset):  # in no order
            yield from sorted(b"".join(_parts(item, within)) for item in value)
        else:
            for part in _held(value):
                yield from _parts(part, within)


def _held(value: Any) -> list[Any]:
    """What a value is made of."""
    if isinstance(value, Mapping):
        return [*value.items()]
    if isinstance(value, list | tuple):
        return [*value]
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if inspect.ismethod(value):
        return [value.__func__, value.__self__]
    if isinstance(value, CodeType):
        return [value.co_code, value.co_consts, value.co_names]
    if inspect.isfunction(value):
        closed_over = [inspect.getclosurevars(value).nonlocals]
        return [value.__code__, value.__defaults__, value.__kwdefaults__, closed_over]
    if inspect.isclass(value):
        if value.__module__.partition(".")[0] in ("builtins", "torch", "numpy"):
            return [value.__module__]
        own = {name: own for name, own in vars(value).items() if inspect.isfunction(own) or _is_plain(own)}
        return [value.__module__, own, value.__bases__]
    if inspect.isroutine(value) or inspect.ismodule(value):
        return [getattr(value, "__module__", None), getattr(value, "__qualname__", value.__name__)]
    if isinstance(value, nn.Module):
        return [type(value), value.state_dict()]
    attributes = vars(value) if hasattr(value, "__dict__") else {}
    return [type(value), {name: own for name, own in attributes.items() if name[0] != "_"}]


def _is_plain(value: object) -> bool:
    return isinstance(value, bool | int | float | str | bytes | Path)


def _numbers(values: Tensor | np.ndarray) -> Iterator[bytes]:
    yield f"{list(values.shape)} {values.dtype}".encode()
    if isinstance(values, np.ndarray):
        flat = values.reshape(-1)
        yield flat[:: max(1, flat.size // _VALUES)].tobytes() if not values.dtype.hasobject else b""
    elif values.layout == torch.strided and not values.is_meta:
        flat = values.detach().flatten()
        yield flat[:: max(1, flat.numel() // _VALUES)].float().cpu().numpy().tobytes()
