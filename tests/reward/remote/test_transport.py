"""What a client makes of a server's refusals, pauses, broken replies and quotes of its token."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from rewarddance.errors import InputError, RewardDanceError, RewardError
from rewarddance.reward.remote.transport import Transport, TransportOptions, retry_after

TOKEN = "very-secret-token-of-mine"
Answer = Callable[[int, BaseHTTPRequestHandler, bytes], tuple[int, dict[str, str], bytes]]


class Server:
    """A server of one thread a connection that answers with what `answer` says of the n-th request."""

    def __init__(self) -> None:
        self.answer: Answer = lambda n, request, body: (200, {}, b"{}")
        self.count, self.connections, self.headers = 0, 0, []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                outer.connections += 1
                super().setup()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                outer.count += 1
                outer.headers.append(dict(self.headers))
                status, headers, reply = outer.answer(outer.count, self, body)
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(reply))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(reply)

            do_GET = do_POST

            def log_message(self, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.server.shutdown()
    made.server.server_close()


def transport(server: Server, **options: Any) -> Transport:
    return Transport(server.address, TransportOptions(**{"backoff": 0.01, "retries": 2, "timeout": 5.0} | options))


def test_a_busy_server_is_asked_again_until_it_answers(server):
    server.answer = lambda n, request, body: (429, {}, b"busy") if n < 3 else (200, {}, b'{"p": 0.5}')
    assert transport(server).post_json("/ask", {"a": 1}, lambda reply: reply["p"]) == 0.5
    assert server.count == 3


def test_the_pause_is_the_servers_where_it_says_one(server):
    server.answer = lambda n, request, body: (503, {"Retry-After": "0.2"}, b"") if n < 2 else (200, {}, b"1")
    begun = time.monotonic()
    transport(server, backoff=30).post_json("/ask", {})
    assert 0.2 <= time.monotonic() - begun < 2


def test_a_server_that_stays_busy_is_an_error_that_quotes_it(server):
    server.answer = lambda n, request, body: (500, {}, b"out of order")
    with pytest.raises(RewardError, match=r"question 7.*500.*out of order.*3 tries"):
        transport(server).post_json("/ask", {}, about="question 7")
    assert server.count == 3


@pytest.mark.parametrize("status", [401, 403, 404, 302])
def test_what_no_other_try_would_mend_is_said_at_once(server, status):
    server.answer = lambda n, request, body: (status, {"Location": "http://192.0.2.1/"}, b"no")
    with pytest.raises(InputError, match=str(status)):
        transport(server).post_bytes("/ask", b"x", bytes)
    assert server.count == 1


def test_a_refused_question_is_an_error_at_once(server):
    server.answer = lambda n, request, body: (422, {}, b"no such picture")
    with pytest.raises(RewardError, match="no such picture"):
        transport(server).post_json("/ask", {})
    assert server.count == 1


@pytest.mark.parametrize("status", [401, 422, 500, 200])
def test_a_token_that_the_server_quotes_is_cut_out(server, status, monkeypatch):
    monkeypatch.setenv("ODD_NAME", TOKEN)
    server.answer = lambda n, request, body: (status, {}, f"{request.headers['Authorization']} is wrong".encode())
    with pytest.raises(RewardDanceError) as caught:
        transport(server, token_env="ODD_NAME", retries=0).post_json("/ask", {}, lambda reply: reply["p"])
    assert server.headers[0]["Authorization"] == f"Bearer {TOKEN}"
    assert TOKEN not in str(caught.value) and "$ODD_NAME" in str(caught.value)


def test_a_reply_that_is_none_is_asked_for_again_and_then_raised(server):
    server.answer = lambda n, request, body: (200, {}, b"<html>" if n == 1 else b'{"q": 1}')
    with pytest.raises(RewardError, match="sent no answer"):
        transport(server).post_json("/ask", {}, lambda reply: reply["p"])
    assert server.count == 3


def test_a_reply_beyond_the_limit_is_let_go(server):
    server.answer = lambda n, request, body: (200, {}, b"x" * 5000)
    with pytest.raises(RewardError, match="4,000 bytes"):
        transport(server, max_reply_bytes=4000).post_bytes("/ask", b"", bytes)


def test_a_connection_that_breaks_is_tried_again(server):
    def cut(n: int, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, dict[str, str], bytes]:
        request.close_connection = n == 1
        return 200, {"Content-Length": "50"} if n == 1 else {}, b'{"p": 1}'

    server.answer = cut
    assert transport(server).post_json("/ask", {}) == {"p": 1}


def test_a_server_that_does_not_answer_in_time_is_an_error(server):
    server.answer = lambda n, request, body: (time.sleep(0.5), (200, {}, b"{}"))[1]
    with pytest.raises(RewardError, match=r"in 0\.1 seconds"):
        transport(server, timeout=0.1, retries=0).post_json("/ask", {})


def test_a_server_that_is_not_there_is_an_error_with_its_address():
    with pytest.raises(RewardError, match=r"http://127\.0\.0\.1:9/ask"):
        Transport("http://127.0.0.1:9", TransportOptions(retries=0)).get_json("/ask")


@pytest.mark.parametrize(
    "address", ["ftp://a", "http://", "127.0.0.1:80", "http://a:b@host", "http://h/?q=1", "http://[x"]
)
def test_what_is_no_address_is_refused(address):
    with pytest.raises(InputError) as caught:
        Transport(address)
    assert "b@host" not in str(caught.value)


def test_many_requests_share_a_few_connections_and_keep_their_order(server):
    server.answer = lambda n, request, body: (200, {}, body)
    asked = transport(server, concurrency=4)
    assert asked.map(lambda i: asked.post_json("/ask", i), range(100)) == [*range(100)]
    assert server.count == 100 and server.connections <= 4


def test_one_failure_of_many_is_raised_and_the_rest_not_begun(server):
    server.answer = lambda n, request, body: (422, {}, b"bad") if body == b"3" else (200, {}, body)
    asked = transport(server, concurrency=1)
    with pytest.raises(RewardError, match="item 3"):
        asked.map(lambda i: asked.post_json("/ask", i, about=f"item {i}"), range(1000))
    assert server.count < 900


def test_a_pickled_client_holds_no_token(server, monkeypatch):
    monkeypatch.setenv("REWARDDANCE_TOKEN", TOKEN)
    written = pickle.dumps(transport(server))
    assert TOKEN.encode() not in written
    assert pickle.loads(written).post_json("/ask", {}) == {}
    assert server.headers[0]["Authorization"] == f"Bearer {TOKEN}"


def test_both_forms_of_retry_after_are_read():
    assert retry_after("2") == 2.0 and retry_after("-1") == 0.0
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert retry_after("soon") is None and retry_after(None) is None and retry_after("inf") is None


def test_numbers_that_json_has_no_word_for_are_not_sent(server):
    with pytest.raises(ValueError):
        transport(server).post_json("/ask", {"p": float("nan")})
    assert server.count == 0
