"""Downloaded files: their records come one by one, and where a file breaks off it is said."""

from __future__ import annotations

import json

import pytest
from sets import as_csv, as_jsonl, as_parquet

from rewarddance.data import records
from rewarddance.data.records import read_records
from rewarddance.errors import InputError

ROWS = [{"n": i, "text": 'ein "Würfel" \\ 立方体 🎲\n' * (i % 3), "list": [1.5, {"deep": None}]} for i in range(30)]


@pytest.fixture(autouse=True, params=[5, 1 << 20])
def pieces(request, monkeypatch) -> None:
    """Files in pieces that cut through every token, and in one."""
    monkeypatch.setattr(records, "_CHUNK", request.param)


@pytest.mark.parametrize("indent", [None, 0, 4])
@pytest.mark.parametrize("form", ["array", "object", "lines", "bom"])
def test_json_is_read_in_every_form_that_it_comes_in(tmp_path, indent, form):
    path = tmp_path / "a.json"
    text = json.dumps(ROWS, indent=indent, ensure_ascii=False)
    if form == "object":
        text = json.dumps({"version": 2, "about": {"pairs": [1]}, "pairs": ROWS, "end": []}, indent=indent)
    if form == "lines":
        text = "\n".join(map(json.dumps, ROWS))
    path.write_text(text, encoding="utf-8-sig" if form == "bom" else "utf-8")
    found = list(read_records(path, array="pairs"))
    assert [row.content for row in found] == ROWS and [row.number for row in found] == list(range(1, 31))


def test_other_kinds_of_files_give_the_same_records(tmp_path):
    flat = [{"n": str(i), "text": f'a, "b"\n{i}'} for i in range(5)]
    for path in (as_csv(tmp_path / "a.csv", flat), as_jsonl(tmp_path / "a.jsonl", flat)):
        assert [row.content for row in read_records(path)] == flat
    assert [row.content for row in read_records(as_parquet(tmp_path / "a.parquet", flat))] == flat
    (tmp_path / "a.tsv").write_text("n\ttext\n1\ta, b\n")
    assert [row.content for row in read_records(tmp_path / "a.tsv")] == [{"n": "1", "text": "a, b"}]


def test_of_an_array_that_breaks_off_what_stands_before_is_read(tmp_path):
    path, text = tmp_path / "a.json", json.dumps(ROWS[:6])
    for cut in range(1, len(text) - 1, 7):
        path.write_text(text[:cut])
        *before, last = read_records(path)
        assert [row.content for row in before] == ROWS[: len(before)]
        assert isinstance(last.content, InputError) and "broken from here on" in last.content.what
        assert last.number in (len(before), len(before) + 1) or last.number == 1


def test_what_stands_behind_the_list_is_not_left_out_in_silence(tmp_path):
    path = tmp_path / "a.json"
    for text in ("%s\n%s", "%s  x"):
        path.write_text(text.replace("%s", json.dumps(ROWS[:2])))
        *before, last = read_records(path)
        assert [row.content for row in before] == ROWS[:2] and last.number == 3
        assert isinstance(last.content, InputError) and "more after the end" in last.content.what
    path.write_text(json.dumps(ROWS[:2]) + " \n\t")
    assert [row.content for row in read_records(path)] == ROWS[:2]


def test_odd_values_in_an_array_break_no_other_record(tmp_path):
    rows = [{"n": float("inf")}, {"n": 10**30}, {"n": "half \ud83d"}, {"n": 1.0}]
    (tmp_path / "a.json").write_text(json.dumps(rows).replace("1.0", '1e400, "m": NaN'))
    *before, last = [row.content for row in read_records(tmp_path / "a.json")]
    assert before == rows[:3] and last["n"] == float("inf") and last["m"] != last["m"]


@pytest.mark.parametrize("text", ["", " \n", "17", '"text"', "null", "<html>"])
def test_json_that_holds_no_records_is_an_error(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=r"a.json is (empty|no JSON array)"):
        read_records(tmp_path / "a.json")


@pytest.mark.parametrize("name", ["a.txt", "a.zip", "a", "folder.json", "lost.json", "lost.jsonl", "lost.csv"])
def test_a_file_of_another_kind_or_none_is_an_error(tmp_path, name):
    (tmp_path / "folder.json").mkdir()
    if "lost" not in name and "folder" not in name:
        (tmp_path / name).write_text("x")
    with pytest.raises(InputError, match=name):
        read_records(tmp_path / name)


def test_lines_of_a_csv_that_cannot_be_read_are_named_and_the_others_come(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'a,b\n1,2\n1\n1,2,3\n\n\xff,2\n"x"y,2\n5,6\n')
    found = list(read_records(path))
    assert [row.number for row in found] == list(range(1, 7))
    assert [row.content for row in found if isinstance(row.content, dict)] == [
        {"a": "1", "b": "2"},
        {"a": "5", "b": "6"},
    ]
    said = [row.content.what for row in found if isinstance(row.content, InputError)]
    path.write_text('a,b\n1,2\n"3,4\n5,6\n')
    assert "broken from here on: a quote that begins after line 2" in list(read_records(path))[-1].content.what
    for word, text in zip(("1 values", "3 values", "not UTF-8", "no CSV"), said, strict=True):
        assert word in text
