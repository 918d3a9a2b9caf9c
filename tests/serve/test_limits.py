"""Who may ask a server, and how much."""

from __future__ import annotations

import pickle
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
import torch
from tiny import BrightnessJudge, pictures

from rewarddance.errors import InputError
from rewarddance.reward.remote.served import ServedReward
from rewarddance.reward.remote.wire import write_questions
from rewarddance.serve.recipe import ServeOptions
from rewarddance.serve.server import serving, token_of
from rewarddance.types import Question, Verdict

TOKEN = "a-token-of-the-tests"


def body(n: int = 1, size: int = 32) -> bytes:
    reference, *shown = pictures(n + 1, size=size)
    return write_questions([Question("a circle", picture, reference) for picture in shown])


class Gated:
    """The brightness of the candidate, when the gate is open; counts what it was asked."""

    needs_reference = False

    def __init__(self) -> None:
        self.gate, self.entered, self.asked = threading.Event(), threading.Event(), 0

    def __call__(self, questions: Sequence[Question]) -> Verdict:
        self.entered.set()
        self.gate.wait(60)
        self.asked += len(questions)
        return Verdict(torch.stack([question.candidate.mean() for question in questions]))


def until(address: str, *figures: str) -> None:
    """Wait until the server's metrics have these lines."""
    end = time.monotonic() + 60
    while not all(figure in httpx2.get(address + "/metrics", timeout=20).text for figure in figures):
        assert time.monotonic() < end, figures
        time.sleep(0.02)


WAITING, ASKED = "rewarddance_waiting_questions", "rewarddance_questions_total"


@pytest.fixture(scope="module")
def small() -> Iterator[str]:
    """A server of small limits."""
    limits: dict[str, Any] = {"max_body_mb": 0.2, "max_questions": 8, "max_pixels": 20_000}
    with serving(BrightnessJudge(), **limits) as address:
        yield address


def status(address: str, content: bytes, path: str = "/questions", **headers: str) -> int:
    return httpx2.post(address + path, content=content, headers=headers, timeout=20).status_code


def test_what_is_too_large_is_refused_before_it_is_computed(small):
    assert status(small, body(7)) == 200
    assert status(small, b"x" * 300_000) == 413
    assert httpx2.post(small + "/questions", content=iter([b"x" * 100_000] * 3), timeout=20).status_code == 413
    assert status(small, body(1, size=120)) == 413
    assert status(small, body(9)) == 400
    many = {"prompt": ["a"] * 9, "image": [""] * 9}
    assert httpx2.post(small + "/compute", json=many, timeout=20).status_code == 413


@pytest.mark.parametrize("path", ["/questions", "/gradient", "/v1/decisions", "/v1/systemone", "/score", "/compute"])
@pytest.mark.parametrize(
    "content", [b"", b"{", b"[" * 100_000, b"null", b"{}", pickle.dumps({"images": []}), b"\xff\xfe"]
)
def test_a_body_that_is_none_is_refused_in_words(small, path, content):
    reply = httpx2.post(small + path, content=content, timeout=20)
    assert reply.status_code == 400 and reply.json()["error"]["message"]


def test_a_page_in_a_browser_cannot_ask(small):
    assert status(small, body(), Host="evil.example") == 401
    assert status(small, body(), Host="localhost:8000") == 200
    assert status(small, body(), Host="localhost:8000", Origin="http://localhost:8000") == 200
    for origin in ("https://evil.example", "null", "http://[bad"):
        assert status(small, body(), Host="localhost:8000", Origin=origin) == 401


def test_only_the_server_itself_is_at_other_paths(small):
    assert [httpx2.get(small + path).status_code for path in ("/docs", "/openapi.json", "/etc/passwd")] == [404] * 3
    wrong = httpx2.get(small + "/v1/decisions")
    assert wrong.status_code == 405 and "/v1/decisions" in wrong.json()["error"]["remedy"]


def test_a_token_is_needed_where_there_is_one(monkeypatch):
    monkeypatch.setenv("REWARDDANCE_TOKEN", TOKEN)
    with serving(BrightnessJudge()) as address:
        right = {"Authorization": f"Bearer {TOKEN}"}
        assert status(address, body(), **right) == 200
        assert status(address, body(), Host="judge.example", **right) == 200
        for wrong in (
            {},
            {"Authorization": TOKEN},
            {"Authorization": f"Bearer {TOKEN}x"},
        ):
            assert status(address, body(), **wrong) == 401
        assert httpx2.get(address + "/info").status_code == httpx2.get(address + "/metrics").status_code == 401
        assert httpx2.get(address + "/health").status_code == 200
        assert ServedReward(address).needs_reference
        monkeypatch.setenv("REWARDDANCE_TOKEN", "another-token-than-theirs")
        with pytest.raises(InputError, match="REWARDDANCE_TOKEN") as caught:
            ServedReward(address)
        assert "another-token-than-theirs" not in str(caught.value)


def test_other_hosts_are_let_in_with_a_token_alone(monkeypatch):
    monkeypatch.delenv("REWARDDANCE_TOKEN", raising=False)
    with pytest.raises(InputError, match="REWARDDANCE_TOKEN"):
        token_of(ServeOptions(host="0.0.0.0"))
    monkeypatch.setenv("REWARDDANCE_TOKEN", TOKEN)
    assert token_of(ServeOptions(host="0.0.0.0")) == TOKEN


def test_a_full_queue_is_told_with_a_time_and_waited_for():
    judge, found = Gated(), []
    with serving(judge, queue=2, max_questions=2, wait_ms=0) as address:
        content = write_questions([Question("x", picture) for picture in pictures(2)])
        threads = [threading.Thread(target=lambda: found.append(status(address, content))) for _ in range(2)]
        threads[0].start()
        assert judge.entered.wait(60)
        threads[1].start()
        until(address, f"{WAITING} 2.0")
        reply = httpx2.post(address + "/questions", content=content, timeout=20)
        assert reply.status_code == 429 and int(reply.headers["retry-after"]) >= 1 and found == []
        threading.Timer(0.5, judge.gate.set).start()
        margin = ServedReward(address, retries=9)([Question("x", picture) for picture in pictures(2)]).margin
        torch.testing.assert_close(margin, torch.stack([picture.mean() for picture in pictures(2)]))
        for thread in threads:
            thread.join()
    assert found == [200, 200]


def test_what_a_client_asked_that_hung_up_is_not_computed():
    judge = Gated()
    with serving(judge, wait_ms=0) as address:
        first = threading.Thread(target=status, args=(address, body()))
        first.start()
        assert judge.entered.wait(60)
        content, place = body(5), urlsplit(address)
        head = f"POST /questions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
        with socket.create_connection((place.hostname or "", place.port or 0)) as cut_off:
            cut_off.sendall(head.encode() + content[:100])
        with socket.create_connection((place.hostname or "", place.port or 0)) as whole:
            whole.sendall(head.encode() + content)
            until(address, f"{WAITING} 5.0")
        until(address, f"{WAITING} 0.0", f'{ASKED}{{outcome="dropped"}} 5.0')
        judge.gate.set()
        first.join()
        assert status(address, body()) == 200
    assert judge.asked == 2
