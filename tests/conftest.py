"""No network, one thread, one seed, and every shape in a signature checked while the tests run."""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from typing import Any, get_args, get_type_hints

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import jaxtyping
import pytest
import torch
from jaxtyping import AbstractArray, jaxtyped
from tqdm import tqdm


def _has_shape(hint: Any) -> bool:
    return (inspect.isclass(hint) and issubclass(hint, AbstractArray)) or any(map(_has_shape, get_args(hint)))


def _takes_shapes(entry: Any) -> bool:
    function = entry.__init__ if inspect.isclass(entry) else entry
    place = function.__module__, function.__qualname__, function.__code__.co_firstlineno
    if place not in _TAKES_SHAPES:
        _TAKES_SHAPES[place] = _finds_shapes(function)
    return _TAKES_SHAPES[place]


_TAKES_SHAPES: dict[tuple[str, str, int], bool] = {}
"""Remembered: a function within another one is made, and decorated, at every call of that."""


def _finds_shapes(function: Any) -> bool:
    for annotation in function.__annotations__.values():
        holder = type("Holder", (), {"__annotations__": {"hint": annotation}})
        try:
            hint = get_type_hints(holder, function.__globals__)["hint"]
        except NameError:  # a class that is defined further down; jaxtyped leaves it unchecked, too
            continue
        if _has_shape(hint):
            return True
    return False


def jaxtyped_where_shapes_are(*, typechecker: Any) -> Callable[[Any], Any]:
    """Functions and records without a shape are left as they are: jaxtyped takes up to a millisecond a call, and the
    type checker has read them."""

    def decorated(entry: Any) -> Any:
        plain = (inspect.isfunction(entry) or is_dataclass(entry)) and not _takes_shapes(entry)
        return entry if plain else jaxtyped(entry, typechecker=typechecker)

    return decorated


# Before anything imports rewarddance: the hook rewrites modules as they load.
jaxtyping.jaxtyped = jaxtyped_where_shapes_are
jaxtyping.install_import_hook("rewarddance", "beartype.beartype")
torch.set_num_threads(1)
# tqdm's own lock is one semaphore for a process and all that it forks: a child that is killed while
# it holds it would stop them all.
tqdm.set_lock(threading.RLock())


_DRAWN: dict[tuple[Any, ...], Any] = {}


@pytest.fixture(scope="module", autouse=True)
def charts_of_the_same_panels_are_drawn_once(request: pytest.FixtureRequest) -> Iterator[None]:
    """But where charts are what is tested: matplotlib took a third of the time of whatever runs a whole job."""
    from rewarddance.report import charts

    draw_svg = charts.draw_svg

    def drawn_once(draw: Any, heights: Any, name: str, alt: str, layout: Any = "constrained") -> Any:
        key = (name, alt, *heights.items())
        if key not in _DRAWN:
            _DRAWN[key] = draw_svg(draw, heights, name, alt, layout)
        return _DRAWN[key]

    with pytest.MonkeyPatch.context() as patch:
        if request.path.parent.name not in ("report", "docs"):
            patch.setattr(charts, "draw_svg", drawn_once)
        yield


@pytest.fixture(autouse=True)
def one_seed() -> None:
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest test first, so that no process waits for it in the end."""
    items.sort(key=lambda item: "test_on_the_pretend_device" not in item.nodeid)
