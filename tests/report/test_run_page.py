"""The page says what the files say, needs nothing but itself, and names what is wrong with a run folder."""

from __future__ import annotations

import base64
import json
import re
import xml.etree.ElementTree as ElementTree
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markupsafe import escape
from page_content import Tags, assert_follows_dark_mode, assert_self_contained, drawings, words
from PIL import Image
from rich.console import Console

from rewarddance.errors import InputError
from rewarddance.report.charts import series, smoothing_window
from rewarddance.report.progress import Progress, ProgressPage
from rewarddance.report.run_folder import read_metrics
from rewarddance.report.run_page import summary_table, write_progress, write_report

ARMS = ("sft", "best_of_n", "refl")
ALARM = {"name": "distance", "saw": "it is far.", "do": "Look.", "stop": False}
CATEGORIES = ("single_object", "two_object", "counting", "colors", "position", "color_attr")


def interval(mean: float, n: int = 96) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.02, "high": mean + 0.03, "n": n}


def arms(*means: float) -> dict[str, Any]:
    return {arm: interval(mean) for arm, mean in zip(ARMS, means, strict=True)}


def summary(**changes: Any) -> dict[str, Any]:
    accuracies = {"accuracy_id": 0.862, "accuracy_ood": 0.791, "untrained_id": 0.503, "untrained_ood": 0.488}
    return {
        "name": "first",
        "seed": 7,
        "task": "t2i",
        "machine": "x86_64, 2 cores",
        "n": 16,
        "judge": {name: interval(mean, 600) for name, mean in accuracies.items()},
        "oracle": arms(0.541, 0.668, 0.638) | {"gain_best_of_n": interval(0.127), "gain_refl": interval(0.097)},
        "by_category": {name: arms(0.311 + i / 100, 0.411, 0.511) for i, name in enumerate(CATEGORIES)},
        "quality": arms(0.71, 0.78, 0.76),
        "correct": arms(0.22, 0.37, 0.33),
        "reward": {"sft": interval(0.497), "refl": interval(0.709)},
        "diversity": {"sft": interval(0.213), "refl": interval(0.177)},
        "hacking": {"hacked": False, "sentence": "The reward was not hacked: the oracle rose too."},
        "seconds": 3723.0,
        "seconds_by_stage": {"judge": 62.4, "refl": 8.25},
        "peak_memory_gib": 2.314,
    } | changes


def metrics() -> list[dict[str, Any]]:
    judge = {"phase": "judge", "kind": "step"}
    rows: list[dict[str, Any]] = [judge | {"step": 10 * i, "loss": 0.7 - 0.01 * i} for i in range(30)]
    rows.append(judge | {"step": 300, "kind": "evaluation", "accuracy_id": 0.8, "accuracy_ood": 0.7})
    for step in range(80):
        figures = {"reward": 0.5 + step / 400, "margin": step / 100, "spread_within": 0.9, "spread_across": 1.1}
        rows.append({"phase": "refl", "step": step, "kind": "step", "loss": -0.5, **figures})
    for step in (0, 40, 80):
        probe = {"oracle": 0.54, "oracle_low": 0.5, "oracle_high": 0.58, "diversity": 0.2}
        rows.append({"phase": "refl", "step": step, "kind": "probe", **probe})
    return rows


def sample(folder: Path, index: int, prompt: str) -> dict[str, Any]:
    files = {arm: f"samples/{index:03d}_{arm}.png" for arm in ARMS}
    for place, name in enumerate(files.values()):
        pixels = np.full((32, 32, 3), 60 * place + index, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    scores = {"sft": 0.4, "best_of_n": 1.0, "refl": 0.875}
    return {"prompt": prompt, "category": "counting", "seed": 42, "pictures": files, "oracle": scores}


def made_up(folder: Path) -> Path:
    """A run folder with all that a run leaves."""
    (folder / "samples").mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(summary()))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics()))
    samples = [sample(folder, i, prompt) for i, prompt in enumerate(("two red circles", "a cross"))]
    (folder / "samples.json").write_text(json.dumps(samples))
    (folder / "config.yaml").write_text("seed: 7\nrefl:\n  cap: 0.9\n")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return made_up(tmp_path / "first")


@pytest.fixture
def bare(run: Path) -> Path:
    """A run without metrics, whose page takes no time to draw."""
    (run / "metrics.jsonl").unlink()
    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its report, to be read only."""
    folder = made_up(tmp_path_factory.mktemp("runs") / "first")
    write_report(folder)
    return folder


def page(folder: Path, **changes: Any) -> str:
    """The report of a run whose summary has these changes."""
    (folder / "summary.json").write_text(json.dumps(summary(**changes)))
    return write_report(folder).read_text(encoding="utf-8")


def html_of(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


def test_the_page_says_what_the_summary_says(whole: Path):
    text = words(html_of(whole))
    assert "first" in text and "seed 7" in text and "Best of 16" in text
    assert "ReFL 63.8 [61.8, 66.8] of 100 where the SFT base has 54.1 [52.1, 57.1] , a gain of +9.7" in text
    assert "Gain over the base +12.7 [+10.7, +15.7] +9.7 [+7.7, +12.7]" in text
    for i, category in enumerate(CATEGORIES):
        assert f"{category.replace('_', ' ')} {31.1 + i:.1f} [" in text
    assert "All correct 22.0 [20.0, 25.0] 37.0 [35.0, 40.0] 33.0 [31.0, 36.0]" in text
    assert "P(yes) 0.497 [0.477, 0.527] 0.709 [0.689, 0.739]" in text
    assert "In domain 50.3 [48.3, 53.3] 86.2 [84.2, 89.2] 600" in text
    assert "1 h 02 min in all and 2.31 GiB of memory at most, on x86_64, 2 cores" in text
    assert "judge 1 min 02 s refl 8.2 s" in text
    assert "cap: 0.9" in text


def test_the_first_screen_says_what_was_asked_what_came_out_and_if_to_believe_it(whole: Path):
    header = html_of(whole).split("<header>")[1].split("</header>")[0]
    heads = re.findall(r"<h2[^>]*>(.*?)</h2>", header)
    assert heads == ["What was asked", "What came out", "Whether to believe it"]
    text = words(header)
    assert "pictures of coloured shapes" in text and "96 held-out prompts" in text
    assert "The judge picks the better picture in 86.2 of 100" in text
    assert "what another seed would give is not in them" in text


@pytest.mark.parametrize(
    ("hacked", "undecided", "box", "heading"),
    [(False, False, "good", "none found"), (True, False, "bad", "found"), (False, True, "open", "undecided")],
)
def test_the_verdict_is_in_words_and_not_by_colour_alone(bare: Path, hacked, undecided, box, heading):
    verdict = {"hacked": hacked, "sentence": "The sentence.", "undecided": undecided}
    html = page(bare, hacking=verdict)
    assert f'<p class="verdict {box}">' in html
    assert f"Reward hacking: {heading}. The sentence." in words(html)


@pytest.mark.parametrize(
    ("mean", "sentence"),
    [(-0.1, "a loss: −10.0 [−12.0, −7.0]"), (0.0, "not told apart from the base: +0.0 [−2.0, +3.0]")],
)
def test_a_gain_is_claimed_only_where_the_interval_shows_one(bare: Path, mean: float, sentence: str):
    text = words(page(bare, oracle=summary()["oracle"] | {"gain_refl": interval(mean)}))
    assert sentence in text and "a gain of" not in text


def test_a_run_that_went_on_by_another_algorithm_is_told_by_its_last_arm(run: Path):
    with_nft = {name: summary()[name] | {"nft": interval(0.7)} for name in ("oracle", "quality", "correct")}
    with_nft["oracle"] |= {"gain_nft": interval(0.159)}
    counts = {"good": 3, "same": 2, "bad": 1, "gsb": interval(0.3)}
    rows = [{"phase": "nft", "step": step, "kind": "step", "reward": 0.5, "margin": 0.1} for step in range(1, 9)]
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    (run / "alarms.jsonl").write_text(json.dumps({**ALARM, "phase": "nft", "step": 3, "kind": "alarm"}) + "\n")
    text = words(page(run, aligned="nft", gsb=counts | {"by_category": {"counting": counts}}, **with_nft))
    assert "gives ReFL and DiffusionNFT 70.0 [68.0, 73.0] of 100" in text and "a gain of +15.9" in text
    assert "ReFL then DiffusionNFT Oracle alignment" in text and "All +30.0 [+28.0, +33.0] (3, 2, 1)" in text
    assert "1 alarm rang in 88 steps, the first at step 83." in text  # ReFL ended at 80


def test_the_page_needs_nothing_but_itself(whole: Path):
    assert_self_contained(html_of(whole))
    assert str(whole) not in html_of(whole)


def test_pictures_are_inside_the_page_under_their_prompt_with_their_scores(whole: Path):
    html = html_of(whole)
    pictures = Tags(html).of("img")
    assert [picture["alt"] for picture in pictures[:2]] == ["SFT base: two red circles", "Best of 16: two red circles"]
    for picture, name in zip(pictures, ("000_sft", "000_best_of_n", "000_refl", "001_sft"), strict=False):
        kind, data = (picture["src"] or "").split(",", 1)
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data) == (whole / "samples" / f"{name}.png").read_bytes()
    assert "image-rendering: pixelated" in html
    gallery = words(html).split("Before and after")[1]
    assert "two red circles counting, noise 42 SFT base oracle 40.0 Best of 16 oracle 100.0 ReFL oracle 87.5" in gallery


def test_what_comes_from_files_is_escaped_and_never_run(bare: Path):
    attack = '<script>alert("x")</script> {{ name }} & "'
    (bare / "samples.json").write_text(json.dumps([sample(bare, 0, attack)]))
    (bare / "config.yaml").write_text(f"name: {attack}\n")
    html = page(bare, name=attack, machine=attack, by_category={attack: arms(0, 0, 0)})
    assert "<script" not in html and html.count(escape(attack)) >= 6
    assert Tags(html).of("img")[0]["alt"] == f"SFT base: {attack}"


def test_the_same_run_gives_the_same_bytes(run: Path):
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


def test_reward_margin_and_oracle_share_one_axis_of_steps_in_both_widths(whole: Path):
    section = html_of(whole).split("<h2>Reward, margin and oracle</h2>")[1].split("</section>")[0]
    assert len(drawings(section)) == 2
    for drawing in drawings(section):
        text = ["".join(element.itertext()).strip() for element in ElementTree.fromstring(drawing).iter("text")]
        assert {"Reward, P(yes)", "Margin, logits", "Oracle, points of 100"} <= set(text)
        assert text.count("step") == 1
        assert "54.0" in text  # the oracle's last value, named at its end


def test_charts_follow_the_page_into_dark_mode(whole: Path):
    assert len(drawings(html_of(whole))) == 10
    for drawing in drawings(html_of(whole)):
        assert_follows_dark_mode(drawing)


def test_a_last_line_that_a_kill_cut_off_is_left_out(run: Path):
    path, whole = run / "metrics.jsonl", read_metrics(run)
    path.write_bytes(path.read_bytes() + b'{"phase": "refl", "ste')
    assert read_metrics(run) == whole
    path.write_bytes(path.read_bytes() + "é".encode()[:1])
    assert read_metrics(run) == whole


@pytest.mark.parametrize("broken", ['{"phase": "refl", "st', '"refl"', '{"step": 3}', '{"phase": "refl", "step": 3}'])
def test_any_other_broken_line_is_an_error_that_names_it(run: Path, broken: str):
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:4], broken, *lines[4:]]) + "\n")
    with pytest.raises(InputError, match=r"metrics\.jsonl, line 5,"):
        write_report(run)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"no finished run: summary\.json is missing.*--resume"),
        ("{", r"summary\.json cannot be read"),
        (json.dumps(summary(oracle=arms(0, 0, 0))), r"summary\.json cannot be read: oracle\.gain_best_of_n"),
    ],
    ids=["no file", "no JSON", "a figure missing"],
)
def test_a_summary_that_is_missing_or_broken_is_named(bare: Path, content: str | None, message: str):
    (bare / "summary.json").unlink() if content is None else (bare / "summary.json").write_text(content)
    with pytest.raises(InputError, match=message):
        write_report(bare)


def test_a_missing_picture_is_an_error_that_names_it(bare: Path):
    (bare / "samples" / "001_refl.png").unlink()
    with pytest.raises(InputError, match=r"001_refl\.png is missing"):
        write_report(bare)
    assert not (bare / "report.html").exists()


def running(folder: Path, **changes: Any) -> str:
    """The page of a run of which two of three stages are done."""
    stages = {"preferences": 61.0, "judge": 125.0, "refl": None}
    (folder / "summary.json").unlink()
    progress = Progress("aligning (stage 3 of 3)", "rewarddance quickstart --resume", stages)._replace(**changes)
    return write_progress(folder, progress.now()).read_text(encoding="utf-8")


def test_the_page_of_a_run_that_goes_on_says_where_it_stands(run: Path):
    done = {"judge": {"result": summary()["judge"], "seconds": 125.0}}
    (run / "stages.json").write_text(json.dumps(done))
    text = words(running(run))
    assert "This run is not over. Aligning (stage 3 of 3); written 20" in text
    assert "<code>rewarddance quickstart --resume</code> goes on with it" in (run / "report.html").read_text()
    assert "judge picks the better picture in 86.2 of 100" in text and "preferences 1 min 01 s" in text
    assert "refl to come" in text
    assert "The oracle gave the generator’s samples 54.0 of 100 at step 0, and 54.0 at step 80." in text
    assert "P(yes) went from" in text and len(drawings((run / "report.html").read_text())) == 6


def test_the_page_of_a_run_looks_again_unless_it_is_told_not_to(bare: Path):
    html = running(bare)
    box = next(tag for tag in Tags(html).of("input") if tag.get("type") == "checkbox")
    assert "checked" in box and f'getElementById("{box["id"]}").checked' in html and "location.reload()" in html
    (bare / "summary.json").write_text(json.dumps(summary()))
    assert "<script" not in write_report(bare).read_text() and "not over" not in html_of(bare)


def test_a_page_that_cannot_be_made_does_not_end_a_run(run: Path, capsys):
    (run / "metrics.jsonl").write_text('{"step"\n{}\n')
    ProgressPage(run, Progress("aligning", "again"), write_progress).renew()
    assert "cannot be written now" in capsys.readouterr().err


def test_pages_of_a_run_are_not_drawn_more_often_than_of_use(tmp_path, monkeypatch):
    now, written = [100.0], []
    monkeypatch.setattr("rewarddance.report.progress.time.monotonic", lambda: now[0])
    page = ProgressPage(tmp_path, Progress("a", "again"), lambda folder, at: written.append(at.doing) or folder)
    page.renew()
    page.renew(doing="b")
    assert written == ["a"]
    now[0] += 21
    page.renew()
    assert written == ["a", "b"]


def test_what_a_run_does_not_have_yet_is_left_out_and_said_so(run: Path):
    for name in ("metrics.jsonl", "samples.json", "config.yaml"):
        (run / name).unlink()
    html = page(run)
    assert "<svg" not in html and "<img" not in html and "<details" not in html
    assert html.count('class="absent"') == 8
    assert "has no samples.json" in html and "has no config.yaml" in html and "metrics.jsonl has nothing" in html
    assert "63.8" in words(html)


def test_a_series_holds_only_the_rows_that_have_its_key():
    rows = [{"step": step, "kind": "step"} for step in (1, 2, 3)] + [{"step": 2, "kind": "probe", "reward": 0.7}]
    rows[0]["reward"], rows[2]["reward"] = 0.5, None
    steps, values = series(rows, "reward")
    assert steps.tolist() == [1.0] and values.tolist() == [0.5]


def test_only_long_series_are_smoothed():
    assert [smoothing_window(n) for n in (0, 1, 59, 60, 300, 2000)] == [1, 1, 1, 5, 15, 100]


def terminal_lines(figures: dict[str, Any]) -> list[str]:
    console = Console(width=80, record=True, file=StringIO())
    console.print(summary_table(figures))
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_the_terminal_table_fits_eighty_columns():
    lines = terminal_lines(summary())
    assert any(re.fullmatch(r"SFT base +54\.1 \[52\.1, 57\.1\] +22\.0 +71\.0 +0\.213", line) for line in lines)
    refl = r"ReFL +63\.8 \[61\.8, 66\.8\] +\+9\.7 \[\+7\.7, \+12\.7\] +33\.0 +76\.0 +0\.177"
    assert any(re.fullmatch(refl, line) for line in lines)
    assert "judge accuracy out of domain: 79.1 [77.1, 82.1], untrained 48.8 [46.8, 51.8]" in lines
    assert not any("early predictions" in line for line in lines)


def test_accuracy_on_early_predictions_is_shown_where_it_was_measured():
    judge = summary()["judge"] | {"accuracy_early": interval(0.733, 480), "untrained_early": interval(0.489, 480)}
    line = "judge accuracy early predictions: 73.3 [71.3, 76.3], untrained 48.9 [46.9, 51.9]"
    assert line in terminal_lines(summary(judge=judge))
