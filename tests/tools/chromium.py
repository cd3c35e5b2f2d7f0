"""Chromium without a head, driven by selenium."""

import json
import os
import shutil

import pytest

FLAGS = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1400")
FLAGS += ("--enable-unsafe-swiftshader", "--disable-background-networking")


def open_browser(*flags: str):
    """A browser that logs its requests; the test is skipped where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    binary = next(filter(None, map(shutil.which, names)), None)
    driver = shutil.which("chromedriver", path=os.environ.get("CHROMEWEBDRIVER")) or shutil.which(
        "chromedriver"
    )
    if binary is None or driver is None:
        pytest.skip("no Chromium with its chromedriver; Debian has chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (*FLAGS, *flags):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    return webdriver.Chrome(options, webdriver.ChromeService(driver))


def requested(browser) -> set[str]:
    """The addresses that it has asked for since the last call."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return {params["request"]["url"] for params in sent}
