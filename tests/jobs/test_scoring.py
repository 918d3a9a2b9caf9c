"""`score`: each row gets the judge's own answer, no row is lost or made up, and an interrupted run ends the same."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sets import write_video
from tiny import clip_folder, command, judge_folder, picture_folder, pictures

from rewarddance import score
from rewarddance.data.faults import FaultyRows
from rewarddance.data.media import read_picture, write_picture
from rewarddance.errors import InputError, RewardError
from rewarddance.jobs import score as scoring
from rewarddance.jobs import score_batches
from rewarddance.jobs.recipes import ScoreRun
from rewarddance.jobs.score import run_scoring
from rewarddance.reward.instructions import TEMPLATES, TREES
from rewarddance.reward.loading import load_reward
from rewarddance.runtime.ahead import ahead
from rewarddance.types import Question, Verdict


class Eye:
    """Margin = 8 (mean of the candidate - mean of the reference, or 1/2) + bias; `batches` keeps what it was asked.

    Cannot answer a prompt with "<img>", has no finite margin for one with "nan", and is interrupted at `stop` batches.
    """

    def __init__(self, kind: str = "pairwise", bias: float = 0.0, stop: int = -1) -> None:
        self.config, self.bias, self.stop = SimpleNamespace(kind=kind), bias, stop
        self.needs_reference = kind == "pairwise"
        self.batches: list[list[Question]] = []

    def __call__(self, questions: list[Question]) -> Verdict:
        if len(self.batches) == self.stop:
            raise KeyboardInterrupt
        self.batches.append(list(questions))
        for question in questions:
            if "<img>" in question.prompt.text:
                raise InputError(f"the text {question.prompt.text!r} contains the token '<img>'.", "Remove it.")
            if "nan" in question.prompt.text:
                raise RewardError("the judge gave no finite margin.", "Look at its picture.")
        means = [(q.candidate.mean(), 0.5 if q.reference is None else q.reference.mean()) for q in questions]
        return Verdict(torch.stack([8 * (c - r) + self.bias for c, r in means]))


@pytest.fixture
def media(tmp_path) -> Path:
    """A folder with 0.png ... 5.png, noise, each brighter than the one before, and a reference.png."""
    for i, pixels in enumerate(pictures(6)):
        write_picture(pixels * (0.4 + 0.1 * i), tmp_path / "media" / f"{i}.png")
    write_picture(pictures(1, seed=9)[0], tmp_path / "media" / "reference.png")
    return tmp_path / "media"


def use(monkeypatch, judge: Eye) -> Eye:
    monkeypatch.setattr(scoring, "load_reward", lambda name, device, dtype, **changes: judge)
    return judge


def jsonl(path: Path, rows: list) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def read(path: Path) -> list[dict]:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def plain(source: Path, **changes) -> ScoreRun:
    given = {"input": source, "output": source.parent / "scores.jsonl", "judge": str(judge_folder()), "device": "cpu"}
    return ScoreRun(**given | {"skip_faulty": True} | changes)


def failed(run: ScoreRun) -> dict[int, str]:
    found = read(run.output.with_name(run.output.name + ".failed.jsonl"))
    assert all(row["remedy"] for row in found)
    return {row["line"]: row["reason"] for row in found}


# -- answers -----------------------------------------------------------------------------------------------------------


def test_the_answers_are_those_of_compare(media):
    rows = [{"id": i, "prompt": f"a red circle {i % 2}", "candidate": f"{i}.png"} for i in range(6)]
    run = plain(jsonl(media / "in.jsonl", rows), reference=media / "reference.png", batch_size=4)
    assert run_scoring(run) == {"scores": str(run.output), "rows": 6, "scored": 6, "failed": 0}
    judge = load_reward(str(judge_folder()))
    for row, found in zip(rows, read(run.output), strict=True):
        verdict = judge.compare(row["prompt"], [media / row["candidate"]], media / "reference.png")
        assert found["margin"] == pytest.approx(verdict.margin.item(), abs=1e-5)
        assert found["probability"] == pytest.approx(verdict.probability.item(), abs=1e-6)
        assert {key: found[key] for key in row} == row and found["reference"] == str(media / "reference.png")
        assert found["orders"] == "forward"
    group = {"prompt": "a red circle", "candidates": ["0.png", "1.png", "2.png"]}
    run = plain(jsonl(media / "group.jsonl", [group]), output=media / "group.parquet")
    run_scoring(run)
    paths = [media / name for name in group["candidates"]]
    (found,) = read(run.output)
    assert found["margin"] == pytest.approx(judge.score(group["prompt"], paths).margin.tolist(), abs=1e-5)
    assert found["order"] == judge.rank(group["prompt"], paths).order.tolist() and found["orders"] is None


def test_margins_are_written_to_the_last_bit(media, monkeypatch):
    judge = use(monkeypatch, Eye("pointwise"))
    run = plain(jsonl(media / "in.jsonl", [{"prompt": "p", "image": f"{i}.png"} for i in range(6)]))
    run_scoring(run)
    expected = judge([Question("p", read_picture(media / f"{i}.png")) for i in range(6)])
    assert torch.equal(torch.tensor([row["margin"] for row in read(run.output)]), expected.margin)
    assert torch.equal(torch.tensor([row["probability"] for row in read(run.output)]), expected.probability)


@pytest.mark.parametrize("kind", ["pairwise", "pointwise", "regressive", "clip"])
def test_what_a_row_holds_says_what_is_asked(media, monkeypatch, kind):
    judge = use(monkeypatch, Eye(kind, bias=3.0))
    group = ["1.png", "4.png", "0.png"]
    rows = [
        {"prompt": "p", "candidate": "3.png", "reference": "0.png", "instruction": "t2i-brief"},
        {"prompt": "p", "candidate": "3.png", "image": "5.png"},
        {"prompt": "p", "candidates": group, "reference": "5.png"},
        {"prompt": "p", "candidates": group},
        {"prompt": "p", "candidates": group[:1]},
    ]
    run = plain(jsonl(media / "in.jsonl", rows))
    run_scoring(run)
    mean = {f"{i}.png": read_picture(media / f"{i}.png").mean().item() for i in range(6)}
    found = {row.get("reference", "") + str(len(row.get("candidates", ""))): row for row in read(run.output)}
    asked = [question for batch in judge.batches for question in batch]
    assert found["0.png0"]["margin"] == pytest.approx(8 * (mean["3.png"] - mean["0.png"]) + 3, abs=1e-5)
    assert found["0.png0"]["instruction"] == asked[0].instruction == "t2i-brief" and asked[0].prompt.image is None
    assert found["5.png3"]["margin"] == pytest.approx([8 * (mean[c] - mean["5.png"]) + 3 for c in group], abs=1e-5)
    assert found["5.png3"]["order"] == found["3"]["order"] == [1, 0, 2]
    if kind == "pairwise":
        others = {c: (sum(mean[o] for o in group) - mean[c]) / 2 for c in group}  # the bias cancels
        assert found["3"]["margin"] == pytest.approx([8 * (mean[c] - others[c]) for c in group], abs=1e-5)
        assert set(failed(run)) == {2, 5}
        assert set(failed(run).values()) == {"a pairwise judge cannot score one candidate by itself."}
    else:
        assert found["3"]["margin"] == pytest.approx([8 * (mean[c] - 0.5) + 3 for c in group], abs=1e-5)
        assert found["1"]["order"] == [0] and found["1"]["margin"] == found["3"]["margin"][:1]
        assert found["0"]["image"] == "5.png" and asked[1].prompt.image is not None
        assert failed(run) == {}


def test_pictures_of_one_file_are_one_tensor_within_a_batch(media, monkeypatch):
    judge = use(monkeypatch, Eye())
    rows = [{"prompt": "p", "candidate": f"{i % 2}.png", "reference": "2.png"} for i in range(4)]
    run_scoring(plain(jsonl(media / "in.jsonl", rows), batch_size=4))
    (batch,) = judge.batches
    assert len({id(q.reference) for q in batch}) == 1 and len({id(q.candidate) for q in batch}) == 2


def test_a_batch_ends_where_its_pictures_are_too_many(media, monkeypatch):
    judge = use(monkeypatch, Eye("pointwise"))
    monkeypatch.setattr(score_batches, "PIXEL_VALUES", 2 * 3 * 32 * 32)
    run_scoring(plain(jsonl(media / "in.jsonl", [{"prompt": "p", "image": f"{i % 5}.png"} for i in range(8)])))
    assert list(map(len, judge.batches)) == [3, 3, 2]


def test_a_folder_takes_its_prompts_from_the_texts_beside_the_pictures(media, monkeypatch):
    judge = use(monkeypatch, Eye("pointwise"))
    (media / "3.txt").write_text("drei 🎲", encoding="utf-8")
    run = plain(media, output=media.parent / "s.jsonl", prompt="the others")
    assert run_scoring(run)["scored"] == 7
    assert [row["candidate"] for row in read(run.output)] == [*(f"{i}.png" for i in range(6)), "reference.png"]
    assert [row["prompt"] for row in read(run.output)].count("the others") == 6
    assert [q.prompt.text for q in judge.batches[0]][3] == "drei 🎲" == read(run.output)[3]["prompt"]


def test_videos_are_scored_frame_stack_by_frame_stack(media, monkeypatch):
    judge = use(monkeypatch, Eye("pointwise"))
    rows = [{"prompt": "p", "video": "."}, {"prompt": "p", "image": "1.png"}]
    run_scoring(plain(jsonl(media / "in.jsonl", rows), max_frames=3))
    assert [len(q.candidate) for q in judge.batches[0]] == [3, 1]


def test_other_keys_are_carried_along_unread(media, monkeypatch):
    judge = use(monkeypatch, Eye("pointwise"))
    rows = [{"id": "ä/1", "meta": {"a": [1, None]}, "video": "no/such.mp4", "prompt": "p", "candidate": "0.png"}]
    run = plain(jsonl(media / "in.jsonl", rows))
    run_scoring(run)
    (found,) = read(run.output)
    assert list(found) == ["id", "meta", "video", "prompt", "candidate", "probability", "margin"]
    assert {key: found[key] for key in rows[0]} == rows[0]
    assert judge.batches[0][0].prompt.metadata == {key: rows[0][key] for key in ("id", "meta", "video")}
    assert "ä/1" in run.output.read_text(encoding="utf-8")


def test_a_reward_of_ones_own_scores_rows_and_sees_their_other_keys(media):
    code = "def weighted():\n    return lambda _, prompts, rows: [row['w'] * len(p) for p, row in zip(prompts, rows)]\n"
    (media / "mine.py").write_text(code)
    rows = [{"prompt": "p" * n, "candidate": "0.png", "w": n} for n in (1, 2)]
    run = plain(jsonl(media / "in.jsonl", rows), judge=f"{media / 'mine.py'}:weighted")
    run_scoring(run)
    assert [row["margin"] for row in read(run.output)] == [1, 4]
    with pytest.raises(InputError, match="gives no reasons"):
        run_scoring(plain(run.input, judge=run.judge, explain=True, output=media / "explained.jsonl"))


# -- Parquet -----------------------------------------------------------------------------------------------------------


def test_parquet_goes_in_with_bytes_and_comes_out_with_its_types(media, monkeypatch):
    use(monkeypatch, Eye())
    held = [{"bytes": (media / f"{i}.png").read_bytes(), "path": f"was/{i}.png"} for i in range(3)]
    held += [{"bytes": None, "path": "3.png"}]
    table = pa.table(
        {
            "id": pa.array([1, 2, None, 4], pa.int16()),
            "prompt": ["ein Würfel 🎲"] * 4,
            "image": held,
            "reference": [(media / "5.png").read_bytes()] * 4,
        }
    )
    pq.write_table(table, media / "in.parquet", row_group_size=3)
    run = plain(media / "in.parquet", output=media / "out.parquet", batch_size=3)
    assert run_scoring(run)["scored"] == 4
    found = pq.read_table(run.output)
    assert found.schema.field("id").type == pa.int16() and found.schema.field("margin").type == pa.float32()
    assert "image" not in found.schema.names and found["id"].to_pylist() == [1, 2, None, 4]
    assert found["candidate"].to_pylist() == ["was/0.png", "was/1.png", "was/2.png", "3.png"]
    lines = plain(media / "in.parquet", output=media / "out.jsonl", batch_size=3)
    run_scoring(lines)
    margins = torch.tensor([row["margin"] for row in read(lines.output)])
    assert torch.equal(margins, torch.tensor(found["margin"].to_pylist())) and len(set(margins.tolist())) == 4


def test_parquet_that_could_not_hold_all_rows_is_refused_before_asking(media, monkeypatch):
    judge = use(monkeypatch, Eye("pointwise"))
    one, group = {"prompt": "p", "candidate": "0.png"}, {"prompt": "p", "candidates": ["0.png"]}
    for rows, said in (
        ([one, group], "has both candidate and candidates"),
        ([one | {"id": 1}, one | {"id": "a"}], "the key 'id'"),
        ([one | {"margin": 1}], "has a column 'margin'"),
    ):
        with pytest.raises(InputError, match=said):
            run_scoring(plain(jsonl(media / "in.jsonl", rows), output=media / "out.parquet"))
    assert not judge.batches and not (media / "out.parquet").exists()


# -- what fails --------------------------------------------------------------------------------------------------------

BROKEN = {
    '{"prompt": "half a li': "the line is no JSON object",
    '{"candidate": "0.png"}': "the row has no prompt",
    '{"prompt": "  ", "candidate": "0.png"}': "the row has the prompt '  '",
    '{"prompt": 3, "candidate": "0.png"}': "the row has the prompt 3",
    '{"prompt": "p"}': "the row has no candidate",
    '{"prompt": "p", "image": "0.png", "video": "0.png"}': "the row has both image and video",
    '{"prompt": "p", "candidate": 7}': "the row's candidate is 7, which is no picture",
    '{"prompt": "p", "candidate": ""}': "the row's candidate is '', which is no picture",
    '{"prompt": "p", "candidates": []}': "the row's candidates are no list of pictures",
    '{"prompt": "p", "candidates": "0.png"}': "the row's candidates are no list of pictures",
    '{"prompt": "p", "candidate": "lost.png"}': "lost.png cannot be read",
    '{"prompt": "p", "candidate": "in.jsonl"}': "in.jsonl cannot be read",
    '{"prompt": "p", "candidate": "0.png", "reference": "lost.png"}': "lost.png cannot be read",
    '{"prompt": "p \\ud800", "candidate": "0.png"}': "is broken: surrogates not allowed",
    '{"prompt": "p", "candidate": "a\\u0000b"}': "cannot be read",
    '{"prompt": "p", "candidate": "0.png", "margin": 1}': "the row has a key 'margin', where its score goes",
    '{"prompt": "an <img>", "candidate": "0.png"}': "contains the token '<img>'",
    '{"prompt": "nan", "candidate": "0.png"}': "the judge gave no finite margin",
}


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_what_cannot_be_scored_is_named_and_takes_no_other_row_with_it(media, monkeypatch, batch_size):
    use(monkeypatch, Eye("pointwise"))
    good = [{"id": i, "prompt": "p", "candidate": f"{i % 6}.png"} for i in range(len(BROKEN))]
    rows = [row for pair in zip(good, BROKEN, strict=True) for row in pair]
    run = plain(jsonl(media / "in.jsonl", rows), batch_size=batch_size)
    result = run_scoring(run)
    assert (result["scored"], result["failed"]) == (len(good), len(BROKEN))
    assert [row["id"] for row in read(run.output)] == list(range(len(good)))
    reasons = failed(run)
    assert list(reasons) == list(range(2, 2 * len(BROKEN) + 1, 2))
    for (line, reason), said in zip(reasons.items(), BROKEN.values(), strict=True):
        assert said in reason, (line, reason)
    assert run_scoring(run) == result, "again, it says the same and asks nothing"


def test_strict_stops_at_the_first_and_names_it(media, monkeypatch):
    use(monkeypatch, Eye("pointwise"))
    rows = [{"prompt": prompt, "candidate": "0.png"} for prompt in ("p", "q", "nan", "")]
    run = plain(jsonl(media / "in.jsonl", rows), batch_size=2)
    with pytest.raises(InputError, match=r"line 3 of .*in.jsonl: the judge gave no finite margin"):
        run_scoring(run.model_copy(update={"strict": True}))
    assert [row["prompt"] for row in read(run.output)] == ["p", "q"] and failed(run) == {}


def test_what_no_row_could_be_scored_by_is_refused_at_once(media, monkeypatch):
    judge = use(monkeypatch, Eye())
    rows = jsonl(media / "in.jsonl", [{"prompt": "p", "candidate": "0.png"}])
    for run, said, remedy in (
        (plain(media, output=media / "s.jsonl"), "have no prompts", "--prompt"),
        (plain(media, output=media / "s.jsonl", prompt="p"), "a pairwise judge cannot score one", "--reference"),
        (plain(rows, reference=media / "lost.png"), "lost.png cannot be read", "Replace"),
        (plain(rows, instruction="t2q"), "no instruction named 't2q'", "Give one of"),
        (plain(rows, output=rows), "is the input", "Choose another output"),
        (plain(rows, output=media / "s.csv"), "is no table", ".jsonl or .parquet"),
        (plain(rows, device="tpu"), "no device named 'tpu'", "cpu or cuda"),
        (plain(rows, judge="nowhere"), "no checkpoint at 'nowhere'", "save_pretrained"),
        (plain(jsonl(media / "none.jsonl", [])), "is empty", "at least one row"),
    ):
        with pytest.raises(InputError) as refused:
            run_scoring(run)
        assert said in refused.value.what and remedy in refused.value.remedy
    assert not judge.batches and rows.read_text() and not list(media.glob("s.*"))


def test_an_output_that_is_somebodys_own_is_not_overwritten(media, monkeypatch):
    use(monkeypatch, Eye("pointwise"))
    run = plain(jsonl(media / "in.jsonl", [{"prompt": "p", "candidate": "0.png"}]))
    run.output.write_text("mine\n")
    with pytest.raises(InputError, match="exists and is not of a run"):
        run_scoring(run)
    assert run.output.read_text() == "mine\n"


# -- reasons -----------------------------------------------------------------------------------------------------------


class Talker(Eye):
    """An Eye that says of each question what it was shown."""

    def explain(self, questions: list[Question]) -> Verdict:
        margin = self(questions).margin if questions else torch.zeros(0)
        return Verdict(margin, tuple(f"{mean(q.candidate)} against {mean(q.reference)}" for q in questions))


def mean(pixels: torch.Tensor | None) -> str:
    return "none" if pixels is None else f"{pixels.mean():.4f}"


def test_explained_rows_have_the_reasons_of_the_judge_and_the_same_margins(media):
    folder = media / "judge"
    load_reward(str(judge_folder()), instruction="t2i-brief", max_reason_tokens=6).save(folder)
    rows = [{"prompt": "a red circle", "candidate": f"{i}.png"} for i in range(3)]
    group = {"prompt": "a red circle", "candidates": ["0.png", "1.png", "2.png"]}
    reference = media / "reference.png"
    given = {"judge": str(folder), "explain": True}
    for kind in ("pairwise", "pointwise"):
        source, output = jsonl(media / "in.jsonl", rows), media / f"{kind}.jsonl"
        run = plain(source, **given, kind=kind, reference=reference, output=output)
        assert run_scoring(run)["failed"] == 0
        judge = load_reward(str(folder), kind=kind)
        expected = judge.compare("a red circle", [media / f"{i}.png" for i in range(3)], reference, explain=True)
        assert [row["reason"] for row in read(run.output)] == [*(expected.reasons or ())]
        assert [row["margin"] for row in read(run.output)] == pytest.approx(expected.margin.tolist(), abs=1e-5)
    run = plain(jsonl(media / "group.jsonl", [group]), **given, output=media / "group.parquet")
    run_scoring(run)
    ranking = load_reward(str(folder)).rank("a red circle", [media / f"{i}.png" for i in range(3)], explain=True)
    (found,) = read(run.output)
    assert found["order"] == ranking.order.tolist() and found["reason"] == [*(ranking.reasons or ())]


def test_reasons_go_to_their_own_rows_whatever_else_is_in_the_batch(media, monkeypatch):
    rows = [
        {"prompt": "p", "candidates": ["0.png", "4.png", "2.png"]},
        {"prompt": "p", "candidate": "3.png", "reference": "1.png"},
        {"prompt": "nan", "candidate": "3.png", "reference": "1.png"},
        {"prompt": "p", "candidates": ["5.png", "3.png"], "reference": "0.png"},
    ]
    use(monkeypatch, Talker())
    run = plain(jsonl(media / "in.jsonl", rows), explain=True)
    run_scoring(run)
    shown = [mean(read_picture(media / f"{i}.png")) for i in range(6)]
    cup, one, each = (row["reason"] for row in read(run.output))
    assert cup == [f"{shown[0]} against {shown[4]}", f"{shown[4]} against {shown[2]}", f"{shown[2]} against {shown[4]}"]
    assert one == f"{shown[3]} against {shown[1]}"
    assert each == [f"{shown[5]} against {shown[0]}", f"{shown[3]} against {shown[0]}"]
    assert "no finite margin" in failed(run)[3]
    silent = plain(run.input, output=media / "silent.jsonl")
    run_scoring(silent)
    assert [row["margin"] for row in read(silent.output)] == [row["margin"] for row in read(run.output)]


def test_a_users_own_reason_is_carried_along_unless_reasons_are_asked_for(media, monkeypatch):
    use(monkeypatch, Talker())
    source = jsonl(media / "in.jsonl", [{"prompt": "p", "candidate": "1.png", "reference": "0.png", "reason": "mine"}])
    run_scoring(plain(source))
    assert read(media / "scores.jsonl")[0]["reason"] == "mine"
    run = plain(source, explain=True, output=media / "explained.jsonl")
    run_scoring(run)
    assert "has a key 'reason'" in failed(run)[1]


def test_a_judge_that_gives_no_reasons_is_refused_before_anything_is_written(media):
    source = jsonl(media / "in.jsonl", [{"prompt": "p", "candidate": "1.png", "reference": "0.png"}])
    run = plain(source, judge=str(clip_folder()), kind="clip", explain=True)
    with pytest.raises(InputError, match="a clip reward gives no reasons"):
        run_scoring(run)
    assert not run.output.exists()


# -- interrupted -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_interrupted_at_any_batch_and_run_again_it_leaves_the_same_bytes(media, monkeypatch, kind):
    rows = [{"id": i, "prompt": ("p", "nan")[i % 5 == 2], "candidate": f"{i % 6}.png"} for i in range(11)]
    source = jsonl(media / "in.jsonl", rows)
    whole = plain(source, output=media / "whole" / f"s.{kind}", batch_size=3)
    asked = use(monkeypatch, Eye("pointwise", bias=0.1))
    run_scoring(whole)
    for stop in range(len(asked.batches)):
        run = plain(source, output=media / f"stop{stop}" / f"s.{kind}", batch_size=3)
        use(monkeypatch, Eye("pointwise", bias=0.1, stop=stop))
        with pytest.raises(KeyboardInterrupt):
            run_scoring(run)
        rest = use(monkeypatch, Eye("pointwise", bias=0.1))
        run_scoring(run)
        assert len(rest.batches) <= len(asked.batches) - stop + 4  # no batch that was written is asked again
        for name in (f"s.{kind}", f"s.{kind}.failed.jsonl", f"s.{kind}.progress.json"):
            assert (run.output.parent / name).read_bytes() == (whole.output.parent / name).read_bytes(), (stop, name)


def test_killed_between_or_inside_two_writes_it_leaves_the_same_bytes(media, monkeypatch):
    use(monkeypatch, Eye("pointwise"))
    rows = [{"prompt": ("p", "nan")[i % 5 == 2], "candidate": f"{i % 6}.png"} for i in range(9)]
    source, left = jsonl(media / "in.jsonl", rows), []
    whole = plain(source, output=media / "whole" / "s.jsonl", batch_size=2)
    real = os.fsync

    def kill(file: int) -> None:
        state = {path.name: path.read_bytes() for path in whole.output.parent.iterdir()}
        left.extend([state, state | {"s.jsonl": state["s.jsonl"] + b'{"half a li'}])
        real(file)

    monkeypatch.setattr(os, "fsync", kill)
    run_scoring(whole)
    monkeypatch.setattr(os, "fsync", real)
    for number, state in enumerate(left):
        run = plain(source, output=media / str(number) / "s.jsonl", batch_size=2)
        run.output.parent.mkdir()
        for name, data in state.items():
            (run.output.parent / name).write_bytes(data)
        run_scoring(run)
        assert run.output.read_bytes() == whole.output.read_bytes()
        assert failed(run) == failed(whole)


def test_it_is_not_gone_on_with_under_other_arguments_or_edited_files(media, monkeypatch):
    rows = [{"prompt": "p", "candidate": f"{i}.png", "instruction": "own.yaml"} for i in range(4)]
    source = jsonl(media / "in.jsonl", rows)
    template, of_rows = media / "mine.yaml", media / "own.yaml"
    for file in (template, of_rows):
        file.write_text((TEMPLATES / "t2i-brief.yaml").read_text())
    run = plain(source, batch_size=2, reference=media / "0.png", instruction=str(template))
    use(monkeypatch, Eye(stop=1))
    with pytest.raises(KeyboardInterrupt):
        run_scoring(run)
    use(monkeypatch, Eye())
    changes = {"orders": "both", "judge": "shapeworld-judge", "reference": media / "1.png"}
    changes |= {"max_frames": 2}
    with pytest.raises(InputError, match="not begin with the same input:"):
        other = jsonl(media / "other.jsonl", [{"prompt": "p", "candidate": "0.png"}])
        run_scoring(run.model_copy(update={"input": other}))
    for key, value in changes.items():
        with pytest.raises(InputError, match=rf"holds a run with {key} = "):
            run_scoring(run.model_copy(update={key: value}))
    edited = ((source, "input_digest"), (template, "instruction_digest"), (of_rows, "instruction_digest"))
    for file, digest in edited:
        before, stat = file.read_text(), file.stat()
        file.write_text(before.replace("3.png", "2.png") + "\n")
        with pytest.raises(InputError, match=rf"not begin with the same {digest.removesuffix('_digest')}:"):
            run_scoring(run)
        file.write_text(before)
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert run_scoring(run.model_copy(update={"batch_size": 1}))["scored"] == 4  # memory may have run out


def test_a_finished_run_is_not_taken_for_that_of_another_object(media):
    source = jsonl(media / "in.jsonl", [{"prompt": "p", "candidate": "0.png"}])
    output = media / "scores.jsonl"
    for scale in (1.0, 1.0):
        (row,) = score(lambda images, *_, scale=scale: scale * images.mean((1, 2, 3)), source, output=output)
    with pytest.raises(InputError, match="not begin with the same judge:"):
        score(lambda images, *_: 2 * images.mean((1, 2, 3)), source, output=output)
    assert json.loads(output.read_text())["margin"] == row["margin"]


def test_a_tree_of_criteria_that_was_edited_is_not_gone_on_with(media):
    tree = media / "tree.yaml"
    tree.write_text((TREES / "t2i.yaml").read_text())
    run = plain(jsonl(media / "in.jsonl", [{"prompt": "p", "candidate": "0.png"}]), reference=media / "1.png")
    run = run.model_copy(update={"judge": "shapeworld-judge", "criteria": str(tree)})
    run_scoring(run)
    tree.write_text(tree.read_text() + "\n# edited\n")
    with pytest.raises(InputError, match="not begin with the same criteria:"):
        run_scoring(run)


def test_an_instruction_of_a_row_is_looked_for_beside_the_rows(media, monkeypatch, tmp_path):
    judge = use(monkeypatch, Eye("pointwise"))
    (media / "own.yaml").write_text((TEMPLATES / "t2i-brief.yaml").read_text())
    rows = [{"prompt": "p", "candidate": "0.png", "instruction": name} for name in ("own.yaml", "t2i-brief")]
    monkeypatch.chdir(tmp_path)
    run_scoring(plain(jsonl(media / "in.jsonl", rows)))
    asked = [question.instruction for batch in judge.batches for question in batch]
    assert asked == [str(media / "own.yaml"), "t2i-brief"]


def test_a_value_that_the_output_cannot_hold_is_found_before_the_run(media, monkeypatch):
    judge = use(monkeypatch, Eye("pointwise"))
    rows = [{"prompt": "p", "candidate": "0.png", "seen": value} for value in (1.0, float("nan"))]
    run = plain(jsonl(media / "in.jsonl", [json.dumps(row) for row in rows]))
    with pytest.raises(FaultyRows, match=r"line 2 .* the row cannot stand in \.jsonl"):
        run_scoring(run.model_copy(update={"skip_faulty": False}))
    assert not judge.batches and not run.output.exists()


def test_arguments_bind_nobody_before_the_first_row_is_written(media, monkeypatch):
    run = plain(jsonl(media / "in.jsonl", [{"prompt": "p", "candidate": "0.png"}]), reference=media / "1.png")
    use(monkeypatch, Eye(stop=0))
    with pytest.raises(KeyboardInterrupt):
        run_scoring(run)
    use(monkeypatch, Eye())
    assert run_scoring(run.model_copy(update={"batch_size": 7}))["scored"] == 1


def test_what_is_made_ahead_is_the_same_and_its_errors_come_through():
    assert list(ahead(iter(range(1, 50)))) == list(range(1, 50)) and list(ahead(iter([]))) == []

    def broken():
        yield 1
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        list(ahead(broken()))


# -- rates -------------------------------------------------------------------------------------------------------------


def test_videos_of_another_rate_or_too_few_frames_fail_by_name(tmp_path):
    load_reward(str(judge_folder()), instruction="t2v-brief", frames=4, fps=8.0).save(tmp_path / "reward")
    noise = [np.random.default_rng(i).integers(0, 255, (32, 32, 3)) for i in range(9)]
    for name, rate, frames in (("right", 8, 9), ("fast", 24, 9), ("short", 8, 3)):
        write_video(tmp_path / f"{name}.mp4", noise[:frames], rate=rate)
    both = {"prompt": "a circle", "reference": "right.mp4"}
    rows = [both | {"candidate": f"{name}.mp4"} for name in ("right", "fast", "short")]
    source = jsonl(tmp_path / "rows.jsonl", rows)
    done = command("score", source, "--judge", tmp_path / "reward", "--output", tmp_path / "out.jsonl", "--skip-faulty")
    assert done.code == 1, done.err  # some rows failed
    found = json.loads(done.out)
    assert (found["scored"], found["failed"]) == (1, 2)
    reasons = [row["reason"] for row in read(Path(found["failures"]))]
    assert "has 24 frames a second, and this judge knows videos of 8" in reasons[0]
    assert "has 3 frames, and this judge reads 4 of a video" in reasons[1]


def test_a_picture_of_a_folder_is_called_by_its_name(tmp_path):
    folder = picture_folder(tmp_path / "pictures")
    (folder / "1.txt").unlink()
    run = plain(folder, kind="pointwise", output=tmp_path / "scores.jsonl")
    run_scoring(run)
    (row,) = read(run.output.with_name("scores.jsonl.failed.jsonl"))
    assert row["candidate"] == "1.png" and "no prompt" in row["reason"]
    with pytest.raises(InputError, match=r"1\.png: the row has no prompt"):
        run_scoring(plain(folder, kind="pointwise", output=tmp_path / "o.jsonl", skip_faulty=False))


def test_a_link_that_leads_nowhere_fails_alone(tmp_path):
    folder = picture_folder(tmp_path / "pictures")
    (folder / "3.png").symlink_to(folder / "nowhere.png")
    run = plain(folder, kind="pointwise", prompt="a circle", output=tmp_path / "scores.jsonl")
    assert run_scoring(run)["scored"] == 3
    assert [row["candidate"] for row in read(run.output.with_name("scores.jsonl.failed.jsonl"))] == ["3.png"]
