"""Reasons from a teacher: agreeing ones are kept, all others stand apart with what was wrong, and nothing is lost."""

from __future__ import annotations

import base64
import io
import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import command

from rewarddance.data.preferences import PreferenceSet, write_preferences
from rewarddance.errors import InputError
from rewarddance.jobs.distil import Unanswered, decision, distil
from rewarddance.jobs.recipes import DistilRun
from rewarddance.runtime.lock import locked
from rewarddance.types import Preference

PROMPTS = ("a dark one", "a light one", "any one", "a grey one")
SHARES = (0.0, 1.0, 0.5, 0.8)
"""Of the four pairs below: first, second, a tie, mostly second. The second picture of each pair is the lighter one."""


class Teacher:
    """A server on this machine that speaks the protocol. `say` makes the reply of a request's body and number."""

    def __init__(self, say: Callable[[dict, int], Any]) -> None:
        self.requests: list[dict] = []
        self.keys: set[str | None] = set()
        self.lock, teacher = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with teacher.lock:
                    teacher.requests.append(body)
                    teacher.keys.add(self.headers["Authorization"])
                    number = sum(asked(old) == asked(body) for old in teacher.requests)
                reply = say(body, number) if self.path == "/v1/chat/completions" else (404, "no such page", {})
                if reply is None:  # the connection is cut in the middle
                    self.send_response(200)
                    self.send_header("Content-Length", "1000")
                    self.end_headers()
                    self.wfile.write(b'{"choices": [')
                    self.wfile.flush()
                    self.close_connection = True
                    return
                status, text, headers = reply
                self.send_response(status)
                for name, value in {"Content-Length": str(len(text.encode())), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def asked(body: dict) -> tuple[str, bool]:
    """Which question a request holds: its prompt, and whether the lighter picture is the reference."""
    content = body["messages"][0]["content"]
    prompt = next(one for one in PROMPTS if one in content[0]["text"])
    reference, candidate = (brightness(part) for part in content if part["type"] == "image_url")
    return prompt, reference > candidate


def brightness(part: dict) -> float:
    data = base64.b64decode(part["image_url"]["url"].removeprefix("data:image/png;base64,"))
    return float(np.asarray(Image.open(io.BytesIO(data))).mean())


def completion(text: str, **choice: Any) -> tuple[int, str, dict]:
    return 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}, **choice}]}), {}


def right(body: dict, number: int) -> tuple[int, str, dict]:
    """What the votes say, and a reason that names prompt and order."""
    prompt, swapped = asked(body)
    lighter_wins = SHARES[PROMPTS.index(prompt)] > 0.5
    return completion(f"**{'Yes' if lighter_wins != swapped else 'No'}.** Because of {prompt}, {swapped}.")


@pytest.fixture
def start() -> Iterator[Callable[..., Teacher]]:
    started: list[Teacher] = []

    def begin(say: Callable[[dict, int], Any]) -> Teacher:
        started.append(Teacher(say))
        return started[-1]

    yield begin
    for teacher in started:
        teacher.close()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch) -> None:
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)


@pytest.fixture
def pairs(tmp_path) -> Path:
    dark, light = torch.full((1, 3, 4, 4), 0.2), torch.full((1, 3, 4, 4), 0.8)
    preferences = [Preference(p, dark.clone(), light.clone(), s, "test") for p, s in zip(PROMPTS, SHARES, strict=True)]
    write_preferences(preferences, tmp_path / "data" / "pairs.jsonl")
    return tmp_path / "data" / "pairs.jsonl"


def recipe(pairs: Path, teacher: Teacher, **changes: Any) -> DistilRun:
    output = pairs.parent.parent / "out" / "reasons.jsonl"
    options = {"model": "large", "output": output, "retries": 2, "concurrency": 3}
    return DistilRun(**{"preferences": pairs, "endpoint": teacher.endpoint} | options | changes)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_reasons_that_agree_with_the_votes_become_preferences_to_train_on(pairs, start):
    teacher = start(right)
    run = recipe(pairs, teacher)
    assert distil(run) == {
        "kept": 6, "disagreed": 0, "failed": 0, "pairs": 3, "ties": 1, "answers": 6, "output": str(run.output),
    }  # fmt: skip
    learned = list(PreferenceSet(run.output))
    assert [p.prompt.text for p in learned] == [PROMPTS[0], PROMPTS[1], PROMPTS[3]]
    assert [p.share for p in learned] == [0.0, 1.0, 0.8]
    for p in learned:
        assert (
            p.reason == f"Because of {p.prompt.text}, False."
            and p.reason_swapped == f"Because of {p.prompt.text}, True."
        )
        assert p.first.mean() < p.second.mean() and p.source == "test"


@pytest.mark.parametrize("key", ["model", "messages", "stream"])
def test_a_further_field_that_would_change_the_question_is_refused(pairs, start, key):
    with pytest.raises(ValueError, match=f"{key} is the run's own"):
        recipe(pairs, start(right), body={key: "other"})


def test_answers_in_both_orders_are_kept_when_one_is_asked_for_later(pairs, start):
    both = recipe(pairs, start(right))
    distil(both)
    before = both.output.read_bytes()
    distil(both.model_copy(update={"orders": "forward"}))
    assert both.output.read_bytes() == before


def test_the_teacher_is_asked_the_judges_question_with_data_urls(pairs, start):
    teacher = start(right)
    distil(recipe(pairs, teacher, orders="forward", body={"temperature": 0, "max_tokens": 99}))
    assert len(teacher.requests) == 3
    body = teacher.requests[0]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("large", 0, 99)
    kinds = [part["type"] for part in body["messages"][0]["content"]]
    assert kinds == ["text", "image_url", "text", "image_url", "text"]
    assert body["messages"][0]["content"][-1]["text"].endswith("Answer yes or no. Then give the reason.")
    assert {asked(one)[1] for one in teacher.requests} == {False}


def test_the_key_comes_from_the_environment_and_goes_nowhere_else(pairs, start, monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret-123")
    teacher = start(right)
    run = recipe(pairs, teacher, api_key_env="MY_KEY")
    distil(run)
    assert teacher.keys == {"Bearer secret-123"}
    assert not any("secret-123" in file.read_text() for file in run.output.parent.iterdir())
    monkeypatch.delenv("MY_KEY")
    other = start(right)
    distil(recipe(pairs, other, output=run.output.with_name("again.jsonl"), api_key_env="MY_KEY"))
    assert other.keys == {None}


@pytest.mark.parametrize("status", [200, 400, 401])
def test_a_key_that_the_teacher_quotes_is_in_no_file_and_no_message(pairs, start, monkeypatch, status):
    monkeypatch.setenv("MY_KEY", "secret-123")
    monkeypatch.setenv("OTHER_API_TOKEN", "hidden-456")
    said = "Yes. I know secret-123 and hidden-456"

    def say(body: dict, number: int):
        quoted = completion(said)[1] if status == 200 else said
        return (status, quoted, {}) if asked(body)[0] == PROMPTS[1] else right(body, number)

    teacher = start(say)
    endpoint = teacher.endpoint.replace("//", "//me:pass-789@") if status == 401 else teacher.endpoint
    run = recipe(pairs, teacher, api_key_env="MY_KEY", endpoint=endpoint, body={"user": "hidden-456"})
    told = ""
    try:
        distil(run)
    except InputError as error:
        told = str(error)
    assert bool(told) == (status == 401)
    told += "".join(file.read_text() for file in run.output.parent.iterdir())
    assert not any(word in told for word in ("secret-123", "hidden-456", "pass-789"))
    assert "($MY_KEY)" in told


def test_what_a_teacher_said_is_readable_by_its_owner_alone(pairs, start):
    run = recipe(pairs, start(right))
    before = os.umask(0o022)
    try:
        distil(run)
    finally:
        os.umask(before)
    modes = {file.name: file.stat().st_mode & 0o777 for file in run.output.parent.iterdir()}
    assert modes.pop("reasons.jsonl") == 0o644
    assert set(modes) == {f"reasons.{name}.jsonl" for name in ("answers", "disagreed", "failed")}
    assert set(modes.values()) == {0o600}


def test_a_second_distillation_of_one_output_is_refused(pairs, start):
    run = recipe(pairs, start(right))
    run.output.parent.mkdir(parents=True)
    with locked(run.output), pytest.raises(InputError, match="in use by another run"):
        distil(run)
    assert distil(run)["kept"] == 6 and not (run.output.parent / ".reasons.jsonl.lock").exists()


def test_an_answer_against_the_votes_stands_apart_with_its_reason(pairs, start):
    def say(body: dict, number: int):
        return completion("no, it is dull") if asked(body) == (PROMPTS[1], False) else right(body, number)

    run = recipe(pairs, start(say))
    assert distil(run)["disagreed"] == 1
    (apart,) = lines(run.output.with_name("reasons.disagreed.jsonl"))
    assert (apart["row"], apart["swapped"], apart["reason"], apart["share"]) == (1, False, "it is dull", 1.0)
    second = PreferenceSet(run.output)[1]
    assert second.reason == "" and second.reason_swapped


@pytest.mark.parametrize(
    "trouble",
    [
        (429, "slow down", {"Retry-After": "0"}),
        (429, "slow down", {}),
        (500, "oh", {}),
        (503, "", {}),
        (200, "{not json", {}),
        (200, '{"error": "none"}', {}),
        (200, '{"choices": []}', {}),
        (200, "[]", {}),
        None,
    ],
    ids=["429 with wait", "429", "500", "503", "malformed", "no choices", "empty choices", "a list", "cut"],
)
def test_what_passes_is_tried_again(pairs, start, trouble):
    teacher = start(lambda body, number: trouble if number <= 2 else right(body, number))
    assert distil(recipe(pairs, teacher, orders="forward"))["kept"] == 3
    assert len(teacher.requests) == 9


@pytest.mark.parametrize(
    ("trouble", "tries", "said"),
    [
        ((500, "oh no", {}), 3, "status 500: 'oh no' (3 tries)"),
        ((400, "too large", {}), 1, "status 400: 'too large'"),
        ((200, "{not json", {}), 3, "no chat completion"),
        (None, 3, "the connection broke"),
        (completion("Perhaps."), 1, "does not begin with yes or no: 'Perhaps.'"),
        (completion("Yes."), 1, "gives no reason"),
        (completion("Yes. Because the", finish_reason="length"), 1, "cut off at the server's limit of tokens"),
        (completion("Yes. Because the", finish_reason="content_filter"), 1, "cut off by the server's filter"),
        (completion(None), 3, "its content is no text"),  # type: ignore[arg-type]
        ((200, '{"choices": [{"message": {"content": null, "refusal": "No!"}}]}', {}), 1, "refuses: 'No!'"),
        ((200, "no gzip", {"Content-Encoding": "gzip"}), 3, "the connection broke: DecodingError"),
    ],
)
def test_what_does_not_pass_fails_by_itself_and_says_why(pairs, start, trouble, tries, said):
    def say(body: dict, number: int):
        return trouble if asked(body)[0] == PROMPTS[1] else right(body, number)

    teacher = start(say)
    run = recipe(pairs, teacher, orders="forward")
    counts = distil(run)
    assert (counts["kept"], counts["failed"]) == (2, 1)
    (failure,) = lines(run.output.with_name("reasons.failed.jsonl"))
    assert failure["row"] == 1 and failure["prompt"] == PROMPTS[1] and said in failure["error"]
    assert failure["remedy"] == "The same command asks once more."
    assert Counter(asked(body)[0] for body in teacher.requests)[PROMPTS[1]] == tries


@pytest.mark.parametrize(("limit", "most"), [("_LONGEST_REPLY", 1000), ("_LONGEST_SECONDS", 0.0)])
def test_a_reply_that_does_not_end_is_given_up(pairs, start, monkeypatch, limit, most):
    monkeypatch.setattr(f"rewarddance.jobs.distil.{limit}", most)
    run = recipe(pairs, start(lambda body, number: completion("Yes. " + "very " * 2000)), orders="forward", retries=1)
    assert distil(run)["failed"] == 3
    failures = lines(run.output.with_name("reasons.failed.jsonl"))
    assert all("the reply does not end after" in failure["error"] for failure in failures)


def test_where_every_answer_fails_nothing_was_done_and_it_is_said(pairs, start):
    endpoint = start(lambda body, number: completion("maybe")).endpoint
    output = pairs.parent / "reasons.jsonl"
    done = command("distil", pairs, "--endpoint", endpoint, "--model", "large", "--output", output, "--retries", "0")
    assert done.code == 2 and "6 of 6 answers failed" in done.err and "reasons.failed.jsonl" in done.err


def test_a_journal_of_failures_alone_goes_on_as_one_that_begins(pairs, start):
    words = [pairs, "--model", "large", "--output", pairs.parent / "reasons.jsonl", "--retries", "0"]
    broken = start(lambda body, number: completion("maybe"))
    for _ in range(2):
        done = command("distil", *words, "--endpoint", broken.endpoint)
        assert done.code == 2 and "6 of 6 answers failed" in done.err
    half = start(lambda body, n: completion("maybe") if asked(body)[0] == PROMPTS[3] else right(body, n))
    assert command("distil", *words, "--endpoint", half.endpoint).code == 1 and len(half.requests) == 6
    mended = start(right)
    done = command("distil", *words, "--endpoint", mended.endpoint)
    assert done.code == 0 and json.loads(done.out)["kept"] == 6 and len(mended.requests) == 2


@pytest.mark.parametrize("change", [{"outcome": "lost"}, {"row": "0"}, {"swapped": 3}, {"text": None}, "deep", "twice"])
def test_a_journal_with_a_line_that_is_no_answer_is_refused(pairs, start, change):
    run = recipe(pairs, start(right))
    distil(run)
    journal = run.output.with_name("reasons.answers.jsonl")
    first, second, *rest = journal.read_text().splitlines()
    if isinstance(change, dict):
        second = json.dumps(json.loads(second) | change)
    else:
        second = "[" * 5000 if change == "deep" else second.replace('{"row"', '{"row": 1, "row"')
    journal.write_text("\n".join([first, second, *rest]) + "\n")
    with pytest.raises(InputError, match=r"the journal .*answers\.jsonl cannot be used"):
        distil(run)


def test_an_output_that_is_no_json_lines_file_is_refused_before_anybody_is_asked(pairs, tmp_path):
    with pytest.raises(InputError, match=r"reasons.parquet is no JSON Lines"):
        distil(DistilRun(preferences=pairs, output=tmp_path / "reasons.parquet", endpoint="http://x.test", model="m"))


def test_pairs_that_are_all_ties_leave_nothing_to_ask(tmp_path, start):
    picture = torch.full((1, 3, 4, 4), 0.2)
    write_preferences([Preference("a dog", picture, picture.clone(), 0.5)], tmp_path / "ties.jsonl")
    with pytest.raises(InputError, match=r"ties\.jsonl are ties"):
        distil(recipe(tmp_path / "ties.jsonl", start(right)))


def test_a_picture_that_is_gone_fails_by_itself(pairs, start):
    (pairs.parent / "pairs_media" / "000001_b.png").write_bytes(b"no picture")
    run = recipe(pairs, start(right))
    assert distil(run)["failed"] == 2
    assert "000001_b.png" in lines(run.output.with_name("reasons.failed.jsonl"))[0]["error"]


def test_a_second_run_asks_only_for_what_failed(pairs, start):
    broken = start(lambda body, n: (400, "no", {}) if asked(body)[0] == PROMPTS[3] else right(body, n))
    run = recipe(pairs, broken)
    assert distil(run)["failed"] == 2
    mended = start(right)
    counts = distil(recipe(pairs, mended))
    assert (counts["kept"], counts["failed"]) == (6, 0)
    assert {asked(body)[0] for body in mended.requests} == {PROMPTS[3]} and len(mended.requests) == 2
    assert not lines(run.output.with_name("reasons.failed.jsonl"))
    assert len(PreferenceSet(run.output)) == 3


def test_a_run_that_was_cut_off_anywhere_ends_with_the_same_files(pairs, start):
    teacher = start(right)
    whole = recipe(pairs, teacher, concurrency=1)
    distil(whole)
    journal = whole.output.with_name("reasons.answers.jsonl").read_bytes()
    for cut in range(0, len(journal), 97):
        part = whole.output.with_name(f"cut{cut}.jsonl")
        part.with_name(f"cut{cut}.answers.jsonl").write_bytes(journal[:cut])
        distil(recipe(pairs, teacher, output=part))
        assert part.read_bytes() == whole.output.read_bytes()


def test_a_journal_of_another_teacher_or_other_pairs_is_refused(pairs, start):
    teacher = start(right)
    run = recipe(pairs, teacher)
    distil(run)
    with pytest.raises(InputError, match="model = 'large', not 'larger'"):
        distil(recipe(pairs, teacher, model="larger"))
    pairs.write_text(pairs.read_text().replace("0.8", "0.9"))
    with pytest.raises(InputError, match="preferences_sha256"):
        distil(run)
    with pytest.raises(InputError, match=r"pairs\.jsonl exists, and no earlier distillation"):
        distil(recipe(pairs, teacher, output=pairs))


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_server_that_refuses_all_ends_the_run_and_keeps_what_there_is(pairs, start, status):
    def say(body: dict, number: int):
        return right(body, number) if asked(body)[0] == PROMPTS[0] else (status, "go away", {})

    run = recipe(pairs, start(say), concurrency=1)
    with pytest.raises(InputError, match=f"status {status}.*OPENAI_API_KEY"):
        distil(run)
    assert len(PreferenceSet(run.output)) == 1


def test_a_server_that_is_not_there_is_an_error_that_names_it(pairs, start):
    teacher = start(right)
    teacher.close()
    with pytest.raises(InputError, match=r"the teacher at http://127.*/v1/chat/completions cannot be reached"):
        distil(recipe(pairs, teacher))


@pytest.mark.parametrize(
    "text",
    ["yes. It is", "Yes, it is", "**Yes**\n\nit is", "YES - it is", '"Yes": it is', "<think>No?</think>\n\nYes. It is"],
)
def test_a_decision_is_read_however_it_is_dressed(text):
    yes, reason = decision(text)
    assert yes and reason.lower() == "it is"


@pytest.mark.parametrize("text", ["", "Yesterday it was", "Nothing", "The answer is yes", "no", "no."])
def test_what_is_no_decision_with_a_reason_is_not_taken_for_one(text):
    with pytest.raises(Unanswered):
        decision(text)


def test_the_command_counts_aloud_and_fails_where_answers_are_missing(pairs, start, tmp_path):
    teacher = start(lambda body, n: (400, "no", {}) if asked(body)[0] == PROMPTS[3] else right(body, n))
    arguments = [pairs, "--endpoint", teacher.endpoint, "--model", "large", "--output", tmp_path / "r.jsonl"]
    done = command("distil", *arguments, "--orders", "forward", "--body", '{"temperature": 0}')
    assert done.code == 1
    assert json.loads(done.out)["kept"] == 2 and json.loads(done.out)["failed"] == 1
    nowhere = command("distil", pairs, "--endpoint", "localhost:8000", "--model", "m", "--output", tmp_path / "n.jsonl")
    assert nowhere.code == 2 and "'endpoint'" in nowhere.err and "http://" in nowhere.err
    wrong = command("distil", *arguments, "--body", "{")
    assert wrong.code == 2 and "is no mapping" in wrong.err
