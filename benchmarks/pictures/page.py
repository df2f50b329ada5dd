"""Photographs of the built-in page in headless Chromium."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from playwright.sync_api import Browser, Page, sync_playwright

QUESTION = "Write a Python function that says whether a number is prime."
_ANSWER_MS = 120_000
_SETTLE_MS = 6_000
"""For figures that are read every few seconds."""

Scheme = Literal["light", "dark"]

_VIEWS: Mapping[str, tuple[int, Scheme]] = MappingProxyType(
    {"page-dark": (1440, "dark"), "page-light": (1440, "light"), "page-phone": (360, "light")}
)


def photograph(url: str, model: str, out: Path) -> None:
    """Write pictures of the page with its figures, and of a question to both models.

    Raises:
        SystemExit: Chromium is not installed.
    """
    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    if executable is None:
        raise SystemExit("Chromium is not installed: apt-get install chromium")
    with sync_playwright() as playwright:
        # Its sandbox needs rights that containers do not give; the page is our own.
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        for name, (width, scheme) in _VIEWS.items():
            page = _open(browser, url, width, scheme)
            page.screenshot(path=out / f"{name}.png", full_page=True)
        page = _open(browser, url, 1440, "light")
        page.select_option("#ask-model", model)
        page.fill("#ask-text", QUESTION)
        page.click("#ask-send")
        page.wait_for_selector("#reply[aria-busy=false] .token", timeout=_ANSWER_MS)
        page.locator("section[aria-labelledby=ask-title]").screenshot(path=out / "page-ask.png")
        browser.close()


def _open(browser: Browser, url: str, width: int, scheme: Scheme) -> Page:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.goto(f"{url}/dashboard")
    page.wait_for_selector("#figures:not([hidden]) .variant")
    page.wait_for_timeout(_SETTLE_MS)
    return page
