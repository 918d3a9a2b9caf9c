"""Writes of many people at once, committed together: one wait for the disk serves all that came meanwhile."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any

from rewarddance.annotate.store import Store

_TOGETHER = 256
"""Writes of one transaction at most."""
Write = Callable[[], Any]


class Commits:
    """The one thread that writes to a store. What `run` returns was committed before."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._waiting: queue.SimpleQueue[tuple[Write, asyncio.Future[Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    async def run(self, write: Write) -> Any:
        """What `write` returns or raises. It is called within a transaction, in which it is all or nothing."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.put((write, future))
        return await future

    def close(self) -> None:
        """Ends when all that waits is written."""
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        while True:
            batch = [self._waiting.get()]
            while len(batch) < _TOGETHER and batch[-1] is not None:
                try:
                    batch.append(self._waiting.get_nowait())
                except queue.Empty:
                    break
            work = [item for item in batch if item is not None]
            outcomes: list[tuple[Any, BaseException | None]] = []
            try:
                if work:
                    with self.store.transaction() as db:
                        for write, _ in work:
                            db.execute("SAVEPOINT one")
                            try:
                                outcomes.append((write(), None))
                            except Exception as error:
                                db.execute("ROLLBACK TO one")
                                outcomes.append((None, error))
                            db.execute("RELEASE one")
            except Exception as error:  # nothing was committed: a full disk
                outcomes = [(None, error)] * len(work)
            self._resolve(work, outcomes)
            if batch[-1] is None:
                return

    @staticmethod
    def _resolve(
        work: list[tuple[Write, asyncio.Future[Any]]], outcomes: list[tuple[Any, BaseException | None]]
    ) -> None:
        def resolve() -> None:
            for (_, future), (value, error) in zip(work, outcomes, strict=True):
                if future.cancelled():
                    continue
                if error is None:
                    future.set_result(value)
                else:
                    future.set_exception(error)

        if work:
            work[0][1].get_loop().call_soon_threadsafe(resolve)
