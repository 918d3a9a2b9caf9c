"""Tables: rows come back as they stand in the file, from any place on; what was written survives a kill anywhere."""

from __future__ import annotations

import datetime
import json
import os
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rewarddance.data.journal import RowFile
from rewarddance.data.tables import open_table
from rewarddance.errors import InputError

ROWS = [{"id": i, "prompt": f"ein Würfel 立方体 🎲 {i}", "tags": ["a"] * (i % 3)} for i in range(10)]


def jsonl(path: Path, rows=ROWS) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def parquet(path: Path, rows=ROWS, schema: pa.Schema | None = None, **options) -> Path:
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, **options)
    return path


def contents(path: Path, start: int = 0) -> list[dict]:
    found = list(open_table(path).rows(start))
    assert [row.number for row in found] == list(range(start + 1, start + len(found) + 1))
    return [row.content for row in found]


# -- in ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0, 1, 3, 4, 9, 10])
def test_rows_come_in_order_from_any_place_on(tmp_path, start):
    for path in (jsonl(tmp_path / "a.jsonl"), parquet(tmp_path / "a.parquet", row_group_size=4)):
        assert len(open_table(path)) == 10
        assert contents(path, start) == ROWS[start:]


def test_blank_lines_are_no_rows_but_count_as_lines(tmp_path):
    (tmp_path / "a.jsonl").write_text('\n{"id": 0}\n   \n\n{"id": 1}')
    table = open_table(tmp_path / "a.jsonl")
    assert len(table) == 2
    assert [tuple(row) for row in table.rows()] == [(2, {"id": 0}), (5, {"id": 1})]
    assert [tuple(row) for row in table.rows(1)] == [(5, {"id": 1})]


@pytest.mark.parametrize("line", [b'{"half a li', b"[1, 2]", b"3", b'{"a": "\xff"}', b"[" * 100_000, b"\x00"])
def test_a_broken_line_comes_as_the_reason_and_the_others_as_they_are(tmp_path, line):
    (tmp_path / "a.jsonl").write_bytes(b'{"id": 0}\n' + line + b'\n{"id": 2}\n')
    first, broken, last = open_table(tmp_path / "a.jsonl").rows()
    assert (first.content, last.content) == ({"id": 0}, {"id": 2})
    assert broken.number == 2 and isinstance(broken.content, InputError)
    assert broken.content.what.startswith("the line is no JSON object")


def test_a_parquet_value_that_cannot_be_read_is_the_reason_of_its_row_alone(tmp_path):
    text = pa.Array.from_buffers(pa.string(), 3, pa.array([b"a", b"\xff", b"c"], pa.binary()).buffers())
    pq.write_table(pa.table({"text": text}), tmp_path / "a.parquet")
    first, broken, last = open_table(tmp_path / "a.parquet").rows()
    assert (first.content, last.content) == ({"text": "a"}, {"text": "c"})
    assert isinstance(broken.content, InputError) and "'text' cannot be read" in broken.content.what


def test_of_a_damaged_parquet_group_the_rows_before_the_damage_can_be_had(tmp_path):
    path, texts = tmp_path / "a.parquet", [f"{i:0>400}" for i in range(3000)]
    pq.write_table(pa.table({"text": texts}), path, compression="snappy", data_page_size=20_000, use_dictionary=False)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 1000] = bytes(1000)
    path.write_bytes(content)
    table = open_table(path)
    *read, broken = table.rows()
    assert 100 < len(read) < 3000 and isinstance(broken.content, InputError)
    assert table.at(5) == {"text": texts[5]} == read[5].content
    assert "broken from here on" in table.at(2999).what


def test_texts_of_a_key_are_found_in_every_kind_of_table(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"instruction": "x"}\n{"other": "instruction"}\n{"instruction": 3}\nbroken\n')
    pq.write_table(pa.table({"instruction": ["x", None, "y"]}), tmp_path / "a.parquet")
    assert open_table(tmp_path / "a.jsonl").texts("instruction") == {"x"}
    assert open_table(tmp_path / "a.parquet").texts("instruction") == {"x", "y"}
    assert open_table(tmp_path / "a.parquet").texts("other") == set()


def test_a_folder_is_its_pictures_in_natural_order_with_the_prompts_beside_them(tmp_path):
    for name in ("p10.png", "p2.JPG", "p1.webp", ".hidden.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "p2.txt").write_text(" ein grüner Kreis\n", encoding="utf-8")
    (tmp_path / "p10.txt").write_bytes(b"\xff\xfe\xff")
    (tmp_path / "v3").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "v3" / "0.png")
    (tmp_path / "v3.txt").write_text("a video")
    (tmp_path / "empty").mkdir()
    (tmp_path / "video.mp4").write_bytes(b"")
    table = open_table(tmp_path)
    first, second, broken, *rest = [row.content for row in table.rows()]
    assert (first, second) == ({"candidate": "p1.webp"}, {"prompt": "ein grüner Kreis", "candidate": "p2.JPG"})
    assert isinstance(broken, InputError) and "p10.txt cannot be read" in broken.what
    assert rest == [{"prompt": "a video", "candidate": "v3"}, {"candidate": "video.mp4"}]
    assert len(table) == 5 and [row.number for row in table.rows(3)] == [4, 5]


def test_the_digest_tells_another_content(tmp_path):
    jsonl(tmp_path / "a.jsonl"), parquet(tmp_path / "a.parquet"), Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    paths = [tmp_path / "a.jsonl", tmp_path / "a.parquet", tmp_path]
    before = [open_table(path).digest for path in paths]
    assert [open_table(path).digest for path in paths] == before and len(set(before)) == 3
    jsonl(paths[0], [*ROWS[:-1], ROWS[0]]), parquet(paths[1], ROWS[::-1]), (tmp_path / "a.txt").write_text("a prompt")
    assert not set(before) & {open_table(path).digest for path in paths}


def test_the_digest_of_a_folder_tells_another_prompt_of_the_same_length(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a red circle")
    before = open_table(tmp_path).digest
    assert open_table(tmp_path).digest == before
    (tmp_path / "a.txt").write_text("a bed circle")
    assert open_table(tmp_path).digest != before


def test_what_is_no_table_or_holds_nothing_is_refused_by_name(tmp_path):
    (tmp_path / "a.csv").touch()
    (tmp_path / "a.jsonl").write_text("\n\n")
    (tmp_path / "b.parquet").write_text("no parquet")
    parquet(tmp_path / "a.parquet", [], pa.schema([("id", pa.int64())]))
    (tmp_path / "empty").mkdir()
    for name, said in {
        "a.csv": "is no table",
        "nowhere": "is not there",
        "a.jsonl": "is empty",
        "a.parquet": "is empty",
        "empty": "is empty",
        "b.parquet": "cannot be read",
        "nowhere.jsonl": "cannot be read",
        "nowhere.parquet": "cannot be read",
    }.items():
        with pytest.raises(InputError) as refused:
            open_table(tmp_path / name)
        assert f"the input {tmp_path / name} {said}" in refused.value.what and refused.value.remedy


# -- columns -----------------------------------------------------------------------------------------------------------


def test_the_columns_of_jsonl_are_the_types_that_all_rows_have_in_common(tmp_path, monkeypatch):
    monkeypatch.setattr("rewarddance.data.tables._TYPED_TOGETHER", 2)
    rows = [
        {"n": 1, "s": None, "x": 3},
        {"n": 2},
        {"n": 0.5, "d": {"a": 1}},
        {"s": "é", "d": {"b": "c"}},
        {"x": "free"},
    ]
    found = open_table(jsonl(tmp_path / "a.jsonl", rows)).columns(frozenset({"x"}))
    assert found.pop("d") == pa.struct([("a", pa.int64()), ("b", pa.string())])
    assert found == {"n": pa.float64(), "s": pa.string(), "x": pa.null()}


@pytest.mark.parametrize("values", [(1, "a"), (True, 2), ([1], 1), ({}, {}), (2**70, 1), ({"a": 1}, {"a": "b"})])
def test_a_key_whose_values_have_no_type_in_common_is_refused_by_name(tmp_path, values):
    table = open_table(jsonl(tmp_path / "a.jsonl", [{"id": 0, "odd": value} for value in values]))
    with pytest.raises(InputError, match=r"the key 'odd' of .*a.jsonl") as refused:
        table.columns(frozenset())
    assert "Write .jsonl" in refused.value.remedy


# -- out ---------------------------------------------------------------------------------------------------------------

SCHEMA = pa.schema([("id", pa.int64()), ("prompt", pa.string()), ("tags", pa.list_(pa.string()))])


def write(folder: Path, name: str, batches=((0, 3), (3, 4), (4, 8), (8, 10))) -> RowFile:
    """Write what is left of ROWS, of which every third fails."""
    file = RowFile(folder / name, SCHEMA if name.endswith("parquet") else None)
    for start, end in batches:
        if start >= file.progress.read:
            part = range(start, end)
            rows = [ROWS[i] for i in part if i % 3]
            file.commit(rows, [{"line": i + 1, "reason": "ü"} for i in part if i % 3 == 0], end - start)
    file.finish()
    return file


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_what_is_written_is_read_back(tmp_path, name):
    file = write(tmp_path, name)
    assert contents(tmp_path / name) == [row for i, row in enumerate(ROWS) if i % 3]
    assert [json.loads(line)["line"] for line in file.failures.read_text().splitlines()] == [1, 4, 7, 10]
    assert file.progress[:3] == (10, 6, 4) and file.progress.finished
    assert not (tmp_path / "a.parquet.rows").exists()


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_killed_at_any_moment_it_ends_with_the_same_bytes(tmp_path, name, monkeypatch):
    folder, left = tmp_path / "run", []
    folder.mkdir()

    def kill() -> None:
        """Keep what a kill would leave here, and with the file that grows half written."""
        state = {path.name: path.read_bytes() for path in folder.iterdir()}
        growing = name if name.endswith("jsonl") else f"{name}.rows"
        left.append(state)
        if b"true" in state.get(f"{name}.progress.json", b""):  # finished: nothing grows any more
            return
        left.append(state | {growing: state.get(growing, b"") + b'{"half a li'})
        left.append(state | {f"{name}.failed.jsonl": state.get(f"{name}.failed.jsonl", b"") + b"{"})

    for at in ("fsync", "replace"):
        real = getattr(os, at)
        monkeypatch.setattr(os, at, lambda *given, real=real: (kill(), real(*given), kill()))
    write(folder, name)
    monkeypatch.undo()
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len(left) > 60
    for number, state in enumerate(left):
        again = tmp_path / str(number)
        again.mkdir()
        for file, data in state.items():
            (again / file).write_bytes(data)
        write(again, name)
        assert {path.name: path.read_bytes() for path in again.iterdir()} == whole


def test_a_file_that_was_shortened_meanwhile_is_refused(tmp_path):
    RowFile(tmp_path / "a.jsonl").commit(ROWS, [], 10)
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(InputError, match=r"a.jsonl has become shorter"):
        RowFile(tmp_path / "a.jsonl").commit(ROWS, [], 10)
    (tmp_path / "a.jsonl.progress.json").write_text('{"read')
    with pytest.raises(InputError, match=r"progress.json cannot be read"):
        RowFile(tmp_path / "a.jsonl")


def test_json_holds_dates_and_decimals_as_text_and_refuses_bytes(tmp_path):
    file = RowFile(tmp_path / "a.jsonl")
    row = {"d": datetime.date(2026, 11, 23), "t": datetime.datetime(2026, 1, 2, 3, 4, 5), "n": Decimal("0.10")}
    assert json.loads(file.encode([row])) == {"d": "2026-11-23", "t": "2026-01-02T03:04:05", "n": "0.10"}
    for odd in ({"a": b"bytes"}, {"a": "\ud800"}, {"a": float("nan")}):
        with pytest.raises(InputError, match=r"the row cannot stand in .jsonl"):
            file.encode([odd])


def test_parquet_keeps_types_and_refuses_what_has_no_column(tmp_path):
    schema = pa.schema([("d", pa.date32()), ("b", pa.binary()), ("x", pa.float32()), ("n", pa.decimal128(5, 2))])
    rows = [{"d": datetime.date(2026, 11, 23), "b": b"\x00\xff", "x": 0.1, "n": Decimal("1.50")}, {"d": None}]
    file = RowFile(tmp_path / "a.parquet", schema)
    file.commit(rows, [], 2)
    file.finish()
    assert pq.read_table(tmp_path / "a.parquet").equals(pa.Table.from_pylist(rows, schema=schema))
    for odd in ({"e": 1}, {"d": "text"}, {"x": "text"}):
        with pytest.raises(InputError, match=r"the row cannot stand in .parquet"):
            file.encode([odd])


def test_a_finished_file_whose_rows_are_gone_does_not_count_as_whole(tmp_path):
    path = tmp_path / "a.jsonl"
    file = RowFile(path)
    file.commit([{"a": 1}], [], 1)
    file.finish()
    assert RowFile(path).progress.finished
    path.write_text("")
    with pytest.raises(InputError, match=r"a.jsonl has become shorter"):
        RowFile(path)


def changed(path: Path, old: bytes, new: bytes) -> None:
    """Other bytes of the same length: no length says that a row is another one now."""
    data = path.read_bytes()
    assert old in data and len(old) == len(new)
    path.write_bytes(data.replace(old, new, 1))


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    ("old", "new", "named"),
    [(b'"id": 3', b'"id": 4', "a.jsonl has been changed"), (b'"id": 3', b'"id":[3', "line 1 of .*a.jsonl has been")],
)
def test_rows_that_were_changed_meanwhile_are_refused_by_line(tmp_path, finished, old, new, named):
    file = RowFile(tmp_path / "a.jsonl")
    file.commit(ROWS[3:6], [{"line": 1, "reason": "gone"}], 4)
    if finished:
        file.finish()
    RowFile(tmp_path / "a.jsonl")
    changed(tmp_path / "a.jsonl", old, new)
    with pytest.raises(InputError, match=named):
        RowFile(tmp_path / "a.jsonl")
    changed(tmp_path / "a.jsonl", new, old)
    changed(tmp_path / "a.jsonl.failed.jsonl", b"gone", b"good")
    with pytest.raises(InputError, match=r"failed.jsonl has been changed"):
        RowFile(tmp_path / "a.jsonl")


def test_a_growing_parquet_file_that_was_changed_is_refused(tmp_path):
    RowFile(tmp_path / "a.parquet", SCHEMA).commit(ROWS[3:6], [], 3)
    changed(tmp_path / "a.parquet.rows", b"W", b"w")
    with pytest.raises(InputError, match=r"a.parquet.rows has been changed"):
        RowFile(tmp_path / "a.parquet", SCHEMA)


def test_a_finished_parquet_file_that_is_gone_or_another_is_refused(tmp_path):
    write(tmp_path, "a.parquet")
    RowFile(tmp_path / "a.parquet", SCHEMA)
    parquet(tmp_path / "a.parquet", ROWS[:2])
    with pytest.raises(InputError, match=r"a.parquet has been changed"):
        RowFile(tmp_path / "a.parquet", SCHEMA)
    for content in (b"PAR1", None):
        (tmp_path / "a.parquet").unlink()
        if content is not None:
            (tmp_path / "a.parquet").write_bytes(content)
        with pytest.raises(InputError, match=r"a.parquet cannot be read any more"):
            RowFile(tmp_path / "a.parquet", SCHEMA)


@pytest.mark.parametrize("content", ['{"bytes": "x"}', '{"read": -1}', "[1]", "3", '{"other": 1}', "[" * 5000])
def test_a_journal_that_is_none_is_refused_by_name(tmp_path, content):
    (tmp_path / "a.jsonl.progress.json").write_text(content)
    with pytest.raises(InputError, match=r"progress.json cannot be read"):
        RowFile(tmp_path / "a.jsonl")
