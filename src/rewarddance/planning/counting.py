"""A computation done with shapes alone: how many operations it takes, and how much memory it holds at its worst.

Numbers with a fraction stand on torch's meta device, where a tensor has a shape and no content; whole numbers stay
real, because they say where things go. So a model of any size runs in seconds, by the very code that would train it.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

META = torch.device("meta")
_CONVOLUTIONS = {f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3)}
_HALF = {"linear", "matmul", "__matmul__", "mm", "bmm", "addmm", "baddbmm", "scaled_dot_product_attention"}
_HALF |= {"einsum", *_CONVOLUTIONS}
"""What autocast computes in half precision on a GPU."""
_SINGLE = {"layer_norm", "group_norm", "softmax", "log_softmax", "exp", "pow", "rsqrt", "norm", "cumsum", "sum", "prod"}
_SINGLE |= {"logsumexp", "softplus", "mse_loss", "cross_entropy", "nll_loss", "binary_cross_entropy_with_logits"}
"""What it computes in single precision."""
_DRAWN = 2**16
"""Random numbers beyond so many are not drawn: nobody looks at them."""
_aten = torch.ops.aten


class Counting:
    """What was counted. flops: by phase. peak: bytes held at the worst moment, without what was there before, and
    `at_peak` by the phase that made them. peaks: the worst moment within each phase. A backward pass that ends in
    weights is a phase of its own."""

    def __init__(self) -> None:
        self.phase = "other"
        self.flops: Counter[str] = Counter()
        self.peak = self.live = 0
        self.peaks: Counter[str] = Counter()
        self._of_phase: Counter[str] = Counter()
        self.at_peak: dict[str, int] = {}
        self._seen: dict[int, weakref.ref] = {}

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """What is computed within the block is of this phase; blocks within it keep theirs."""
        before = self.phase
        self.begin(phase)
        try:
            yield
        finally:
            self.phase = before

    def begin(self, phase: str) -> None:
        """What is computed from now on is of this phase."""
        self.phase = phase
        self.peaks[phase] = max(self.peaks[phase], self.live)

    def known(self, tensors: Any) -> None:
        """These were there before: they do not count."""
        for tensor in tensors:
            self._see(tensor, 0)

    def _see(self, tensor: Tensor, size: int | None = None) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen and self._seen[key]() is storage:
            return
        size, phase = storage.nbytes() if size is None else size, self.phase
        self._seen[key] = weakref.ref(storage, partial(self._gone, key, phase, size))
        self.live += size
        self._of_phase[phase] += size
        self.peaks[phase] = max(self.peaks[phase], self.live)
        if self.live > self.peak:
            self.peak, self.at_peak = self.live, dict(self._of_phase)

    def _gone(self, key: int, phase: str, size: int, _: Any) -> None:
        self.live -= size
        self._of_phase[phase] -= size
        self._seen.pop(key, None)


@contextmanager
def counting() -> Iterator[Counting]:
    """Within the block meta tensors mix with whole numbers on the CPU, and all that is done with them is counted."""
    found = Counting()
    with ExitStack() as stack:
        stack.enter_context(_Shapes(found))
        stack.enter_context(_AsOnAGpu(found).everywhere())
        yield found


class _Shapes(TorchDispatchMode):
    """Counts, and lets operations take meta tensors beside real ones."""

    def __init__(self, found: Counting) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunction():  # what torch does within an operation is its own affair
            if any(one.is_meta for one in _tensors([*args, *kwargs.values()])):
                if func in (_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default):
                    args = (args[0], [place for index in args[1] for place in _places(index)], *args[2:])
                if func is _aten._to_copy.default:
                    kwargs = {**kwargs, "device": META}  # what has no content cannot go elsewhere
                else:
                    args, kwargs = _changed(lambda one: one if one.is_meta else one.to(META), args, kwargs)
            out = func(*args, **kwargs)
            for one in _tensors([out]):
                if one.is_meta:
                    self.found._see(one)
            if count := flop_registry.get(func._overloadpacket):
                self.found.flops[self.found.phase] += count(*args, **kwargs, out_val=out)
            return out


def _tensors(values: list[Any]) -> list[Tensor]:
    """All within, in no order. (torch's own tree_flatten leaves cycles behind, and with them the tensors.)"""
    found, left = [], values
    while left:
        one = left.pop()
        if isinstance(one, Tensor):
            found.append(one)
        elif isinstance(one, tuple | list):
            left.extend(one)
    return found


def _changed(change: Callable[[Tensor], Tensor], args: Any, kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """An operation's arguments with each tensor changed, also those in lists."""
    rows = [
        [change(one) if isinstance(one, Tensor) else one for one in value] if isinstance(value, tuple | list) else value
        for value in (*args, *kwargs.values())
    ]
    rows = [change(one) if isinstance(one, Tensor) else one for one in rows]
    return tuple(rows[: len(args)]), dict(zip(kwargs, rows[len(args) :], strict=True))


def _places(index: Any) -> list[Any]:
    """A mask as the places where it holds: how many these are is the shape of what follows."""
    if isinstance(index, Tensor) and index.dtype == torch.bool and not index.is_meta:
        return list(index.nonzero(as_tuple=True))
    return [index]


class _AsOnAGpu(TorchFunctionMode):
    """Autocast and attention as they are on a GPU, and answers for those who ask a meta tensor for its numbers."""

    def __init__(self, found: Counting) -> None:
        super().__init__()
        self.found = found
        self.cast: dict[int, tuple[Tensor, Tensor]] = {}

    @contextmanager
    def everywhere(self) -> Iterator[None]:
        """Also in the backward pass, where torch leaves such modes out and layers are computed again; and autocast's
        copies of weights go where its outermost block ends."""
        run, clear = torch.autograd._engine_run_backward, torch.clear_autocast_cache

        def run_with(*args: Any, **kwargs: Any) -> Any:
            ends_in_weights = kwargs.get("accumulate_grad", False)
            with self, self.found.during("backward") if ends_in_weights else nullcontext():
                return run(*args, **kwargs)

        def forget() -> None:
            self.cast.clear()
            clear()

        torch.autograd._engine_run_backward, torch.clear_autocast_cache = run_with, forget  # type: ignore[assignment]
        try:
            with self:
                yield
        finally:
            torch.autograd._engine_run_backward, torch.clear_autocast_cache = run, clear  # type: ignore[assignment]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        if name in _ANSWERS and args and isinstance(args[0], Tensor) and args[0].is_meta:
            return _ANSWERS[name](args[0])
        if name in ("randn", "rand") and not kwargs.get("device"):
            out = func(*args, **{**kwargs, "device": META, "generator": None})
            return out if out.numel() > _DRAWN else func(*args, **kwargs)
        if name == "to" and not args[0].is_floating_point() and not args[0].is_meta:
            args = tuple(one for one in args if not _is_meta(one))
            kwargs = {key: one for key, one in kwargs.items() if not _is_meta(one)}
            return func(*args, **kwargs) if len(args) > 1 or kwargs else args[0]
        if _is_meta(kwargs.get("device")):
            out = func(*args, **kwargs)
            whole = isinstance(out, Tensor) and not (out.is_floating_point() or out.is_complex())
            return func(*args, **{**kwargs, "device": "cpu"}) if whole else out
        half = _autocast()
        if half is not None and name in _HALF:
            args, kwargs = _changed(lambda one: self._as(one, half), args, kwargs)
        elif half is not None and name in _SINGLE:
            args, kwargs = _changed(lambda one: self._as(one, torch.float32), args, kwargs)
        if name == "scaled_dot_product_attention" and any(one.is_meta for one in _tensors([*args, *kwargs.values()])):
            return _attention(*args, **kwargs)
        return func(*args, **kwargs)

    def _as(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        if not value.is_floating_point() or value.dtype == dtype:
            return value
        if not (value.requires_grad and value.is_leaf and value.dtype == torch.float32):
            return value.to(dtype)
        if id(value) not in self.cast:  # as autocast does: a trained weight is cast once
            self.cast[id(value)] = (value, value.to(dtype))
        return self.cast[id(value)][1]


_ANSWERS: dict[str, Callable[[Tensor], Any]] = {
    "isfinite": lambda value: torch.ones(1, dtype=torch.bool).expand(value.shape),
    "item": lambda value: 0.0,
    "__float__": lambda value: 0.0,
    "tolist": lambda value: torch.zeros(value.shape).tolist(),
    "cpu": lambda value: value,
}
"""Nobody can say what number a shape holds; those who only want to log it, or to see that it is finite, are content."""


def _is_meta(value: Any) -> bool:
    return value == "meta" or (isinstance(value, torch.device) and value.type == "meta")


def _autocast() -> torch.dtype | None:
    """The precision of the autocast block that we are in, if any."""
    for kind in ("cuda", "cpu"):
        if torch.is_autocast_enabled(kind):
            return torch.get_autocast_dtype(kind)
    return None


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """By the kernels that keep no matrix of all pairs, which torch takes on a GPU."""
    if enable_gqa and key.shape[-3] != query.shape[-3]:
        shared = query.shape[-3] // key.shape[-3]
        key, value = (one.repeat_interleave(shared, -3) for one in (key, value))
    if attn_mask is None:
        return _aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[0]
    bias = attn_mask.to(META, query.dtype).expand(*query.shape[:-1], key.shape[-2])
    return _aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, True, dropout_p, is_causal, scale=scale
    )[0]
