"""A judge at an address in the place of a judge's name: scored, searched, evaluated and aligned with."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from tiny import align_recipe, colour_preferences, command, generator_folder, judge_folder, picture_folder, pictures
from tiny_endpoints import chat, decisions, served, sure, systemone

from rewarddance import as_pixels, evaluate, load_reward, search
from rewarddance.data.media import write_picture
from rewarddance.errors import InputError
from rewarddance.evaluation.findings import StressFigures
from rewarddance.types import Question

FAST = ("backoff=0.01", "retries=1", "model=m")


@pytest.fixture(scope="module")
def local():
    return load_reward(str(judge_folder()), instruction="t2i-brief")


def test_score_asks_the_server_and_goes_on_without_it(local, tmp_path):
    folder = picture_folder(tmp_path / "pictures")
    write_picture(pictures(1, 9)[0], tmp_path / "plain.png")
    options = [word for option in (*FAST, "token_ids=true") for word in ("--judge-options", option)]
    with served(chat(local)) as endpoint:
        words = ["score", folder, "--judge", f"chat+{endpoint.address}", "--instruction", "t2i-brief", *options]
        words += ["--reference", tmp_path / "plain.png", "--output", tmp_path / "scores.jsonl"]
        done = command(*words)
        assert done.code == 0, done.err
    rows = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    reference = as_pixels(tmp_path / "plain.png", "the reference")
    asked = [Question("a red circle", as_pixels(folder / f"{n}.png", "it"), reference) for n in range(3)]
    told = torch.tensor([row["probability"] for row in rows])
    torch.testing.assert_close(told, local(asked).probability, atol=1e-4, rtol=0)
    assert command(*words).code == 0  # the server is gone, and all is done


def test_a_row_that_the_server_refuses_fails_alone(tmp_path):
    folder = picture_folder(tmp_path / "pictures")
    (folder / "1.txt").write_text("a blue cross")
    write_picture(pictures(1, 9)[0], tmp_path / "plain.png")
    refusal = {"choices": [{"message": {"refusal": "no"}, "logprobs": None}]}
    with served(lambda path, body: refusal if "blue" in str(body) else sure(0.7)) as endpoint:
        words = ["score", folder, "--judge", f"chat+{endpoint.address}", "--reference", tmp_path / "plain.png"]
        words += [word for option in (*FAST, "token_ids=false") for word in ("--judge-options", option)]
        done = command(*words, "--output", tmp_path / "scores.jsonl")
    assert done.code == 1
    (failure,) = (tmp_path / "scores.jsonl.failed.jsonl").read_text().splitlines()
    assert json.loads(failure)["line"] == 2 and "blue cross" in failure and "refused" in failure
    assert len((tmp_path / "scores.jsonl").read_text().splitlines()) == 2


def test_a_server_that_is_not_there_is_said_before_any_work(tmp_path):
    folder = picture_folder(tmp_path / "pictures")
    words = ["score", folder, "--judge", "chat+http://127.0.0.1:9/v1", "--output", tmp_path / "scores.jsonl"]
    done = command(*words, *(word for option in FAST for word in ("--judge-options", option)))
    assert done.code == 2 and "127.0.0.1:9" in done.err and not (tmp_path / "scores.jsonl").exists()


def test_evaluate_names_the_address_and_finds_what_the_judge_finds(local):
    pairs = colour_preferences(8)
    exam = {"probes": 2, "groups": 1, "pictures": 3}
    with served(decisions(local)) as endpoint:
        name = f"decisions+{endpoint.address}"
        away = evaluate(name, pairs, exam=exam, model="m", instruction="t2i-brief")
    here = evaluate(local, pairs, exam=exam)
    assert away.judge.name == name and away.judge.kind == "pairwise" and away.judge.instruction == "t2i-brief"
    assert away.tests["test"].accuracy == here.tests["test"].accuracy


def test_a_judge_behind_an_endpoint_is_stressed_as_far_as_it_can_be(local):
    pairs, exam = colour_preferences(4), {"probes": 1, "groups": 1, "pictures": 3}
    with served(decisions(local)) as endpoint:
        name = f"decisions+{endpoint.address}"
        away = evaluate(name, pairs, exam=exam, stress=True, model="m", instruction="t2i-brief").tests["test"].stress
    here = evaluate(local, pairs, exam=exam, stress=True, stress_options={"steps": 1}).tests["test"].stress
    assert isinstance(away, StressFigures) and isinstance(here, StressFigures)
    assert away.pixels == "It gives no gradient in its pictures." and isinstance(here.pixels, dict)
    for change in ("tiles", "one_colour", "all_objects"):  # sent as PNG, so rounded to 8 bits
        won, same = away.disturbances[change].margin, here.disturbances[change].margin
        assert won.mean == pytest.approx(same.mean, abs=0.05 * max(1, here.spread))


def test_search_finds_the_same_picture_by_a_server(local):
    options = {"num_inference_steps": 2, "budget": "samples=3"}
    with served(systemone(local)) as endpoint:
        judge = load_reward(f"systemone+{endpoint.address}", model="m", instruction="t2i-brief")
        (away,) = search(str(generator_folder()), judge, ["a red circle"], **options)
    (here,) = search(str(generator_folder()), local, ["a red circle"], **options)
    assert torch.equal(away.winner.pixels, here.winner.pixels)


def test_align_asks_a_server_by_policy_gradient_and_not_by_refl(local, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    grpo = {"steps": 1, "prompts_per_step": 1, "group_size": 2, "lora_rank": 2, "lora_alpha": 2}
    grpo |= {"window": 1}
    with served(decisions(local)) as endpoint:
        judge = {"judge": f"decisions+{endpoint.address}", "judge_options": {"model": "m", "instruction": "t2i-brief"}}
        refl = command("align", align_recipe(tmp_path, **judge))
        assert refl.code == 2 and "grpo or nft" in refl.err and not (tmp_path / "run").exists()
        recipe = align_recipe(tmp_path, algorithm="grpo", grpo=grpo, **judge)
        content = yaml.safe_load(recipe.read_text())
        del content["refl"], content["references"]
        recipe.write_text(yaml.safe_dump(content))
        done = command("align", recipe)
        assert done.code == 0, done.err
        assert len(endpoint.posted("/v1/decisions")) > 1


def test_an_address_without_a_protocol_is_a_server_of_ours(local):
    pytest.importorskip("fastapi")
    from rewarddance.serve.server import serving

    asked = [Question("a red circle", *pictures(2, 4))]
    with serving(local) as address:
        near, far = load_reward(address), load_reward(f"systemone+{address}/v1", model="m", state="places")
        torch.testing.assert_close(near(asked).margin, local(asked).margin, atol=1e-6, rtol=0)
        torch.testing.assert_close(far(asked).margin, local(asked).margin, atol=1e-4, rtol=0)
        with pytest.raises(InputError, match="cannot be used"):  # it asks its own question, in no other words
            load_reward(f"decisions+{address}/v1", model="m")
