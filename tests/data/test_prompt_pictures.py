"""Where the pictures of a benchmark's prompts are looked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rewarddance.data.media import write_picture
from rewarddance.data.object_prompts import BenchPrompt, read_benchmark
from rewarddance.data.prompt_pictures import find_shots
from rewarddance.errors import InputError


@pytest.fixture
def prompts(tmp_path) -> list[BenchPrompt]:
    """Of three prompts, the second's line is broken: the third keeps its number."""
    line = {"tag": "single_object", "include": [{"class": "dog", "count": 1}]}
    lines = [json.dumps(line | {"prompt": text}) for text in ("a dog", "the dog")]
    (tmp_path / "metadata.jsonl").write_text("\n".join([lines[0], "{}", lines[1]]))
    faults: list = []
    found = read_benchmark("geneval", tmp_path / "metadata.jsonl", faults)
    assert len(faults) == 1 and faults[0].where.startswith("line 2 of ")
    assert [(one.number, one.key, one.text) for one in found] == [(0, "0", "a dog"), (2, "2", "the dog")]
    return found


def write(folder: Path, *names: str) -> None:
    for name in names:
        write_picture(torch.zeros(1, 3, 4, 4), folder / name)


@pytest.mark.parametrize(
    "names",
    [
        ("0_0.png", "0_1.png", "2_0.png", "2_1.png"),
        ("00000_1.png", "00000_10.png", "00002_3.jpg", "00002_4.webp"),
        ("0/a.png", "0/b.png", "00002/a.png", "00002/b.png"),
        ("00000/samples/0000.png", "00000/samples/0001.png", "2/samples/0000.png", "2/samples/0001.png", "2/grid.png"),
    ],
)
def test_each_layout_gives_the_same_pictures_in_order(tmp_path, prompts, names):
    place, faults = tmp_path / "shots", []
    write(place, *names, "1_0.png", "7.png", "notes_of_mine.png")
    shots = find_shots(place, prompts, None, faults)
    assert faults == []
    kept = [name for name in names if "grid" not in name]
    assert [shot.path.relative_to(place).as_posix() for shot in shots] == kept
    assert [(shot.prompt.number, shot.sample) for shot in shots] == [(0, 0), (0, 1), (2, 0), (2, 1)]


def test_of_more_pictures_than_are_wanted_the_first_are_taken(tmp_path, prompts):
    write(tmp_path / "shots", "0_0.png", "0_1.png", "2_0.png")
    faults: list = []
    assert len(find_shots(tmp_path / "shots", prompts, 1, faults)) == 2 and faults == []
    assert len(find_shots(tmp_path / "shots", prompts, None, faults)) == 2
    assert "_1.png" in faults[0].remedy and "samples: 1" in faults[0].remedy
    assert "1 of its 2 pictures" in faults[0].what and faults[0].where.startswith("line 3 of ")


@pytest.mark.parametrize("names", [("0.png", "00000.png"), ("0_1.png", "0_01.webp"), ("0.png", "0/a.png")])
def test_a_picture_that_is_there_under_two_names_is_refused(tmp_path, prompts, names):
    write(tmp_path / "shots", *names, "2.png")
    with pytest.raises(InputError) as caught:
        find_shots(tmp_path / "shots", prompts, None, [])
    assert all(name.partition("/")[0] in caught.value.what for name in names)


def test_a_folder_is_no_picture_of_a_list(tmp_path, prompts):
    write(tmp_path / "shots", "0.png", "frames/0.png")
    (tmp_path / "shots" / "list.json").write_text('{"a dog": "0.png", "the dog": "frames"}')
    faults: list = []
    assert len(find_shots(tmp_path / "shots" / "list.json", prompts, None, faults)) == 1
    assert "frames" in faults[0].what


def test_who_names_pictures_in_a_list_is_told_to_add_to_it(tmp_path, prompts):
    (tmp_path / "list.json").write_text("{}")
    faults: list = []
    assert find_shots(tmp_path / "list.json", prompts, None, faults) == []
    assert '{"a dog": "0.png"}' in faults[0].remedy


def test_a_place_that_is_no_folder_and_no_list_is_refused(tmp_path, prompts):
    with pytest.raises(InputError, match="nowhere"):
        find_shots(tmp_path / "nowhere", prompts, None, [])
    (tmp_path / "list.json").write_text('{"a dog": 3}')
    with pytest.raises(InputError, match=r"list\.json"):
        find_shots(tmp_path / "list.json", prompts, None, [])
    (tmp_path / "list.json").write_text('{"a dog": "0.png", "a dog": "1.png"}')
    with pytest.raises(InputError, match=r"list\.json cannot be read: the key 'a dog' stands twice"):
        find_shots(tmp_path / "list.json", prompts, None, [])
