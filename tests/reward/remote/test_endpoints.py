"""Judges behind other programs' servers: the same P("yes"), and what is no answer is an error and no number."""

from __future__ import annotations

import itertools
import math
import pickle
import time
from collections.abc import Iterable
from functools import cache

import pytest
import torch
from openai.types import DecisionCreateParams
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming
from pydantic import TypeAdapter
from tiny import judge_folder, pictures
from tiny_endpoints import MODELS, answered, chat, decisions, probability_of, served, sure, systemone

from rewarddance.errors import InputError, NoGradient, RewardDanceError, RewardError
from rewarddance.protocols import RewardModel
from rewarddance.reward.instructions import Picture
from rewarddance.reward.loading import load_reward
from rewarddance.reward.prefill import JudgeInput
from rewarddance.reward.remote.addresses import is_address
from rewarddance.types import Prompt, Question

KEY = "sk-a-key-that-nobody-may-read"
FAST = {"model": "m", "instruction": "t2i-brief", "backoff": 0.01, "retries": 2, "timeout": 5.0}
QUIET = FAST | {"try_first": False, "token_ids": False}


@cache
def judge(name: str = "shapeworld-judge-small", **options):
    return load_reward(str(judge_folder()) if name == "random" else name, instruction="t2i-brief", **options)


def questions(pairwise: bool = True) -> list[Question]:
    """Two prompts, three candidates of each under one reference."""
    references, candidates = [*pictures(2, seed=1)], [*pictures(6, seed=2)]
    return [
        Question(prompt, candidates[3 * n + k], references[n] if pairwise else None)
        for n, prompt in enumerate(("a red circle", "two blue crosses"))
        for k in range(3)
    ]


def ask(endpoint, protocol="chat", **options):
    quiet = QUIET if protocol == "chat" else {name: value for name, value in QUIET.items() if name != "token_ids"}
    return load_reward(f"{protocol}+{endpoint.address}", **(quiet | options))


FORMS = [
    ("chat", chat, {"token_ids": True}),
    ("chat", lambda judge: chat(judge, tells_numbers=False), {"token_ids": False}),
    ("chat", lambda judge: chat(judge, tells_numbers=False), {"token_ids": None}),
    ("decisions", decisions, {}),
    ("systemone", systemone, {}),
]


@pytest.mark.parametrize("kind", ["pairwise", "pointwise"])
@pytest.mark.parametrize(("protocol", "server", "options"), FORMS)
def test_a_judge_behind_a_server_answers_as_it_does_here(protocol, server, options, kind):
    local = judge(kind=kind)
    with served(server(local)) as endpoint:
        away = load_reward(f"{protocol}+{endpoint.address}", **(FAST | options | {"kind": kind, "model": None}))
        assert isinstance(away, RewardModel) and away.needs_reference == (kind == "pairwise")
        asked = [*questions(), *questions(pairwise=False)] if kind == "pointwise" else questions()
        told = away(asked).probability
    torch.testing.assert_close(told, local(asked).probability, atol=1e-4, rtol=0)
    assert told.std() > 1e-3


@pytest.mark.parametrize(("protocol", "server"), [("chat", chat), ("decisions", decisions), ("systemone", systemone)])
def test_videos_and_the_prompts_picture_stand_in_their_places(protocol, server):
    first, *videos = pictures(5, seed=3)
    reference, candidate = torch.cat(videos[:2]), torch.cat(videos[2:])
    question = Question(Prompt("a red circle", image=first), candidate, reference, instruction="i2v-brief")
    local = load_reward(str(judge_folder()))
    with served(server(local)) as endpoint:
        away = ask(endpoint, protocol, **({"token_ids": True} if protocol == "chat" else {}))
        told = away([question]).probability
        body = str(endpoint.bodies[-1])
    assert body.count("iVBORw0KGgo") == 5
    # there, each frame is a picture of its own; here, too, for a model that reads frame by frame
    shown = {"image": [first], "reference": videos[:2], "candidate": videos[2:]}
    parts, frames = [], []
    for part in local._judge_inputs([question])[0].parts:
        frames += shown.get(part, [])
        parts += [Picture(part)] * len(shown[part]) if isinstance(part, Picture) else [part]
    (hidden,) = local.vlm.last_states([JudgeInput(tuple(parts), tuple(frames))])
    words = (("yes",), ("no",)) if protocol == "systemone" else (local.config.yes, local.config.no)
    margin = local.vlm.margin(hidden[None], *map(local.vlm.answer_tokens, words))
    torch.testing.assert_close(told, margin.sigmoid(), atol=1e-5, rtol=0)


def test_both_orders_are_averaged_as_here():
    local = judge(orders="both")
    with served(chat(local)) as endpoint:
        told = ask(endpoint, token_ids=True, orders="both")(questions()).margin
    torch.testing.assert_close(told, local(questions()).margin, atol=1e-4, rtol=0)


def test_a_choice_of_all_spellings_is_summed():
    local = judge("random")
    with served(systemone(local)) as endpoint:
        yes, no = ("yes", "Yes", " yes", " Yes"), ("no", "No", " no", " No")
        told = ask(endpoint, "systemone", yes=yes, no=no)(questions()).probability
        alone = ask(endpoint, "systemone")(questions()).probability
    torch.testing.assert_close(told, local(questions()).probability, atol=1e-5, rtol=0)
    assert (alone - told).abs().max() > 0.01


def test_a_judges_own_folder_can_write_its_own_question():
    with served(systemone(judge())) as endpoint:
        away = ask(endpoint, "systemone", state="places", instruction="t2i")
        told = away(questions()).probability
        assert endpoint.posted("/v1/systemone")[-1]["state"]["prompt"] in ("a red circle", "two blue crosses")
        with pytest.raises(InputError, match="names an instruction"):
            away([Question("a red circle", *pictures(2), instruction="t2i")])
    torch.testing.assert_close(told, judge()(questions()).probability, atol=1e-5, rtol=0)


def test_candidates_of_one_reference_are_one_request_that_shows_it_once():
    with served(decisions(judge())) as endpoint:
        ask(endpoint, "decisions")(questions())
        bodies = endpoint.posted("/v1/decisions")
        assert sorted(str(body).count("iVBORw0KGgo") for body in bodies) == [4, 4]
        ask(endpoint, "decisions", predicates=2)(questions())
        assert len(endpoint.posted("/v1/decisions")) == 2 + 4


def test_a_picture_of_several_questions_is_written_once(monkeypatch):
    from rewarddance.reward.remote import endpoint as module

    written = []
    monkeypatch.setattr(module, "_png_urls", lambda pixels, about: written.append(id(pixels)) or ["data:,x"])
    with served(lambda path, body: sure(0.7)) as endpoint:
        ask(endpoint)(questions())
    assert len(written) == len(set(written)) == 8


def test_a_prompt_that_names_a_mark_is_not_taken_for_a_picture():
    asked = [Question("<picture0> of <picture-1>", *pictures(2))]
    with served(systemone(judge())) as endpoint:
        told = ask(endpoint, "systemone")(asked).probability
    torch.testing.assert_close(told, judge()(asked).probability, atol=1e-5, rtol=0)


# -- what is no answer -------------------------------------------------------------------------------------------------

REFUSALS = {
    "chat": answered({"yes": -0.1}, message={"role": "assistant", "content": None, "refusal": "I would rather not."}),
    "decisions": {"answers": [{"type": "refusal", "name": "0"}]},
    "systemone": {"answers": {"better": {"error": "I would rather not."}}},
}
NOT_A_NUMBER = {
    "chat": answered({"yes": float("nan"), "no": -0.1}),
    "decisions": {"answers": [{"type": "predicate", "name": "0", "probability": float("nan")}]},
    "systemone": {"answers": {"better": {"type": "noul", "noul": None}}},
}


@pytest.mark.parametrize("protocol", REFUSALS)
def test_a_refusal_is_that_questions_error(protocol):
    with served(lambda path, body: REFUSALS[protocol]) as endpoint:
        with pytest.raises(RewardError, match=r"question 0 .*a red circle.* was refused"):
            ask(endpoint, protocol)(questions()[:1])
        assert len(endpoint.bodies) == 1


@pytest.mark.parametrize("protocol", NOT_A_NUMBER)
def test_what_is_no_number_is_an_error(protocol):
    with served(lambda path, body: NOT_A_NUMBER[protocol]) as endpoint, pytest.raises(RewardError, match="question 0"):
        ask(endpoint, protocol)(questions()[:1])


@pytest.mark.parametrize("probability", [1.5, -0.1, True, "0.5"])
def test_a_probability_outside_its_range_is_an_error(probability):
    told = {"answers": [{"type": "predicate", "name": "0", "probability": probability}]}
    with served(lambda path, body: told) as endpoint, pytest.raises(RewardError, match="question 0"):
        ask(endpoint, "decisions")(questions()[:1])


def test_a_probability_of_one_is_a_large_margin():
    told = {"answers": [{"type": "predicate", "name": "0", "probability": 1}]}
    with served(lambda path, body: told) as endpoint:
        margin = ask(endpoint, "decisions")(questions()[:1]).margin
    assert 15 < margin.item() < 20


@pytest.mark.parametrize(
    "top",
    [
        {"The": math.log(0.9), "A": math.log(0.1)},
        {"yes": math.log(0.6), "no": math.log(0.2)},  # what is left may be " yes" or " no"
        {"The": math.log(0.999), "yes": math.log(0.0005)},
        {},
    ],
)
def test_an_answer_without_yes_and_no_among_its_tokens_is_an_error(top):
    with served(lambda path, body: answered(top)) as endpoint, pytest.raises(RewardError, match="question 0"):
        ask(endpoint)(questions()[:1])


def test_an_answer_that_the_tokens_bound_is_within_the_tolerance():
    top = {"yes": math.log(0.9996), "The": math.log(0.0002)}
    with served(lambda path, body: answered(top)) as endpoint:
        assert ask(endpoint)(questions()[:1]).probability.item() == pytest.approx(1, abs=1e-3)
        with pytest.raises(RewardError):
            ask(endpoint, tolerance=1e-4)(questions()[:1])


def test_a_server_without_log_probabilities_is_said_to_be_one():
    with served(lambda path, body: answered({}, logprobs=None)) as endpoint:
        with pytest.raises(RewardError, match="without log-probabilities"):
            ask(endpoint)(questions()[:1])
        assert len(endpoint.bodies) == 1


def test_a_busy_server_is_asked_again():
    counted = itertools.count()
    busy = (429, {"Retry-After": "0.05"}, {"error": "busy"})
    with served(lambda path, body: busy if next(counted) < 2 else sure(0.7)) as endpoint:
        assert ask(endpoint)(questions()[:1]).probability.item() == pytest.approx(0.7)
        assert len(endpoint.bodies) == 3


@pytest.mark.parametrize("broken", [(500, {}, b"out of order"), (200, {}, b"<html>"), (200, {}, {"choices": []})])
def test_a_server_that_never_answers_is_the_questions_error(broken):
    with served(lambda path, body: broken) as endpoint:
        with pytest.raises(RewardError, match=r"question 0 .*3 tries"):
            ask(endpoint)(questions()[:1])
        assert len(endpoint.bodies) == 3


def test_a_server_that_hangs_is_the_questions_error():
    hang = pytest.raises(RewardError, match=r"question 0 .*did not answer in 0.2 seconds")
    with served(lambda path, body: time.sleep(0.6) or sure(0.7)) as endpoint, hang:
        ask(endpoint, timeout=0.2, retries=0)(questions()[:1])


def test_the_first_question_that_fails_is_named():
    def reply(path, body):
        return answered({"The": -0.1}) if "crosses" in str(body) else sure(0.7)

    with served(reply) as endpoint, pytest.raises(RewardError, match=r"question 3 .*two blue crosses"):
        ask(endpoint)(questions())


@pytest.mark.parametrize("options", [{"kind": "pointwise"}, {"orders": "both"}])
def test_a_failure_has_the_number_that_the_caller_knows(options):
    def reply(path, body):
        crosses = "crosses" in str(body)
        reply.crosses += crosses
        return answered({"The": -0.1}) if crosses and reply.crosses == 2 else sure(0.7)

    reply.crosses = 0
    with served(reply) as endpoint, pytest.raises(RewardError, match=r"question 3 .*two blue crosses"):
        first = Question("two blue crosses", *pictures(2, 6))
        ask(endpoint, concurrency=1, **options)([*questions()[:3], first])


# -- before it is asked ------------------------------------------------------------------------------------------------


def test_a_gradient_is_refused_with_what_to_do_instead():
    with served(lambda path, body: sure(0.7)) as endpoint:
        away = ask(endpoint)
        candidate = pictures(1)[0].requires_grad_()
        with pytest.raises(NoGradient, match=r"grpo or nft.*rewarddance serve"):
            away([Question("a red circle", candidate, pictures(2)[1])])
        with torch.no_grad():
            away([Question("a red circle", candidate, pictures(2)[1])])
        assert away.differentiable is False


@pytest.mark.parametrize("prompt", ["a <|im_end|> circle", "</s>", "an <image>", "[INST] yes", "<end_of_turn>"])
def test_a_prompt_with_a_models_own_token_is_not_sent(prompt):
    with served(lambda path, body: sure(0.7)) as endpoint:
        away = ask(endpoint)
        with pytest.raises(InputError, match="token of its own"):
            away([Question(prompt, *pictures(2))])
        (fault,) = away.faults([Question(prompt, *pictures(2))])
        assert isinstance(fault, InputError) and not endpoint.bodies
        away([Question("a < b | c > d", *pictures(2))])


def test_faults_are_found_without_asking():
    with served(lambda path, body: sure(0.7)) as endpoint:
        away = ask(endpoint, frames=2)
        fine = Question("a red circle", *torch.zeros(2, 2, 3, 8, 8))
        found = [*away.faults([fine, Question("x", pictures(1)[0], pictures(1)[0]), Question("x", fine.candidate)])]
        assert found[0] is None and all(isinstance(fault, InputError) for fault in found[1:])
        assert not endpoint.bodies


def test_a_picture_with_values_that_are_none_is_not_sent():
    with served(lambda path, body: sure(0.7)) as endpoint, pytest.raises(InputError, match="not finite"):
        ask(endpoint)([Question("x", pictures(1)[0] * float("nan"), pictures(1)[0])])


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        ((404, {}, b"no such model"), "nothing to ask"),
        ((401, {}, b"no"), "does not take"),
        (answered({"The": -0.1}), "yes and no have"),
    ],
)
def test_a_judge_that_does_not_answer_is_not_loaded(reply, why):
    with served(lambda path, body: reply) as endpoint, pytest.raises(InputError, match=why):
        ask(endpoint, try_first=True)


def test_the_first_model_of_a_server_is_asked_where_none_is_named():
    def reply(path, body):
        return MODELS if path == "/v1/models" else sure(0.7)

    with served(reply) as endpoint:
        assert ask(endpoint, model=None).model == "a-judge"
        ask(endpoint, model=None, body={"seed": 1, "max_tokens": None})(questions()[:1])
        body = endpoint.posted("/v1/chat/completions")[-1]
        assert body["model"] == "a-judge" and body["seed"] == 1 and "max_tokens" not in body
    with served(lambda path, body: {"data": []}) as endpoint, pytest.raises(InputError, match="lists no model"):
        ask(endpoint, model=None)


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("telnet+http://127.0.0.1:1/v1", {}, "no protocol"),
        ("chat+http://127.0.0.1:1/v1?model=x", {}, "no address"),
        ("chat+http://me:secret@127.0.0.1:1/v1", {}, "password"),
        ("chat+http://127.0.0.1:1/v1", {"colour": "red"}, "colour"),
        ("decisions+http://127.0.0.1:1/v1", {"tolerance": 0.1}, "tolerance"),
        ("chat+http://127.0.0.1:1/v1", {"kind": "clip"}, "kind"),
        ("chat+http://127.0.0.1:1/v1", {"kind": "pointwise", "orders": "both"}, "two orders"),
    ],
)
def test_an_address_or_option_that_there_is_not_is_refused(name, options, why):
    assert is_address(name)
    with pytest.raises(InputError, match=why):
        load_reward(name, **options)


def test_what_is_no_address_is_looked_for_as_before():
    assert not any(map(is_address, ("shapeworld-judge", "runs/http://x", "package.module:factory", "C:/http")))


@pytest.mark.parametrize("status", [400, 401, 500])
def test_the_key_is_sent_and_in_no_message(status, monkeypatch):
    monkeypatch.setenv("MY_JUDGES_SECRET_WORD", KEY)
    with served(lambda path, body: (status, {}, f"you sent {KEY}".encode())) as endpoint:
        away = ask(endpoint, api_key_env="MY_JUDGES_SECRET_WORD", retries=0)
        with pytest.raises(RewardDanceError) as caught:
            away(questions()[:1])
        assert endpoint.headers[-1]["Authorization"] == f"Bearer {KEY}"
    told = f"{caught.value} {away!r} {away.config} {pickle.dumps(away)!r} {endpoint.bodies}"
    assert KEY not in told and "MY_JUDGES_SECRET_WORD" in str(caught.value)


def test_a_copy_asks_as_the_first_does():
    with served(chat(judge())) as endpoint:
        away = ask(endpoint, token_ids=True)
        copy = pickle.loads(pickle.dumps(away))
        assert copy.tokens == away.tokens and repr(copy) == repr(away)
        assert torch.equal(copy(questions()[:2]).margin, away(questions()[:2]).margin)


def exhausted(value):
    """pydantic looks at an iterable's items when they are taken."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        return value
    if isinstance(value, dict):
        return {key: exhausted(item) for key, item in value.items()}
    return [exhausted(item) for item in value]


@pytest.mark.parametrize(
    ("protocol", "path", "form"),
    [
        ("chat", "chat/completions", CompletionCreateParamsNonStreaming),
        ("decisions", "decisions", DecisionCreateParams),
    ],
)
def test_what_is_sent_is_of_openais_own_form(protocol, path, form):
    server = {"chat": lambda path, body: sure(0.7), "decisions": decisions(judge())}[protocol]
    with served(server) as endpoint:
        ask(endpoint, protocol)(questions())
        (body, *_) = endpoint.posted(f"/v1/{path}")
    assert exhausted(TypeAdapter(form).validate_python(body)) == body


def test_no_question_is_no_request():
    with served(lambda path, body: sure(0.7)) as endpoint:
        assert ask(endpoint)([]).margin.shape == (0,) and not endpoint.bodies


def test_the_servers_words_are_ours_to_the_letter():
    asked = questions()[:1]
    with served(lambda path, body: sure(0.7)) as endpoint:
        ask(endpoint)(asked)
        content = endpoint.posted("/v1/chat/completions")[0]["messages"][0]["content"]
    words = [part["text"] for part in content if part["type"] == "text"]
    assert words == [str(part) for part in judge().instruction.question("a red circle") if part.__class__ is str]
    parts = [(p["type"] == "image_url", p["image_url"]["url"] if "image_url" in p else p["text"]) for p in content]
    assert probability_of(judge(), parts) == pytest.approx(judge()(asked).probability.item(), abs=1e-5)


@pytest.mark.parametrize(
    ("top", "p"),
    [
        ({"yes": 1.0}, 1.0),
        ({"no": 0.6, "No": 0.39999}, 0.0),
        ({"yes": 0.9, "Yes": 0.0999}, 1.0),
    ],
)
def test_a_spelling_that_is_not_told_has_no_more_than_is_left(top, p):
    with served(lambda path, body: answered({word: math.log(share) for word, share in top.items()})) as endpoint:
        told = ask(endpoint)(questions()[:1]).probability
    assert told.item() == pytest.approx(p, abs=1e-3)


def test_a_model_that_is_about_to_say_something_else_has_not_answered():
    shares = {"<think>": 0.9999, "yes": 7e-5, "no": 3e-5}
    with served(lambda path, body: answered({word: math.log(share) for word, share in shares.items()})) as endpoint:
        with pytest.raises(RewardError, match="not answered"):
            ask(endpoint)(questions()[:1])
        assert ask(endpoint, least=0)(questions()[:1]).probability.item() == pytest.approx(0.7, abs=0.2)


@pytest.mark.parametrize(
    "shares", [{"yes": math.nan, "Yes": 0.1}, {"yes": 0.4, "Yes": -0.3}, {"yes": 0.9, "Yes": 0.9}, {"yes": "0.4"}]
)
def test_spellings_whose_probabilities_are_none_are_no_answer(shares):
    answer = {"better": {"type": "choice", "probabilities": {"no": 0.1, "Yes": 0.0} | shares}}
    with served(lambda path, body: {"answers": answer}) as endpoint, pytest.raises(RewardError):
        ask(endpoint, "systemone", yes=("yes", "Yes"), no=("no",), retries=0)(questions()[:1])


@pytest.mark.parametrize(
    "reply",
    [{"choices": ["yes"]}, {"choices": [{"message": "yes"}]}, {"choices": [{"message": {}, "logprobs": ["a"]}]}],
)
def test_a_reply_of_another_form_is_an_error_of_ours(reply):
    with served(lambda path, body: reply) as endpoint, pytest.raises(RewardError, match="sent no answer"):
        ask(endpoint, retries=0)(questions()[:1])


def test_pictures_are_compared_and_ranked_by_a_judge_elsewhere_as_by_one_here():
    local, (a, b, c) = judge(), pictures(3)
    with served(chat(local, tells_numbers=False)) as endpoint:
        away = ask(endpoint)
        close = {"rtol": 0, "atol": 1e-4}
        torch.testing.assert_close(
            away.compare("a red circle", [a, b], c).margin, local.compare("a red circle", [a, b], c).margin, **close
        )
        assert (
            away.rank("a red circle", [a, b, c]).order.tolist() == local.rank("a red circle", [a, b, c]).order.tolist()
        )
        with pytest.raises(InputError, match="gives no reasons"):
            away.compare("a red circle", [a], c, explain=True)
