"""A report in a real browser: nothing for axe-core to complain of, wide and narrow, light and dark."""

from __future__ import annotations

import pytest
from browsing import browser, complaints, violations
from test_run_page import made_up

from rewarddance.report.run_page import write_report


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (500, False), (500, True)])
def test_axe_finds_nothing_wrong_with_a_report(tmp_path, width, dark):
    report = write_report(made_up(tmp_path / "first"))
    with browser(width, 800, dark) as driver:
        driver.get(report.as_uri())
        assert violations(driver) == [] and complaints(driver) == []
        assert driver.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
