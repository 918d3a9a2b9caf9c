"""The signs of hacking over steps: alarms are listed and marked, and a run without an oracle has its page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tiny import command

from rewarddance.errors import InputError
from rewarddance.report.hacking_page import hacking_slots, steps_of, write_hacking_page

ALARM = {"phase": "refl", "step": 40, "kind": "alarm", "name": "held_out", "saw": "the margin rose <so>.",
         "do": "Stop.", "stop": True}  # fmt: skip


def rows(n: int = 60) -> list[dict[str, Any]]:
    made = []
    for step in range(1, n + 1):
        row = {"phase": "refl", "step": step, "kind": "step", "margin": step / 20, "reward": 0.5}
        row |= {
            "held_out_margin": -step / 20,
            "spread_of_reward": 0.2,
            "spread_within": 0.9,
            "spread_across": 1.1,
            "diversity_within": 0.2,
            "diversity_across": 0.3,
        }
        row |= {"brightness": 0.1 if step <= 16 else 0.4, "brightness_deviation": 0.1, "collapsed": 0.0}
        made.append(row)
    return made


def run_of(folder: Path, alarms: list[dict[str, Any]]) -> Path:
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    (folder / "alarms.jsonl").write_text("".join(json.dumps(alarm) + "\n" for alarm in alarms))
    return folder


def test_a_look_is_drawn_in_deviations_from_the_first_steps():
    drifts = [row["drift_brightness"] for row in steps_of(rows())]
    assert drifts == pytest.approx([0.0] * 16 + [3.0] * 44)


def test_the_judges_own_training_is_no_step_of_the_alignment():
    assert steps_of([{"phase": "judge", "step": 10, "kind": "step", "loss": 0.7}]) == []


def test_an_alarm_is_said_listed_and_marked_in_every_panel(tmp_path):
    slots = hacking_slots(run_of(tmp_path / "mine", [ALARM]))
    assert slots["alarms_said"] == "1 alarm rang in 60 steps, the first at step 40."
    assert "Step 40, <b>held out</b>: the margin rose &lt;so&gt;. Stop. The run ended here." in slots["alarms"]
    without = hacking_slots(run_of(tmp_path / "plain", []))
    assert without["alarms"] == "" and without["alarms_said"] == "No alarm rang in 60 steps."
    drawing, plain = (re.findall(r"<svg.*?</svg>", one["hacking_chart"], re.DOTALL)[0] for one in (slots, without))
    panels = sum(
        word in drawing
        for word in ("Proxy: margin", "Proxy: P(yes)", "Held-out judge", "Spread of the", "Spread of P", "Looks")
    )
    assert panels == 6 and "Oracle" not in drawing
    assert drawing.count("stroke-dasharray") - plain.count("stroke-dasharray") >= 7


def test_a_run_without_an_oracle_gets_a_page_that_needs_nothing_but_itself(tmp_path):
    done = command("report", run_of(tmp_path / "mine", [ALARM]))
    assert done.code == 0 and done.out.strip().endswith("hacking.html")
    html = (tmp_path / "mine" / "hacking.html").read_text()
    assert "Reward hacking: suspected" in html and "The margin went up by 2.20 logits." in html
    assert "This run drew no pictures along the way." in html
    assert "<h1>mine</h1>" in html and not re.search(r"https?://|<script|@import", html)


def test_without_alarms_the_page_says_that_there_is_no_sign(tmp_path):
    assert "Reward hacking: no sign of it" in write_hacking_page(run_of(tmp_path / "mine", [])).read_text()


def test_a_folder_without_steps_is_an_error_that_names_it(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(InputError, match=r"holds no summary\.json and no alignment's metrics\.jsonl"):
        write_hacking_page(tmp_path)
