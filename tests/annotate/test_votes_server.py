"""The server of the page: who may vote on what, and what a browser is told."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import httpx2
import pytest
from PIL import Image, PngImagePlugin
from voters import picture, store_of

from rewarddance.annotate.recipe import HandingOut, PageOptions
from rewarddance.annotate.server import VoteServer, check_open
from rewarddance.annotate.store import Pair, Store
from rewarddance.errors import InputError
from rewarddance.jobs.annotate import invite, links

ORIGINS = ("http://votes.example.org", "https://evil.example", "http://[bad")
MARKUP = '<img src=x onerror=alert(1)> & "a <b>cat</b>" \'s'


class Browser(httpx2.Client):
    """A person's browser, who came by an invitation."""

    def __init__(self, address: str, token: str | None = None) -> None:
        super().__init__(base_url=address, timeout=30, trust_env=False)
        if token is not None:
            assert self.get(f"/i/{token}").status_code == 303

    def __enter__(self) -> Browser:
        return self  # it is open since it came

    def asks(self) -> list[dict[str, Any]]:
        return self.post("/ask", json={}).json()["asks"]

    def vote(self, ask: str, answer: str = "left", criterion: str = "", **more: Any) -> httpx2.Response:
        content = {"id": ask, "answer": answer, "criterion": criterion, "seconds": 1.5} | more
        return self.post("/vote", json=content)


@contextmanager
def served(store: Store, *people: str, **options: Any) -> Iterator[tuple[str, dict[str, str]]]:
    """The address of a page, and the token of each person."""
    tokens = {name: store.invite(name) for name in people}
    if people:
        tokens["owner"] = store.invite("owner", owner=True)
    with VoteServer(store, PageOptions(port=0, people=people, **options)).background() as address:
        yield address, tokens


def cast(store: Store) -> list[tuple[str, int, str]]:
    rows = "SELECT name, pair, answer FROM votes v JOIN asks ON asks.id = v.ask JOIN people ON people.id = person"
    return [tuple(row) for row in store.db.execute(f"{rows} WHERE withdrawn IS NULL")]


def test_a_vote_is_acknowledged_with_the_pairs_that_follow(tmp_path):
    store = store_of(tmp_path, 5)
    with served(store) as (address, _), Browser(address) as browser:
        asks = browser.asks()
        assert len(asks) == 3 and browser.asks() == asks  # a reload shows the same
        reply = browser.vote(asks[0]["id"]).json()
        assert [ask["id"] for ask in reply["asks"][:2]] == [ask["id"] for ask in asks[1:]]
        assert reply["progress"] == {"yours": 1, "cast": 1, "wanted": 5, "minutes": None}
        again = browser.post("/undo", json={"last": reply["last"] + 1}).json()
        assert again["undone"] is None and again["progress"]["cast"] == 1
        undone = browser.post("/undo", json={"last": reply["last"]}).json()
        assert undone["undone"] == asks[0]["id"] == undone["asks"][0]["id"] and undone["progress"]["cast"] == 0
    assert cast(store) == []


def test_nothing_that_the_page_gets_says_who_made_what(tmp_path):
    store = store_of(tmp_path, 4, models=("secret-model", "other-model"))
    with served(store) as (address, _), Browser(address) as browser:
        asks = browser.asks()
        texts = [browser.get("/").text, json.dumps(asks), str(browser.get(asks[0]["left"]["src"]).headers)]
    assert not any(word in text for text in texts for word in ("secret", "other-model", "png-", str(tmp_path), "tiny"))


def test_a_pictures_metadata_does_not_leave_the_server(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "made by secret-model")
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png", pnginfo=info)
    exif = Image.Exif()
    exif[0x010E] = "made by secret-model"
    Image.new("RGB", (32, 32), "red").save(tmp_path / "b.jpg", exif=exif)
    store = Store(tmp_path / "votes.sqlite", HandingOut())
    store.add_pairs([Pair("a red square", tmp_path / "a.png", tmp_path / "b.jpg")])
    with served(store) as (address, _), Browser(address) as browser:
        (ask,) = browser.asks()
        for side in ("left", "right"):
            shown = browser.get(ask[side]["src"])
            assert shown.headers["content-type"] == "image/png" and b"secret" not in shown.content
            assert Image.open(BytesIO(shown.content)).size == (32, 32)


def test_a_prompt_and_a_name_with_markup_are_text(tmp_path):
    picture(tmp_path / MARKUP.replace("/", "") / "<b>.png", 1)
    picture(tmp_path / "b.png", 2)
    store = Store(tmp_path / "votes.sqlite", HandingOut())
    folder = tmp_path / MARKUP.replace("/", "")
    store.add_pairs([Pair(MARKUP, folder / "<b>.png", tmp_path / "b.png", model_a="<i>x</i>", model_b="y")])
    with served(store) as (address, _), Browser(address) as browser:
        (ask,) = browser.asks()
        assert ask["prompt"] == MARKUP
        assert browser.get(ask["left"]["src"]).status_code == 200
        browser.vote(ask["id"])
        report = browser.get("/report").text
    assert "<i>x</i>" not in report and "&lt;i&gt;x&lt;/i&gt;" in report
    assert "onerror" not in browser_page(store)


def browser_page(store: Store) -> str:
    with served(store) as (address, _), Browser(address) as browser:
        return browser.get("/").text


def test_only_who_is_invited_sees_anything(tmp_path):
    store = store_of(tmp_path, 6)
    with served(store, "anna") as (address, tokens):
        anna, stranger = Browser(address, tokens["anna"]), Browser(address)
        (ask, *_) = anna.asks()
        for reply in (
            stranger.get("/"),
            stranger.get("/report"),
            stranger.get(ask["left"]["src"]),
            stranger.get("/i/" + tokens["anna"][:-1] + ("_" if tokens["anna"][-1] != "_" else "-")),
            stranger.post("/ask", json={}),
            stranger.post("/vote", json={"id": ask["id"], "answer": "left", "criterion": ""}),
        ):
            assert reply.status_code == 403
        assert anna.get("/report").status_code == 403
        assert Browser(address, tokens["owner"]).get("/report").status_code == 200
    assert cast(store) == []


def test_anothers_pair_and_an_altered_vote_are_refused(tmp_path):
    store = store_of(tmp_path, 6)
    with served(store, "anna", "ben") as (address, tokens):
        anna, ben = Browser(address, tokens["anna"]), Browser(address, tokens["ben"])
        ask = anna.asks()[0]["id"]
        assert ben.vote(ask).status_code == 409
        assert anna.vote(ask, "a").status_code == 409
        assert anna.vote(ask, criterion="colour").status_code == 409
        assert anna.vote(ask[:-1] + ("_" if ask[-1] != "_" else "-")).status_code == 409
        assert anna.vote(["left"]).status_code == 400  # type: ignore[arg-type]
        assert anna.vote(ask, "left", seconds="NaN").status_code == 200
        assert anna.vote(ask, "left").status_code == 200  # sent again, as after a lost reply
        assert anna.vote(ask, "right").status_code == 409
    assert len(cast(store)) == 1


def test_paths_lead_to_nothing_outside_the_store(tmp_path):
    store = store_of(tmp_path, 2)
    (tmp_path / "secret.txt").write_text("secret")
    with served(store) as (address, _), Browser(address) as browser:
        for path in (
            "/media/../secret.txt",
            "/media/%2e%2e%2fsecret.txt",
            f"/media/{tmp_path}/secret.txt".replace("//", "/%2f"),
            "/static/../server.py",
            "/static/vote.html",
            "/static/%2e%2e%2fstore.py",
        ):
            assert browser.get(path).status_code in (403, 404)


def test_another_page_or_host_cannot_vote(tmp_path):
    store = store_of(tmp_path, 3)
    with served(store) as (address, _), Browser(address) as browser:
        assert browser.post("/ask", json={}, headers={"origin": "http://evil.example"}).status_code == 403
        assert browser.post("/ask", json={}, headers={"host": "evil.example"}).status_code == 403
        assert browser.post("/ask", data={"id": "x"}).status_code == 400
        assert (
            browser.post("/ask", content=b"[" * 5000, headers={"content-type": "application/json"}).status_code == 400
        )
        big = json.dumps({"id": "x" * 20000})
        assert browser.post("/vote", content=big, headers={"content-type": "application/json"}).status_code == 400
        assert browser.post("/ask", json={}, headers={"origin": address}).status_code == 200


def test_every_reply_keeps_scripts_and_frames_out(tmp_path):
    with served(store_of(tmp_path, 3)) as (address, _), Browser(address) as browser:
        src = browser.asks()[0]["left"]["src"]
        for path in ("/", "/static/vote.js", "/static/votes.css", "/report", src, "/media/none"):
            headers = browser.get(path).headers
            policy = headers["content-security-policy"]
            assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
            assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"


def test_a_page_that_others_can_reach_invites_somebody():
    with pytest.raises(InputError, match=r"0\.0\.0\.0"):
        check_open(PageOptions(host="0.0.0.0"))
    check_open(PageOptions(host="0.0.0.0", people=("anna",)))


def test_many_people_at_once_lose_no_vote_and_cast_none_twice(tmp_path):
    store = store_of(tmp_path, 120, overlap=0.3, overlap_votes=2)
    names = [f"person{n}" for n in range(8)]
    acknowledged: list[tuple[str, str]] = []
    with served(store, *names) as (address, tokens):

        def work(name: str) -> None:
            with Browser(address, tokens[name]) as browser:
                asks = browser.asks()
                while asks:
                    reply = browser.vote(asks[0]["id"], "right")
                    assert reply.status_code == 200, reply.text
                    acknowledged.append((name, asks[0]["id"]))
                    asks = reply.json()["asks"]

        threads = [threading.Thread(target=work, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    votes = cast(store)
    assert len(votes) == len(acknowledged) == len(set(acknowledged)) == store.count("wanted")
    wanted = dict(store.db.execute("SELECT id, wanted FROM pairs").fetchall())
    assert Counter(pair for _, pair, _ in votes) == wanted
    assert len({(name, pair) for name, pair, _ in votes}) == len(votes)


def test_the_report_of_the_page_has_every_figure(tmp_path):
    store = store_of(tmp_path, 12, models=("new", "old", "other"), overlap=1.0, overlap_votes=2, tests=2, test_every=3)
    with served(store, "anna", "ben") as (address, tokens):
        for number, name in enumerate(("anna", "ben")):
            with Browser(address, tokens[name]) as browser:
                while asks := browser.asks():
                    browser.vote(asks[0]["id"], ("left", "right", "tie", "bad")[(len(cast(store)) + number) % 4])
        text = Browser(address, tokens["owner"]).get("/report").text
    text = " ".join(text.split())
    for words in ("24 votes on 12 pairs by 2 people", "anna", "Krippendorff", "Models", "divide people", "of 2"):
        assert words in text


def test_a_picture_that_is_gone_stops_nobody_and_shows_no_path(tmp_path):
    store = store_of(tmp_path, 5)
    with served(store, "anna", ahead=1) as (address, tokens), Browser(address, tokens["anna"]) as browser:
        (first,) = browser.asks()
        for file in (tmp_path / "pictures").iterdir():
            file.unlink()
        (following,) = browser.vote(first["id"]).json()["asks"]
        lost = browser.get(following["left"]["src"])
        assert lost.status_code == 400 and "Skip its pair" in lost.text and str(tmp_path) not in lost.text
        assert browser.vote(following["id"], "skip").status_code == 200
    assert sorted(answer for _, _, answer in cast(store))[1] == "skip"


def test_a_page_behind_a_proxy_is_itself_with_or_without_a_slash(tmp_path):
    store = store_of(tmp_path, 3)
    with served(store, "anna", address="http://Votes.example.org/") as (address, tokens):
        browser = Browser(address, tokens["anna"])
        asked = {origin: browser.post("/ask", json={}, headers={"Origin": origin}).status_code for origin in ORIGINS}
    assert asked == {"http://votes.example.org": 200, "https://evil.example": 403, "http://[bad": 403}


def test_what_no_page_would_send_is_refused_or_left_out(tmp_path):
    store = store_of(tmp_path, 5)
    with served(store) as (address, _), Browser(address) as browser:
        ask = browser.asks()[0]
        assert browser.vote("\ud800".encode("utf-8", "surrogatepass").decode("latin-1")).status_code == 400
        source = ask["left"]["src"]
        assert browser.get(source, headers={"Range": f"bytes={'9' * 5000}-"}).status_code == 200
        assert browser.vote(ask["id"], seconds=10**400).status_code == 200
    assert len(cast(store)) == 1


def test_whoever_is_not_named_any_more_has_no_link(tmp_path):
    store = store_of(tmp_path, 3)
    first = invite(store, ["anna", "ben"])
    [*links(store.path, first, "http://here")]
    second = invite(store, ["anna"])
    assert second == {name: first[name] for name in ("anna", "owner")}
    assert {person.name for person in store.people().values()} == {"anna", "owner"}
    with pytest.raises(ValueError, match="printable"):
        PageOptions(people=("x\ty",))
