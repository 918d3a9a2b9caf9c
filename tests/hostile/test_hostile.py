"""Every hostile input of the table ends in the exit code and names the item that it should, within seconds."""

from __future__ import annotations

import pytest

from tests.hostile.inputs import BUILDERS
from tests.hostile.running import bundled_once, fault


@pytest.mark.timeout(600)
@pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__.removesuffix("_cases"))
def test_hostile_inputs_end_in_a_message_that_names_them(build, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with bundled_once():
        faults = [found for case in build(tmp_path) if (found := fault(case))]
    assert not faults, "\n".join(faults)


def test_the_table_has_at_least_600_inputs_times_commands(tmp_path):
    count = 0
    for number, build in enumerate(BUILDERS):
        (tmp_path / str(number)).mkdir()
        count += sum(1 for _ in build(tmp_path / str(number)))
    assert count >= 600
