"""`rewarddance serve` as a process: what it says, how it ends, and a short hard day of it."""

from __future__ import annotations

import signal
import socket
import threading
import time
from typing import Any

import httpx2
import pytest
import torch
from serving_soak import Server, free_port, soak
from tiny import command, judge_folder, pictures

from rewarddance.reward.judge import RewardConfig
from rewarddance.reward.loading import build_reward
from rewarddance.reward.remote.served import ServedReward
from rewarddance.reward.remote.wire import read_reply, write_questions
from rewarddance.serve.server import serving
from rewarddance.types import Question


def test_a_server_that_cannot_begin_says_why(monkeypatch):
    monkeypatch.delenv("REWARDDANCE_TOKEN", raising=False)
    done = command("serve", "shapeworld-judge", "--host", "0.0.0.0")
    assert done.code == 2 and "REWARDDANCE_TOKEN" in done.err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = command("serve", "shapeworld-judge", "--port", str(taken.getsockname()[1]))
    assert done.code == 2 and "cannot listen" in done.err
    done = command("serve", "shapeworld-judge", "--port", "0", "--references", "nowhere")
    assert done.code == 2 and "nowhere" in done.err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = command("serve", "shapeworld-judge")
    assert done.code == 2 and "rewarddance[serve]" in done.err


def test_what_is_in_flight_is_answered_when_the_server_is_told_to_end():
    server = Server(str(judge_folder()), free_port(), "--instruction", "t2i-brief", "--max-batch", "1")
    reference, *shown = pictures(61)
    content, replies = write_questions([Question("a circle", picture, reference) for picture in shown]), []

    def ask() -> None:
        replies.append(httpx2.post(server.address + "/questions", content=content, timeout=60).content)

    asking = threading.Thread(target=ask)
    asking.start()
    while "rewarddance_batch_questions_count 0.0" in httpx2.get(server.address + "/metrics", timeout=20).text:
        time.sleep(0.01)
    code = server.end(signal.SIGTERM)
    asking.join()
    assert code == 0 and torch.isfinite(read_reply(replies[0], 60).margin).all()
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(server.address + "/health")


def test_nothing_is_lost_or_invented_when_a_server_is_killed():
    found = soak(300, "shapeworld-judge", "--instruction", "t2i-brief")
    assert (found["right"], found["failed"]) == (297, 3)
    assert found["wrong"] == found["invented"] == found["lost"] == found["exit_code"] == 0


def test_a_judge_that_is_served_keeps_what_stands_before_candidates():
    first, second = pictures(2, seed=1)
    reference = pictures(1, seed=2)[0]
    judge: Any = build_reward(str(judge_folder()), RewardConfig(instruction="t2i-brief"))
    with serving(judge) as address:
        far = ServedReward(address)
        margins = [far([Question("a red circle", shown, reference)]).margin.item() for shown in (first, second)]
        said = httpx2.get(address + "/metrics", timeout=20).text
    assert "rewarddance_prefixes_known 1.0" in said and "rewarddance_prefixes_read 1.0" in said
    assert judge.vlm.prefix_store is None  # the server's, and gone with it
    own = judge([Question("a red circle", shown, reference) for shown in (first, second)]).margin.tolist()
    assert margins == pytest.approx(own, abs=1e-5)
    with serving(judge, prefix_cache_mb=0) as address:
        ServedReward(address)([Question("a red circle", first, reference)])
        assert "rewarddance_prefixes_read 0.0" in httpx2.get(address + "/metrics", timeout=20).text
