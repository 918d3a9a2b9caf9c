"""A server that is told to end, ends."""

from __future__ import annotations

import os
import pickle
import signal
from pathlib import Path

import pytest
from several import forked

from rewarddance.runtime.web_server import serve_until_ended

EVENTS: list[str] = []


async def app(scope, receive, send) -> None:
    assert scope["type"] == "lifespan"
    for _ in range(2):
        message = await receive()
        EVENTS.append(message["type"])
        await send({"type": f"{message['type']}.complete"})


@pytest.mark.timeout(60)
def test_a_server_that_is_told_to_end_before_it_runs_ends_in_order(tmp_path: Path):
    def told_at_once() -> list[str]:
        serve_until_ended(app, "127.0.0.1", 0, lambda address: os.kill(os.getpid(), signal.SIGTERM), 5)
        return EVENTS

    child = forked(told_at_once, tmp_path / "answer")
    assert os.waitpid(child, 0)[1] == 0
    good, events = pickle.loads((tmp_path / "answer").read_bytes())
    assert good and events == ["lifespan.startup", "lifespan.shutdown"]
