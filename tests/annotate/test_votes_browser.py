"""The page in a real browser: votes by keys alone, undo, reload, two people at once, a phone, a screen reader."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from browsing import browser, complaints, press, violations, wait
from test_votes_server import MARKUP, cast, served
from voters import pairs_of, picture, store_of

from rewarddance.annotate.handing_out import BIG_STICK
from rewarddance.annotate.recipe import HandingOut
from rewarddance.annotate.store import Pair, Store

pytestmark = pytest.mark.timeout(600)
LEFT, RIGHT, DOWN = "\ue012", "\ue014", "\ue015"
ROOT = Path(__file__).parents[2]


def loaded(driver: Any) -> None:
    """Both candidates are there."""
    shown = "[...document.querySelectorAll('.frame img')]"
    wait(driver, f"{shown}.length === 2 && {shown}.every((one) => one.complete && one.naturalWidth > 0)")


def voted(driver: Any, count: int) -> None:
    wait(driver, f"document.getElementById('yours').textContent.startsWith('{count} ')")


def vote_by_keys(driver: Any, first: int, last: int, keys: tuple[str, ...] = (LEFT, RIGHT, DOWN, "b")) -> None:
    for number in range(first, last):
        press(driver, keys[number % len(keys)])
        voted(driver, number + 1)


def test_fifty_votes_by_keys_alone_with_undo_and_reload_in_the_middle(tmp_path):
    store = store_of(tmp_path, 50)
    with served(store) as (address, _), browser() as driver:
        driver.get(address)
        loaded(driver)
        vote_by_keys(driver, 0, 20)
        prompt = driver.find_element("id", "prompt").text
        driver.refresh()
        loaded(driver)
        voted(driver, 20)
        assert driver.find_element("id", "prompt").text == prompt  # the same pair as before
        press(driver, "u")
        voted(driver, 19)
        press(driver, "s")  # a skip is no vote
        wait(driver, "document.getElementById('told').textContent === 'Skipped, saved.'")
        press(driver, "u")
        wait(driver, "document.getElementById('told').textContent.includes('taken back')")
        vote_by_keys(driver, 19, 50)
        wait(driver, "document.getElementById('prompt').textContent.includes('nothing left')")
        assert complaints(driver) == []
    votes = cast(store)
    assert len(votes) == len({pair for _, pair, _ in votes}) == 50
    assert {answer for *_, answer in votes} == {"a", "b", "tie", "bad"}
    row = store.db.execute("SELECT straight, swapped FROM people").fetchone()
    assert abs(row["straight"] - row["swapped"]) <= BIG_STICK


def test_two_browsers_at_once_share_the_pairs(tmp_path):
    store = store_of(tmp_path, 24)
    with served(store, "anna", "ben") as (address, tokens), browser() as anna, browser() as ben:
        for driver, name in ((anna, "anna"), (ben, "ben")):
            driver.get(f"{address}/i/{tokens[name]}")
            loaded(driver)
        for number in range(12):
            for driver in (anna, ben):
                if driver.execute_script("return current !== null"):
                    before = driver.execute_script(
                        "return Number(document.getElementById('yours').textContent.split(' ')[0])"
                    )
                    press(driver, LEFT if number % 2 else RIGHT)
                    voted(driver, before + 1)
        assert complaints(anna) == complaints(ben) == []
    votes = cast(store)
    assert len(votes) == len({pair for _, pair, _ in votes}) == 24
    assert {name for name, *_ in votes} == {"anna", "ben"}


def test_a_prompt_with_markup_is_shown_as_text_and_runs_nothing(tmp_path):
    store = Store(tmp_path / "votes.sqlite", HandingOut())
    files = [picture(tmp_path / name, n) for n, name in enumerate(("<b>a.png", "b.png"))]
    store.add_pairs([Pair(MARKUP, *files)])
    with served(store) as (address, _), browser() as driver:
        driver.get(address)
        loaded(driver)
        assert driver.find_element("id", "prompt").text == MARKUP
        assert driver.execute_script("return document.querySelectorAll('h1 *').length") == 0
        assert complaints(driver) == []


def test_zoom_moves_both_pictures_alike(tmp_path):
    with served(store_of(tmp_path, 3)) as (address, _), browser() as driver:
        driver.get(address)
        loaded(driver)
        transforms = "[...document.querySelectorAll('.frame img')].map((one) => one.style.transform)"
        assert driver.execute_script(f"return {transforms}") == ["translate(0%, 0%) scale(1)"] * 2
        press(driver, "+")
        left, right = driver.execute_script(f"return {transforms}")
        assert left == right and "scale(1.5)" in left
        press(driver, "0")
        assert driver.execute_script(f"return {transforms}") == ["translate(0%, 0%) scale(1)"] * 2


def test_criteria_are_asked_one_by_one(tmp_path):
    store = store_of(tmp_path, 2, criteria="t2i")
    with served(store) as (address, _), browser() as driver:
        driver.get(address)
        loaded(driver)
        seen = []
        for _ in range(7):
            seen.append(driver.find_element("css selector", "#criterion b").text)
            press(driver, LEFT)
            wait(driver, f"document.querySelector('#criterion b').textContent !== '{seen[-1]}'")
        assert seen == ["objects:", "count:", "colour:", "position:", "binding:", "sharpness:", "artefacts:"]
        voted(driver, 1)
    criteria = {row[0] for row in store.db.execute("SELECT criterion FROM votes")}
    assert len(criteria) == 7 and "alignment/count" in criteria


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (500, False), (500, True)])
def test_axe_finds_nothing_wrong_with_the_pages(tmp_path, width, dark):
    store = store_of(tmp_path, 6, overlap=1.0, overlap_votes=2, models=("new", "old"))
    with served(store) as (address, _), browser(width, 800, dark) as driver:
        driver.get(address)
        loaded(driver)
        assert violations(driver) == []
        assert driver.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
        vote_by_keys(driver, 0, 4)
        driver.get(f"{address}/report")
        assert violations(driver) == []
        driver.get(f"{address}/i/unknown")
        assert violations(driver) == []


def test_a_person_on_a_phone_votes_by_buttons(tmp_path):
    store = store_of(tmp_path, 4)
    with served(store) as (address, _), browser(500, 800) as driver:
        driver.get(address)
        loaded(driver)
        for number, answer in enumerate(("left", "tie", "bad", "right"), start=1):
            button = driver.find_element("css selector", f"[data-answer={answer}]")
            assert button.size["height"] >= 44  # what a thumb hits
            button.click()
            voted(driver, number)
    assert len(cast(store)) == 4


def test_a_server_killed_between_votes_loses_none_and_the_page_goes_on(tmp_path):
    pairs_of(tmp_path / "pictures", 30)
    rows = [
        f'{{"prompt": "{pair.prompt}", "media_a": "{pair.a}", "media_b": "{pair.b}"}}'
        for pair in pairs_of(tmp_path / "pictures", 30)
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(rows))
    port = 8000 + os.getpid() % 20000
    command = [sys.executable, "-m", "rewarddance", "annotate", str(tmp_path / "pairs.jsonl"), "--overlap", "0"]
    command += ["--store", str(tmp_path / "votes.sqlite"), "--port", str(port)]

    def start() -> subprocess.Popen[bytes]:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert b"vote at" in process.stdout.readline()
        return process

    process = start()
    try:
        with browser() as driver:
            driver.get(f"http://127.0.0.1:{port}")
            loaded(driver)
            for number in range(30):
                press(driver, (LEFT, RIGHT)[number % 2])
                if number in (7, 19):  # right after the key: acknowledged or not, it counts once
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    time.sleep(0.3)
                    process = start()
                voted(driver, number + 1)
            wait(driver, "document.getElementById('prompt').textContent.includes('nothing left')")
    finally:
        process.terminate()
        process.wait(30)
    votes = cast(Store(tmp_path / "votes.sqlite"))
    assert len(votes) == len({pair for _, pair, _ in votes}) == 30
