"""Debian's Chromium without a window, for the test of the page and for its pictures in the documentation."""

from __future__ import annotations

import base64
import shutil
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

PROGRAMS = ("chromium", "chromedriver")
PACKAGES = "chromium chromium-driver"

_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def missing_programs() -> list[str]:
    """Lists the programs that are not installed."""
    return [program for program in PROGRAMS if shutil.which(program) is None]


def open_browser(*, width: int = 1280, height: int = 900, is_dark: bool = False, scale: float = 1.0) -> Any:
    """Opens a browser with one page of the given size.

    Args:
        width: Pixels of the page; below 600 it is a phone.
        height: Pixels of the page.
        is_dark: Whether the user prefers a dark page.
        scale: Pixels of the screen for each pixel of the page.
    """
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which(PROGRAMS[0]) or ""
    for flag in _FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(shutil.which(PROGRAMS[1]) or ""))
    resize(browser, width, height, scale)
    preference = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [preference]})
    return browser


def resize(browser: Any, width: int, height: int, scale: float = 1.0) -> None:
    """Sets the size of the page."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def save_picture(browser: Any, path: Path, *, quality: int = 80) -> None:
    """Saves a screenshot of the page, as PNG or as JPEG by the file's name."""
    kind = {"format": "png"} if path.suffix == ".png" else {"format": "jpeg", "quality": quality}
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", kind)
    path.write_bytes(base64.b64decode(shot["data"]))


def complaints(browser: Any) -> list[str]:
    """Lists errors and policy violations of the page since the last call."""
    found = [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    # The tests read pictures back, not the page.
    return [text for text in found if "willReadFrequently" not in text]
