"""Each public set in its own form becomes rows that say the same."""

from __future__ import annotations

import json
import pickle
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from sets import animation, as_csv, as_json, as_jsonl, as_parquet, imported, png, put

from rewarddance.data.media import as_pixels
from rewarddance.data.preferences import PreferenceSet
from rewarddance.data.sources import SOURCES, find_source, refusal
from rewarddance.errors import InputError


def level(folder: Path, name: str) -> int:
    """Which of `put`'s or `png`'s pictures this is."""
    return int((as_pixels(folder / name)[0, 0, 0, 0] * 255).round())


def shares(rows: list[dict]) -> list[float]:
    return [row["share"] for row in rows]


# -- HPD ---------------------------------------------------------------------------------------------------------------


def test_hpdv3_gives_the_larger_count_to_the_preferred_picture(tmp_path):
    put(tmp_path, *[f"images/{n}.jpg" for n in range(40)])
    counts = [[3, 12], [12, 3], "[9, 1]", None]
    rows = [{"prompt": f"prompt {n}", "choice_dist": counts[n % 4], "confidence": 0.99} for n in range(20)]
    for n, row in enumerate(rows):
        row |= {
            "path1": f"images/{2 * n}.jpg",
            "path2": f"images/{2 * n + 1}.jpg",
            "model1": "flux",
            "model2": "kolors",
        }
    found, broken = imported("hpdv3", as_json(tmp_path / "train.json", rows))
    assert not broken and [row["prompt"] for row in found] == [row["prompt"] for row in rows]
    better = []
    for n, row in enumerate(found):
        first = level(tmp_path / "out", row["media_a"])
        assert row["source"] == "hpdv3" and {first, level(tmp_path / "out", row["media_b"])} == {2 * n, 2 * n + 1}
        against = row["share"] if first == 2 * n else 1 - row["share"]
        assert against == pytest.approx([0.2, 0.2, 0.1, 0.0][n % 4])
        better.append(first == 2 * n)
    assert 4 < sum(better) < 16  # neither side always wins
    again, _ = imported("hpdv3", tmp_path / "train.json", output=tmp_path / "out" / "again.jsonl")
    assert again == found


def test_hpdv2_gives_a_choice_of_two_and_the_votes_of_a_ranking(tmp_path):
    put(tmp_path, *[f"train/{n}.jpg" for n in range(3)])
    train = [
        {"human_preference": [0, 1], "prompt": "a cat", "file_path": ["0.jpg", "1.jpg"], "user_hash": "ab"},
        {"human_preference": [1, 0], "prompt": "a dog", "image_path": ["1.jpg", "2.jpg"], "user_hash": "ab"},
    ]
    found, broken = imported("hpdv2", as_json(tmp_path / "train.json", train))
    assert not broken and shares(found) == [1.0, 0.0]
    test = {"prompt": "a cat", "image_path": ["0.jpg", "1.jpg", "2.jpg"], "rank": [2, 1, 3]}
    votes = {"raw_annotations": [{"rank": [1, 2, 3], "user_hash": "a"}, {"rank": [3, 1, 3], "user_hash": "b"}]}
    path = as_json(tmp_path / "test.json", [test, test | votes])
    found, broken = imported("hpdv2", path, media_root=tmp_path / "train", output=tmp_path / "out" / "test.jsonl")
    assert not broken and shares(found) == [1.0, 0.0, 0.0, 0.5, 0.25, 0.0]


# -- ImageRewardDB -----------------------------------------------------------------------------------------------------


def picture(prompt_id: str, name: str, rank: int) -> dict:
    row = {
        "image_path": f"images/train/train_1/{name}.webp",
        "prompt_id": prompt_id,
        "prompt": f"prompt of {prompt_id}",
    }
    return row | {"classification": "People", "image_amount_in_total": 3, "rank": rank, "overall_rating": 5}


def test_imagerewarddb_compares_the_pictures_of_one_prompt_by_rank(tmp_path):
    rows = [picture("1-a", "0", 2), picture("1-a", "1", 1), picture("1-a", "2", 2), picture("2-b", "3", 1)]
    rows += [picture("2-b", "4", 4), picture("3-c", "5", 1), picture("1-a", "6", 1), picture("1-a", "7", 2)]
    put(tmp_path, *[row["image_path"] for row in rows])
    found, broken = imported("imagerewarddb", as_json(tmp_path / "train_1.json", rows))
    assert [row["prompt"][-3:] for row in found] == ["1-a", "1-a", "1-a", "2-b", "1-a"]
    assert shares(found) == [1.0, 0.5, 0.0, 0.0, 0.0]
    assert [(row["row"], row["field"]) for row in broken] == [(6, "prompt_id"), (7, "prompt_id")]
    assert "no other picture" in broken[0]["reason"] and "stood further up" in broken[1]["reason"]


def test_imagerewarddbs_test_set_of_lists_is_taken_too(tmp_path):
    put(tmp_path, "0.webp", "1.webp", "2.webp")
    row = {"id": "0056", "prompt": "a portal", "generations": ["0.webp", "1.webp", "2.webp"], "ranking": [1, 5, 3]}
    found, broken = imported("imagerewarddb", as_json(tmp_path / "test.json", [row]))
    assert not broken and shares(found) == [0.0, 0.0, 1.0]


# -- Pick-a-Pic --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pickapic-v1", "pickapic-v2"])
def test_pickapic_writes_the_pictures_of_its_rows_each_once(tmp_path, name):
    def row(first: int, second: int, label: float) -> dict:
        said = {"caption": "a fox", "has_label": True, "label_0": 1 - label, "label_1": label, "user_id": 4}
        return said | {"are_different": True, "jpg_0": png(first), "jpg_1": png(second)}

    path = as_parquet(tmp_path / "data" / "train-00000.parquet", [row(1, 2, 0.0), row(2, 3, 0.5), row(3, 1, 1.0)])
    found, broken = imported(name, path)
    assert not broken and shares(found) == [0.0, 0.5, 1.0]
    folder = tmp_path / "data" / "out"
    assert [(level(folder, r["media_a"]), level(folder, r["media_b"])) for r in found] == [(1, 2), (2, 3), (3, 1)]
    assert len(list((folder / "rows_media").iterdir())) == 3 and {r["annotator"] for r in found} == {"4"}


def test_when_a_vote_was_cast_and_why_stay_in_its_row(tmp_path):
    said = {"caption": "a fox", "label_0": 0.0, "label_1": 1.0, "created_at": datetime(2023, 5, 1, 12, 30)}
    row = said | {"jpg_0": png(0), "jpg_1": png(1), "justification": " it is sharper "}
    (found,), _ = imported("pickapic-v2", as_parquet(tmp_path / "a.parquet", [row]))
    assert (found["date"], found["rationale"]) == ("2023-05-01T12:30:00", "it is sharper")
    put(tmp_path, "0.png", "1.png")
    told = turns("<image><image>Which shows a fox?", "Image 2 is better because it shows a fox, not a dog.")
    told |= {"images": ["0.png", "1.png"], "timestamp": 1700000000}
    out = tmp_path / "out" / "m.jsonl"
    (found,), _ = imported("messages", as_jsonl(tmp_path / "m.jsonl", [told]), output=out)
    assert found["rationale"].startswith("Image 2 is better because") and found["date"] == "1700000000"
    assert PreferenceSet(out)[0].reason == ""  # it speaks of first and second, not of a candidate


def test_pickapic_without_its_pictures_says_which_version_to_download(tmp_path):
    row = {"caption": "a fox", "image_0_url": "https://x", "image_1_url": "https://y", "label_0": 1.0, "label_1": 0.0}
    _, (broken,) = imported("pickapic-v2", as_parquet(tmp_path / "a.parquet", [row]))
    assert "the version without pictures" in broken["reason"] and "with pictures" in broken["remedy"]


# -- videos ------------------------------------------------------------------------------------------------------------


def test_videogen_rewardbench_has_a_row_a_criterion_with_both_rates(tmp_path):
    for name in ("videos/a/1.mp4", "videos/b/1.mp4"):
        animation(tmp_path / name)
    row = {"path_A": "videos/a/1.mp4", "path_B": "./videos/b/1.mp4", "prompt": "a ball, rolling", "A_model": "a"}
    row |= {"VQ": "A", "MQ": "B", "TA": "same", "Overall": "B"}
    row |= {"fps_A": 30.0, "num_frames_A": 153.0, "fps_B": 24.0, "num_frames_B": 141.0}
    bare = row | {"VQ": "", "MQ": "", "TA": "", "fps_A": "", "fps_B": ""}
    found, broken = imported("videogen-rewardbench", as_csv(tmp_path / "videogen-rewardbench.csv", [row, bare]))
    assert not broken
    assert [(r["criterion"], r["share"]) for r in found[:4]] == [("VQ", 0), ("MQ", 1), ("TA", 0.5), ("Overall", 1)]
    assert [(r["fps_a"], r["fps_b"]) for r in found[:4]] == [(30, 24)] * 4 and "fps_a" not in found[4]
    first = PreferenceSet(tmp_path / "out" / "rows.jsonl")[0]
    assert (len(first.first), len(first.second), first.fps, first.criterion) == (4, 4, (30, 24), "VQ")


def test_rapidata_shares_are_those_of_its_voters_in_all_of_its_forms(tmp_path):
    for name in ("Videos/0001_sora.mp4", "Videos/0001_pika.mp4", "Videos/wan/1.mp4"):
        animation(tmp_path / name)
    video = {"prompt": "a whale", "file_name1": "0001_sora.mp4", "file_name2": "0001_pika.mp4", "prompt_asset": None}
    video |= {"weighted_results1_Alignment": 0.75, "weighted_results2_Alignment": 0.25}
    video |= {"weighted_results1_Preference": 0.4, "weighted_results2_Preference": 0.6, "detailedResults": "[]"}
    far = video | {"file_name2": "https://assets.rapidata.ai/wan/1.mp4", "weighted_results1_Alignment": None}
    far |= {"weighted_results2_Alignment": None, "prompt_asset": {"bytes": png(9), "path": None}}
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    schema = pa.schema({key: pa.string() for key in video if "weighted" not in key and key != "prompt_asset"})
    for key in video:
        if "weighted" in key:
            schema = schema.append(pa.field(key, pa.float64()))
    path = as_parquet(tmp_path / "data" / "train.parquet", [video, far], schema.append(pa.field("prompt_asset", image)))
    found, broken = imported("rapidata", path)
    assert not broken and [r["criterion"] for r in found] == ["alignment", "preference", "preference"]
    assert shares(found) == pytest.approx([0.25, 0.6, 0.6])
    assert found[2]["media_b"].endswith("Videos/wan/1.mp4")
    assert level(path.parent / "out", found[2]["image"]) == 9

    pictures = {"prompt": "a hat", "image1": {"bytes": png(1)}, "image2": {"bytes": png(2)}}
    votes = as_parquet(tmp_path / "votes.parquet", [pictures | {"votes_image1": 9, "votes_image2": 3}])
    weighted = {"weighted_results_image1_preference": 0.1, "weighted_results_image2_preference": 0.9}
    found, _ = imported("rapidata", votes)
    assert shares(found) == [0.25] and "criterion" not in found[0]
    path = as_parquet(tmp_path / "weighted.parquet", [pictures | weighted])
    found, _ = imported("rapidata", path, output=tmp_path / "out" / "w.jsonl")
    assert shares(found) == [0.9] and found[0]["criterion"] == "preference"


# -- benchmarks --------------------------------------------------------------------------------------------------------


def test_genai_benchs_votes_are_shares_and_its_edits_have_a_condition(tmp_path):
    made = {"prompt": "a cup", "left_image": {"bytes": png(1), "path": "l.png"}}
    made |= {"right_image": {"bytes": png(2), "path": "r.png"}, "left_model": "A", "right_model": "B"}
    votes = ("leftvote", "rightvote", "tievote", "bothbad_vote")
    found, broken = imported(
        "genai-bench", as_parquet(tmp_path / "t2i.parquet", [made | {"vote_type": vote} for vote in votes])
    )
    assert not broken and shares(found) == [0.0, 1.0, 0.5, 0.5]
    edit = {"source_prompt": "a cat", "target_prompt": "a dog", "instruct_prompt": "make it a dog"}
    edit |= {"source_image": {"bytes": png(7), "path": "s.png"}, "vote_type": "rightvote"}
    edit |= {f"{side}_output_image": {"bytes": png(n), "path": "o.png"} for side, n in (("left", 8), ("right", 9))}
    (row,), broken = imported(
        "genai-bench", as_parquet(tmp_path / "edit.parquet", [edit]), output=tmp_path / "out" / "e.jsonl"
    )
    assert not broken and (row["prompt"], row["share"]) == ("make it a dog", 1.0)
    assert [level(tmp_path / "out", row[key]) for key in ("image", "media_a", "media_b")] == [7, 8, 9]
    animation(tmp_path / "videos" / "1.mp4")
    animation(tmp_path / "videos" / "2.mp4")
    video = {"id": 0, "prompt": "a bear", "video_left": "1.mp4", "video_right": "2.mp4", "vote_type": "leftvote"}
    (row,), broken = imported("genai-bench", as_json(tmp_path / "v.json", [video]), output=tmp_path / "out" / "v.jsonl")
    assert not broken and row["media_a"] == "../videos/1.mp4"


def test_genai_benchs_ratings_are_scores_that_are_compared(tmp_path):
    row = {"Index": 0, "Prompt": "two dogs", "HumanRatings": {"DALLE_3": [5, 4, 5], "SDXL_Base": [1, 2, 3]}}
    row |= {"DALLE_3": {"bytes": png(1), "path": None}, "SDXL_Base": {"bytes": png(2), "path": None}}
    found, broken = imported("genai-bench", as_parquet(tmp_path / "ratings.parquet", [row]))
    assert not broken and [(r["prompt"], round(r["score"], 4)) for r in found] == [
        ("two dogs", 4.6667),
        ("two dogs", 2),
    ]
    (pair,) = PreferenceSet(tmp_path / "out" / "rows.jsonl")
    assert (pair.prompt.text, pair.share) == ("two dogs", 0.0)


def test_omnirewardbench_keeps_its_criterion_and_refuses_text_and_sound(tmp_path):
    row = {"prompt": "a forest", "criteria": "The light is softer.", "criteria_preference": "response2", "id": "t2i_1"}
    for n in (1, 2):
        row |= {f"response{n}": {"bytes": png(n), "path": f"{n}.png"}, f"response{n}_path": f"media_data/{n}.png"}
    rows = [row, row | {"criteria_preference": "tie"}]
    found, broken = imported("omnirewardbench", as_parquet(tmp_path / "text_to_image" / "test.parquet", rows))
    assert not broken and shares(found) == [1.0, 0.5] and found[0]["criterion"] == "The light is softer."
    animation(tmp_path / "media_data" / "t2v" / "1.mp4")
    animation(tmp_path / "media_data" / "t2v" / "2.mp4")
    video = {"prompt": "a run", "response1": "t2v/1.mp4", "response2": "t2v/2.mp4", "criteria": "c"}
    video |= {"criteria_preference": "response1"}
    words = video | {"response1": "Running is healthy.", "response2": "So it is."}
    path = as_parquet(tmp_path / "text_to_video" / "test.parquet", [video, words])
    found, (broken_row,) = imported("omnirewardbench", path)
    assert len(found) == 1 and broken_row["field"] == "response1" and "text or sound" in broken_row["reason"]


def test_mmrb2_is_imported_and_then_refused_for_training_only(tmp_path):
    put(tmp_path, "images/a.jpg", "images/b.jpg", "input_images/c.jpg")

    def pair(**more) -> dict:
        content = {"pair_id": "oneigbench_124", "prompt_source": "oneigbench", "prompt_content": [["text", "a lamp"]]}
        sides = {f"response_{side}": {"response_content": [["image", f"images/{side}.jpg"]]} for side in "ab"}
        return content | sides | {"chosen": "B", "human_annotations": [2, 2, 1]} | more

    edit = pair(prompt_content=[["image", "input_images/c.jpg"], ["text", "brighter"]], chosen="A")
    spoken = pair(response_a={"response_content": [["text", "Here:"], ["image", "images/a.jpg"]]})
    many = pair(prompt_content=[["image", "input_images/c.jpg"]] * 2 + [["text", "both"]])
    path = as_json(tmp_path / "t2i.json", {"about": {"x": [1]}, "pairs": [pair(), edit, spoken, many]})
    found, broken = imported("mmrb2", path)
    assert shares(found) == [1.0, 0.0] and {row["source"] for row in found} == {"mmrb2/oneigbench"}
    assert found[1]["image"] == "../input_images/c.jpg"
    assert [(row["row"], row["field"]) for row in broken] == [(3, "response_a"), (4, "prompt_content")]
    output = tmp_path / "out" / "rows.jsonl"
    assert len(PreferenceSet(output)) == 2
    with pytest.raises(InputError, match="for evaluation only"):
        PreferenceSet(output, for_training=True)


# -- messages ----------------------------------------------------------------------------------------------------------


def turns(user: str, assistant: str) -> dict:
    return {"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]}


@pytest.mark.parametrize(
    ("answer", "share"),
    [
        ("Image 1 is better than Image 2.", 0.0),
        ("Image 2 is better", 1.0),
        ("<think>Image 1 is better lit.</think><answer>Image 2 is better</answer>", 1.0),
        ("B", 1.0),
        ("1", 0.0),
        ("The second image.", 1.0),
        ("first", 0.0),
        ("Both images are equally good.", 0.5),
        ("tie", 0.5),
    ],
)
def test_an_answer_that_compares_two_pictures_is_a_share(tmp_path, answer, share):
    put(tmp_path, "0.png", "1.png")
    row = turns("<image><image>Which is better?\nText Caption: [a [red] fox]", answer) | {"images": ["0.png", "1.png"]}
    (found,), broken = imported("messages", as_jsonl(tmp_path / "m.jsonl", [row]))
    assert not broken and (found["share"], found["prompt"]) == (share, "a [red] fox")


def test_rejected_images_and_labels_and_sharegpt_turns_are_taken_too(tmp_path):
    put(tmp_path, "0.png", "1.png", "2.png")
    swift = turns("a fox", "<image>") | {"images": ["0.png"], "rejected_images": ["1.png"]}
    edit = turns("<image>make it red", "<image>")
    edit |= {"images": ["2.png", "0.png"], "rejected_images": ["2.png", "1.png"]}
    rated = turns("<image>a fox", "") | {"images": ["0.png"], "label": 0.8}
    liked = turns("<image>a fox", "") | {"images": ["1.png"], "label": True}
    human = {"from": "human", "value": "<image><image>Which shows a fox?"}
    sharegpt = {"conversations": [human, {"from": "gpt", "value": "A"}], "images": ["0.png", "1.png"], "prompt": "fox"}
    found, broken = imported("messages", as_json(tmp_path / "m.json", [swift, edit, rated, liked, sharegpt]))
    assert not broken
    assert [row["prompt"] for row in found] == ["a fox", "make it red", "a fox", "a fox", "fox"]
    assert [row.get("share", row.get("score")) for row in found] == [0.0, 0.0, 0.8, 1.0, 0.0]
    assert found[1]["image"] == "../2.png" and found[2]["media"] == "../0.png"
    video = turns("<video><video>Which is better?", "Video 2 is better") | {"videos": ["0.gif", "1.gif"], "prompt": "p"}
    for name in video["videos"]:
        animation(tmp_path / name)
    found, broken = imported("messages", as_jsonl(tmp_path / "v.jsonl", [video]), output=tmp_path / "out" / "v.jsonl")
    assert not broken and len(PreferenceSet(tmp_path / "out" / "v.jsonl")[0].first) == 4


# -- by name -----------------------------------------------------------------------------------------------------------


def test_a_set_is_found_by_its_name_and_a_wrong_one_gets_the_nearest():
    assert find_source("HPDv3") is SOURCES["hpdv3"] and find_source("pickapic_v2").name == "pickapic-v2"
    with pytest.raises(InputError) as error:
        find_source("hpd3")
    assert error.value.remedy in ("Did you mean 'hpdv3'?", "Did you mean 'hpdv2'?")
    with pytest.raises(InputError, match="imagerewarddb"):
        find_source("zzz")


def test_only_what_is_for_evaluation_is_refused():
    assert [name for name in SOURCES if refusal(name)] == ["mmrb2", "editscore-bench"]
    assert refusal("MMRB2/x") and not refusal("my-mmrb2") and not refusal("")


def test_an_imported_set_can_be_read_by_worker_processes(tmp_path):
    put(tmp_path, "0.png", "1.png")
    row = turns("<image><image>", "A") | {"images": ["0.png", "1.png"], "prompt": "p"}
    imported("messages", as_jsonl(tmp_path / "m.jsonl", [row]))
    found = pickle.loads(pickle.dumps(PreferenceSet(tmp_path / "out" / "rows.jsonl")))
    assert torch.equal(found[0].first, as_pixels(tmp_path / "0.png"))


def test_a_criterion_without_a_vote_costs_no_other_of_its_record(tmp_path):
    put(tmp_path, "0.png", "1.png")
    row = {"prompt": "a hat", "file_name1": "0.png", "file_name2": "1.png"}
    for name, votes in (("Style", (0.0, 0.0)), ("Coherence", (1.0, 3.0))):
        row |= {f"weighted_results{side}_{name}": vote for side, vote in enumerate(votes, 1)}
    found, broken = imported("rapidata", as_jsonl(tmp_path / "r.jsonl", [row]))
    assert [(one["criterion"], one["share"]) for one in found] == [("coherence", 0.75)]
    assert len(broken) == 1 and "Style" in broken[0]["reason"]


def test_hpdv3s_edits_keep_the_picture_that_both_were_made_from(tmp_path):
    put(tmp_path, "0.png", "1.png", "2.png")
    row = {"prompt": "add a hat", "path_src": "2.png", "path1": "0.png", "path2": "1.png", "choice_dist": [4, 1]}
    (found,), broken = imported("hpdv3", as_json(tmp_path / "e.json", [row]))
    assert not broken and found["image"] == "../2.png"


@pytest.mark.parametrize("rows", [2, 1100])
def test_mmrb2_without_its_prompts_says_to_build_the_benchmark(tmp_path, rows):
    put(tmp_path, "0.png", "1.png")
    record = {f"response_{s}": {"response_content": [["image", f"{n}.png"]]} for n, s in enumerate("ab")}
    path = tmp_path / "t2i.json"
    path.write_text(json.dumps({"pairs": [record | {"chosen": "B"}] * rows}))
    if rows > 1000:
        with pytest.raises(InputError, match="prompt_content") as caught:
            imported("mmrb2", path)
        assert "Build the benchmark first" in caught.value.remedy
    else:
        found, broken = imported("mmrb2", path)
        assert not found and {row["remedy"] for row in broken} == {
            "Build the benchmark first: the download lacks its prompts."
        }


def test_an_object_without_the_list_of_records_says_what_it_has(tmp_path):
    path = tmp_path / "t2i.json"
    path.write_text(json.dumps({"id-7": {"chosen": "A"}}, indent=1))
    found, broken = imported("mmrb2", path)
    assert not found and "'pairs'" in broken[0]["reason"] and "id-7" in broken[0]["reason"]
    assert "Give the file" in broken[0]["remedy"]
