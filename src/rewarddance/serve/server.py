"""The server: who may ask, how much, and what becomes of a request from its bytes to its reply."""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from rewarddance.errors import InputError, RewardDanceError, RewardError, for_clients, shown
from rewarddance.protocols import RewardModel
from rewarddance.reward.prefill import Prefill
from rewarddance.reward.prefix_cache import PrefixStore
from rewarddance.reward.remote.wire import VERSION
from rewarddance.runtime.config import parse_recipe
from rewarddance.runtime.listening import LOOPBACK, host_name, is_same_origin
from rewarddance.runtime.web_server import serve_in_background, serve_until_ended
from rewarddance.serve import binary, decisions, flow_factory, systemone, unirl
from rewarddance.serve.batching import Batcher
from rewarddance.serve.judge import REWARD, ServedJudge, mark_of
from rewarddance.serve.metrics import ServerMetrics
from rewarddance.serve.pictures import Busy, Memory, PictureStore, RequestPictures, TooLarge
from rewarddance.serve.protocol import Outcome, Protocol, as_json
from rewarddance.serve.recipe import ServeOptions
from rewarddance.types import Pixels

log = logging.getLogger("rewarddance.serve")
PROTOCOLS = (
    binary.QUESTIONS,
    binary.GRADIENT,
    decisions.PROTOCOL,
    systemone.PROTOCOL,
    unirl.PROTOCOL,
    flow_factory.PROTOCOL,
)
_SMALL = 1 << 16
"""Bytes of a request that is read in less time than it takes to hand it to a thread."""
_BODY_SECONDS = 60.0
"""In which a request's body has to be there."""


class HungUp(Exception):
    """The client is gone: nobody reads the reply."""


class JudgeServer:
    """One judge behind a FastAPI `app`.

    Raises InputError where the options let others in without a token.
    """

    def __init__(self, judge: ServedJudge, options: ServeOptions) -> None:
        self.judge, self.options, self.metrics = judge, options, ServerMetrics()
        self.token = token_of(options)
        self.store = PictureStore(int(options.cache_mb * 1e6))
        self.memory = Memory(int(options.max_waiting_mb * 1e6))
        self.prefixes = PrefixStore(int(options.prefix_cache_mb * 1e6))
        self.app = FastAPI(title="RewardDance", lifespan=self._lifespan, openapi_url=None)
        self.app.add_route("/health", self._health, ["GET"])
        self.app.add_route("/rewards", self._guarded(self._rewards), ["GET"])
        self.app.add_route("/info", self._guarded(self._info), ["GET"])
        self.app.add_route("/metrics", self._guarded(self._metrics), ["GET"])
        for protocol in PROTOCOLS:
            self.app.add_route(protocol.path, self._handler(protocol), ["POST"])
        for status in (404, 405):
            self.app.add_exception_handler(status, _no_such_path)

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        self.batcher = Batcher(self.judge.reward, self.options, self.metrics)
        self._running = asyncio.create_task(self.batcher.run())
        self._keep_prefixes(self.prefixes if self.prefixes.max_bytes else None)
        yield
        self._keep_prefixes(None)
        self._running.cancel()
        with suppress(asyncio.CancelledError):
            await self._running
        self.batcher.close()

    def _keep_prefixes(self, store: PrefixStore | None) -> None:
        """Where the judge can: what it has read before candidates is kept while the server runs."""
        if isinstance(vlm := getattr(self.judge.reward, "vlm", None), Prefill):
            vlm.prefix_store = store

    # -- what the server says of itself --------------------------------------------------------------------------------

    async def _health(self, request: Request) -> Response:
        """Open to all, so that whoever watches processes needs no token."""
        if self._running.done():  # nobody asks the judge any more
            return _json({"status": "broken", "rewards": {REWARD: []}}, 503)
        return _json({"status": "ok", "rewards": {REWARD: ["ready"]}})

    async def _rewards(self, request: Request) -> Response:
        return _json({"rewards": [REWARD]})

    async def _info(self, request: Request) -> Response:
        judge = self.judge
        facts = {"version": VERSION, "rewarddance": version("rewarddance"), "judge": judge.name, "mark": judge.mark}
        facts |= {"kind": judge.kind, "instruction": judge.instruction, "needs_reference": judge.needs_reference}
        facts |= {"orders": judge.orders} if judge.orders else {}
        facts |= {"differentiable": judge.differentiable, "reads_metadata": judge.reads_metadata, "fps": judge.fps}
        facts |= {"max_questions": self.options.max_questions, "max_body_bytes": self.options.max_body}
        return _json(
            facts | {"max_pixels": self.options.max_pixels, "paths": [protocol.path for protocol in PROTOCOLS]}
        )

    async def _metrics(self, request: Request) -> Response:
        figures = self.metrics
        figures.waiting.set(self.batcher.waiting)
        figures.held.set(self.memory.held)
        figures.pictures.set(self.store.bytes)
        figures.known.set(self.store.hits)
        figures.unknown.set(self.store.misses)
        figures.prefixes.set(self.prefixes.bytes)
        figures.prefixes_known.set(self.prefixes.hits)
        figures.prefixes_read.set(self.prefixes.misses)
        return Response(figures.text(), media_type=CONTENT_TYPE_LATEST)

    # -- one request ---------------------------------------------------------------------------------------------------

    def _guarded(self, handle: Callable[[Request], Any]) -> Callable[[Request], Any]:
        """Only who may ask is answered; an error of ours is a reply that says what is wrong."""

        async def guarded(request: Request) -> Response:
            begun, path = time.monotonic(), request.scope["path"]
            try:
                self._authorise(request)
                response = await handle(request)
            except HungUp:
                response = Response(status_code=499)
            except Exception as error:
                response = _refusal(error)
            self.metrics.requests.labels(path, str(response.status_code)).inc()
            self.metrics.request.observe(time.monotonic() - begun)
            return response

        return guarded

    def _handler(self, protocol: Protocol) -> Callable[[Request], Any]:
        async def handle(request: Request) -> Response:
            with RequestPictures(self.store, self.memory, self.options.max_pixels) as pictures:
                body = await self._body(request, pictures)
                judge, most = self.judge, self.options.max_questions
                asked = await _aside(len(body), protocol.read, body, pictures, judge, most)
                size = len(body)
                del body
                outcomes: list[Outcome] = [error for error in asked.questions if isinstance(error, RewardDanceError)]
                sound = [n for n, question in enumerate(asked.questions) if not isinstance(question, RewardDanceError)]
                if sound:
                    questions: Any = [asked.questions[n] for n in sound]
                    wanted = [asked.wanted[n] if asked.wanted else () for n in sound]
                    answers = await unless_gone(request, self.batcher.ask(questions, wanted))
                    placed = dict(zip(sound, answers, strict=True))
                    outcomes = [placed.get(n, question) for n, question in enumerate(asked.questions)]  # type: ignore[misc]
                content = await _aside(size, protocol.write, asked, outcomes, judge)
                return Response(content, media_type=protocol.media_type)

        return self._guarded(handle)

    def _authorise(self, request: Request) -> None:
        """Raises Denied. Without a token only this machine asks, by one of its own names: a page that a browser shows
        cannot, whatever name it has made lead here."""
        if self.token:
            given = request.headers.get("authorization", "").encode()
            if not hmac.compare_digest(given, b"Bearer " + self.token.encode()):
                raise Denied(
                    "the request has no token of this server.", f"Send it as the client's ${self.options.token_env}."
                )
            return
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        if host_name(host) not in LOOPBACK:
            raise Denied(
                "the request is addressed to another host.", "Ask 127.0.0.1, or start the server with a token."
            )
        if origin is not None and not is_same_origin(origin, host):
            raise Denied("the request comes from a page in a browser.", "Start the server with a token.")

    async def _body(self, request: Request, pictures: RequestPictures) -> bytes:
        """The body, refused as soon as it is known to be too large. Raises TooLarge, Busy or HungUp."""
        limit, announced = self.options.max_body, request.headers.get("content-length", "")
        pieces, length = [], 0
        if announced.isdigit() and int(announced) > limit:
            raise TooLarge(f"the request has {int(announced):,} bytes, of {limit:,}.", "Ask in parts.")
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                async for piece in request.stream():
                    length += len(piece)
                    if length > limit:
                        raise TooLarge(f"the request has more than {limit:,} bytes.", "Ask in parts.")
                    pictures.take_bytes(len(piece))
                    pieces.append(piece)
        except TimeoutError as error:
            raise InputError(f"the request was not there in {_BODY_SECONDS:g} seconds.", "Send it again.") from error
        except Exception as error:
            if type(error).__name__ == "ClientDisconnect":
                raise HungUp from error
            raise
        return b"".join(pieces)

    # -- from start to end ---------------------------------------------------------------------------------------------

    def run(self, ready: Callable[[str], object]) -> None:
        """Serve until SIGTERM or Ctrl-C; what is in flight then is still answered. ready: is told the address.

        Raises InputError where the address is taken or none of this machine's.
        """
        serve_until_ended(self.app, self.options.host, self.options.port, ready, self.options.shutdown_seconds)

    def background(self) -> AbstractContextManager[str]:
        """Serve from a thread of this process, in notebooks and tests; yields the address, and ends with the block."""
        options = self.options
        return serve_in_background(self.app, options.host, options.port, options.shutdown_seconds)


@contextmanager
def serving(reward: RewardModel, references: Mapping[str, Pixels] | None = None, **options: Any) -> Iterator[str]:
    """A reward model that is here, served from a thread of this process at a free port; yields the address.

    references: by prompt, for questions that bring none. options: those of `ServeOptions`.
    """
    judge = ServedJudge(
        reward, str(getattr(reward, "name_or_path", None) or reward), mark_of(reward, None), references or {}
    )
    with JudgeServer(
        judge, parse_recipe(ServeOptions, {"port": 0} | options, "the server's options")
    ).background() as at:
        yield at


class Denied(InputError):
    """A request of somebody who may not ask."""


def token_of(options: ServeOptions) -> str:
    """The token that every request needs, "" for none. Raises InputError where there has to be one."""
    token = os.environ.get(options.token_env, "").strip()
    if token and not (token.isascii() and token.isprintable() and " " not in token):
        raise InputError(f"the token in ${options.token_env} has characters that no header can carry.", "Correct it.")
    if not token and options.host not in LOOPBACK:
        raise InputError(
            f"a server at {options.host} can be asked by others, and ${options.token_env} holds no token.",
            f"Put one there, at both ends: export {options.token_env}=$(openssl rand -hex 32)",
        )
    return token


async def _aside(size: int, work: Callable[..., Any], *given: Any) -> Any:
    """What `work` returns, from a thread of its own where the request is so large that others would wait for it."""
    return work(*given) if size < _SMALL else await asyncio.to_thread(work, *given)


async def unless_gone(request: Request, answer: Any) -> Any:
    """What is awaited, given up as soon as the client has hung up. Raises HungUp then."""
    asked, gone = asyncio.ensure_future(answer), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({asked, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not asked.done():
            raise HungUp
        return asked.result()
    finally:
        for task in (asked, gone):
            task.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _json(content: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(as_json(content), status, headers, "application/json")


async def _no_such_path(request: Request, error: Exception) -> Response:
    """The reply about a path or a method that there is not."""
    what = f"{request.method} {shown(request.scope['path'])} is nothing that this server answers."
    paths = ", ".join(protocol.path for protocol in PROTOCOLS)
    content = {"message": what, "remedy": f"Post to one of {paths}.", "type": "NoSuchPath"}
    return _json({"error": content}, getattr(error, "status_code", 404))


def _refusal(error: Exception) -> Response:
    """The reply that says what is wrong, in the form in which OpenAI's client reads errors."""
    if not isinstance(error, RewardDanceError):
        log.error("a request failed", exc_info=error)
        error = RewardError(*for_clients(error))
    statuses = ((Denied, 401), (TooLarge, 413), (Busy, 429), (InputError, 400))
    status = next((number for kind, number in statuses if isinstance(error, kind)), 500)
    headers = {"Retry-After": f"{error.seconds:.0f}"} if isinstance(error, Busy) else {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    content = {"message": error.what, "remedy": error.remedy, "type": type(error).__name__}
    return _json({"error": content}, status, headers)
