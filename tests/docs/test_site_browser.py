"""The site in a real browser: nothing for axe-core to complain of, wide and narrow, light and dark."""

from __future__ import annotations

import pytest
from browsing import browser, violations
from snippets import ROOT

SITE = ROOT / "build" / "site"
PAGES = ("index.html", "tutorials/align_a_generator.html", "guides/serving.html", "concepts/method.html")
EMPTY_CORNER = "empty-table-header"
"""A rule of no weight that every table breaks whose corner is empty."""


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (500, True)])
def test_axe_finds_nothing_wrong_with_the_site(width, dark):
    if not (SITE / "index.html").is_file():
        pytest.skip("the site has not been built: make docs")
    with browser(width, 800, dark) as driver:
        for page in (*PAGES, "results/main_job.html"):
            driver.get((SITE / page).as_uri())
            found = [rule for rule in violations(driver) if not rule.startswith(EMPTY_CORNER)]
            assert found == [], page
            assert driver.execute_script("return document.documentElement.scrollWidth <= window.innerWidth"), page
