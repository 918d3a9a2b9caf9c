"""`rewarddance bench` on ShapeWorld, where the oracle is the detector: figures, resuming, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_fleet import HereFleet
from tiny import command, generator_folder, judge_folder
from tiny_runs import Killing

from rewarddance.api import bench
from rewarddance.data.faults import FaultyRows
from rewarddance.data.media import read_picture, write_picture
from rewarddance.errors import InputError
from rewarddance.generators.pipelines import load_generator
from rewarddance.jobs import bench as benching
from rewarddance.jobs.bench import run_bench
from rewarddance.jobs.recipes import BenchRun
from rewarddance.runtime.config import parse_recipe
from rewarddance.shapeworld.oracle import read
from rewarddance.shapeworld.render import render
from rewarddance.shapeworld.scenes import Spec, all_specs, sample_scene, wrong_attribute

ORACLE = "rewarddance.shapeworld.detector:detect"
SAMPLES = 2


def specs(n: int) -> list[Spec]:
    """Of each category `n` specs that GenEval can say: it has no word for sizes."""
    rng = np.random.default_rng(0)
    pools = [[s for s in own if not any(o.size for o in s.objects)] for own in all_specs().values()]
    return [own[int(i)] for own in pools for i in rng.permutation(len(own))[:n]]


def write_world(folder: Path, wanted: list[Spec], wrong: bool = False) -> Path:
    """GenEval's folder of drawn scenes, `SAMPLES` a prompt; returns the metadata file."""
    rng = np.random.default_rng(1)
    for number, spec in enumerate(wanted):
        own = folder / "pictures" / f"{number:05d}"
        for sample in range(SAMPLES):
            scene = sample_scene(spec, rng)
            picture = render(wrong_attribute(scene, rng, len(scene)) if wrong else scene)
            write_picture(torch.from_numpy(picture).permute(2, 0, 1)[None], own / "samples" / f"{sample:04d}.png")
        (own / "metadata.jsonl").write_text(json.dumps(spec.geneval()))
    prompts = folder / "evaluation_metadata.jsonl"
    prompts.write_text("".join(json.dumps(spec.geneval()) + "\n" for spec in wanted))
    return prompts


def bench_run(folder: Path, **changes: Any) -> BenchRun:
    content = {"benchmark": "geneval", "detector": ORACLE, "output": folder / "out", "device": "cpu", "batch_size": 5}
    content |= {"prompts": folder / "evaluation_metadata.jsonl", "pictures": folder / "pictures"} | changes
    return parse_recipe(BenchRun, {key: value for key, value in content.items() if value is not None}, "the test")


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_pictures_of_what_the_prompts_ask_for_are_correct(tmp_path):
    wanted = specs(4)
    write_world(tmp_path, wanted)
    result = run_bench(bench_run(tmp_path))
    rows = rows_of(tmp_path / "out")
    assert result["pictures"] == len(rows) == len(wanted) * SAMPLES and result["failed"] == 0
    assert [(row["number"], row["sample"]) for row in rows] == [(n, s) for n in range(24) for s in range(SAMPLES)]
    for row in rows:  # where GenEval's rule of positions is stricter, it is by the direction
        assert row["correct"] or (row["tag"] == "position" and "target" in row["reason"]), row
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert {name for name, figure in scores["figures"]["category"].items() if figure["mean"] == 1} >= {
        "single_object",
        "two_object",
        "counting",
        "colors",
        "color_attr",
    }
    assert scores["by"]["detector"] == ORACLE and scores["by"]["colours"] == "the detector"
    assert "| counting | 100.0 [67.6, 100.0] | 8 |" in (tmp_path / "out" / "scores.md").read_text()


def test_what_is_counted_is_what_the_oracle_reads(tmp_path):
    wanted = specs(4)
    write_world(tmp_path, wanted, wrong=True)
    run_bench(bench_run(tmp_path))
    right = dict.fromkeys((True, False), 0)
    for row in rows_of(tmp_path / "out"):
        spec, picture = wanted[row["number"]], Path(row["picture"])
        things = read(read_picture(picture)[0].permute(1, 2, 0).numpy()).things
        named = {phrase.shape for phrase in spec.objects}
        counts = {name: sum(one.shape == name for one in things) for name in named}
        assert {name: len(found) for name, found in row["objects"].items()} == {k: n for k, n in counts.items() if n}
        if row["tag"] == "counting":
            total = spec.objects[0].count
            fitting = sum(spec.objects[0].fits(one) for one in things)
            assert row["correct"] == (counts[spec.objects[0].shape] == total == fitting), row
        right[row["correct"]] += 1
    assert right[False] > 2 * right[True]  # a changed colour that nobody asked for is no fault


def test_a_run_that_is_cut_off_goes_on_and_ends_the_same(tmp_path, monkeypatch):
    write_world(tmp_path, specs(2))
    run_bench(bench_run(tmp_path, output=tmp_path / "whole"))
    with monkeypatch.context() as patch:
        kill = Killing(benching.PictureScorer.__call__, 3)
        patch.setattr(benching.PictureScorer, "__call__", lambda self, shots: kill(self, shots))
        with pytest.raises(KeyboardInterrupt):
            run_bench(bench_run(tmp_path))
    assert len(rows_of(tmp_path / "out")) == 10
    with pytest.raises(InputError, match="rules"):
        run_bench(bench_run(tmp_path, rules={"threshold": 0.5}))
    run_bench(bench_run(tmp_path))
    for name in ("results.jsonl", "scores.json", "scores.md"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_workers_of_a_fleet_give_the_same_rows(tmp_path, monkeypatch):
    write_world(tmp_path, specs(1))
    run_bench(bench_run(tmp_path, output=tmp_path / "alone"))
    monkeypatch.setattr(benching, "Fleet", HereFleet)
    run_bench(bench_run(tmp_path, ray="local", workers=2))
    assert rows_of(tmp_path / "out") == rows_of(tmp_path / "alone")


def test_every_prompt_without_enough_pictures_is_named_first(tmp_path):
    write_world(tmp_path, specs(1))
    pictures = tmp_path / "pictures"
    for path in [*(pictures / "00001" / "samples").iterdir()]:
        path.unlink()
    (pictures / "00003" / "samples" / "0001.png").unlink()
    (pictures / "00004" / "samples" / "0000.png").write_bytes(b"no picture")
    (pictures / "00005" / "metadata.jsonl").write_text('{"prompt": "another"}')
    with pytest.raises(FaultyRows) as caught:
        run_bench(bench_run(tmp_path))
    named = [fault.where.split()[1] for fault in caught.value.faults]
    assert named == ["2", "4", "5", "6"]
    assert not (tmp_path / "out" / "results.jsonl").exists()
    result = run_bench(bench_run(tmp_path, skip_faulty=True))
    assert result["skipped"] == 4 and result["pictures"] == 2 * SAMPLES


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ({"tag": "colours", "include": [{"class": "circle", "count": 1}], "prompt": "p"}, "tag"),
        ({"tag": "colors", "include": [{"class": "circle", "count": 1, "color": "rot"}], "prompt": "p"}, "color"),
        (
            {"tag": "position", "include": [{"class": "a", "count": 1, "position": ["above", 0]}], "prompt": "p"},
            "posit",
        ),
        ({"tag": "colors", "include": [{"class": "circle", "count": 1, "colour": "red"}], "prompt": "p"}, "colour"),
    ],
)
def test_a_line_that_is_not_genevals_is_refused_by_its_key(tmp_path, line, named):
    write_world(tmp_path, specs(1))
    (tmp_path / "evaluation_metadata.jsonl").open("a").write(json.dumps(line) + "\n")
    with pytest.raises(FaultyRows, match=named):
        run_bench(bench_run(tmp_path))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"generator": "shapeworld-generator"}, "either"),
        ({"pictures": None}, "either"),
        ({"judge": "shapeworld-judge"}, "judge"),
        ({"colours": "judge"}, "judge"),
        ({"benchmark": "geneval2", "judge": "shapeworld-judge"}, "detector"),
        ({"benchmark": "tifa", "detector": None}, "judge"),
        ({"answers": "yes_no"}, "answers"),
        ({"workers": 2}, "ray"),
        ({"instruction": "t2i"}, "instruction"),
        ({"num_inference_steps": 4}, "num_inference_steps"),
        ({"generator_options": {"height": 32}}, "generator_options"),
    ],
)
def test_options_that_would_do_nothing_are_refused(tmp_path, changes, named):
    with pytest.raises(InputError, match=named):
        bench_run(tmp_path, **changes)


@pytest.mark.parametrize("content", ["", " \n\r\n", "\ufeff"])
def test_a_file_without_any_prompt_is_refused_by_its_name(tmp_path, content):
    write_world(tmp_path, specs(1))
    (tmp_path / "evaluation_metadata.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=r"evaluation_metadata\.jsonl is empty"):
        run_bench(bench_run(tmp_path))


def test_a_generator_makes_the_pictures_once_and_from_seeds(tmp_path):
    prompts = tmp_path / "evaluation_metadata.jsonl"
    prompts.write_text("".join(json.dumps(spec.geneval()) + "\n" for spec in specs(1)[:3]))
    drawing = {"pictures": None, "generator": str(generator_folder()), "num_inference_steps": 2, "samples": 2}
    run_bench(bench_run(tmp_path, **drawing))
    made = sorted((tmp_path / "out" / "pictures").rglob("*.png"))
    assert [path.relative_to(tmp_path / "out" / "pictures").as_posix() for path in made] == [
        f"0000{n}/samples/000{s}.png" for n in range(3) for s in range(2)
    ]
    assert len({path.read_bytes() for path in made}) == 6
    before = {path: path.read_bytes() for path in made}
    made[0].unlink()
    (tmp_path / "out" / "results.jsonl.progress.json").unlink()
    run_bench(bench_run(tmp_path, **drawing))
    assert {path: path.read_bytes() for path in made} == before
    # its folder is one that pictures can be given as
    result = run_bench(bench_run(tmp_path, pictures=tmp_path / "out" / "pictures", output=tmp_path / "again"))
    assert result["pictures"] == 6


def test_the_command_prints_figures_and_a_table(tmp_path):
    prompts = write_world(tmp_path, specs(1))
    words = ["bench", "geneval", str(prompts), "rules.threshold=0.2", "--pictures", str(tmp_path / "pictures")]
    done = command(*words, "--detector", ORACLE, "--output", str(tmp_path / "out"))
    assert done.code == 0, done.err
    printed = json.loads(done.out)
    assert printed["figures"]["correct pictures"] >= 0.8 and printed["failed"] == 0
    assert "| single\\_object |" in done.err or "| single_object |" in done.err
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["by"]["rules"]["threshold"] == 0.2


def test_a_generator_that_is_an_object_gives_the_pictures_of_its_name(tmp_path):
    write_world(tmp_path, specs(1)[:2])
    keys = {"samples": 2, "detector": ORACLE, "device": "cpu"}
    file, name = tmp_path / "evaluation_metadata.jsonl", str(generator_folder())
    found = bench("geneval", file, generator=load_generator(name, 2), output=tmp_path / "object", **keys)
    assert found["pictures"] == 4 and found["figures"]
    bench("geneval", file, generator=name, num_inference_steps=2, output=tmp_path / "name", **keys)
    made = [sorted((tmp_path / folder / "pictures").rglob("*.png")) for folder in ("object", "name")]
    assert [path.read_bytes() for path in made[0]] == [path.read_bytes() for path in made[1]]
    with pytest.raises(InputError, match="guidance_scale is the generator's own"):
        bench("geneval", file, generator=load_generator(name, 2), guidance_scale=2, output=tmp_path / "no")
    with pytest.raises(InputError, match="detectr"):
        bench("geneval", file, generator=name, detectr="x", output=tmp_path / "no")


ATOMS = [
    {
        "prompt": "two red circles",
        "atom_count": 3,
        "vqa_list": [["How many circles are in the image?", "two"], ["Are the circles red?", "Yes"]],
        "skills": ["count", "attribute"],
    },
    {"prompt": "a cross", "atom_count": 3, "vqa_list": [["Are there any crosses?", "Yes"]], "skills": ["object"]},
]
QUESTIONS = [
    {
        "id": f"drawbench_{n}",
        "caption": "a red circle",
        "question": question,
        "choices": choices,
        "answer": choices[0],
        "element_type": kind,
        "element": "circle",
    }
    for n in range(2)
    for question, choices, kind in [
        ("is there a circle?", ["yes", "no"], "object"),
        ("what color is the circle?", ["red", "green", "blue"], "color"),
    ]
]


def answers(**options):
    """A judge that knows the answers: sure of counts and colours, at odds about the rest."""

    def function(images, prompts, metadata):
        sure = {"two": 2.0, "red": 1.0, "green": -1.0, "blue": 0.0}
        return [sure.get(one["answer"].lower(), 0.5) for one in metadata]

    return function


def question_run(folder: Path, benchmark: str, **changes: Any) -> BenchRun:
    """Two prompts with a picture each, in a plain folder."""
    (folder / "atoms.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ATOMS))
    (folder / "questions.json").write_text(json.dumps(QUESTIONS))
    names = ("0.png", "1.png") if benchmark == "geneval2" else ("drawbench_0.png", "drawbench_1.png")
    for name in names:
        write_picture(torch.rand(1, 3, 32, 32), folder / "shots" / name)
    file = "atoms.jsonl" if benchmark == "geneval2" else "questions.json"
    content = {"benchmark": benchmark, "prompts": folder / file, "detector": None, "pictures": folder / "shots"}
    return bench_run(folder, **content | {"judge": f"{__file__}:answers"} | changes)


def test_soft_tifa_is_of_the_judges_probabilities(tmp_path):
    run_bench(question_run(tmp_path, "geneval2"))
    two, yes = (1 / (1 + np.exp(-margin)) for margin in (2.0, 0.5))
    first, second = rows_of(tmp_path / "out")
    assert first["probabilities"] == pytest.approx([two, yes]) and second["probabilities"] == pytest.approx([yes])
    assert first["am"] == pytest.approx((two + yes) / 2) and first["gm"] == pytest.approx((two * yes) ** 0.5)
    assert first["answers_by"] == "yes_no"
    figures = json.loads((tmp_path / "out" / "scores.json").read_text())["figures"]
    assert figures["all"]["Soft-TIFA GM"]["mean"] == pytest.approx(((two * yes) ** 0.5 + yes) / 2)


def test_a_judge_that_is_an_object_answers_as_it_does_by_its_name(tmp_path):
    question_run(tmp_path, "geneval2")
    place = {"pictures": tmp_path / "shots", "device": "cpu"}
    by_object = bench("geneval2", tmp_path / "atoms.jsonl", judge=answers(), output=tmp_path / "object", **place)
    by_name = bench(
        "geneval2", tmp_path / "atoms.jsonl", judge=f"{__file__}:answers", output=tmp_path / "name", **place
    )
    assert by_object["figures"] == by_name["figures"]
    with pytest.raises(InputError, match="kind is an option of load_reward"):
        bench("geneval2", tmp_path / "atoms.jsonl", judge=answers(), kind="clip", output=tmp_path / "no", **place)
    with pytest.raises(InputError, match="workers of Ray load their models by name"):
        bench("geneval2", tmp_path / "atoms.jsonl", judge=answers(), ray="local", output=tmp_path / "no", **place)


def test_tifa_takes_the_likeliest_choice_of_each_question(tmp_path):
    run_bench(question_run(tmp_path, "tifa"))
    for row in rows_of(tmp_path / "out"):
        assert row["answers"] == ["yes", "red"] and row["score"] == 1


def test_a_vision_language_model_answers_by_its_first_token(tmp_path):
    listed = tmp_path / "shots.json"
    run = question_run(tmp_path, "geneval2", judge=str(judge_folder()), pictures=listed)
    listed.write_text(json.dumps({ATOMS[0]["prompt"]: "shots/0.png", "1": ["shots/1.png"]}))
    atoms = [row | {"vqa_list": [["Is it red?", "Yes"]] * len(row["skills"])} for row in ATOMS]  # words it has
    (tmp_path / "atoms.jsonl").write_text("".join(json.dumps(row) + "\n" for row in atoms))
    run_bench(run)
    rows = rows_of(tmp_path / "out")
    assert {row["answers_by"] for row in rows} == {"first_token"}
    assert all(0 < chance < 1 for row in rows for chance in row["probabilities"])
    assert rows[0]["probabilities"][0] != rows[1]["probabilities"][0]
