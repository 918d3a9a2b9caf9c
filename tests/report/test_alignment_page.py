"""The signs of hacking over steps: alarms are listed and marked, and a run without an oracle has its page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from page_content import assert_self_contained, drawings
from tiny import command

from rewarddance.errors import InputError
from rewarddance.report.alignment_page import alignment_steps, write_alignment_page

ALARM = {"phase": "refl", "step": 40, "kind": "alarm", "name": "held_out", "saw": "the margin rose <so>."}
ALARM |= {"do": "Stop.", "stop": True}


def rows(n: int = 60) -> list[dict[str, Any]]:
    constant = {"phase": "refl", "kind": "step", "reward": 0.5, "spread_of_reward": 0.2, "spread_within": 0.9}
    constant |= {
        "spread_across": 1.1,
        "diversity_within": 0.2,
        "diversity_across": 0.3,
        "brightness_deviation": 0.1,
        "collapsed": 0.0,
    }
    return [
        constant
        | {"step": step, "margin": step / 20, "held_out_margin": -step / 20, "brightness": 0.1 if step <= 16 else 0.4}
        for step in range(1, n + 1)
    ]


def run_of(folder: Path, alarms: list[dict[str, Any]]) -> Path:
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    (folder / "alarms.jsonl").write_text("".join(json.dumps(alarm) + "\n" for alarm in alarms))
    return folder


def test_an_image_statistic_is_drawn_in_deviations_from_the_first_steps():
    drifts = [row["drift_brightness"] for row in alignment_steps(rows())]
    assert drifts == pytest.approx([0.0] * 16 + [3.0] * 44)


def test_the_judges_own_training_is_no_step_of_the_alignment():
    assert alignment_steps([{"phase": "judge", "step": 10, "kind": "step", "loss": 0.7}]) == []


def test_an_alarm_is_counted_listed_and_marked_in_every_panel(tmp_path):
    html = write_alignment_page(run_of(tmp_path / "mine", [ALARM])).read_text()
    assert "1 alarm rang in 60 steps, the first at step 40." in html
    assert "Step 40, <b>held out</b>: the margin rose &lt;so&gt;. Stop. The run ended here." in html
    without = write_alignment_page(run_of(tmp_path / "plain", [])).read_text()
    assert "<ol>" not in without and "No alarm rang in 60 steps." in without
    drawing, plain = drawings(html)[0], drawings(without)[0]
    panels = ("Proxy: margin", "Proxy: P(yes)", "Held-out judge", "Spread of the", "Spread of P", "Image statistics")
    assert all(panel in drawing for panel in panels) and "Oracle" not in drawing
    assert drawing.count("stroke-dasharray") - plain.count("stroke-dasharray") >= 7


def test_a_run_without_an_oracle_gets_a_page_that_needs_nothing_but_itself(tmp_path):
    done = command("report", run_of(tmp_path / "mine", [ALARM]))
    assert done.code == 0 and done.out.strip().endswith("report.html")
    html = (tmp_path / "mine" / "report.html").read_text()
    assert (
        "Reward hacking: suspected" in html and "The margin went up by 2.20 logits, P(yes) from 0.500 to 0.500." in html
    )
    assert "This run drew no samples during training." in html and "<h1>mine</h1>" in html
    assert_self_contained(html)


def test_without_alarms_the_page_says_that_there_is_no_sign(tmp_path):
    assert "Reward hacking: no sign of it" in write_alignment_page(run_of(tmp_path / "mine", [])).read_text()


def test_a_folder_without_steps_is_an_error_that_names_it(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(InputError, match=r"holds no summary\.json and no alignment's metrics\.jsonl"):
        write_alignment_page(tmp_path)
