"""`rewarddance annotate`: pairs from files, pictures and generators; links; the loop from votes to a judge."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
import torch
from PIL import Image
from tiny import command, generator_folder, judge_folder

from rewarddance.annotate.sources import Made, pair_up, read_pairs, read_tests
from rewarddance.annotate.store import Store
from rewarddance.data.faults import FaultyRows
from rewarddance.data.media import write_picture
from rewarddance.errors import InputError
from rewarddance.jobs.annotate import invite, learning_plan, links, make_pictures, open_store
from rewarddance.jobs.recipes import AnnotateRun
from rewarddance.runtime.config import parse_recipe

ROOT = Path(__file__).parents[2]


def grey(path: Path, level: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32), (level, level, level)).save(path)
    return path


def pictures_of(folder: Path, models: tuple[str, ...], prompts: int) -> Path:
    """A folder for each model, with a picture of each prompt."""
    for place, model in enumerate(models):
        for n in range(prompts):
            grey(folder / model / f"{n}.png", 10 * n + 100 * place)
            (folder / model / f"{n}.txt").write_text(f"prompt {n}")
    return folder


def run_of(folder: Path, **keys) -> AnnotateRun:
    return parse_recipe(AnnotateRun, {"store": folder / "votes.sqlite", "overlap": 0.0} | keys, "the test")


# -- pairs -------------------------------------------------------------------------------------------------------------


def test_a_folder_for_each_model_gives_pairs_of_different_models(tmp_path):
    pairs = read_pairs(pictures_of(tmp_path / "in", ("new", "old", "other"), 4), 2, seed=0)
    assert len(pairs) == 8 and Counter(pair.prompt for pair in pairs) == dict.fromkeys(
        [f"prompt {n}" for n in range(4)], 2
    )
    assert all(pair.model_a != pair.model_b and pair.a.parent.name == pair.model_a for pair in pairs)


def test_rows_of_pictures_are_paired_by_prompt_and_rows_of_pairs_are_kept(tmp_path):
    for n in range(4):
        grey(tmp_path / f"{n}.png", n)
    rows = [{"prompt": "a cat", "candidate": f"{n}.png", "model": "xy"[n % 2]} for n in range(4)]
    rows.append({"prompt": "a dog", "media_a": "0.png", "media_b": "1.png", "model_a": "x", "image": "2.png"})
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pairs = read_pairs(tmp_path / "in.jsonl", 10, seed=0)
    assert [pair.prompt for pair in pairs] == ["a dog"] + ["a cat"] * 4
    assert pairs[0].image == tmp_path / "2.png" and {(p.model_a, p.model_b) for p in pairs[1:]} == {
        ("x", "y"),
        ("y", "x"),
    }


def test_pictures_of_unknown_models_are_paired_too(tmp_path):
    made = [Made("a cat", tmp_path / f"{n}.png") for n in range(4)]
    assert len(pair_up(made, 99, 0)) == 6 and len(pair_up(made, 3, 0)) == 3


def test_every_row_that_cannot_be_shown_is_named(tmp_path):
    grey(tmp_path / "0.png", 1)
    (tmp_path / "broken.png").write_text("no picture")
    rows = [
        {"prompt": "a", "media_a": "0.png", "media_b": "missing.png"},
        {"prompt": "b", "media_a": "0.png", "media_b": "broken.png"},
        {"media_a": "0.png", "media_b": "0.png"},
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(FaultyRows) as faults:
        read_pairs(tmp_path / "in.jsonl", 2, 0)
    assert all(
        word in str(faults.value) for word in ("line 1", "missing.png", "line 2", "broken.png", "line 3", "prompt")
    )


def test_test_pairs_have_the_answer_of_most_votes(tmp_path):
    for n in range(2):
        grey(tmp_path / f"{n}.png", n)
    rows = [{"prompt": "a", "media_a": "0.png", "media_b": "1.png", "share": share} for share in (0.9, 0.5, 0.2)]
    (tmp_path / "tests.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [pair.answer for pair in read_tests(tmp_path / "tests.jsonl")] == [1.0, 0.5, 0.0]


def test_generators_make_the_pictures_and_make_none_twice(tmp_path):
    (tmp_path / "prompts.txt").write_text("a red circle\na blue cross\n")
    keys = {"input": tmp_path / "prompts.txt", "generator": [str(generator_folder())], "samples": 3}
    run = run_of(tmp_path, num_inference_steps=2, **keys)
    assert open_store(run).count("wanted") == 6
    made = sorted((tmp_path / "votes_pictures").iterdir())
    assert len(made) == 6 and len({path.read_bytes() for path in made}) == 6
    before = {path: path.stat().st_mtime_ns for path in made}
    made[0].unlink()
    again = open_store(run)
    assert again.count("wanted") == 6 and made[0].exists()
    assert all(path.stat().st_mtime_ns == before[path] for path in made[1:])


def test_a_picture_is_not_taken_for_another_prompts_or_generators(tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\na blue cross\n")
    keys = {"input": prompts, "generator": [str(generator_folder())], "num_inference_steps": 2}
    before = {made.path: made.prompt for made in make_pictures(run_of(tmp_path, **keys))}
    prompts.write_text("a green square\na blue cross\n")
    after = {made.path: made.prompt for made in make_pictures(run_of(tmp_path, **keys))}
    assert {after[path] for path in after.keys() & before.keys()} == {"a blue cross"}
    other = {made.path for made in make_pictures(run_of(tmp_path, **keys | {"num_inference_steps": 3}))}
    assert not other & after.keys()


def test_a_test_pair_that_is_also_given_to_vote_on_is_a_test(tmp_path):
    pictures = pictures_of(tmp_path / "in", ("new", "old"), 3)
    row = {"prompt": "prompt 0", "media_a": "new/0.png", "media_b": "old/0.png", "share": 0.0}
    (pictures / "tests.jsonl").write_text(json.dumps(row))
    store = open_store(run_of(tmp_path, input=pictures, tests=pictures / "tests.jsonl"))
    answers = [row["answer"] for row in store.db.execute("SELECT answer FROM pairs")]
    assert sorted(answers, key=str) == [0.0, None, None] and store.count("wanted") == 2
    begun = tmp_path / "begun"
    begun.mkdir()
    open_store(run_of(begun, input=pictures)).close()
    with pytest.raises(InputError, match="prompt 0"):
        open_store(run_of(begun, input=pictures, tests=pictures / "tests.jsonl"))


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        ({"policy": "least_sure"}, "judge"),
        ({"retrain": 5}, "judge"),
        ({"policy": "disagreement", "judge": "x"}, "retrain"),
        ({"policy": "ranking", "judge": "x"}, "leave judge out"),
        ({"judge": "x"}, "say policy=least_sure"),
        ({"compare": "a,a"}, "twice"),
        ({"people": "anna,anna"}, "twice"),
        ({"people": " , "}, "names nobody"),
        ({"policy": "ranking", "compare": "a,b"}, "random"),
        ({"compare": "a"}, "two models"),
        ({"compare": "a,b,c"}, "two models"),
        ({"address": "votes.example.org"}, "http"),
        ({"samples": 3}, "generator"),
        ({"num_inference_steps": 3}, "generator"),
        ({"generator": ("x",), "samples": 1}, "samples"),
        ({"policy": "least_sure", "judge": "x", "training": {"epochs": 1}}, "retrain"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(tmp_path, keys, word):
    with pytest.raises(InputError, match=word):
        run_of(tmp_path, input="in.jsonl", **keys)


def test_a_ranking_of_models_that_nobody_names_is_refused(tmp_path):
    write_picture(torch.zeros(1, 3, 8, 8), tmp_path / "a.png")
    write_picture(torch.ones(1, 3, 8, 8), tmp_path / "b.png")
    (tmp_path / "in.jsonl").write_text(json.dumps({"prompt": "x", "media_a": "a.png", "media_b": "b.png"}))
    with pytest.raises(InputError, match="names its two"):
        open_store(run_of(tmp_path, input=tmp_path / "in.jsonl", policy="ranking"))


def test_a_judge_behind_a_server_does_not_learn_here(tmp_path):
    with pytest.raises(InputError, match="behind a server"):
        learning_plan(run_of(tmp_path, input="in.jsonl", judge="http://127.0.0.1:9", retrain=3))


def test_a_judge_that_learns_changes_no_policy_and_goes_with_criteria(tmp_path):
    judge = {"judge": "shapeworld-judge-small", "criteria": "t2i"}
    assert run_of(tmp_path, input="in.jsonl", retrain=100, **judge).policy == "least_voted"
    assert run_of(tmp_path, input="in.jsonl", policy="least_sure", **judge).policy == "least_sure"


# -- people ------------------------------------------------------------------------------------------------------------


def test_links_are_kept_for_nobody_else_and_stay_the_same(tmp_path):
    run = run_of(tmp_path, input=pictures_of(tmp_path / "in", ("new", "old"), 2), people="anna,ben")
    store = open_store(run)
    first = invite(store, run.people)
    said = list(links(store.path, first, "https://votes.example.org/"))
    assert f"anna\thttps://votes.example.org/i/{first['anna']}" in said
    path = tmp_path / "votes.sqlite.invitations"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = invite(store, ("anna", "ben", "cleo"))
    assert {name: again[name] for name in first} == first and len(set(again.values())) == 4


# -- the whole ---------------------------------------------------------------------------------------------------------


def test_a_page_that_others_could_open_is_refused_before_anything_is_made(tmp_path):
    done = command("annotate", "nowhere.jsonl", "--store", tmp_path / "v.sqlite", "--host", "0.0.0.0")
    assert done.code == 2 and "nobody is invited" in done.err and not list(tmp_path.iterdir())


@pytest.mark.timeout(600)
def test_people_vote_a_judge_learns_beside_and_the_export_trains_one(tmp_path):
    torch.manual_seed(0)
    rows = []
    for n in range(24):
        for side, level in (("a", 0.2), ("b", 0.8)):
            write_picture((level + 0.1 * torch.rand(1, 3, 32, 32)).clamp(0, 1), tmp_path / f"{n}{side}.png")
        rows.append({"prompt": f"a picture {n}", "media_a": f"{n}a.png", "media_b": f"{n}b.png"})
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    store = tmp_path / "votes.sqlite"
    words = [sys.executable, "-m", "rewarddance", "annotate", str(tmp_path / "pairs.jsonl"), "--store", str(store)]
    words += ["--port", "0", "--overlap", "0", "--people", "anna", "--judge", str(judge_folder()), "--retrain", "8"]
    for key in ("instruction=t2i-brief", "batch_size=4", "learning_rate=1e-3"):
        words += ["--training", key]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        link = next(line.split("\t")[1].strip() for line in process.stdout if line.startswith("anna\t"))
        parts = urlsplit(link)
        with httpx2.Client(base_url=f"http://{parts.netloc}", timeout=30, trust_env=False) as anna:
            anna.get(parts.path)
            asks = anna.post("/ask", json={}).json()["asks"]
            for _ in range(9):
                asks = anna.post("/vote", json={"id": asks[0]["id"], "answer": "right", "criterion": ""}).json()["asks"]
            end = time.monotonic() + 240
            while (learned := Store(store).get("learned")) is None:
                assert time.monotonic() < end and process.poll() is None
                time.sleep(0.5)
            assert learned["votes"] == 8 and Path(learned["judge"]).is_dir()
            while asks:
                asks = anna.post("/vote", json={"id": asks[0]["id"], "answer": "right", "criterion": ""}).json()["asks"]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    assert command("votes", "report", store).code == 0 and (tmp_path / "votes.html").is_file()
    assert json.loads(command("votes", "export", store, "--output", tmp_path / "train.jsonl").out)["rows"] == 24
    recipe = {"preferences": str(tmp_path / "train.jsonl"), "output": str(tmp_path / "judge")}
    recipe |= {"judge": {"base": str(judge_folder()), "instruction": "t2i-brief", "batch_size": 8}}
    (tmp_path / "train.yaml").write_text(json.dumps(recipe))
    assert command("train", tmp_path / "train.yaml").code == 0
    assert (tmp_path / "judge" / "reward").is_dir()


def test_a_comparison_that_has_begun_gets_no_further_pairs(tmp_path):
    source = pictures_of(tmp_path / "in", ("new", "old"), 9)
    run = run_of(tmp_path, input=source, compare="new,old", compare_pairs=4)
    assert open_store(run).count("wanted") == 4
    assert open_store(run.model_copy(update={"compare_pairs": 9})).count("wanted") == 4
