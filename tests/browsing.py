"""A real browser: Chromium from the distribution, by Selenium, and axe-core. `make browser` brings both."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

AXE = Path(__file__).parents[1] / "build" / "axe.min.js"
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@contextmanager
def browser(width: int = 1280, height: int = 900, dark: bool = False) -> Iterator[Any]:
    """A fresh Chromium, without cookies. Skips the test where there is none."""
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("there is no Chromium with its driver: make browser")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--no-proxy-server"):
        options.add_argument(argument)
    options.add_argument(f"--window-size={width},{height}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(60)
    if dark:
        scheme = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)
    try:
        yield driver
    finally:
        driver.quit()


def wait(driver: Any, condition: str, seconds: float = 60) -> Any:
    """What a JavaScript expression gives, once it is true."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(driver, seconds, 0.05).until(lambda _: driver.execute_script(f"return {condition}"))


def press(driver: Any, key: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(driver).send_keys(key).perform()


def violations(driver: Any) -> list[str]:
    """What axe-core finds wrong with the page. Its source goes in by the driver, past the page's own policy."""
    if not AXE.exists():
        pytest.skip("there is no axe-core: make browser")
    source = AXE.read_text(encoding="utf-8")
    driver.execute_cdp_cmd("Runtime.evaluate", {"expression": source})
    found = driver.execute_async_script("const done = arguments[0]; axe.run(document).then(done);")
    return [f"{rule['id']}: {rule['help']} {rule['nodes'][0]['html'][:120]}" for rule in found["violations"]]


def complaints(driver: Any) -> list[str]:
    """What the browser's console says of the page: errors, and what its policy kept out."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
