"""Imports: every record becomes a row or is in quarantine with its reason; splits are by prompt; a kill is harmless."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import pytest
from PIL import Image
from sets import as_json, as_jsonl, as_parquet, imported, lines, png, put
from tiny import command, judge_folder

from rewarddance.data import importing
from rewarddance.data.importing import import_preferences
from rewarddance.data.preferences import PreferenceSet
from rewarddance.data.recipe import ImportRecipe
from rewarddance.data.splits import parse_split, part_of
from rewarddance.errors import InputError


def hpdv3(root: Path, n: int, prompts: int = 10) -> Path:
    """`n` records over as many prompts."""
    put(root, *[f"images/{i}.png" for i in range(2 * prompts)])
    records = [
        {"prompt": f"Prompt {i % prompts}", "path1": f"images/{2 * (i % prompts)}.png", "choice_dist": [9, i % 9]}
        | {"path2": f"images/{2 * (i % prompts) + 1}.png"}
        for i in range(n)
    ]
    return as_json(root / "train.json", records)


# -- quarantine --------------------------------------------------------------------------------------------------------


def test_a_broken_row_goes_to_quarantine_and_the_others_are_written(tmp_path):
    path = hpdv3(tmp_path, 6)
    records = json.loads(path.read_text())
    del records[1]["prompt"]
    records[2]["path2"] = "images/lost.png"
    records[3]["choice_dist"] = [0, 0]
    (tmp_path / "images" / "8.png").write_text("<html>404</html>")
    as_json(path, records)
    found, broken = imported("hpdv3", path)
    assert [row["prompt"] for row in found] == ["Prompt 0", "Prompt 5"]
    fields = [(row["row"], row["field"]) for row in broken]
    assert fields == [(2, "prompt"), (3, "path2"), (4, "choice_dist"), (5, "path1")]
    assert broken[0]["reason"] == "prompt is missing."
    assert "images/lost.png is not in" in broken[1]["reason"] and "--media-root" in broken[1]["remedy"]
    assert "it is a web page" in broken[3]["reason"] and {row["file"] for row in broken} == {str(path)}


def test_without_decoding_only_what_is_not_there_is_found(tmp_path):
    path = hpdv3(tmp_path, 3)
    (tmp_path / "images" / "0.png").write_text("broken")
    (tmp_path / "images" / "2.png").unlink()
    found, broken = imported("hpdv3", path, decode=False)
    assert len(found) == 2 and [row["row"] for row in broken] == [2]


def test_a_wrong_name_or_root_is_said_at_once_and_binds_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(importing, "_HOPELESS", 64)
    monkeypatch.setattr(importing, "_BATCH", 32)
    path = hpdv3(tmp_path, 200)
    with pytest.raises(InputError) as error:
        imported("pickapic-v2", path)
    assert "none of the first 64 rows can be used; the first: label_0 is missing" in error.value.what
    assert "pickapic_v2" in error.value.remedy
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(InputError, match=r"images/[01].png is not in .*elsewhere"):
        imported("hpdv3", path, media_root=tmp_path / "elsewhere")
    assert len(imported("hpdv3", path)[0]) == 200


def test_what_pyav_would_be_needed_for_is_no_fault_of_a_row(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "av", None)
    path = hpdv3(tmp_path, 2)
    (tmp_path / "images" / "0.png").write_bytes(b"\0\0\0\x20ftypisom" + bytes(100))
    with pytest.raises(InputError, match="PyAV is not installed"):
        imported("hpdv3", path)


# -- splits ------------------------------------------------------------------------------------------------------------


def test_a_split_is_by_prompt_whatever_its_case_and_spacing(tmp_path):
    path = hpdv3(tmp_path, 120, prompts=40)
    records = json.loads(path.read_text())
    for record in records[::3]:
        record["prompt"] = f"  {record['prompt'].upper()}. "
    as_json(path, records)
    split = parse_split("train=0.7, test=0.2,val=0.1")
    recipe = ImportRecipe(name="hpdv3", files=(path,), output=tmp_path / "out" / "p.jsonl", split=split)
    result = import_preferences(recipe)
    parts = {part: lines(tmp_path / "out" / f"p.{part}.jsonl") for part in split}
    assert sum(map(len, parts.values())) == 120 == sum(result["rows"].values())
    prompts = {part: {row["prompt"].strip(" .").lower() for row in rows} for part, rows in parts.items()}
    assert sum(map(len, prompts.values())) == 40 and len(prompts["train"]) > len(prompts["test"]) > 0
    assert all(part_of(prompt, split) == part for part in split for prompt in prompts[part])


def test_shares_of_a_split_are_kept_over_many_prompts():
    split = {"train": 0.9, "test": 0.1}
    parts = [part_of(f"a prompt, number {i}", split) for i in range(5000)]
    assert abs(parts.count("test") / 5000 - 0.1) < 0.02


@pytest.mark.parametrize("text", ["train", "train=x", "train=0.9", "train=0.5,train=0.5", "=1", "a/b=1", "train=2"])
def test_a_split_that_is_none_is_refused(text):
    with pytest.raises(InputError, match="split"):
        parse_split(text)


def test_a_part_that_nothing_falls_into_is_an_empty_file(tmp_path):
    path = hpdv3(tmp_path, 2, prompts=1)
    split = {"train": 0.5, "test": 0.5}
    recipe = ImportRecipe(name="hpdv3", files=(path,), output=tmp_path / "out" / "p.jsonl", split=split)
    assert sorted(import_preferences(recipe)["rows"].values()) == [0, 2]
    assert all((tmp_path / "out" / f"p.{part}.jsonl").exists() for part in split)


# -- outputs -----------------------------------------------------------------------------------------------------------


def test_parquet_holds_the_same_rows_and_several_files_are_one_set(tmp_path):
    first, second = hpdv3(tmp_path / "one", 70), hpdv3(tmp_path / "two", 5)
    output = tmp_path / "out" / "p.parquet"
    result = import_preferences(ImportRecipe(name="hpdv3", files=(first, second), output=output))
    assert result["rows"] == {str(output): 75}
    expected, _ = imported("hpdv3", first, second, output=tmp_path / "out" / "p.jsonl")
    found = PreferenceSet(output)
    assert [found.row(i).written(tmp_path / "out") for i in range(75)] == expected
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["p.jsonl", "p.jsonl.import.json", "p.parquet", "p.parquet.import.json"]


def test_one_criterion_is_kept_and_the_rest_counted(tmp_path):
    put(tmp_path, "a.png", "b.png")
    row = {"prompt": "p", "path_A": "a.png", "path_B": "b.png", "VQ": "A", "MQ": "B", "Overall": "same"}
    path = as_jsonl(tmp_path / "v.jsonl", [row, row])
    recipe = {"name": "videogen-rewardbench", "files": (path,), "output": tmp_path / "out.jsonl"}
    result = import_preferences(ImportRecipe(criterion="overall", **recipe))
    assert (result["rows"][str(tmp_path / "out.jsonl")], result["left_out"]) == (2, 4)
    with pytest.raises(InputError, match="no row is about the criterion 'style'") as error:
        import_preferences(ImportRecipe(criterion="style", **recipe | {"output": tmp_path / "s.jsonl"}))
    assert error.value.remedy == "They are about 'VQ', 'MQ', 'Overall'."


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_an_import_that_was_stopped_ends_like_one_that_was_not(tmp_path, monkeypatch, kind, stop):
    monkeypatch.setattr(importing, "_BATCH", 16)
    records = [{"caption": f"prompt {i % 7}", "jpg_0": png(i), "jpg_1": png(i + 1)} for i in range(90)]
    records = [r | {"label_0": 1.0 if i % 10 else 2.0, "label_1": 0.0 if i % 10 else -1} for i, r in enumerate(records)]
    path = as_parquet(tmp_path / "a.parquet", records)

    def run(folder: Path) -> dict:
        recipe = {"output": folder / f"p.{kind}", "split": {"train": 0.6, "test": 0.4}}
        return import_preferences(ImportRecipe(name="pickapic-v2", files=(path,), **recipe))

    def contents(folder: Path) -> dict[str, bytes]:
        files = (one for one in folder.rglob("*") if one.is_file() and not one.name.endswith(".import.json"))
        return {str(one.relative_to(folder)): one.read_bytes() for one in files}

    whole = run(tmp_path / "whole")
    commits, commit = 0, importing.RowFile.commit

    def dies(self, *given) -> None:
        nonlocal commits
        commits += 1
        if commits == 3 * stop - 1:  # between two files of a batch
            raise KeyboardInterrupt
        commit(self, *given)

    monkeypatch.setattr(importing.RowFile, "commit", dies)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut")
    monkeypatch.setattr(importing.RowFile, "commit", commit)
    again = run(tmp_path / "cut")
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert list(again["rows"].values()) == list(whole["rows"].values()) and again["quarantined"] == 9
    assert run(tmp_path / "cut") == again


def test_another_import_does_not_go_on_with_the_output_of_this_one(tmp_path):
    path = hpdv3(tmp_path, 3)
    imported("hpdv3", path)
    with pytest.raises(InputError, match=r"import with decode = True, not False"):
        imported("hpdv3", path, decode=False)
    written = path.stat().st_mtime_ns
    os.utime(path, ns=(written, written + 1))
    with pytest.raises(InputError, match="of an import of files that have changed since"):
        imported("hpdv3", path)
    (tmp_path / "mine.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match=r"mine.jsonl exists, and no import wrote it"):
        imported("hpdv3", path, output=tmp_path / "mine.jsonl")
    assert (tmp_path / "mine.jsonl").read_text() == "{}\n"
    with pytest.raises(InputError, match=r"is no table"):
        imported("hpdv3", path, output=tmp_path / "mine.csv")


# -- as a command ------------------------------------------------------------------------------------------------------


def test_the_command_counts_what_is_in_quarantine_aloud_and_ends_with_1(tmp_path):
    path = hpdv3(tmp_path, 12)
    Image.new("F", (8, 8)).save(tmp_path / "images" / "6.tiff")
    records = json.loads(path.read_text())
    records[3]["path1"] = "images/6.tiff"
    as_json(path, records)
    output = tmp_path / "out" / "p.jsonl"
    arguments = ("data", "import", "hpdv3", path, "--output", output, "--split", "train=0.5,test=0.5")
    for _ in range(2):  # the second time nothing is left to do
        done = command(*arguments)
        assert done.code == 1 and "Traceback" not in done.err
        assert "1 of 12 rows are in quarantine" in done.err and "row 4 of" in done.err and "32-bit numbers" in done.err
        assert sum(json.loads(done.out)["rows"].values()) == 11
    put(tmp_path, *[f"images/{i}.png" for i in range(20)])
    done = command(*arguments[:5], tmp_path / "two.jsonl", "--media-root", tmp_path / "nowhere")
    assert done.code == 2 and "12 of 12 rows are in quarantine" in done.err
    done = command(*arguments[:5], tmp_path / "two.jsonl")  # nothing was written, so another root may be tried
    assert done.code == 1 and json.loads(done.out)["rows"] == {str(tmp_path / "two.jsonl"): 11}
    done = command(*arguments[:2], "hpdv4", *arguments[3:])
    assert done.code == 2 and "Did you mean" in done.err


def test_the_commands_help_names_every_set():
    from rewarddance.data.sources import SOURCES

    text = command("data", "import", "--help").out
    assert all(name in text for name in SOURCES) and "Example: rewarddance data import" in text


def test_the_tutorials_two_commands_make_a_judge_from_a_public_set(tmp_path, monkeypatch):
    root = Path(__file__).parents[2]
    page = (root / "docs" / "tutorials" / "train_on_votes.md").read_text().replace("\\\n", " ")
    told = [line for line in page.splitlines() if line.startswith("rewarddance ")]
    first, second = (next(line for line in told if word in line) for word in ("data import hpdv3", "preferences=data"))
    hpdv3(tmp_path / "HPDv3", 120, prompts=60)
    monkeypatch.chdir(tmp_path)
    done = command(*shlex.split(first)[1:])
    assert done.code == 0 and sum(json.loads(done.out)["rows"].values()) == 120, done.err
    recipe = str(root / "recipes" / "shapeworld_judge.yaml")
    words = [recipe if word.startswith("recipes/") else word for word in shlex.split(second)[1:]]
    arguments = [word for word in words if not word.startswith("judge.base=")]  # a judge of a hub, which is not here
    small = (f"judge.base={judge_folder()}", "judge.batch_size=4", "judge.epochs=0.05")
    done = command(*arguments, *small)
    assert done.code == 0, done.err
    assert (tmp_path / "runs" / "hpdv3" / "reward" / "model.safetensors").exists()


def test_train_refuses_what_is_for_evaluation_only(tmp_path):
    put(tmp_path, "images/a.png", "images/b.png")
    response = {f"response_{side}": {"response_content": [["image", f"images/{side}.png"]]} for side in "ab"}
    pair = {"prompt_content": [["text", "a lamp"]], "chosen": "A"} | response
    imported("mmrb2", as_json(tmp_path / "t2i.json", {"pairs": [pair] * 4}), output=tmp_path / "bench.jsonl")
    recipe = {"preferences": str(tmp_path / "bench.jsonl"), "output": str(tmp_path / "run")}
    (tmp_path / "train.yaml").write_text(json.dumps(recipe))
    done = command("train", tmp_path / "train.yaml")
    assert done.code == 2 and "for evaluation only" in done.err and "Train on another set" in done.err
    assert not (tmp_path / "run").exists()
