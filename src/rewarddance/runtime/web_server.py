"""How a server of ours runs: until it is told to end, or in a thread beside other work."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from rewarddance.runtime.listening import address_of, listen


def serve_until_ended(app: Any, host: str, port: int, ready: Callable[[str], object], shutdown_seconds: int) -> None:
    """Serve until SIGTERM or Ctrl-C; what is in flight then has so many seconds. ready: is told the address.

    Raises InputError where the address is taken or none of this machine's.
    """
    listening, server = listen(host, port), _server(app, shutdown_seconds)

    def end(*_: object) -> None:
        server.is_told_to_end = True

    signal.signal(signal.SIGTERM, end)  # before the server has its own handler, and when it has taken that away again
    ready(address_of(listening))
    server.run(sockets=[listening])


@contextmanager
def serve_in_background(app: Any, host: str, port: int, shutdown_seconds: int) -> Iterator[str]:
    """Serve from a thread of this process; yields the address, and ends with the block."""
    listening, server = listen(host, port), _server(app, shutdown_seconds)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield address_of(listening)
    finally:
        server.should_exit = True
        thread.join()


class _Server(uvicorn.Server):
    """A server that can be told to end before it runs: then it starts, and ends as at any other time."""

    is_told_to_end = False

    async def main_loop(self) -> None:
        self.should_exit |= self.is_told_to_end
        await super().main_loop()


def _server(app: Any, shutdown_seconds: int) -> _Server:
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        lifespan="on",
        timeout_keep_alive=75,
        timeout_graceful_shutdown=shutdown_seconds,
    )
    return _Server(config)
