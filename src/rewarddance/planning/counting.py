"""Count what a computation takes from its shapes alone: operations, and bytes of memory at the worst moment.

Floating-point tensors are on torch's meta device, where a tensor has a shape and no values. Integers and booleans stay
real, because they are indices and masks. So a model of any size runs in seconds, through the code that would train it.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from rewarddance.planning.hardware import NOTHING, Work
from rewarddance.planning.operations import META, operation, tensors_in

_AUTOCAST_TO_HALF = {"linear", "matmul", "__matmul__", "mm", "bmm", "addmm", "baddbmm", "einsum"}
_AUTOCAST_TO_HALF |= {f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3)}
_AUTOCAST_TO_HALF |= {"scaled_dot_product_attention"}
_AUTOCAST_TO_FLOAT32 = {"layer_norm", "group_norm", "softmax", "log_softmax", "exp", "pow", "rsqrt", "norm", "cumsum"}
_AUTOCAST_TO_FLOAT32 |= {"sum", "prod", "logsumexp", "softplus", "mse_loss", "cross_entropy", "nll_loss"}
_AUTOCAST_TO_FLOAT32 |= {"binary_cross_entropy_with_logits"}
_MOST_REAL_DRAWS = 2**16
"""More random numbers than this are not drawn, since nothing depends on their values."""
_VALUES: dict[str, Callable[[Tensor], Any]] = {
    "isfinite": lambda tensor: torch.ones(1, dtype=torch.bool).expand(tensor.shape),
    "item": lambda tensor: 0.0,
    "__float__": lambda tensor: 0.0,
    "tolist": lambda tensor: torch.zeros(tensor.shape).tolist(),
    "cpu": lambda tensor: tensor,
}
"""What stands in for the values of a meta tensor, for code that logs them or checks that they are finite."""
_aten = torch.ops.aten


class _Cost(NamedTuple):
    """What a computation took: its operations, the bytes read and written, and how far it raised the bytes held."""

    flops: int
    traffic: int
    rise: int


class _Repeat(NamedTuple):
    """A computation without graph that was run: what it took, and its result, whose meta tensors hold no memory."""

    cost: _Cost
    result: Any


class _GraphCost(NamedTuple):
    """A computation with a graph that was run: what it took forward, its result, the bytes that its graph keeps, and
    what each walk back took: to weights and inputs (True), or to inputs alone (False), as far as it was taken."""

    forward: _Cost
    shape: torch.Size
    dtype: torch.dtype
    kept: int
    walks: dict[bool, _Cost]


class Counting:
    """What was counted. A backward pass that ends in weights is a phase of its own, "backward".

    flops: operations by phase.
    traffic: bytes that all operations read and write, each by itself, by phase.
    live: bytes held now, without those of excluded tensors.
    peak: the most bytes held at once.
    at_peak: what they consisted of, by the phase that made them.
    peaks: the most bytes held at once during each phase.
    keeps_graph: whether the backward pass under way leaves its graph for another.
    """

    def __init__(self) -> None:
        self.phase, self.keeps_graph = "other", False
        self.flops: Counter[str] = Counter()
        self.traffic: Counter[str] = Counter()
        self.peak = self.live = 0
        self.peaks: Counter[str] = Counter()
        self.at_peak: dict[str, int] = {}
        self._live_by_phase: Counter[str] = Counter()
        self._storages: dict[int, weakref.ref] = {}
        self._repeats: dict[Any, _Repeat] = {}
        self._graph_costs: dict[Any, _GraphCost] = {}

    def repeated(self, key: Any, compute: Callable[[], Any]) -> Any:
        """What `compute` returns, tensors without graph in any structure; run once for each key, and from then on only
        counted.

        key: all that its shapes depend on. It leaves nothing in memory but its result.
        """
        if key not in self._repeats:
            result, cost = self._measured(compute)
            self._repeats[key] = _Repeat(cost, _mapped(_shape_alone, result))
            return result
        repeat = self._repeats[key]
        self._charge(repeat.cost)
        return _mapped(_with_memory, repeat.result)

    def repeated_with_graph(
        self, key: Any, compute: Callable[[list[Tensor]], Tensor], inputs: Sequence[Tensor]
    ) -> Tensor:
        """What `compute` returns for the inputs, with a graph back to them and to weights; run forward and backward
        once for each key, and from then on only counted.

        key: all that its shapes depend on, and how its graph is gone back through. It leaves nothing in memory but its
        result and its graph.
        """
        return _RepeatedGraph.apply(self, key, compute, torch.empty(0, device=META, requires_grad=True), *inputs)

    def _measured(self, compute: Callable[[], Any]) -> tuple[Any, _Cost]:
        """A computation's result, and what it took."""
        before, peak, live = self.work(self.phase), self.peaks[self.phase], self.live
        self.peaks[self.phase] = live
        result = compute()
        flops, traffic = self.flops[self.phase] - before.flops, self.traffic[self.phase] - before.traffic
        cost = _Cost(int(flops), int(traffic), self.peaks[self.phase] - live)
        self.peaks[self.phase] = max(self.peaks[self.phase], peak)
        return result, cost

    def _charge(self, cost: _Cost) -> None:
        """Count what a computation would take that is not run."""
        self.flops[self.phase] += cost.flops
        self.traffic[self.phase] += cost.traffic
        top = self.live + cost.rise
        self.peaks[self.phase] = max(self.peaks[self.phase], top)
        if top > self.peak:
            self.peak, held = top, self._live_by_phase
            self.at_peak = {**held, self.phase: held[self.phase] + cost.rise}

    def work(self, phase: str) -> Work:
        """What a phase has taken so far."""
        return Work(self.flops[phase], self.traffic[phase])

    def multiply(self, phase: str, factor: float, since: Work = NOTHING) -> None:
        """Count what a phase has taken since then `factor` times."""
        self.flops[phase] = round(since.flops + factor * (self.flops[phase] - since.flops))
        self.traffic[phase] = round(since.traffic + factor * (self.traffic[phase] - since.traffic))

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """The phase of the block."""
        outer_phase = self.phase
        self.begin(phase)
        try:
            yield
        finally:
            self.phase = outer_phase

    def begin(self, phase: str) -> None:
        """The phase from now on."""
        self.phase = phase
        self.peaks[phase] = max(self.peaks[phase], self.live)

    def exclude(self, tensors: Iterable[Tensor]) -> None:
        """Do not count the memory of these tensors."""
        for tensor in tensors:
            self._track(tensor, 0)

    def move(self, tensor: Tensor, made_in: str, phase: str) -> None:
        """From now on count a tensor as of another phase than it was made in; it stays to the end."""
        size = tensor.untyped_storage().nbytes()
        self._live_by_phase[made_in] -= size
        self._live_by_phase[phase] += size

    def _track(self, tensor: Tensor, size: int | None = None) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._storages and self._storages[key]() is storage:
            return
        size, phase = storage.nbytes() if size is None else size, self.phase
        self._storages[key] = weakref.ref(storage, partial(self._free, key, phase, size))
        self.live += size
        self._live_by_phase[phase] += size
        self.peaks[phase] = max(self.peaks[phase], self.live)
        if self.live > self.peak:
            self.peak, self.at_peak = self.live, dict(self._live_by_phase)

    def _free(self, key: int, phase: str, size: int, _: Any) -> None:
        self.live -= size
        self._live_by_phase[phase] -= size
        self._storages.pop(key, None)


@contextmanager
def counting() -> Iterator[Counting]:
    """Within the block meta tensors mix with integers on the CPU, and all that is computed with them is counted."""
    counts, casts = Counting(), _Casts()
    with _CountShapes(counts, casts), _LikeOnAGpu(counts, casts):
        yield counts


class _RepeatedGraph(torch.autograd.Function):
    """`Counting.repeated_with_graph`. Its graph is one node in that of its caller."""

    @staticmethod
    def forward(ctx: Any, counts: Counting, key: Any, compute: Any, needs_graph: Tensor, *inputs: Tensor) -> Tensor:
        ctx.counts, ctx.key, ctx.inputs = counts, key, inputs
        ctx.weights = get_gradient_edge(needs_graph).node
        known = counts._graph_costs.get(key)
        if known is not None and known.walks:
            counts._charge(known.forward)
            ctx.result, ctx.kept = None, torch.empty(known.kept, dtype=torch.float8_e5m2, device=META)  # a byte each
            return torch.empty(known.shape, dtype=known.dtype, device=META)
        ctx.inputs = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in inputs]
        live = counts.live
        with torch.enable_grad():
            ctx.result, cost = counts._measured(lambda: compute(ctx.inputs))
        kept = counts.live - live - ctx.result.untyped_storage().nbytes()
        counts._graph_costs[key] = _GraphCost(cost, ctx.result.shape, ctx.result.dtype, kept, {})
        return ctx.result.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        counts, keeps, known = ctx.counts, ctx.counts.keeps_graph, ctx.counts._graph_costs[ctx.key]
        to_weights = torch._C._will_engine_execute_node(ctx.weights)
        if ctx.result is None:
            counts._charge(known.walks[to_weights])
            gradients = [torch.empty_like(tensor) if tensor.requires_grad else None for tensor in ctx.inputs]
        else:
            result, leaves = ctx.result, [tensor for tensor in ctx.inputs if tensor.requires_grad]
            ctx.result = result if keeps else None
            if to_weights:
                walk = partial(torch.autograd.backward, result, gradient, retain_graph=keeps)
            else:
                walk = partial(torch.autograd.grad, result, leaves, gradient, retain_graph=keeps)
            found, known.walks[to_weights] = counts._measured(walk)
            to_leaves = iter([tensor.grad for tensor in leaves] if to_weights else found)
            gradients = [next(to_leaves) if tensor.requires_grad else None for tensor in ctx.inputs]
        if not keeps:
            ctx.inputs = ctx.kept = None
        return None, None, None, None, *gradients


class _Casts(dict[int, tuple[Tensor, Tensor]]):
    """Autocast's cache: trained weights by id, with their copies in half precision."""

    def cast(self, value: Any, dtype: torch.dtype) -> Any:
        if not (isinstance(value, Tensor) and value.is_floating_point()) or value.dtype == dtype:
            return value
        if not (value.requires_grad and value.is_leaf and value.dtype == torch.float32):
            return value.to(dtype)
        if id(value) not in self:
            self[id(value)] = (value, value.to(dtype))
        return self[id(value)][1]


class _CountShapes(TorchDispatchMode):
    """Counts each operation, and lets it take meta tensors beside real ones."""

    def __init__(self, counts: Counting, casts: _Casts) -> None:
        super().__init__()
        self.counts, self.casts = counts, casts

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here, and torch's guard around every operation would be a third of a plan's time."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.casts and not _autocast_nesting():  # autocast drops its copies where its outermost block ends
            self.casts.clear()
        with torch._C.DisableTorchFunction():  # not for what torch does within an operation
            are_meta = [tensor.is_meta for tensor in tensors_in([*args, *kwargs.values()])]
            if any_meta := any(are_meta):
                if func in (_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default):
                    args = (args[0], [index for mask in args[1] for index in _indices(mask)], *args[2:])
                if func is _aten._to_copy.default:
                    kwargs = {**kwargs, "device": META}  # without values it can go nowhere else
                elif not all(are_meta):
                    args, kwargs = _map_tensors(lambda tensor: tensor.to(META), args, kwargs)
            out, flops, traffic = operation(func, args, kwargs, of_shapes=any_meta)
            for tensor in tensors_in([out]):
                if tensor.is_meta:
                    self.counts._track(tensor)
            if flops:
                self.counts.flops[self.counts.phase] += flops
            self.counts.traffic[self.counts.phase] += traffic
            return out


class _LikeOnAGpu(TorchFunctionMode):
    """Autocast and attention as they are on a GPU, and stand-ins for the values of meta tensors."""

    def __init__(self, counts: Counting, casts: _Casts) -> None:
        super().__init__()
        self.counts, self.casts, self.in_backward = counts, casts, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        if func in _BACKWARD:
            return self._backward(func, *args, **kwargs)
        if name in _VALUES and args and isinstance(args[0], Tensor) and args[0].is_meta:
            return _VALUES[name](args[0])
        if name in ("randn", "rand") and not kwargs.get("device"):
            out = func(*args, **{**kwargs, "device": META, "generator": None})
            return out if out.numel() > _MOST_REAL_DRAWS else func(*args, **kwargs)
        if name == "to" and not args[0].is_floating_point() and not args[0].is_meta:
            args = tuple(value for value in args if not _is_meta(value))
            kwargs = {key: value for key, value in kwargs.items() if not _is_meta(value)}
            return func(*args, **kwargs) if len(args) > 1 or kwargs else args[0]
        if _is_meta(kwargs.get("device")):
            out = func(*args, **kwargs)
            is_integer = isinstance(out, Tensor) and not (out.is_floating_point() or out.is_complex())
            return func(*args, **{**kwargs, "device": "cpu"}) if is_integer else out
        half = _autocast_dtype() if name in _AUTOCAST_TO_HALF or name in _AUTOCAST_TO_FLOAT32 else None
        if half is not None:
            dtype = half if name in _AUTOCAST_TO_HALF else torch.float32
            args, kwargs = _map_tensors(partial(self.casts.cast, dtype=dtype), args, kwargs)
        if name == "scaled_dot_product_attention" and any(t.is_meta for t in tensors_in([*args, *kwargs.values()])):
            return _attention(*args, **kwargs)
        return func(*args, **kwargs)

    def _backward(self, func: Any, tensors: Any, *args: Any, **kwargs: Any) -> Any:
        """A backward pass with this mode on, because checkpointed layers are computed again in it.

        torch switches a mode off for the functions that it sees. It does not see a backward pass from edges of the
        graph, which are no tensors.
        """
        nested, self.in_backward = self.in_backward, True
        outer, self.counts.keeps_graph = self.counts.keeps_graph, bool(kwargs.get("retain_graph"))
        try:
            if func is torch.autograd.grad:
                with self:
                    return func(_edges(tensors), _edges(args[0]), *args[1:], **kwargs)
            if func is Tensor.backward:
                kwargs["grad_tensors"] = kwargs.pop("gradient", None)
            with self, nullcontext() if nested else self.counts.during("backward"):
                return torch.autograd.backward(_edges(tensors), *args, **kwargs)
        finally:
            self.in_backward, self.counts.keeps_graph = nested, outer


_BACKWARD = (Tensor.backward, torch.autograd.backward, torch.autograd.grad)


def _edges(tensors: Any) -> Any:
    return [get_gradient_edge(tensor) for tensor in ([tensors] if isinstance(tensors, Tensor) else tensors)]


def _map_tensors(change: Callable[[Tensor], Tensor], args: Any, kwargs: Any) -> tuple[list[Any], dict[str, Any]]:
    """An operation's arguments with each tensor changed, also those in lists."""

    def mapped(value: Any) -> Any:
        if isinstance(value, Tensor):
            return change(value)
        return [mapped(entry) for entry in value] if isinstance(value, tuple | list) else value

    return mapped(args), {name: mapped(value) for name, value in kwargs.items()}


def _indices(mask: Any) -> list[Any]:
    """A real mask as the indices where it holds: their number is the shape of the result."""
    if isinstance(mask, Tensor) and mask.dtype == torch.bool and not mask.is_meta:
        return list(mask.nonzero(as_tuple=True))
    return [mask]


@dataclass(frozen=True)
class _Shape:
    """What is kept of a meta tensor."""

    shape: torch.Size
    dtype: torch.dtype


def _mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """A structure with each entry changed. (torch's tree_map leaves reference cycles, which keep tensors alive.)"""
    if isinstance(value, dict):
        return {key: _mapped(change, entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        entries = [_mapped(change, entry) for entry in value]
        return type(value)(*entries) if hasattr(value, "_fields") else type(value)(entries)
    return change(value)


def _shape_alone(value: Any) -> Any:
    return _Shape(value.shape, value.dtype) if isinstance(value, Tensor) and value.is_meta else value


def _with_memory(value: Any) -> Any:
    return torch.empty(value.shape, dtype=value.dtype, device=META) if isinstance(value, _Shape) else value


def _is_meta(value: Any) -> bool:
    return value == "meta" or (isinstance(value, torch.device) and value.type == "meta")


def _autocast_dtype() -> torch.dtype | None:
    """The precision of the autocast block around the caller, if any."""
    for kind in ("cuda", "cpu"):
        if torch.is_autocast_enabled(kind):
            return torch.get_autocast_dtype(kind)
    return None


def _autocast_nesting() -> int:
    """How many autocast blocks are around the caller."""
    torch.autocast_increment_nesting()
    return torch.autocast_decrement_nesting()


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention by the kernels that torch takes on a GPU, which keep no matrix of all pairs."""
    if enable_gqa and key.shape[-3] != query.shape[-3]:
        shared = query.shape[-3] // key.shape[-3]
        key, value = (heads.repeat_interleave(shared, -3) for heads in (key, value))
    if attn_mask is None:
        return _aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[0]
    bias = attn_mask.to(META, query.dtype).expand(*query.shape[:-1], key.shape[-2])
    return _aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, True, dropout_p, is_causal, scale=scale
    )[0]
