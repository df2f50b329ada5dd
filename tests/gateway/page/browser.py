"""Headless Chromium, and a page in it that remembers whatever a browser complains of."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Page, sync_playwright

EXECUTABLE = shutil.which("chromium") or shutil.which("chromium-browser")
ABSENT = "Chromium is not installed: apt-get install chromium"

_WATCH = """addEventListener("securitypolicyviolation", (event) =>
  console.error(`policy: ${event.violatedDirective} ${event.blockedURI}`))"""


@contextmanager
def chromium() -> Iterator[Browser]:
    """Open the system's own Chromium; none is ever downloaded."""
    with sync_playwright() as playwright:
        # Its sandbox needs rights that containers do not give; the pages are our own.
        browser = playwright.chromium.launch(executable_path=EXECUTABLE, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


class View:
    """One tab of a fresh profile at ``/dashboard``."""

    def __init__(
        self, browser: Browser, url: str, *, key: str = "", width: int = 1280, scheme: str = "light"
    ) -> None:
        dark = scheme == "dark"
        self._context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light"
        )
        self.page: Page = self._context.new_page()
        self.page.set_default_timeout(60_000)
        self.begins_locked = not key
        self.complaints: list[str] = []
        self.strangers: list[str] = []
        self._host = urlsplit(url).netloc
        self.page.on("console", lambda said: self._note(said.type, said.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self._see(request.url))
        self.page.add_init_script(_WATCH)
        if key:
            self.page.add_init_script(f"sessionStorage.setItem('narrowgate-key', '{key}')")
        self.page.goto(f"{url}/dashboard")

    def wait_figures(self) -> None:
        """Wait until the figures are shown."""
        self.page.wait_for_selector("#figures:not([hidden]) .variant")

    def close(self) -> None:
        """Close the tab and its profile."""
        self._context.close()

    def _note(self, kind: str, text: str) -> None:
        if kind in {"error", "warning"}:
            self.complaints.append(text)

    def _see(self, url: str) -> None:
        if urlsplit(url).netloc != self._host:
            self.strangers.append(url)
