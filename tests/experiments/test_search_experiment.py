"""The table of search methods: cells that are not done twice, equal seconds, and figures that are what they say."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import generator_folder, judge_folder
from tiny_grid import experiment, project_recipe, write_recipe

from experiments.grid import Rows
from experiments.search import SearchMethods, SearchRecipe, winner
from experiments.search_table import BASE, Meeting, Pool, SearchRun, curve, entries, expected_best, knockouts
from rewarddance.errors import InputError
from rewarddance.reward.ranking import ranked
from rewarddance.runtime.config import load_recipe
from rewarddance.search.over_paths import Paths


def recipe(folder: Path) -> Path:
    """The table on random checkpoints: one method alone and one by knockout, in seconds."""
    content = {
        "seeds": [0],
        "generator": str(generator_folder()),
        "num_inference_steps": 3,
        "judge": {"base": str(judge_folder())},
        "judges": {"plain": {kind: {"reward": str(folder / kind)} for kind in ("pointwise", "pairwise")}},
        "preferences": {
            "train_prompts": 2,
            "samples": 2,
            "pairs": 2,
            "id_prompts": 3,
            "ood_prompts": 3,
            "test_pairs": 2,
        },
        "arms": {
            "best of N": {"method": "best_of_n"},
            "knockout": {"method": "best_of_n", "judge": "pairwise", "judging": "knockout"},
        },
        "multiples": [2],
        "prompts": 6,
        "base_samples": 2,
        "pool": {"prompts": 2, "n": 4, "meeting": 3, "draws": 2},
        "batch_size": 12,
        "prompts_at_once": 3,
        "gallery_prompts": 2,
    }
    for kind in ("pointwise", "pairwise"):
        (folder / kind).mkdir()
        for file in judge_folder().iterdir():
            (folder / kind / file.name).symlink_to(file)
        options = {"kind": kind, "instruction": "t2i-brief"}
        (folder / kind / "reward_config.json").write_text(json.dumps(options))
    return write_recipe(folder, content)


def test_every_cell_is_searched_once_and_only_lost_ones_are_done_again(tmp_path):
    file, out = recipe(tmp_path), tmp_path / "out"
    first = experiment("search", file, "--output", out)
    assert first.code == 0, first.err
    rows = Rows(out, SearchMethods.row_kinds)
    assert [(row.arm, row.multiple) for row in rows.of(SearchRun)] == [(BASE, 1), ("best of N", 2), ("knockout", 2)]
    assert len(rows.of(Pool)) == len(rows.of(Meeting)) == 1
    for row in rows.of(SearchRun):
        assert len(row.oracle) == 6 and all(0 <= score <= 1 for score in row.oracle)
        assert row.seconds == pytest.approx(row.budget, rel=9.0)  # of milliseconds, on a machine that others use
        assert (row.rounds > 0) == (row.arm != BASE)
        assert row.generator_seconds + row.judge_seconds <= row.seconds * 1.001
    made = json.loads((out / "results.json").read_text())
    assert made["cells"] == made["done"] == 3
    assert {entry["arm"] for entry in made["methods"]} == {"best of N", "knockout"}
    text = (out / "search.md").read_text()
    assert text.strip() == first.out.strip() and "Unfinished" not in text
    assert (out / "search.svg").read_text().startswith("<?xml") and (out / "winners.png").stat().st_size > 1000
    # the last cell and all that follows it are lost: only they are done again
    lines = (out / "rows.jsonl").read_text().splitlines(keepends=True)
    at = max(number for number, line in enumerate(lines) if '"row":"cell"' in line)
    (out / "rows.jsonl").write_text("".join(lines[:at]))
    again = experiment("search", file, "--output", out)
    assert again.code == 0, again.err
    kept = (out / "rows.jsonl").read_text().splitlines(keepends=True)
    assert kept[:at] == lines[:at] and len(kept) == len(lines)
    assert again.err.count(" of 3: ") == 1


def test_the_recipe_that_comes_along_can_be_searched_with():
    made = load_recipe(SearchRecipe, project_recipe("search"))
    assert made.multiples == (4, 16, 64) and made.seeds == (0, 1, 2) and made.pool.n == 256
    assert made.arms["search over paths"].read(4) is None
    assert made.arms["search over paths"].read(16) == Paths(paths=1, copies=4)
    assert made.arms["search over paths"].read(64) == Paths(paths=2, copies=8)
    assert made.training("weak", "pointwise").epochs < made.training("strong", "pointwise").epochs


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("arms.best of N.judge=clip", "the arm 'best of N' asks a clip judge"),
        ("arms.best of N.method=beam", "no search method named 'beam'"),
        ("arms.best of N.options={m: 3}", "unknown key 'm' in the options of best_of_n"),
        ("arms.one sample={method: best_of_n}", "name of the samples that all arms are compared with"),
        ("pool.meeting=5", "5 cannot meet"),
        ("judges.plain.pointwise={epoch: 2}", "unknown key 'epoch' in the judge plain pointwise"),
    ],
)
def test_a_table_that_cannot_be_made_is_refused_before_anything_is_done(tmp_path, change, what):
    with pytest.raises(InputError, match=what):
        load_recipe(SearchRecipe, recipe(tmp_path), [change])


# -- figures -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6])
def test_the_expected_best_is_the_mean_over_all_subsets(n):
    rng = np.random.default_rng(n)
    proxy, values = rng.normal(size=6), rng.normal(size=6)
    subsets = [values[max(subset, key=lambda i: proxy[i])] for subset in itertools.combinations(range(6), n)]
    assert expected_best(proxy, values, n) == pytest.approx(np.mean(subsets))


def test_the_curve_shows_a_proxy_that_is_right_at_first_and_wrong_at_its_top(tmp_path):
    """The proxy's best tenth are worthless: the oracle rises with N and then falls, the proxy only rises."""
    proxy = np.arange(256.0) / 32
    oracle = np.where(proxy < 7.2, proxy / 8, 0.0)

    rows = Rows(tmp_path, SearchMethods.row_kinds)
    rows.add(Pool(seed=0, strength="weak", oracle=[oracle.tolist()] * 2, proxy=[proxy.tolist()] * 2))
    found = curve(rows)
    assert [point.n for point in found] == [1, 2, 4, 8, 16, 32, 64, 128, 256]
    heights = [point.oracle.mean for point in found]
    assert max(heights) > heights[0] + 0.05 and heights[-1] < 0.01
    proxies = [point.proxy.mean for point in found]
    assert proxies == sorted(proxies) and found[-1].margin == pytest.approx(255 / 32)


def test_the_winner_of_a_knockout_is_read_from_the_tournaments_margins():
    rng = torch.Generator().manual_seed(0)
    strength = torch.rand(7, generator=rng)
    full = ranked(7, torch.stack([strength[c] - strength[r] for c in range(7) for r in range(7) if c != r]))
    for seed in range(5):
        assert winner(full.margins, np.random.default_rng(seed).permutation(7)) == strength.argmax()
    # 0 beats 1, 1 beats 2, 2 beats 0: who wins depends on who meets whom
    circle = torch.tensor([[0.0, 1.0, -1.0], [-1.0, 0.0, 1.0], [1.0, -1.0, 0.0]])
    assert {winner(circle, np.array(order)) for order in itertools.permutations(range(3))} == {0, 1, 2}


def cell(seed: int, arm: str, oracle: list[float], multiple: int = 4, **spent: float) -> SearchRun:
    figures = {"evaluations": 48.0, "pictures": 4.0, "questions": 4.0, "seconds": 2.0, "generator_seconds": 1.0}
    figures |= {"judge_seconds": 0.5, "rounds": 1.0} | spent
    return SearchRun(seed=seed, strength="weak", arm=arm, multiple=multiple, budget=0.5, oracle=oracle, **figures)


def test_gains_are_paired_with_the_plain_samples_of_the_same_prompts(tmp_path):
    rows = Rows(tmp_path, SearchMethods.row_kinds)
    for seed in (0, 1):
        rows.add(cell(seed, BASE, [0.2, 0.4, 0.6], 1))
        rows.add(cell(seed, "pruning", [0.3, 0.5, 0.7]))
    rows.add(Meeting(seed=0, strength="weak", n=4, places=[[0, 0, 1, 3], [2, 0, 0, 0]]))
    (entry,) = entries(Rows(tmp_path, SearchMethods.row_kinds))
    assert entry.oracle.mean == pytest.approx(0.5)
    assert entry.gain[:3] == pytest.approx((0.1, 0.1, 0.1))
    assert (entry.seeds, entry.spent, entry.judge_share) == (2, 4.0, 0.25)
    (met,) = knockouts(Rows(tmp_path, SearchMethods.row_kinds))
    assert met.best.mean == pytest.approx(5 / 8) and met.top.mean == pytest.approx(7 / 8)
