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
from rewarddance.data.importing import ImportRecipe, import_preferences
from rewarddance.data.media import as_pixels, inspect_media
from rewarddance.data.preferences import PreferenceSet
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
    "no prompt": without(GOOD, "prompt"),
    "null prompt": GOOD | {"prompt": None},
    "prompt is a number": GOOD | {"prompt": 3},
    "prompt is a list": GOOD | {"prompt": ["p"]},
    "prompt is an object": GOOD | {"prompt": {"en": "p"}},
    "no a": without(GOOD, "media_a"),
    "no b": without(GOOD, "media_b"),
    "no media": without(GOOD, "media_a", "media_b"),
    "a is null": GOOD | {"media_a": None},
    "a is a number": GOOD | {"media_a": 3},
    "a is a list": GOOD | {"media_a": ["0.png"]},
    "a is blank": GOOD | {"media_a": " "},
    "a holds a null byte": GOOD | {"media_a": "0\0.png"},
    "a is too long a name": GOOD | {"media_a": "x" * 5000},
    "a is not there": GOOD | {"media_a": "lost.png"},
    "a is in a folder that is none": GOOD | {"media_a": "0.png/1.png"},
    "a is a web address": GOOD | {"media_a": "https://example.org/0.png"},
    "b is not there": GOOD | {"media_b": "../lost.png"},
    "b is a struct": GOOD | {"media_b": {"path": "1.png"}},
    "image is not there": GOOD | {"image": "lost.png"},
    "image is a number": GOOD | {"image": 0},
    "no share and no label": without(GOOD, "share"),
    "share is null": GOOD | {"share": None},
    "share is a word": GOOD | {"share": "most"},
    "share is true": GOOD | {"share": True},
    "share is a list": GOOD | {"share": [0.5]},
    "share is in per cent": GOOD | {"share": 80},
    "share is below 0": GOOD | {"share": -0.1},
    "share is nan": b'{"prompt": "p", "media_a": "0.png", "media_b": "1.png", "share": NaN}',
    "share is infinite": b'{"prompt": "p", "media_a": "0.png", "media_b": "1.png", "share": 1e999}',
    "share is nan in words": GOOD | {"share": "nan"},
    "label is c": without(GOOD, "share") | {"label": "c"},
    "label is A": without(GOOD, "share") | {"label": "A"},
    "label is a number": without(GOOD, "share") | {"label": 1},
    "label is a list": without(GOOD, "share") | {"label": ["a"]},
    "label is blank": without(GOOD, "share") | {"label": ""},
    "label against share": GOOD | {"label": "tie"},
    "criterion is a list": GOOD | {"criterion": ["style"]},
    "source is an object": GOOD | {"source": {}},
    "annotator is a fraction": GOOD | {"annotator": 0.5},
    "reason is a list": GOOD | {"reason": []},
    "reason is half a character": b'{"prompt": "p", "media_a": "0.png", "media_b": "1.png", "share": 1, '
    b'"reason": "\\ud800"}',
    "fps is 0": GOOD | {"fps": 0},
    "fps is a word": GOOD | {"fps": "fast"},
    "fps of a is negative": GOOD | {"fps_a": -24},
    "fps of b is a list": GOOD | {"fps_b": [24]},
    "a score without a picture": {"prompt": "p", "score": 1},
    "a picture without a score": without(SCORED, "score"),
    "score is a word": SCORED | {"score": "good"},
    "score is null": SCORED | {"score": None},
    "score is nan": SCORED | {"score": "nan"},
    "a scored picture that is not there": SCORED | {"media": "lost.png"},
    "a score and a pair": GOOD | SCORED,
}


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
    found = check([path])["files"][str(path)]
    assert (found["pairs"], found["broken"], found["faults"][0]["line"]) == (2, 1, 2)


# -- records of public sets --------------------------------------------------------------------------------------------

PIC = {"bytes": png(1), "path": None}
TURN = [{"role": "user", "content": "<image><image>a fox"}, {"role": "assistant", "content": "A"}]
RECORDS: dict[str, dict] = {
    "hpdv3": {"prompt": "p", "path1": "0.png", "path2": "1.png", "choice_dist": [3, 1], "confidence": 0.9},
    "hpdv2": {"prompt": "p", "image_path": ["0.png", "1.png", "2.png"], "rank": [1, 2, 3]},
    "imagerewarddb": {"prompt": "p", "generations": ["0.png", "1.png"], "ranking": [1, 2]},
    "pickapic-v2": {
        "caption": "p",
        "jpg_0": png(1),
        "jpg_1": png(2),
        "label_0": 1.0,
        "label_1": 0.0,
        "has_label": True,
    },
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
BAD: dict[str, list[dict]] = {
    "hpdv3": [
        {"prompt": None},
        {"prompt": " "},
        {"prompt": 5},
        {"prompt": "half \ud83d"},
        {"prompt": "null \0"},
        {"path1": None},
        {"path1": ""},
        {"path1": 17},
        {"path1": "lost.png"},
        {"path1": "https://example.org/1.png"},
        {"path1": "x" * 5000},
        {"path1": "0\0.png"},
        {"path1": "\ud800.png"},
        {"path2": ["1.png"]},
        {"path2": {}},
        {"choice_dist": [0, 0]},
        {"choice_dist": [1]},
        {"choice_dist": [1, 2, 3]},
        {"choice_dist": [-1, 3]},
        {"choice_dist": ["many", "few"]},
        {"choice_dist": "[3, 1"},
        {"choice_dist": {"a": 3}},
        {"choice_dist": [True, False]},
        {"choice_dist": 3},
    ],
    "hpdv2": [
        {"image_path": None},
        {"image_path": []},
        {"image_path": ["0.png"], "rank": [1]},
        {"image_path": "0.png"},
        {"image_path": ["0.png", None, "2.png"]},
        {"image_path": ["0.png"] * 65, "rank": list(range(65))},
        {"rank": None},
        {"rank": [1, 2]},
        {"rank": "123"},
        {"rank": [1, 2, "last"]},
        {"raw_annotations": [{"rank": [1, 2]}]},
        {"raw_annotations": [{"rank": "1 2 3"}]},
        {"raw_annotations": 3},
        {"human_preference": [1, 1, 0]},
        {"human_preference": [1, 1], "image_path": ["0.png", "1.png"]},
        {"human_preference": 1},
    ],
    "imagerewarddb": [
        {"generations": None},
        {"generations": ["0.png"], "ranking": [1]},
        {"ranking": None},
        {"ranking": [1]},
        {"ranking": ["best", "worst"]},
        {"ranking": [1, None]},
        {"generations": ["0.png", 5]},
    ],
    "pickapic-v2": [
        {"caption": None},
        {"caption": ""},
        {"jpg_0": None},
        {"jpg_0": b""},
        {"jpg_1": b"no picture"},
        {"jpg_1": picture()[:100]},
        {"has_label": False},
        {"label_0": None},
        {"label_0": 0.0},
        {"label_1": -1.0},
        {"label_0": float("nan")},
        {"label_0": float("inf")},
    ],
    "videogen-rewardbench": [
        {"path_A": None},
        {"path_B": "lost.mp4"},
        {"Overall": None},
        {"Overall": "C"},
        {"Overall": 1},
        {"VQ": "better"},
        {"fps_A": -1},
        {"fps_A": "fast"},
        {"fps_A": True},
        {"prompt": ["p"]},
    ],
    "rapidata": [
        {"file_name1": None},
        {"file_name2": "https://assets.rapidata.ai/x/lost.mp4"},
        {"weighted_results1_Preference": None},
        {"weighted_results2_Preference": None},
        {"weighted_results1_Preference": 0.0, "weighted_results2_Preference": 0.0},
        {"weighted_results1_Preference": "half"},
        {"weighted_results2_Preference": -0.5},
        {"prompt_asset": {"bytes": b"", "path": ""}},
        {"prompt_asset": {"bytes": b"no picture", "path": ""}},
    ],
    "genai-bench": [
        {"vote_type": None},
        {"vote_type": "upvote"},
        {"vote_type": 1},
        {"left_image": None},
        {"right_image": {"bytes": b"GIF89a"}},
        {"prompt": None},
        {"HumanRatings": "5"},
        {"HumanRatings": {"m": [5]}},
        {"HumanRatings": {"m": []}, "Prompt": "p", "m": PIC},
        {"HumanRatings": {"m": ["good"]}, "Prompt": "p", "m": PIC},
        {"HumanRatings": {"m": [5]}, "Prompt": "p"},
        {"HumanRatings": {}, "Prompt": "p"},
    ],
    "omnirewardbench": [
        {"response1": "A poem about a fox."},
        {"response2": "song.wav"},
        {"response1": None},
        {"criteria": None},
        {"criteria_preference": None},
        {"criteria_preference": "response3"},
        {"image": {"bytes": b"no picture", "path": "x.png"}},
    ],
    "mmrb2": [
        {"prompt_content": None},
        {"prompt_content": []},
        {"prompt_content": [["image", "0.png"]]},
        {"prompt_content": [["sound", "a.wav"], ["text", "p"]]},
        {"prompt_content": ["p"]},
        {"prompt_content": [["text", "p"], ["image", "0.png"], ["image", "1.png"]]},
        {"response_a": None},
        {"response_a": []},
        {"response_b": {"response_content": []}},
        {"response_b": {"response_content": [["text", "Here it is."], ["image", "1.png"]]}},
        {"response_b": {"response_content": [["image", "lost.png"]]}},
        {"chosen": None},
        {"chosen": "C"},
    ],
    "messages": [
        {"messages": None},
        {"messages": "a fox"},
        {"messages": ["a fox"]},
        {"messages": [{"role": "user", "content": 5}]},
        {"messages": [{"role": "user", "content": "<image><image>"}, {"role": "assistant", "content": "A"}]},
        {"messages": [TURN[0], {"role": "assistant", "content": "I cannot say."}]},
        {"messages": [TURN[0], {"role": "assistant", "content": "Image 1 is not better"}]},
        {
            "messages": [
                TURN[0],
                {"role": "assistant", "content": "Image 1 is better in colour, image 2 is better in form."},
            ]
        },
        {"messages": TURN[:1]},
        {"images": None},
        {"images": []},
        {"images": ["0.png"]},
        {"images": ["0.png", "1.png", "2.png"]},
        {"images": ["0.png", "lost.png"]},
        {"rejected_images": ["0.png"]},
        {"label": 3},
        {"label": "good", "images": ["0.png"]},
    ],
}
CASES = [(name, number) for name, changes in BAD.items() for number in range(len(changes))]


@pytest.mark.parametrize(("name", "number"), CASES)
def test_a_bad_record_of_a_public_set_goes_to_quarantine_and_the_others_do_not(root, tmp_path, name, number):
    good, bad = RECORDS[name], RECORDS[name] | BAD[name][number]
    if name == "pickapic-v2" or b"bytes" in pickle.dumps(
        bad
    ):  # files of their own: one would have to give all rows the same columns
        files = [as_parquet(tmp_path / f"{n}.parquet", [row]) for n, row in enumerate((good, bad, good))]
    else:
        records = [good, bad, good]
        files = [tmp_path / "set.json"]  # half a surrogate pair can be written only as its escape
        files[0].write_text(json.dumps({"pairs": records} if name == "mmrb2" else records))
    found, broken = imported(name, *files, media_root=root, output=tmp_path / "out.jsonl")
    assert len(found) == {"hpdv2": 6}.get(name, 2)
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
