"""Asking a server: connections that are kept, several requests at once, tries again, and errors in plain English.

What may pass (a busy server, one that is starting, a connection that broke) is tried again after a pause that doubles,
or as long as the server says. What will not pass (a wrong key or address, a question that is refused) is raised at
once. A server quotes what it refuses; the token is cut out of whatever it says.
"""

from __future__ import annotations

import email.utils
import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2
from pydantic import Field

from rewarddance.errors import InputError, RewardError, first_line, shown
from rewarddance.runtime.config import Recipe
from rewarddance.runtime.files import parse_json

T = TypeVar("T")
Item = TypeVar("Item")
_LONGEST_WAIT, _LONGEST_BACKOFF = 60.0, 10.0
"""Seconds: of a pause, whatever the server says; and of one where it says nothing."""
_CONNECT_SECONDS = 10.0
_AGAIN = frozenset({408, 425, 429})
"""Statuses that may pass, beside those from 500 on."""
_UNREADABLE = (AttributeError, KeyError, IndexError, TypeError, ValueError)
"""What a reader raises of a reply that is none."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class TransportOptions(Recipe):
    """How a server is asked."""

    concurrency: int = Field(default=32, ge=1, le=1024)
    """Requests at once."""
    retries: int = Field(default=8, ge=0)
    """Further tries of what may pass: a busy or restarting server, a broken connection, a reply that is none."""
    backoff: float = Field(default=0.5, gt=0)
    """Seconds before the second try; doubled before each further one, up to 10, and shortened by chance."""
    timeout: float = Field(default=120.0, gt=0)
    """Seconds for one answer."""
    token_env: str = "REWARDDANCE_TOKEN"
    """The environment variable that holds the bearer token; none is sent where it is not set."""
    max_reply_bytes: int = Field(default=1 << 30, ge=1)
    """A longer reply is refused."""


class _MayPass(Exception):
    """Trouble that another try may not meet. wait: the seconds that the server asks for, if it does."""

    def __init__(self, trouble: str, wait: float | None = None) -> None:
        super().__init__(trouble)
        self.wait = wait


class Transport:
    """Requests to one server, from any thread.

    address: http:// or https://, up to what all paths have in common. Pickled, it is the address and the options; the
    token is read from the environment again. Raises InputError for an address or a token that cannot be used.
    """

    def __init__(self, address: str, options: TransportOptions | None = None) -> None:
        self.options = options or TransportOptions()
        self.address = _checked(address)
        self._token = os.environ.get(self.options.token_env, "").strip()
        if not (self._token.isascii() and self._token.isprintable()):
            raise InputError(
                f"the token in ${self.options.token_env} has characters that no header can carry.", "Correct it."
            )
        headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {self._token}"} if self._token else {})
        seconds = self.options.timeout
        self._client = httpx2.Client(
            headers=headers,
            timeout=httpx2.Timeout(seconds, connect=min(seconds, _CONNECT_SECONDS), pool=None),
            limits=httpx2.Limits(
                max_connections=self.options.concurrency, max_keepalive_connections=self.options.concurrency
            ),
            trust_env=urlsplit(self.address).hostname not in LOOPBACK,  # no proxy leads to this very machine
        )
        self._pool = ThreadPoolExecutor(self.options.concurrency, thread_name_prefix="rewarddance-ask")
        self._interrupted = threading.Event()

    def __repr__(self) -> str:
        return f"Transport({self.address!r})"

    def __reduce__(self) -> Any:
        return type(self), (self.address, self.options)

    def close(self) -> None:
        """Close the connections. What is being asked is not waited for."""
        self._interrupted.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    def map(self, ask: Callable[[Item], T], items: Iterable[Item]) -> list[T]:
        """`ask` of each item, `concurrency` at once, the answers in the items' order.

        `ask` calls `post_json` or `post_bytes`, and never `map`. The first item in order that fails is raised; what was
        not begun by then is not asked any more.
        """
        futures: list[Future[T]] = [self._pool.submit(ask, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException as error:
            for future in futures:
                future.cancel()
            if not isinstance(error, Exception):  # Ctrl-C: nobody waits for the pauses
                self._interrupted.set()
                self._interrupted = threading.Event()
            raise

    def get_json(self, path: str, read: Callable[[Any], T] = lambda reply: reply, about: str = "") -> T:
        """As `post_json`, without a body."""
        return self._ask("GET", path, None, {}, lambda reply: read(parse_json(reply)), about)

    def post_json(self, path: str, body: Any, read: Callable[[Any], T] = lambda reply: reply, about: str = "") -> T:
        """What `read` makes of the reply to a JSON body.

        read: raises one of `_UNREADABLE` for a reply that is no answer, which is asked for again; an error of ours
        passes through at once. about: which question it is, for errors.

        Raises InputError where the address, the path or the token is wrong (401, 403, 404), which all further requests
        would meet, too; and RewardError where the question is refused, or could not be answered in all tries.
        """
        content = json.dumps(body, allow_nan=False).encode()
        headers = {"Content-Type": "application/json"}
        return self._ask("POST", path, content, headers, lambda reply: read(parse_json(reply)), about)

    def post_bytes(self, path: str, body: bytes, read: Callable[[bytes], T], about: str = "") -> T:
        """As `post_json`, with bytes both ways."""
        return self._ask("POST", path, body, {"Content-Type": "application/octet-stream"}, read, about)

    # -- one request ---------------------------------------------------------------------------------------------------

    def _ask(
        self,
        method: str,
        path: str,
        body: bytes | None,
        headers: dict[str, str],
        read: Callable[[bytes], T],
        about: str,
    ) -> T:
        url, prefix, interrupted = self.address + path, f"{about}: " if about else "", self._interrupted
        tries = self.options.retries + 1
        for tried in range(tries):
            try:
                return self._try(method, url, body, headers, read, prefix)
            except _MayPass as error:
                trouble = str(error)
                pause = min(_LONGEST_BACKOFF, self.options.backoff * 2.0**tried) * random.uniform(0.5, 1)
                if error.wait is not None:  # many clients were told the same
                    pause = min(_LONGEST_WAIT, error.wait * random.uniform(1, 1.25))
                if tried + 1 < tries and interrupted.wait(pause):
                    break
        tries_note = f" ({tries} tries)" if tries > 1 else ""
        raise RewardError(f"{prefix}{trouble}{tries_note}.", "See whether the server runs, and what its log says.")

    def _try(
        self,
        method: str,
        url: str,
        body: bytes | None,
        headers: dict[str, str],
        read: Callable[[bytes], T],
        prefix: str,
    ) -> T:
        """One try. Raises _MayPass where another may fare better."""
        try:
            status, reply, wait = self._exchange(method, url, body, headers, prefix)
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol, httpx2.LocalProtocolError) as error:
            raise InputError(f"{prefix}{shown(url)} is no address: {error}.", "Correct it.") from error
        except httpx2.TimeoutException as error:
            raise _MayPass(f"{url} did not answer in {self.options.timeout:g} seconds") from error
        except httpx2.RequestError as error:
            raise _MayPass(f"{url} cannot be asked: {first_line(error)} ({type(error).__name__})") from error
        if status in _AGAIN or status >= 500:
            raise _MayPass(f"{url} answered with status {status}{self._quoted(reply)}", wait)
        if status in (401, 403):
            which = f"the token in ${self.options.token_env}" if self._token else "a request without a token"
            raise InputError(
                f"{prefix}{url} does not take {which} (status {status}{self._quoted(reply)}).",
                f"Put the server's own into ${self.options.token_env}.",
            )
        if status == 404 or 300 <= status < 400 or status == 405:
            raise InputError(
                f"{prefix}there is nothing to ask at {url} (status {status}{self._quoted(reply)}).",
                "Correct the address; it ends before the paths of the protocol.",
            )
        if status != 200:
            raise RewardError(
                f"{prefix}{url} refuses the question (status {status}{self._quoted(reply)}).", "Correct the question."
            )
        try:
            return read(reply)
        except _UNREADABLE as error:
            why = f"{type(error).__name__}: {first_line(error)}"
            raise _MayPass(f"{url} sent no answer, but{self._quoted(reply)} ({self._without_token(why)})") from error

    def _exchange(
        self, method: str, url: str, body: bytes | None, headers: dict[str, str], prefix: str
    ) -> tuple[int, bytes, float | None]:
        """Status, body and Retry-After of a reply, read piece by piece: one that does not end is let go."""
        end, limit = time.monotonic() + self.options.timeout, self.options.max_reply_bytes
        with self._client.stream(method, url, content=body, headers=headers) as response:
            pieces, length = [], 0
            for piece in response.iter_bytes():
                pieces.append(piece)
                length += len(piece)
                if length > limit:
                    raise RewardError(
                        f"{prefix}the reply of {url} has more than {limit:,} bytes.",
                        "Ask fewer questions at once, or raise max_reply_bytes.",
                    )
                if time.monotonic() > end:
                    raise httpx2.ReadTimeout("the reply does not end")
            return response.status_code, b"".join(pieces), retry_after(response.headers.get("retry-after"))

    def _quoted(self, reply: bytes) -> str:
        """What a server said, short, without the token."""
        text = self._without_token(reply[:2000].decode("utf-8", "replace")).strip()
        return f" {shown(text, 200)}" if text else ""

    def _without_token(self, text: str) -> str:
        return text.replace(self._token, f"(${self.options.token_env})") if self._token else text


def retry_after(header: str | None) -> float | None:
    """The seconds that a Retry-After header asks for, in either of its forms; None where it says nothing."""
    if not header:
        return None
    try:
        return max(0.0, float(header)) if float(header) < float("inf") else None
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _checked(address: str) -> str:
    """The address without the slash at its end. Raises InputError where it is none, or holds a password."""
    try:
        parts = urlsplit(address)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        parts, valid = None, False
    if parts is not None and "@" in parts.netloc:
        raise InputError(
            "an address with a name or password in it ends up in logs.", "Put the token into the environment instead."
        )
    if parts is None or not valid or parts.query or parts.fragment or not address.isprintable():
        raise InputError(f"{shown(address)} is no address of a server.", "Give one such as http://127.0.0.1:8000.")
    return address.rstrip("/")
