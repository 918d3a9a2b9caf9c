"""Work on many machines, by Ray Data: items in, one answer each, in the items' order, whatever becomes of a worker.

Ray Data hands out the items, starts a worker that died anew, and gives what it had not finished to be done again; only
whole answers come out. Nothing here keeps a queue. Ray is the extra `ray`.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rewarddance.errors import InputError, RewardDanceError, first_line

LOCAL = "local"
"""The address of a Ray that is started on this machine, for this run alone."""
_BLOCKS = 4096
"""Parts that Ray hands out one by one; of more items several go together, and are done again together."""


class Fleet(NamedTuple):
    """Workers on the machines of a Ray cluster.

    workers: how many. device: where each computes, "cpu", or "cuda" with a GPU of its own.
    """

    workers: int
    device: str

    @classmethod
    def join(cls, address: str, workers: int, device: str | None) -> Fleet:
        """Connect with the cluster at `address`, or start one here ("local"). device: None is cuda where it has GPUs.

        Raises InputError where Ray is not installed, does not answer, or has fewer GPUs than workers.
        """
        try:
            import ray  # type: ignore[import-not-found]
            import ray.data  # type: ignore[import-not-found]  # noqa: F401  it has needs of its own
        except ImportError as error:
            raise InputError(f"Ray is not there ({error}).", "pip install 'rewarddance[ray]'.") from error
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if not ray.is_initialized():
            # One more CPU than there are workers, or nothing could be read while all of them work.
            here = {"num_cpus": max(workers + 1, os.cpu_count() or 1), "include_dashboard": False}
            try:
                ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **here if address == LOCAL else {})
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise InputError(
                    f"there is no Ray at {address!r}: {first_line(error)}.", "Say local, auto, or a cluster's address."
                ) from error
        gpus = int(ray.cluster_resources().get("GPU", 0))
        device = device or ("cuda" if gpus else "cpu")
        if device not in ("cpu", "cuda"):
            raise InputError(
                f"{device} is no device of a fleet.", "Say cpu or cuda; Ray gives each worker its own GPU."
            )
        if device == "cuda" and gpus < workers:
            raise InputError(
                f"{workers} workers want a GPU each, and the cluster has {gpus}.", "Ask for fewer workers."
            )
        return cls(workers, device)

    def in_order(self, make: Callable[[], Callable[[Any], Any]], items: Sequence[Any]) -> Iterator[Any]:
        """The answers to the items, in their order.

        make: called once in each worker; what it returns is called with each item. It, items and answers are pickled. A
        RewardDanceError of either is raised here.
        """
        import ray.data  # type: ignore[import-not-found]

        if not len(items):
            return
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars, context.execution_options.preserve_order = False, True
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        rows = [{"place": place, "item": pickle.dumps(item)} for place, item in enumerate(items)]
        answers = ray.data.from_items(rows, override_num_blocks=min(len(rows), _BLOCKS)).map_batches(
            Worker,
            fn_constructor_kwargs={"make": make},
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=self.workers),
            num_cpus=1,
            num_gpus=1 if self.device == "cuda" else 0,
        )
        for place, row in enumerate(answers.iter_rows()):
            if row["place"] != place:
                raise RuntimeError(f"Ray gave part {row['place']} in the place of part {place}")
            answer = pickle.loads(row["answer"])
            if isinstance(answer, RewardDanceError):
                raise answer
            yield answer


class Worker:
    """What runs in a process of Ray: batches of one item in, the pickled answer out.

    An error of ours is an answer, too: raised here, Ray would wrap it, and start a worker that cannot begin for ever.
    """

    def __init__(self, make: Callable[[], Callable[[Any], Any]]) -> None:
        try:
            self.answer: Callable[[Any], Any] | RewardDanceError = make()
        except RewardDanceError as error:
            self.answer = error

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"place": batch["place"], "answer": [pickle.dumps(self._one(item)) for item in batch["item"]]}

    def _one(self, item: bytes) -> Any:
        if isinstance(self.answer, RewardDanceError):
            return self.answer
        try:
            return self.answer(pickle.loads(item))
        except RewardDanceError as error:
            return error


def absolute(name: str | None) -> str | None:
    """A name that may be a file's as one that holds wherever a worker stands; any other as it is.

    Also of one of several in a file (`mine.yaml#brief`), and of a factory in a module's file (`mine.py:factory`).
    """
    for mark in ("#", ":"):
        file, _, rest = (name or "").partition(mark)
        if file and Path(file).exists():
            return f"{Path(file).resolve()}{mark if rest else ''}{rest}"
    return name
