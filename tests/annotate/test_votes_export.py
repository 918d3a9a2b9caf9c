"""Votes as files: to train on, and for Label Studio and Argilla, from which they come back as they were."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from voters import Voter, pair_of, picture, store_of

from rewarddance.annotate.exporting import export_votes
from rewarddance.annotate.recipe import ExportRecipe
from rewarddance.annotate.store import Store
from rewarddance.data.importing import import_preferences
from rewarddance.data.preferences import PreferenceSet
from rewarddance.data.recipe import ImportRecipe
from rewarddance.data.votes import weigh_votes
from rewarddance.errors import InputError
from rewarddance.evaluation.gsb import gsb_of_file


def answered(folder: Path, **rule) -> Store:
    """Ten pairs, three of whose voters say what their pair's number says, whichever side it is shown on."""
    store = store_of(folder, 10, votes=3, **rule)
    for name in ("anna", "ben", "cleo"):
        voter = Voter(store, name)
        for n in range(10):
            (ask,) = voter.take(float(n))
            pair = pair_of(store, ask["id"])
            row = store.db.execute("SELECT a FROM pairs WHERE id = ?", (pair,)).fetchone()
            side = "left" if (ask["left"] == row["a"]) == (pair % 4 < 2) else "right"
            voter.answer(ask["id"], {8: "tie", 9: "bad"}.get(pair, side), float(n))
    store.close()
    return Store(folder / "votes.sqlite")


def expected(pair: int) -> float:
    return 0.5 if pair in (8, 9) else float(pair % 4 >= 2)


def exported(folder: Path, name: str, **keys) -> dict:
    return export_votes(ExportRecipe(store=folder / "votes.sqlite", output=folder / "out" / name, **keys))


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_shares_are_a_preferences_file_with_a_row_a_pair(tmp_path, suffix):
    answered(tmp_path)
    result = exported(tmp_path, f"shares{suffix}")
    assert (result["votes"], result["rows"]) == (30, 10)
    rows = PreferenceSet(tmp_path / "out" / f"shares{suffix}")
    found = {int(rows.row(n).media_a.stem.rpartition("-")[2]) + 1: rows.row(n).share for n in range(10)}
    for pair, share in found.items():
        assert share == pytest.approx(expected(pair), abs=0.11)
    assert rows[0].first.shape == (1, 3, 32, 32)


def test_votes_are_a_row_each_that_data_weigh_takes(tmp_path):
    answered(tmp_path)
    assert exported(tmp_path, "votes.jsonl", format="votes")["rows"] == 30
    rows = [json.loads(line) for line in (tmp_path / "out" / "votes.jsonl").read_text().splitlines()]
    assert {row["annotator"] for row in rows} == {"anna", "ben", "cleo"}
    assert {row["answer"] for row in rows} == {"a", "b", "tie", "bad"} and all(row["date"] for row in rows)
    weighed = weigh_votes(tmp_path / "out" / "votes.jsonl", tmp_path / "out" / "weighed.jsonl")
    assert (weighed["votes"], weighed["pairs"], weighed["annotators"]) == (30, 10, 3)


@pytest.mark.parametrize(("source", "name"), [("label-studio", "tasks.json"), ("argilla", "records.json")])
def test_an_export_for_another_program_comes_back_as_it_was(tmp_path, source, name):
    answered(tmp_path)
    exported(tmp_path, name, format=source)
    back = tmp_path / "out" / "back.jsonl"
    result = import_preferences(ImportRecipe(name=source, files=(tmp_path / "out" / name,), output=back))
    assert result["quarantined"] == 0 and result["rows"] == {str(back): 30}
    rows = PreferenceSet(back)
    for n in range(30):
        row = rows.row(n)
        assert row.share == expected(int(row.media_a.stem.rpartition("-")[2]) + 1)
    assert len({rows.row(n).annotator for n in range(30)}) == 3
    if source == "label-studio":
        assert "Pairwise" in (tmp_path / "out" / "tasks.xml").read_text()


def test_criteria_are_rows_of_their_own(tmp_path):
    store = store_of(tmp_path, 2, criteria="t2i")
    anna = Voter(store, "anna")
    for n in range(2):
        (ask,) = anna.take(float(n))
        for criterion, answer in (("colour", "left"), ("count", "tie")):
            anna.answer(ask["id"], answer, float(n), criterion, ("colour", "count"))
    store.close()
    for name, keys in (("votes.jsonl", {"format": "votes"}), ("shares.jsonl", {})):
        exported(tmp_path, name, **keys)
        rows = PreferenceSet(tmp_path / "out" / name)
        assert [rows.row(n).criterion for n in range(4)].count("colour") == 2


def test_of_a_comparison_gsb_counts_for_the_new_model(tmp_path):
    store = store_of(tmp_path, 6, compare=("new", "old"))
    anna = Voter(store, "anna")
    for n in range(6):
        (ask,) = anna.take(float(n))
        row = store.db.execute("SELECT * FROM pairs WHERE id = ?", (pair_of(store, ask["id"]),)).fetchone()
        new = row["a"] if row["model_a"] == "new" else row["b"]
        anna.answer(ask["id"], "left" if ask["left"] == new else "right", float(n))
    store.close()
    exported(tmp_path, "votes.jsonl", format="votes")
    figure = gsb_of_file(tmp_path / "out" / "votes.jsonl")["all"]
    assert (figure.good, figure.same, figure.bad) == (6, 0, 0)


def test_an_export_that_does_not_fit_is_refused(tmp_path):
    store_of(tmp_path, 2).close()
    with pytest.raises(InputError, match="nobody has voted"):
        exported(tmp_path, "votes.jsonl")
    with pytest.raises(InputError, match=r"votes\.json "):
        exported(tmp_path, "votes.json")
    answered(tmp_path / "more")
    exported(tmp_path / "more", "votes.jsonl")
    with pytest.raises(InputError, match="exists"):
        exported(tmp_path / "more", "votes.jsonl")


def test_label_studios_own_export_is_imported(tmp_path):
    for name, level in (("1.png", 1), ("2.png", 2)):
        picture(tmp_path / "upload" / "3" / name, level)
    result = {"id": "x", "type": "pairwise", "from_name": "pw", "to_name": "image1,image2"}
    task = {
        "id": 1,
        "created_at": "2020-01-01T00:00:00Z",
        "data": {"prompt": "a cat", "image1": "/data/upload/3/1.png", "image2": "/data/upload/3/2.png"},
        "annotations": [
            {"completed_by": 4, "was_cancelled": False, "result": [result | {"value": {"selected": "right"}}]}
            | {"created_at": "2024-06-06T00:00:00Z"},
            {"completed_by": 5, "was_cancelled": True, "result": []},
            {"completed_by": 6, "was_cancelled": False, "result": [result | {"value": {"selected": "up"}}]},
        ],
    }
    (tmp_path / "export.json").write_text(json.dumps([task]))
    recipe = ImportRecipe(name="label-studio", files=(tmp_path / "export.json",), output=tmp_path / "rows.jsonl")
    assert import_preferences(recipe)["quarantined"] == 1
    row = json.loads((tmp_path / "rows.jsonl").read_text())
    assert (row["share"], row["annotator"], row["media_b"]) == (1.0, "4", "upload/3/2.png")
    assert row["date"] == "2024-06-06T00:00:00Z"  # the vote's, not the task's


def test_argillas_pictures_in_data_urls_are_written_beside_the_rows(tmp_path):
    import base64

    def url(level: int) -> str:
        return "data:image/png;base64," + base64.b64encode(picture(tmp_path / "x.png", level).read_bytes()).decode()

    record = {
        "id": "1",
        "fields": {"prompt": "a dog", "left": url(10), "right": url(200)},
        "responses": {"preference": [{"value": "right", "user_id": "u1"}, {"value": "tie", "user_id": "u2"}]},
    }
    (tmp_path / "records.json").write_text(json.dumps([record]))
    recipe = ImportRecipe(name="argilla", files=(tmp_path / "records.json",), output=tmp_path / "rows.jsonl")
    assert import_preferences(recipe)["quarantined"] == 0
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [(row["share"], row["annotator"]) for row in rows] == [(1.0, "u1"), (0.5, "u2")]
    assert (tmp_path / rows[0]["media_a"]).is_file()


def test_genai_arenas_log_is_imported(tmp_path):
    for name in ("c1_sd.jpg", "c2_xl.jpg"):
        picture(tmp_path / "generation" / name, 5)
    states = [{"conv_id": c, "model_name": m, "prompt": "a fox"} for c, m in (("c1", "sd"), ("c2", "xl"))]
    lines = [
        {"tstamp": 1.5, "type": kind, "models": ["", ""], "states": states} for kind in ("leftvote", "bothbad_vote")
    ]
    lines.append({"tstamp": 2.0, "type": "share", "models": ["", ""], "states": states})
    (tmp_path / "2024-03-28-conv.json").write_text("\n".join(map(json.dumps, lines)))
    recipe = ImportRecipe(
        name="genai-arena", files=(tmp_path / "2024-03-28-conv.json",), output=tmp_path / "rows.jsonl"
    )
    assert import_preferences(recipe)["quarantined"] == 1  # "share" is no vote
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["share"] for row in rows] == [0.0, 0.5] and rows[0]["media_a"] == "generation/c1_sd.jpg"
