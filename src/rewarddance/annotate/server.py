"""The server of the page: who may vote, and what becomes of an answer from its bytes to its acknowledgement."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from fastapi import FastAPI, Request, Response

from rewarddance.annotate.commits import Commits
from rewarddance.annotate.comparison import note_decision
from rewarddance.annotate.handing_out import hand_out
from rewarddance.annotate.page_media import PageMedia
from rewarddance.annotate.pages import ENVIRONMENT, static
from rewarddance.annotate.recipe import PageOptions
from rewarddance.annotate.report import report_html
from rewarddance.annotate.store import Person, Store, hashed
from rewarddance.annotate.voting import Refused, last_vote, progress, undo, vote
from rewarddance.data.media import is_video
from rewarddance.errors import InputError, RewardDanceError, for_clients
from rewarddance.reward.instructions import load_tree
from rewarddance.runtime.files import parse_json
from rewarddance.runtime.listening import LOOPBACK, host_name, is_same_origin
from rewarddance.runtime.web_server import serve_in_background, serve_until_ended

log = logging.getLogger("rewarddance.annotate")
_LARGEST = 1 << 14
"""Bytes of a request; an answer has some two hundred."""
_MONTH = 30 * 24 * 3600
_SHUTDOWN_SECONDS = 5
"""What is in flight at the end has so long."""
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "media-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Uninvited(InputError):
    """A request of somebody who may not see the page."""


class Unknown(InputError):
    """Something that is not there."""


class VoteServer:
    """The page of one store behind a FastAPI `app`.

    Raises InputError where others could see it without an invitation.
    """

    def __init__(self, store: Store, options: PageOptions) -> None:
        check_open(options)
        self.store, self.options = store, options
        self.local = None if options.people else store.admit_local()
        self.people, self.media, self.page_media = store.people(), store.media(), PageMedia()
        self.cookie = f"rewarddance_votes_{store.get('id')}"  # cookies know no ports
        tree = store.handing_out.criteria
        self.criteria = (
            {path: leaf.meaning or "" for path, leaf in load_tree(tree).leaves.items()} if tree else {"": ""}
        )
        self.rng = np.random.default_rng()
        self.pace = Pace()
        self.videos: dict[str, bool] = {}
        self.app = FastAPI(title="RewardDance votes", lifespan=self._lifespan, openapi_url=None)
        for path, handle, method in (
            ("/", self._page, "GET"),
            ("/i/{token}", self._invited, "GET"),
            ("/static/{name}", self._static, "GET"),
            ("/media/{medium}", self._medium, "GET"),
            ("/report", self._report, "GET"),
            ("/ask", self._ask, "POST"),
            ("/vote", self._vote, "POST"),
            ("/undo", self._undo, "POST"),
        ):
            self.app.add_route(path, self._guarded(handle), [method])

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        self.commits = Commits(self.store)
        yield
        self.commits.close()

    # -- who asks ------------------------------------------------------------------------------------------------------

    def _guarded(self, handle: Callable[[Request], Any]) -> Callable[[Request], Any]:
        """Every reply has the headers that keep the page to itself; an error of ours says what is wrong."""

        async def guarded(request: Request) -> Response:
            try:
                response = await handle(request)
            except Exception as error:
                response = _refusal(error, wants_page=request.method == "GET")
            for name, value in _HEADERS.items():
                response.headers.setdefault(name, value)
            return response

        return guarded

    def _person(self, request: Request) -> Person:
        """Raises Uninvited. Without people only this machine votes, by one of its own names."""
        if self.local is not None:
            if host_name(request.headers.get("host", "")) not in LOOPBACK:
                raise Uninvited("the request is addressed to another host.", "Open the page at 127.0.0.1.")
            return self.local
        person = self.people.get(hashed(request.cookies.get(self.cookie, "")))
        if person is None:
            raise Uninvited("this page needs an invitation.", "Open the link that was sent to you.")
        return person

    async def _body(self, request: Request) -> tuple[Person, dict[str, Any]]:
        """Who sends what. Raises InputError for what this page would not send."""
        person = self._person(request)
        origin, host = request.headers.get("origin"), request.headers.get("host", "")
        hosts = (host, urlsplit(self.options.address or "").netloc)
        if origin is not None and not any(is_same_origin(origin, own) for own in hosts):
            raise Uninvited("the request comes from another page.", "Vote on the page itself.")
        if request.headers.get("content-type", "").partition(";")[0] != "application/json":
            raise InputError("the request is no JSON.", "Vote on the page itself.")
        data = b""
        async for piece in request.stream():
            data += piece
            if len(data) > _LARGEST:
                raise InputError("the request is too large.", "Vote on the page itself.")
        try:
            content = parse_json(data)
        except ValueError as error:
            raise InputError(f"the request cannot be read: {error}.", "Vote on the page itself.") from error
        if not isinstance(content, dict):
            raise InputError("the request is no object.", "Vote on the page itself.")
        return person, content

    # -- pages ---------------------------------------------------------------------------------------------------------

    async def _page(self, request: Request) -> Response:
        person = self._person(request)
        criteria = [{"path": path, "name": path.rpartition("/")[2], "meaning": m} for path, m in self.criteria.items()]
        template = ENVIRONMENT.get_template("vote.html")
        return _html(template.render(person=person, criteria=json.dumps(criteria), local=self.local is not None))

    async def _invited(self, request: Request) -> Response:
        token = request.path_params["token"]
        person = self.people.get(hashed(token))
        if person is None:
            raise Uninvited("this invitation is not known.", "Ask whoever sent it for a new one.")
        response = Response(status_code=303, headers={"Location": "/report" if person.owner else "/"})
        secure = (self.options.address or "").startswith("https:")
        response.set_cookie(self.cookie, token, max_age=_MONTH, httponly=True, samesite="lax", secure=secure)
        return response

    async def _static(self, request: Request) -> Response:
        file = static(request.path_params["name"])
        if file is None:
            raise Unknown("there is no such file.", "")
        return Response(file.text, media_type=file.kind)

    async def _medium(self, request: Request) -> Response:
        self._person(request)
        medium = request.path_params["medium"]
        if medium not in self.media:
            raise Unknown("there is no such picture.", "")
        try:
            file = await asyncio.to_thread(self.page_media.get, medium, *self.media[medium])
        except InputError as error:  # whose words name the file, and so perhaps the model
            log.error("a picture cannot be shown: %s", error)
            raise InputError("this picture cannot be read.", "Skip its pair, and tell whoever began this.") from None
        headers = {"Cache-Control": "private, max-age=86400", "Accept-Ranges": "bytes"}
        return _ranged(file.data, file.kind, request.headers.get("range"), headers)

    async def _report(self, request: Request) -> Response:
        if not self._person(request).owner:
            raise Uninvited("the report is for whoever began this.", "Vote; it is shown to you later.")
        return _html(await asyncio.to_thread(report_html, self.store.path, linked=True))

    # -- answers -------------------------------------------------------------------------------------------------------

    async def _ask(self, request: Request) -> Response:
        person, _ = await self._body(request)
        return _json(await self.commits.run(lambda: self._state(person)))

    async def _vote(self, request: Request) -> Response:
        person, content = await self._body(request)
        ask, answer, criterion = (content.get(key) for key in ("id", "answer", "criterion"))
        if not (isinstance(ask, str) and isinstance(answer, str) and isinstance(criterion, str) and ask.isascii()):
            raise InputError("the answer lacks id, answer or criterion.", "Vote on the page itself.")
        seconds, took = content.get("seconds"), None
        if isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0 <= seconds <= _MONTH:
            took = float(seconds)

        def write() -> dict[str, Any]:
            paths = tuple(self.criteria)
            vote(self.store, person.id, ask, answer, criterion, criteria=paths, now=time.time(), seconds=took)
            if self.store.handing_out.compare:
                note_decision(self.store)
            return self._state(person)

        return _json(await self.commits.run(write))

    async def _undo(self, request: Request) -> Response:
        person, content = await self._body(request)
        last = content.get("last")
        if last is not None and (isinstance(last, bool) or not isinstance(last, int)):
            raise InputError("what is to be taken back is no answer's number.", "Take it back on the page itself.")

        def write() -> dict[str, Any]:
            undone = undo(self.store, person.id, last, time.time())
            if self.store.handing_out.compare:
                note_decision(self.store)
            return {"undone": undone} | self._state(person)

        return _json(await self.commits.run(write))

    def _state(self, person: Person) -> dict[str, Any]:
        """The pairs that a person has, the number of their last answer, and how far all are."""
        now = time.time()
        asks = hand_out(self.store, person.id, self.options.ahead, now, self.rng)
        for ask in asks:
            for side in ("left", "right", "image"):
                if ask[side] is not None:
                    ask[side] = {"src": f"/media/{ask[side]}", "video": self._moves(ask[side])}
        state = progress(self.store, person.id)
        shown = {"asks": asks, "last": last_vote(self.store, person.id)}
        return shown | {"progress": state | {"minutes": self.pace.minutes(now, state["cast"], state["wanted"])}}

    def _moves(self, medium: str) -> bool:
        if medium not in self.videos:
            path = self.media[medium][0]
            try:
                self.videos[medium] = not path.is_dir() and is_video(path)
            except InputError:  # it is gone: the page says so where it loads it, and other pairs go on
                return False
        return self.videos[medium]

    # -- from start to end ---------------------------------------------------------------------------------------------

    def run(self, ready: Callable[[str], object]) -> None:
        """Serve until SIGTERM or Ctrl-C. ready: is told the address. Raises InputError where that cannot be had."""
        serve_until_ended(self.app, self.options.host, self.options.port, ready, _SHUTDOWN_SECONDS)

    def background(self) -> AbstractContextManager[str]:
        """Serve from a thread of this process, in tests; yields the address, and ends with the block."""
        return serve_in_background(self.app, self.options.host, self.options.port, _SHUTDOWN_SECONDS)


class Pace:
    """How fast votes come, over the last half hour."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, int]] = deque(maxlen=30)

    def minutes(self, now: float, cast: int, wanted: int) -> float | None:
        """About how many minutes the votes that are still wanted take; None where it is not known yet."""
        if not self._marks or now - self._marks[-1][0] > 60:
            self._marks.append((now, cast))
        began, before = self._marks[0]
        if cast - before < 5 or now <= began:
            return None
        return round(max(wanted - cast, 0) * (now - began) / (cast - before) / 60, 1)


def check_open(options: PageOptions) -> None:
    """Raises InputError where a page that others can reach invites nobody."""
    if options.host not in LOOPBACK and not options.people:
        raise InputError(
            f"a page at {options.host} can be opened by others, and nobody is invited.",
            "Say who: --people anna,ben. Each gets a link.",
        )


def _json(content: dict[str, Any], status: int = 200) -> Response:
    return Response(json.dumps(content, allow_nan=False).encode(), status, media_type="application/json")


def _html(text: str, status: int = 200) -> Response:
    return Response(text, status, media_type="text/html; charset=utf-8")


def _ranged(data: bytes, kind: str, range_header: str | None, headers: dict[str, str]) -> Response:
    """The bytes, or the part of them that a player asks for to seek in a video."""
    first, _, last = (range_header or "").removeprefix("bytes=").partition("-")
    if not (range_header and range_header.startswith("bytes=") and _is_place(first) and (_is_place(last) or not last)):
        return Response(data, 200, headers, kind)
    begin, end = int(first), min(int(last) if last else len(data) - 1, len(data) - 1)
    if begin > end:
        return Response(status_code=416, headers={"Content-Range": f"bytes */{len(data)}"})
    return Response(data[begin : end + 1], 206, headers | {"Content-Range": f"bytes {begin}-{end}/{len(data)}"}, kind)


def _is_place(text: str) -> bool:
    """Is it the number of a byte, as headers write it?"""
    return text.isascii() and text.isdigit() and len(text) < 20


def _refusal(error: Exception, wants_page: bool) -> Response:
    """The reply that says what is wrong: a page to who opened one, else JSON."""
    if not isinstance(error, RewardDanceError):
        log.error("a request failed", exc_info=error)
        error = RewardDanceError(*for_clients(error))
    kinds = ((Uninvited, 403), (Unknown, 404), (Refused, 409), (InputError, 400))
    status = next((number for kind, number in kinds if isinstance(error, kind)), 500)
    if wants_page:
        return _html(ENVIRONMENT.get_template("refused.html").render(what=error.what, remedy=error.remedy), status)
    content = {"message": error.what, "remedy": error.remedy, "lost": isinstance(error, Refused) and error.lost}
    return _json({"error": content}, status)
