"""Prompt files in their two forms."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from rewarddance.data.media import write_picture
from rewarddance.data.prompts import metadata_text, read_prompts
from rewarddance.errors import InputError
from rewarddance.shapeworld.scenes import prompt_set
from rewarddance.types import Prompt


def test_a_text_file_holds_one_prompt_a_line(tmp_path):
    (tmp_path / "p.txt").write_text("a red circle\n\n  two blue crosses \r\nein grüner Kreis, 图\n", encoding="utf-8")
    found = read_prompts(tmp_path / "p.txt")
    assert found == [Prompt("a red circle"), Prompt("two blue crosses"), Prompt("ein grüner Kreis, 图")]


def test_a_line_of_json_carries_what_else_it_has_along(tmp_path):
    rows = [
        {"prompt": "a", "negative_prompt": "blur", "id": 7},
        spec_record := prompt_set("train", 1, 0)[0][1].geneval(),
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    first, second = read_prompts(tmp_path / "p.jsonl")
    assert first == Prompt("a", "blur", {"id": 7})
    assert second.text == spec_record["prompt"]
    assert second.metadata == {key: value for key, value in spec_record.items() if key != "prompt"}


def test_a_line_separator_inside_a_prompt_does_not_end_the_line(tmp_path):
    text = "a red\u2028circle"
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": text}, ensure_ascii=False), encoding="utf-8")
    assert [prompt.text for prompt in read_prompts(tmp_path / "p.jsonl")] == [text]


@pytest.mark.parametrize(
    "line", ["a red circle", "{}", "[]", '["prompt"]', "3", '{"prompt": 3}', '{"prompt": "p", "negative_prompt": []}']
)
def test_a_line_without_a_prompt_is_an_error_that_names_it(tmp_path, line):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}\n\n' + line + "\n")
    with pytest.raises(InputError) as caught:
        read_prompts(path)
    assert f"line 3 of the prompt file {path}: " in caught.value.what and "holds no prompt" in caught.value.what
    assert caught.value.remedy


def test_an_empty_a_missing_and_a_binary_file_are_errors_that_name_it(tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    for name, said in (("empty", "is empty"), ("binary", "cannot be read"), ("missing", "cannot be read")):
        with pytest.raises(InputError) as caught:
            read_prompts(tmp_path / f"{name}.txt")
        assert f"{name}.txt {said}" in caught.value.what and caught.value.remedy


def written(folder, *rows):
    (folder / "p.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder / "p.jsonl"


def test_a_prompts_picture_is_named_from_the_files_folder_and_shared(tmp_path):
    first = torch.rand(1, 3, 4, 6).mul(255).round() / 255
    write_picture(first, tmp_path / "media" / "first.png")
    rows = [{"prompt": "a", "image": "media/first.png", "id": 7}, {"prompt": "b"}, {"prompt": "c"}]
    rows[2]["image"] = str(tmp_path / "media" / "first.png")
    prompts = read_prompts(written(tmp_path, *rows))
    assert prompts[0] == Prompt("a", metadata={"id": 7}, image_path=tmp_path / "media" / "first.png")
    torch.testing.assert_close(prompts[0].image, first)
    assert prompts[1].image is None and prompts[2].image is prompts[0].image


def test_a_picture_that_cannot_be_used_is_refused_with_its_line_and_the_remedy(tmp_path):
    write_picture(torch.rand(1, 3, 64, 64), tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    write_picture(torch.rand(3, 3, 4, 4), tmp_path / "video.png")
    faults = {"gone.png": "gone.png cannot be read", "cut.png": "cut.png cannot be read", "video.png": "is a video"}
    for name, why in faults.items():
        file = written(tmp_path, {"prompt": "a", "image": "whole.png"}, {"prompt": "b", "image": name})
        with pytest.raises(InputError, match=rf"line 2 .*{why}") as caught:
            read_prompts(file)
        assert caught.value.remedy
    for value in (3, "", [], "a\0b"):
        with pytest.raises(InputError, match=r"line 1 .*which is no path"):
            read_prompts(written(tmp_path, {"prompt": "b", "image": value}))


def test_a_quote_that_does_not_end_is_an_error_and_takes_no_row_with_it(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text('prompt\n"abc\nd\n')
    with pytest.raises(InputError, match="cannot be read"):
        read_prompts(path)


def test_an_object_around_the_list_may_have_any_name(tmp_path):
    for name in ("prompts", "data"):
        (tmp_path / "p.json").write_text(json.dumps({name: ["a red circle", "a cross"]}))
        assert [prompt.text for prompt in read_prompts(tmp_path / "p.json")] == ["a red circle", "a cross"]


def test_metadata_of_numpys_numbers_is_text_and_what_json_cannot_hold_names_its_prompt():
    assert metadata_text(Prompt("a", metadata={"x": np.float32(0.5), "n": np.int64(3)})) == '{"n": 3, "x": 0.5}'
    with pytest.raises(InputError, match=r"the prompt 'a' has metadata that JSON cannot hold: a value of the type set"):
        metadata_text(Prompt("a", metadata={"x": {1}}))


def test_metadata_that_no_result_can_hold_is_named(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a", "v": NaN}\n')
    with pytest.raises(InputError, match=r"line 1 .*what no result can"):
        read_prompts(path)
