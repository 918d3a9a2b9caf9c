"""The oracle agrees with readers who looked at 520 generated pictures first (labelled/README.md)."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rewarddance.shapeworld.oracle import score_picture
from rewarddance.shapeworld.scenes import CANVAS, parse_prompt

FOLDER = Path(__file__).parent / "labelled"
SETS = ("base", "aligned")


@functools.cache
def verdicts(name: str) -> np.ndarray:
    """Of each picture: the reader's verdict, the oracle's, and whether the reader was sure, [N, 3]."""
    sheet = np.asarray(Image.open(FOLDER / f"{name}.png"), dtype=np.float32) / 255
    pictures = (
        sheet.reshape(-1, CANVAS, sheet.shape[1] // CANVAS, CANVAS, 3).swapaxes(1, 2).reshape(-1, CANVAS, CANVAS, 3)
    )
    labels = [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text().splitlines()]
    oracle = [score_picture(p, parse_prompt(row["prompt"])).correct for p, row in zip(pictures, labels, strict=True)]
    return np.array([(row["correct"], one, row["sure"]) for row, one in zip(labels, oracle, strict=True)])


@functools.cache
def others(name: str) -> np.ndarray:
    """The verdicts of two more readers [N, 2]."""
    labels = [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text().splitlines()]
    return np.array([[reader["correct"] for reader in row["others"]] for row in labels])


def kappa(reader: np.ndarray, oracle: np.ndarray) -> float:
    """Cohen's: (agreement - agreement by chance) / (1 - agreement by chance)."""
    chance = reader.mean() * oracle.mean() + (1 - reader.mean()) * (1 - oracle.mean())
    return float(((reader == oracle).mean() - chance) / (1 - chance))


@pytest.mark.parametrize("name", SETS)
def test_the_oracle_says_what_a_reader_is_sure_of(name: str):
    reader, oracle, sure = verdicts(name).T
    assert sure.sum() > 230 and kappa(reader[sure], oracle[sure]) > 0.95


def test_where_careful_readers_may_differ_it_still_agrees():
    reader, oracle, _ = np.concatenate([verdicts(name) for name in SETS]).T
    assert kappa(reader, oracle) > 0.89
    wrongly_yes, wrongly_no = (oracle & ~reader).sum(), (reader & ~oracle).sum()
    assert 1 / 3 < wrongly_yes / wrongly_no < 3


def test_readers_agree_with_each_other_little_more_than_the_oracle_with_them():
    first, oracle, _ = np.concatenate([verdicts(name) for name in SETS]).T
    second, third = np.concatenate([others(name) for name in SETS]).T
    assert 0.9 < kappa(first, second) < 0.95 and kappa(second, third) > 0.95
    majority, unanimous = first + 0 + second + third >= 2, (first == second) & (second == third)
    assert kappa(majority, oracle) > 0.88
    assert unanimous.mean() > 0.95 and kappa(first[unanimous], oracle[unanimous]) > 0.92
