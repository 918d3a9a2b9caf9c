"""Everything that can be wrong with rows, sets, media and files ends in an error that names it, or in quarantine.

Never a traceback, never a silent skip: each case below is one that is met when sets are downloaded and files are made
by hand or by scripts.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from bad_media import bad_media, picture
from sets import as_json, as_parquet, imported, png, put

from rewarddance.data.check import check
from rewarddance.data.fields import short
from rewarddance.data.importing import import_preferences
from rewarddance.data.media import as_pixels, inspect_media
from rewarddance.data.preferences import KEYS, PreferenceSet
from rewarddance.data.recipe import ImportRecipe
from rewarddance.errors import InputError

# -- rows of preferences files -----------------------------------------------------------------------------------------

GOOD = {"prompt": "p", "media_a": "0.png", "media_b": "1.png", "share": 1.0}
SCORED = {"prompt": "p", "media": "0.png", "score": 1.0}


def without(row: dict, *keys: str) -> dict:
    return {key: value for key, value in row.items() if key not in keys}


LINES: dict[str, Any] = {
    "cut": b'{"prompt": "p", "media_a": "0.p',
    "list": [1, 2],
    "number": 7,
    "text": "p",
    "null": None,
    "true": True,
    "nested too deep": b"[" * 100_000,
    "two objects": b'{"prompt": "p"} {"prompt": "q"}',
    "single quotes": b"{'prompt': 'p'}",
    "trailing comma": b'{"prompt": "p",}',
    "comment": b'{"prompt": "p"} // fine',
    "not utf-8": b'{"prompt": "\xff"}',
    "utf-16": '{"prompt": "p"}'.encode("utf-16-le"),
    "a null byte": b'{"prompt": "p\0"}',
    "empty object": {},
    "digits without end": b'{"share": ' + b"9" * 5000 + b"}",
    "no media": without(GOOD, "media_a", "media_b"),
    "share is nan": json.dumps(GOOD | {"share": float("nan")}).encode(),
    "share is infinite": json.dumps(GOOD).replace("1.0}", "1e999}").encode(),
    "reason is half a character": json.dumps(GOOD | {"reason": "\ud800"}).encode(),
    "label against share": GOOD | {"label": "tie"},
    "a score without a picture": {"prompt": "p", "score": 1},
    "a scored picture that is not there": SCORED | {"media": "lost.png"},
    "a score and a pair": GOOD | SCORED,
}
LINES |= {f"no {key}": without(GOOD, key) for key in GOOD} | {"a picture without a score": without(SCORED, "score")}
WRONG: dict[str, list[Any]] = {
    "prompt": [None, 3, ["p"], {"en": "p"}],
    "media_a": [
        None,
        3,
        ["0.png"],
        "",
        " ",
        "0\0.png",
        "lost.png",
        "0.png/1.png",
        "https://example.org/0.png",
        "x" * 5000,
    ],
    "media_b": ["../lost.png", {"path": "1.png"}],
    "image": ["lost.png", 0],
    "share": [None, "most", True, [0.5], 80, -0.1, "nan"],
    "criterion": [["style"]],
    "source": [{}],
    "annotator": [0.5],
    "reason": [[], 3.5],
    "reason_swapped": [["no"]],
    "fps": [0, -8, "fast"],
    "fps_a": [-24, "fast"],
    "fps_b": [[24]],
}
LINES |= {f"{key} is {short(value)}": GOOD | {key: value} for key, values in WRONG.items() for value in values}
LINES |= {f"label is {label}": without(GOOD, "share") | {"label": label} for label in ("c", "A", 1, ["a"], "")}
LINES |= {f"score is {score}": SCORED | {"score": score} for score in ("good", None, "nan")}


def encoded(line: Any) -> bytes:
    return line if isinstance(line, bytes) else json.dumps(line).encode()


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    put(folder, "0.png", "1.png", "2.png")
    return folder


@pytest.mark.parametrize("case", LINES)
def test_a_bad_row_of_a_preferences_file_is_named_and_counted(root, case):
    path = root / "p.jsonl"
    path.write_bytes(encoded(GOOD) + b"\n" + encoded(LINES[case]) + b"\n" + encoded(GOOD) + b"\n")
    with pytest.raises(InputError) as error:
        PreferenceSet(path)
    assert f"line 2 of the preferences file {path} cannot be used: " in error.value.what
    assert error.value.remedy and len(error.value.what) < 6000
    field = case.split(" is ")[0]
    assert field not in KEYS or f"cannot be used: {field} " in error.value.what
    found = check([path])["files"][str(path)]
    assert (found["pairs"], found["broken"], found["faults"][0]["line"]) == (2, 1, 2)


# -- records of public sets --------------------------------------------------------------------------------------------

PIC = {"bytes": png(1), "path": None}
TURN = [{"role": "user", "content": "<image><image>a fox"}, {"role": "assistant", "content": "A"}]
TWO_PICTURES = [["text", "p"], ["image", "0.png"], ["image", "1.png"]]
TASK = {"prompt": "p", "image_a": "0.png", "image_b": "1.png"}
ANSWER = {"type": "pairwise", "from_name": "pw", "to_name": "image_a,image_b", "value": {"selected": "left"}}
STATES = [{"prompt": "p", "output": "0.png"}, {"prompt": "p", "output": "1.png"}]
RECORDS: dict[str, dict] = {
    "label-studio": {"data": TASK, "annotations": [{"completed_by": 1, "result": [ANSWER]}]},
    "argilla": {"fields": TASK, "responses": {"preference": [{"value": "left", "user_id": "u"}]}},
    "genai-arena": {"type": "leftvote", "states": STATES},
    "editreward": {"instruction": "p", "source_img": "2.png", "vote_type": "leftvote"}
    | {"left_output_image": "0.png", "right_output_image": "1.png"},
    "editscore-bench": {"instruction": "p", "input_image": "2.png", "dimension": "overall", "task_type": "tone"}
    | {"output_images": ["0.png", "1.png"]},
    "hpdv3": {"prompt": "p", "path1": "0.png", "path2": "1.png", "choice_dist": [3, 1], "confidence": 0.9},
    "hpdv2": {"prompt": "p", "image_path": ["0.png", "1.png", "2.png"], "rank": [1, 2, 3]},
    "imagerewarddb": {"prompt": "p", "generations": ["0.png", "1.png"], "ranking": [1, 2]},
    "pickapic-v2": {"caption": "p", "jpg_0": png(1), "jpg_1": png(2), "label_0": 1.0, "label_1": 0.0}
    | {"has_label": True},
    "videogen-rewardbench": {"prompt": "p", "path_A": "0.png", "path_B": "1.png", "Overall": "A", "fps_A": 8},
    "rapidata": {"prompt": "p", "file_name1": "0.png", "file_name2": "1.png"}
    | {"weighted_results1_Preference": 0.5, "weighted_results2_Preference": 0.5},
    "genai-bench": {"prompt": "p", "left_image": "0.png", "right_image": "1.png", "vote_type": "leftvote"},
    "omnirewardbench": {"prompt": "p", "response1": "0.png", "response2": "1.png", "criteria": "c"}
    | {"criteria_preference": "response1"},
    "mmrb2": {"prompt_content": [["text", "p"]], "chosen": "A"}
    | {f"response_{s}": {"response_content": [["image", f"{n}.png"]]} for n, s in enumerate("ab")},
    "messages": {"messages": TURN, "images": ["0.png", "1.png"]},
}
WRONG_FIELDS: dict[str, dict[str, list[Any]]] = {
    "hpdv3": {
        "prompt": [None, " ", 5, "half \ud83d", "null \0"],
        "path1": [None, "", 17, "lost.png", "https://example.org/1.png", "x" * 5000, "0\0.png", "\ud800.png"],
        "path2": [["1.png"], {}],
        "choice_dist": [[0, 0], [1], [1, 2, 3], [-1, 3], ["many", "few"], "[3, 1", {"a": 3}, [True, False], 3],
    },
    "hpdv2": {
        "image_path": [None, [], "0.png", ["0.png", None, "2.png"]],
        "rank": [None, [1, 2], "123", [1, 2, "last"]],
        "raw_annotations": [[{"rank": [1, 2]}], [{"rank": "1 2 3"}], 3],
        "human_preference": [[1, 1, 0], 1],
    },
    "imagerewarddb": {
        "generations": [None, ["0.png", 5]],
        "ranking": [None, [1], ["best", "worst"], [1, None]],
    },
    "pickapic-v2": {
        "caption": [None, ""],
        "jpg_0": [None, b""],
        "jpg_1": [b"no picture", picture()[:100]],
        "has_label": [False],
        "label_0": [None, 0.0, float("nan"), float("inf")],
        "label_1": [-1.0],
    },
    "videogen-rewardbench": {
        "path_A": [None],
        "path_B": ["lost.mp4"],
        "Overall": [None, "C", 1],
        "VQ": ["better"],
        "fps_A": [-1, "fast", True],
        "prompt": [["p"]],
    },
    "rapidata": {
        "file_name1": [None],
        "file_name2": ["https://assets.rapidata.ai/x/lost.mp4"],
        "weighted_results1_Preference": [None, "half"],
        "weighted_results2_Preference": [None, -0.5],
        "prompt_asset": [{"bytes": b"", "path": ""}, {"bytes": b"no picture", "path": ""}],
    },
    "genai-bench": {
        "vote_type": [None, "upvote", 1],
        "left_image": [None],
        "right_image": [{"bytes": b"GIF89a"}],
        "prompt": [None],
        "HumanRatings": ["5", {"m": [5]}],
    },
    "omnirewardbench": {
        "response1": ["A poem about a fox.", None],
        "response2": ["song.wav"],
        "criteria": [None],
        "criteria_preference": [None, "response3"],
        "image": [{"bytes": b"no picture", "path": "x.png"}],
    },
    "mmrb2": {
        "prompt_content": [None, [], ["p"], [["image", "0.png"]], [["sound", "a.wav"], ["text", "p"]], TWO_PICTURES],
        "response_a": [None, []],
        "response_b": [
            {"response_content": content}
            for content in ([], [["text", "Here it is."], ["image", "1.png"]], [["image", "lost.png"]])
        ],
        "chosen": [None, "C"],
    },
    "messages": {
        "messages": [None, "a fox", ["a fox"], [{"role": "user", "content": 5}], TURN[:1]]
        + [[TURN[0] | {"content": "<image><image>"}, TURN[1]]]
        + [[TURN[0], TURN[1] | {"content": text}] for text in ("I cannot say.", "Image 1 is not better")]
        + [[TURN[0], TURN[1] | {"content": "Image 1 is better in colour, image 2 is better in form."}]],
        "images": [None, [], ["0.png"], ["0.png", "1.png", "2.png"], ["0.png", "lost.png"]],
        "rejected_images": [["0.png"]],
        "label": [3],
    },
}
WRONG_FIELDS |= {
    "label-studio": {
        "data": [None, [TASK], {"prompt": "p"}, TASK | {"prompt": None}, TASK | {"image_b": "lost.png"}],
        "annotations": [None, 5, [5], [{"result": 5}], [{"result": [5]}]]
        + [[{"result": [ANSWER | {"value": value}]}] for value in (None, {"selected": "up"}, {"choices": []})],
    },
    "argilla": {
        "fields": [None, ["p"], {"prompt": "p"}, TASK | {"image_a": None}, TASK | {"image_a": "data:image/png,x"}],
        "responses": [None, [], {"preference": 5}, {"preference": [5]}, {"preference": [{"value": "up"}]}],
    },
    "genai-arena": {
        "type": [None, "share", 5],
        "states": [None, [], [5, 5], STATES[:1], [STATES[0], STATES[1] | {"prompt": "q"}], [STATES[0], {"prompt": "p"}]]
        + [[STATES[0], {"messages": messages}] for messages in ([], [5])],
    },
    "editreward": {
        "instruction": [None],
        "source_img": ["lost.png"],
        "left_output_image": [None, {"bytes": b"no picture", "path": "x.png"}],
        "vote_type": [None, "up", 5],
    },
    "editscore-bench": {
        "instruction": [None],
        "input_image": [{"bytes": b"", "path": ""}],
        "output_images": [None, [], ["0.png"], ["0.png", "lost.png"], ["0.png", 5]],
        "dimension": [None, "taste", ["overall"]],
        "task_type": [None],
    },
}
BAD = {name: [{f: v} for f, values in fields.items() for v in values] for name, fields in WRONG_FIELDS.items()}
BAD["hpdv2"] += [{"image_path": ["0.png"] * n, "rank": list(range(n))} for n in (1, 65)]
BAD["hpdv2"] += [{"human_preference": [1, 1], "image_path": ["0.png", "1.png"]}]
BAD["imagerewarddb"] += [{"generations": ["0.png"], "ranking": [1]}]
BAD["rapidata"] += [{"weighted_results1_Preference": 0.0, "weighted_results2_Preference": 0.0}]
BAD["genai-bench"] += [{"HumanRatings": {"m": rating}, "Prompt": "p", "m": PIC} for rating in ([], ["good"])]
BAD["genai-bench"] += [{"HumanRatings": ratings, "Prompt": "p"} for ratings in ({"m": [5]}, {})]
BAD["messages"] += [{"label": "good", "images": ["0.png"]}]
CASES = [(name, number) for name, changes in BAD.items() for number in range(len(changes))]


@pytest.mark.parametrize(("name", "number"), CASES)
def test_a_bad_record_of_a_public_set_goes_to_quarantine_and_the_others_do_not(root, tmp_path, name, number):
    good, bad = RECORDS[name], RECORDS[name] | BAD[name][number]
    if name == "pickapic-v2" or b"bytes" in pickle.dumps(bad):  # one file would give all rows the same columns
        files = [as_parquet(tmp_path / f"{n}.parquet", [row]) for n, row in enumerate((good, bad, good))]
    else:
        records = [good, bad, good]
        files = [tmp_path / "set.json"]  # half a surrogate pair can be written only as its escape
        files[0].write_text(json.dumps({"pairs": records} if name == "mmrb2" else records))
    found, broken = imported(name, *files, media_root=root, output=tmp_path / "out.jsonl")
    whole = {"hpdv2": 6}.get(name, 2)  # a bad vote on one criterion leaves the others of its record
    assert len(found) == whole + (name == "videogen-rewardbench" and "VQ" in BAD[name][number])
    assert broken and all(row["reason"] and row["remedy"] for row in broken)
    assert {(row["file"], row["row"]) for row in broken} == {(str(files[len(files) // 2]), 1 if len(files) > 1 else 2)}


def test_every_public_set_is_tried():
    from rewarddance.data.sources import SOURCES

    assert {*BAD, "pickapic-v1"} == set(SOURCES)  # v1 and v2 are one converter


# -- media -------------------------------------------------------------------------------------------------------------

MEDIA = dict(bad_media())


@pytest.mark.parametrize("name", MEDIA)
def test_a_bad_picture_or_video_is_refused_by_its_name(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(MEDIA[name])
    for look in (as_pixels, inspect_media):
        with pytest.raises(InputError) as error:
            look(path)
        assert str(path) in error.value.what and error.value.remedy == "Replace or remove it."
        assert "object at 0x" not in error.value.what
    with pytest.raises(InputError, match=r"^candidate 3 cannot be decoded: "):
        as_pixels(MEDIA[name], "candidate 3")


def test_bad_media_are_all_in_quarantine_after_an_import(root, tmp_path):
    for name, data in MEDIA.items():
        (tmp_path / name).write_bytes(data)
    put(tmp_path, "0.png")
    records = [RECORDS["hpdv3"] | {"path1": "0.png", "path2": name} for name in [*MEDIA, "0.png"]]
    found, broken = imported("hpdv3", as_json(tmp_path / "train.json", records))
    assert len(found) == 1 and [row["row"] for row in broken] == list(range(1, len(MEDIA) + 1))
    assert all(row["field"] == "path2" and name in row["reason"] for row, name in zip(broken, MEDIA, strict=True))


# -- files -------------------------------------------------------------------------------------------------------------

FILES: dict[str, bytes | None] = {
    "lost.json": None,
    "lost.csv": None,
    "lost.parquet": None,
    "empty.json": b"",
    "empty.jsonl": b"",
    "empty.csv": b"",
    "empty.parquet": b"",
    "blank.json": b" \n\n",
    "no-records.json": b"[]",
    "no-records.csv": b"prompt,path1,path2\n",
    "scalar.json": b"17",
    "text.json": b'"records"',
    "page.json": b"<html></html>",
    "page.parquet": b"<html></html>",
    "cut.parquet": b"PAR1" + bytes(100),
    "pointer.parquet": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
    "archive.zip": b"PK\x03\x04",
    "table.xlsx": b"PK\x03\x04",
    "train.arrow": b"ARROW1",
    "no-suffix": b"[]",
    "only-bad.json": b'[{"path1": "0.png"}]',
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_holds_nothing_to_import_is_named(tmp_path, name):
    path, data = tmp_path / name, FILES[name]
    if data is not None:
        path.write_bytes(data)
    recipe = ImportRecipe(name="hpdv3", files=(path,), output=tmp_path / "out" / "p.jsonl")
    if name == "only-bad.json":
        assert import_preferences(recipe)["quarantined"] == 1
        return
    with pytest.raises(InputError) as error:
        import_preferences(recipe)
    assert str(path) in error.value.what and error.value.remedy
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


OURS = ("lost.jsonl", "empty.jsonl", "blank.jsonl", "lost.parquet", "empty.parquet", "set.json", "set.csv", "a folder")


@pytest.mark.parametrize("name", OURS)
def test_a_preferences_file_that_is_none_is_named(tmp_path, name):
    path = tmp_path / name
    if "lost" not in name and "folder" not in name:
        path.write_text("" if "empty" in name else "\n \n")
    if name == "a folder":
        path.mkdir()
    with pytest.raises(InputError, match=name):
        PreferenceSet(path)


def test_the_corpus_has_at_least_200_cases():
    assert len(LINES) + len(CASES) + len(MEDIA) + len(FILES) >= 200
