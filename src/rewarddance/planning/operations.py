"""One operation on shapes: its outputs, its operations in matrix products, and the bytes that it reads and writes."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

META = torch.device("meta")
_aten = torch.ops.aten


def operation(func: Any, args: Any, kwargs: Any, of_shapes: bool) -> tuple[Any, int, int]:
    """An operation's result, how many operations it takes, and the bytes that it reads and writes.

    of_shapes: its tensors are on the meta device, so what is known of the same shapes is not derived again.
    """
    return (_on_meta if of_shapes and _is_functional(func) else _run)(func, args, kwargs)


class _New(NamedTuple):
    """The memory layout of a new tensor that an operation returns."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def empty(self) -> Tensor:
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=META)


_OUTCOMES: dict[Any, tuple[tuple[Any, ...], type, int, int]] = {}
"""By operation and shapes of its arguments: its outputs, their type (one tensor or a tuple), operations and traffic.

torch derives most of these shapes in Python, up to milliseconds each, and all layers of a model need the same ones."""
_MOST_OUTCOMES = 2**16


def _run(func: Any, args: Any, kwargs: Any) -> tuple[Any, int, int]:
    """An operation's result, how many operations it takes, and the bytes that it reads and writes."""
    out, count = func(*args, **kwargs), flop_registry.get(func._overloadpacket)
    traffic = _traffic(func, tensors_in([*args, *kwargs.values()]), tensors_in([out]))
    return out, count(*args, **kwargs, out_val=out) if count else 0, traffic


def _traffic(func: Any, inputs: list[Tensor], outputs: list[Tensor]) -> int:
    """Bytes of meta tensors that an operation reads and writes. A view reads none, and a lookup what it takes."""
    if not inputs or _is_view(func):
        return 0
    writes = sum(_nbytes(tensor) for tensor in outputs if tensor.is_meta)
    return 2 * writes if func in _LOOKUPS else writes + sum(_nbytes(tensor) for tensor in inputs if tensor.is_meta)


def _nbytes(tensor: Tensor) -> int:
    """What a kernel reads of a tensor: each entry, but one that is repeated along an expanded dimension once."""
    return min(tensor.nbytes, tensor.untyped_storage().nbytes())


_LOOKUPS = {_aten.embedding.default, _aten.index.Tensor, _aten.index_select.default, _aten.gather.default}


@cache
def _is_view(func: Any) -> bool:
    """Does it return a view of an argument?"""
    returned = [entry.alias_info for entry in func._schema.returns]
    return func is _aten._unsafe_view.default or any(alias is not None and not alias.is_write for alias in returned)


def _on_meta(func: Any, args: Any, kwargs: Any) -> tuple[Any, int, int]:
    """As `_run` on meta tensors, with a cache."""
    key = func, _describe(args), _describe(list(kwargs.items()))
    if key in _OUTCOMES:
        outputs, kind, flops, traffic = _OUTCOMES[key]
        out = tuple(entry.empty() if type(entry) is _New else entry for entry in outputs)
        return out if kind is tuple else out[0], flops, traffic
    out, flops, traffic = _run(func, args, kwargs)
    entries = out if isinstance(out, tuple) else (out,)
    outputs = tuple(_New(e.shape, e.stride(), e.dtype) if isinstance(e, Tensor) else e for e in entries)
    if _is_new(entries, outputs, tensors_in([*args, *kwargs.values()])) and len(_OUTCOMES) < _MOST_OUTCOMES:
        _OUTCOMES[key] = outputs, type(out), flops, traffic
    return out, flops, traffic


@cache
def _is_functional(func: Any) -> bool:
    """By its schema it neither writes into its arguments nor returns views of them."""
    schema = func._schema
    return all(entry.alias_info is None for entry in (*schema.arguments, *schema.returns))


def _is_new(entries: tuple[Any, ...], outputs: tuple[Any, ...], inputs: list[Tensor]) -> bool:
    """Has each tensor a storage of its own, no larger than its shape needs? (Schemas are not always right:
    `_unsafe_view` returns a view.)"""
    taken = {tensor.untyped_storage()._cdata for tensor in inputs}
    for entry, new in zip(entries, outputs, strict=True):
        if isinstance(entry, Tensor):
            storage = entry.untyped_storage()
            if storage._cdata in taken or storage.nbytes() != new.empty().untyped_storage().nbytes():
                return False
            taken.add(storage._cdata)
        elif not (entry is None or isinstance(entry, int | float)):
            return False
    return True


def _describe(value: Any) -> Any:
    """All that the shapes and dtypes of a result depend on: of a number its type, too."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype
    return tuple(map(_describe, value)) if isinstance(value, tuple | list) else (type(value), value)


def tensors_in(values: list[Any]) -> list[Tensor]:
    """All tensors within, in no order. (torch's tree_flatten leaves reference cycles, which keep tensors alive.)"""
    tensors, stack = [], values
    while stack:
        value = stack.pop()
        if isinstance(value, Tensor):
            tensors.append(value)
        elif isinstance(value, tuple | list):
            stack.extend(value)
    return tensors
