"""Each protocol's own client, or its documented call, gets P(yes) of the judge, or hears why there is none."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
import torch
from openai import BadRequestError, OpenAI
from tiny import BrightnessJudge, pictures, video_judge_folder
from torch import Tensor

from rewarddance import as_reward, load_reward, score
from rewarddance.data.media import as_images
from rewarddance.errors import InputError
from rewarddance.reward.instructions import is_ours
from rewarddance.serve.server import serving
from rewarddance.types import Prompt, Question, Verdict

A, B, C = pictures(3)
KNOWN = "a prompt with a reference"


def b64(pixels: Tensor) -> str:
    file = io.BytesIO()
    as_images(pixels)[0].save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def url(pixels: Tensor) -> str:
    return "data:image/png;base64," + b64(pixels)


def expected(candidate: Tensor, reference: Tensor) -> float:
    return torch.sigmoid(8 * (candidate.mean() - reference.mean())).item()


@pytest.fixture(scope="module")
def compares() -> Iterator[str]:
    """A judge that compares, with a reference of its own for one prompt."""
    with serving(BrightnessJudge(), {KNOWN: C}) as address:
        yield address


def said(images: Any, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
    return images.flatten(1).mean(1) * 4


@pytest.fixture(scope="module")
def alone() -> Iterator[str]:
    """A reward of single pictures."""
    with serving(as_reward(said)) as address:
        yield address


def post(address: str, path: str, content: Any) -> httpx2.Response:
    return httpx2.post(address + path, json=content, timeout=20)


def decide(address: str, images: list[Tensor], questions: list[Any], prompt: str = "a circle") -> list[Any]:
    client = OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0)
    content: Any = [{"type": "input_text", "text": prompt}]
    content += [{"type": "input_image", "image_url": url(image)} for image in images]
    found = client.decisions.create(model="any", input=[{"role": "user", "content": content}], questions=questions)
    return list(found.answers)


def predicate(*images: Tensor, name: str = "better", text: str = "") -> dict[str, Any]:
    parts: list[Any] = [{"type": "input_image", "image_url": url(image)} for image in images]
    return {"type": "predicate", "name": name, "instructions": [*parts, {"type": "input_text", "text": text}]}


def test_openais_client_gets_a_probability_for_each_candidate(compares):
    answers = decide(compares, [C], [predicate(A, name="a"), predicate(B, name="b")])
    assert [(answer.type, answer.name) for answer in answers] == [("predicate", "a"), ("predicate", "b")]
    assert [answer.probability for answer in answers] == pytest.approx([expected(A, C), expected(B, C)], abs=1e-6)


def test_a_candidate_may_stand_in_the_input_and_a_reference_at_the_server(compares, alone):
    assert decide(compares, [C, A], [predicate()])[0].probability == pytest.approx(expected(A, C), abs=1e-6)
    assert decide(compares, [A], [predicate()], KNOWN)[0].probability == pytest.approx(expected(A, C), abs=1e-6)
    by_itself = torch.sigmoid(4 * A.mean()).item()
    assert decide(alone, [A], [predicate()])[0].probability == pytest.approx(by_itself, abs=1e-6)


def test_decisions_that_a_judge_cannot_make_are_refused_alone_and_by_name(compares):
    asked = [
        predicate(A, name="good"),
        predicate(A, name="text", text="Is there a dog?"),
        {"type": "choice", "name": "choice", "instructions": "x", "choices": [{"value": "a"}, {"value": "b"}]},
        {"type": "predicate", "name": "url", "instructions": [{"type": "input_image", "image_url": "http://a/b.png"}]},
        predicate(A, B, C, name="many"),
    ]
    answers = decide(compares, [C], asked)
    assert [answer.type for answer in answers] == ["predicate", "refusal", "refusal", "refusal", "refusal"]
    assert [answer.name for answer in answers] == ["good", "text", "choice", "url", "many"]
    reasons = [answer.reason for answer in answers[1:]]
    assert "instruction" in reasons[0] and "fetches nothing" in reasons[2]
    (lone,) = decide(compares, [], [predicate(A, name="lone")])
    assert lone.type == "refusal" and "reference" in lone.reason


def test_openais_client_hears_what_is_wrong_with_a_request(compares):
    client = OpenAI(base_url=f"{compares}/v1", api_key="any", max_retries=0)
    with pytest.raises(BadRequestError, match="questions"):
        client.decisions.create(model="any", input="a", questions=[])


def test_transformers_form_gets_a_noul_for_each_question(compares):
    state = {"prompt": "a circle", "reference": "<r>", "candidate": "<c>"}
    assets = {f"<{key}>": {"type": "image", "format": "png", "data_base64": b64(x)} for key, x in (("r", C), ("c", A))}
    questions = {"better": {"type": "noul"}, "other": {"type": "noul", "instructions": "Is it red?"}}
    reply = post(compares, "/v1/systemone", {"state": state, "questions": questions, "assets": assets}).json()
    assert reply["answers"]["better"] == {"type": "noul", "noul": pytest.approx(expected(A, C), abs=1e-6)}
    assert "noul" not in reply["answers"]["other"] and "instruction" in reply["answers"]["other"]["error"]
    for wrong in ({"prompt": "a"}, {"prompt": "a", "candidate": "<x>"}, "a circle", {"prompt": "a", "dog": "<c>"}):
        answer = post(compares, "/v1/systemone", {"state": wrong, "questions": questions, "assets": assets})
        assert answer.status_code == 400 and answer.json()["error"]["message"]


def test_unirls_protocol_has_results_errors_and_identities(compares):
    def turn(pixels: Tensor, text: str = KNOWN) -> dict[str, str]:
        return {"text": text, "image_b64": b64(pixels)}

    asked = [
        {"history": [turn(A)], "required_rewards": ["rewarddance"], "request_id": "r0", "group_id": "g"},
        {
            "history": [turn(A, "other")],
            "metadata": {"reference_b64": b64(B)},
            "required_rewards": ["rewarddance", "x"],
        },
        {"history": [turn(A, "other")], "required_rewards": ["rewarddance"]},
        {"history": [{"text": KNOWN, "video_path": "/etc/passwd"}]},
        {"history": []},
    ]
    reply = post(compares, "/score", {"protocol_version": "1", "requests": asked}).json()
    first, second, *rest = reply["results"]
    assert [*first["rewarddance"]] == ["probability", "margin"]
    assert first["rewarddance"]["probability"] == pytest.approx(expected(A, C), abs=1e-6)
    assert second["rewarddance"]["probability"] == pytest.approx(expected(A, B), abs=1e-6)
    assert rest == [{}, {}, {}] and all("rewarddance" in errors for errors in reply["errors"][2:])
    assert "reference" in reply["errors"][2]["rewarddance"] and reply["errors"][0] == {} and "x" in reply["errors"][1]
    assert reply["identities"][0]["request_id"] == "r0" and reply["identities"][0]["group_id"] == "g"
    assert httpx2.get(compares + "/health").json()["rewards"] == {"rewarddance": ["ready"]}
    assert httpx2.get(compares + "/rewards").json() == {"rewards": ["rewarddance"]}
    assert post(compares, "/score", {"protocol_version": "2", "requests": asked}).status_code == 400
    assert post(compares, "/score", {"grad_mode": "image", "requests": asked}).status_code == 400


def test_flow_factorys_client_gets_rewards_or_one_error(compares):
    content: dict[str, Any] = {"prompt": [KNOWN, KNOWN], "image": [b64(A), b64(B)], "video": None}
    assert post(compares, "/compute", content).json()["rewards"] == pytest.approx(
        [expected(A, C), expected(B, C)], abs=1e-6
    )
    content |= {"prompt": ["x", "y"], "kwargs": {"reference_b64": [b64(B), b64(A)]}}
    assert post(compares, "/compute", content).json()["rewards"] == pytest.approx(
        [expected(A, B), expected(B, A)], abs=1e-6
    )
    reply = post(compares, "/compute", content | {"kwargs": None})
    assert reply.status_code == 200 and [*reply.json()] == ["error"] and "sample 0" in reply.json()["error"]
    assert post(compares, "/compute", content | {"image": [b64(A)]}).status_code == 400


class WithSource:
    """Margin = mean of the candidate less that of what the prompt came with."""

    needs_reference = False

    def __call__(self, questions: Any) -> Verdict:
        return Verdict(torch.stack([q.candidate.mean() - q.prompt.image.mean() for q in questions]))


def test_an_edits_source_is_what_the_prompt_came_with():
    margin = WithSource()([Question(Prompt("x", image=B), A)]).margin.sigmoid().item()
    with serving(WithSource()) as address:
        assert decide(address, [B], [predicate(A)])[0].probability == pytest.approx(margin, abs=1e-6)
        turns = [{"text": "make it red", "image_b64": b64(pixels)} for pixels in (B, A)]
        (result,) = post(address, "/score", {"requests": [{"history": turns}]}).json()["results"]
        assert result["rewarddance"]["probability"] == pytest.approx(margin, abs=1e-6)
        content = {"prompt": ["x"], "image": [b64(A)], "condition_images": [[b64(B)]]}
        assert post(address, "/compute", content).json()["rewards"] == pytest.approx([margin], abs=1e-6)


def test_a_video_is_a_list_of_frames(alone):
    frames = torch.cat([A, B])
    content = {"prompt": ["x"], "image": None, "video": [[b64(A), b64(B)]]}
    reply = post(alone, "/compute", content).json()
    assert reply["rewards"] == pytest.approx([torch.sigmoid(4 * frames.mean()).item()], abs=1e-6)


def test_a_name_that_no_reply_can_repeat_fails_alone(compares):
    turn = {"text": "a circle", "image_b64": b64(A)}
    asked = [{"request_id": n, "history": [turn], "metadata": {"reference_b64": b64(C)}} for n in (1, float("nan"))]
    body = json.dumps({"requests": asked})  # json writes NaN
    reply = httpx2.post(compares + "/score", content=body, timeout=20).json()
    assert "rewarddance" in reply["results"][0] and not reply["results"][1]
    assert "request_id" in reply["errors"][1]["rewarddance"] and reply["identities"][1]["request_id"] is None


def test_a_long_question_is_refused_alone(compares):
    good, long = decide(compares, [C], [predicate(A), predicate(A, text="Is this picture " + "very " * 80 + "good?")])
    assert not is_ours("Is this picture " + "very " * 80 + "good?")
    assert good.type == "predicate" and long.type == "refusal" and "instruction" in long.reason


@pytest.mark.parametrize("text", ["", "  ", None])
def test_a_question_without_a_prompt_is_no_question(alone, text):
    history = [{"text": text, "image_b64": b64(A)}]
    reply = post(alone, "/score", {"requests": [{"history": history}]}).json()
    assert "prompt" in reply["errors"][0]["rewarddance"] and not reply["results"][0]
    assert "prompt" in post(alone, "/compute", {"prompt": [text or ""], "image": [b64(A)]}).json()["error"]


def test_a_videos_rate_is_that_of_its_file():
    frames = [as_images(picture)[0] for picture in (A, B, C)]
    file = io.BytesIO()
    frames[0].save(file, "PNG", save_all=True, append_images=frames[1:], duration=250)
    video = base64.b64encode(file.getvalue()).decode()
    judge = load_reward(video_judge_folder(), kind="pointwise", fps=8.0)
    with serving(judge) as address:
        content = {"requests": [{"history": [{"text": "a circle", "video_b64": video}]}]}
        for _ in range(2):  # the second time its pixels are known
            assert "4 frames a second" in post(address, "/score", content).json()["errors"][0]["rewarddance"]
    for asks in (
        lambda: judge.score("a circle", [file.getvalue()]),
        lambda: score(judge, [file.getvalue()], "a circle"),
    ):
        with pytest.raises(InputError, match="candidate 0 has 4 frames a second"):
            asks()


def test_where_a_servers_reference_lies_is_for_its_log_alone(tmp_path):
    class Lost(dict[str, Tensor]):
        def __contains__(self, prompt: object) -> bool:
            return True

        def __missing__(self, prompt: str) -> Tensor:
            raise InputError(f"the picture {tmp_path} cannot be read.", "Restore it.")

    with serving(BrightnessJudge(), Lost()) as address:
        reply = post(address, "/score", {"requests": [{"history": [{"text": "x", "image_b64": b64(A)}]}]}).json()
    assert "reference" in reply["errors"][0]["rewarddance"] and str(tmp_path) not in json.dumps(reply)
