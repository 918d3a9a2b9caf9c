"""A quickstart that is struck ends as the undisturbed one, or says what to do; `python -m tests.faults` is wider."""

from __future__ import annotations

import errno
import os

import pytest
from tiny import command

from rewarddance.runtime import checkpoint
from tests.faults.plan import NEEDS_MOUNT, Whole, can_mount, cell, goes_on, undisturbed, words

PLACES = {"kill -9": 0.6, "two runs": 0.4, "disk full": 0.5, "disk read-only": 0.75}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Whole:
    return undisturbed(tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize("kind", PLACES)
def test_a_struck_run_goes_on_to_the_figures_of_the_undisturbed(whole, tmp_path, kind):
    if kind in NEEDS_MOUNT and not can_mount(tmp_path):
        pytest.skip("nothing can be mounted here")
    assert not cell(kind, whole, tmp_path / "cell", PLACES[kind])


def test_a_disk_that_is_full_at_a_write_ends_in_one_line_and_goes_on(whole, tmp_path, monkeypatch):
    left, write = [4], os.fsync

    def full(file: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(file)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint.os, "fsync", full)
        done = command(*words(whole.recipe, tmp_path / "run"))
    assert done.code == 2 and "the disk is full" in done.err and "Make room" in done.err
    assert not goes_on(whole, tmp_path / "run")
