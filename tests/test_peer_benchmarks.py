"""The comparison with peers' own code: what is said without their clones, and our side of it."""

from __future__ import annotations

import pytest
from judges import flops
from peers import against_flow_grpo, against_imagereward
from peers.all import ROWS, report
from peers.clones import CLONES, clone_of, definitions, lines_between
from peers.pipelines import RandomViT, away, sd3

from rewarddance.errors import InputError


def test_a_peer_whose_clone_is_absent_is_left_out_by_its_name(tmp_path, capsys):
    found = report(list(ROWS), tmp_path, rounds=1)
    said = capsys.readouterr().out
    assert found.keys() == ROWS.keys() and all("left_out" in row for row in found.values())
    for name, clone in CLONES.items():
        assert f"the clone of {name} is absent" in said
        assert f"git clone {clone.url} {tmp_path / name} && git -C {tmp_path / name} checkout {clone.commit}" in said
        place = tmp_path / name / clone.holds
        place.parent.mkdir(parents=True)
        place.touch()
        assert clone_of(name, tmp_path) == tmp_path / name


def test_a_piece_of_a_script_is_what_stands_there(tmp_path):
    script = tmp_path / "train.py"
    loop = "while True:\n    # SAMPLING\n    y = scale(3)\n    epoch += 1\n"
    script.write_text(f"def scale(x):\n    return 2 * x\n\n\n{loop}")
    names: dict = {}
    exec(definitions(script, ["scale"]) + "\n" + lines_between(script, "# SAMPLING", "epoch"), names)
    assert names["y"] == 6
    with pytest.raises(InputError, match="no lines from '# SAMPLING' to 'TRAINING'"):
        lines_between(script, "# SAMPLING", "TRAINING")


def test_our_window_costs_a_third_of_all_steps(monkeypatch):
    monkeypatch.setattr(against_flow_grpo, "sd3", lambda: sd3(layers=2, width=32, side=8))
    generator = against_flow_grpo.generator_of(1.0)
    whole = against_flow_grpo.iteration_of(generator, against_flow_grpo.recipe_of(0.0))
    window = against_flow_grpo.iteration_of(generator, against_flow_grpo.recipe_of(0.0, 2, 0.25, keep_graph=True))
    ratio = flops(whole) / flops(window)
    assert ratio > 1.8, ratio


def test_our_refl_has_one_gradient_however_it_is_taken():
    ours = against_imagereward.Ours(RandomViT())
    found = []
    for recipe in (against_imagereward.recipe_of(), against_imagereward.recipe_of(decode_batch=1, judge_batch=1)):
        found.append(ours.gradients(recipe))
        ours.optimiser.zero_grad()
    assert away(*found) < 1e-4
