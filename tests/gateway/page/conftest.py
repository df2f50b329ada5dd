"""A gateway with keys, a ladder and scores, and a browser to look at its page."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from tests.gateway.harness import CHAT, Gateway, body
from tests.gateway.page.browser import ABSENT, EXECUTABLE, View, chromium

KEY = "sk-boss"
FAKE: dict[str, Any] = {"model": "fake"}
MODELS: dict[str, Any] = {
    "tiny": FAKE | {"ladder": ["int4", "int8", "full"], "shadow": 1},
    "quiet": FAKE | {"recipe": "int4", "shadow": "off"},
    "broken": {"model": "refuse", "recipe": "int4", "preload": False, "shadow": "off"},
}
SETTINGS: dict[str, Any] = {
    "models": MODELS,
    "api_keys": [{"name": "boss", "key": KEY, "admin": True}],
    "shadow": {"floor_every": 2, "verdict": {"tolerance": {"all": 0.02}}},
}
LAUNCH: dict[str, Any] = {
    "nll": {"reference": 0.75, "full": 0.75},
    "score_faults": {"tiny": "uneven"},
}

OpenView = Callable[..., View]


@pytest.fixture(autouse=True)
def patience() -> Iterator[None]:
    """Let expectations wait as long as a busy machine needs."""
    expect.set_options(timeout=60_000)
    yield
    expect.set_options(timeout=5_000)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Return a gateway that asks for the admin key and has scored some requests."""
    gateway = Gateway(tmp_path_factory.mktemp("page"), SETTINGS, LAUNCH)
    gateway.wait_ready()
    gateway.http.headers["authorization"] = f"Bearer {KEY}"
    for _ in range(8):
        chat(gateway)
    yield gateway
    gateway.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Return a Chromium without a window.

    It ends with its file: until then its event loop keeps others from being run.
    """
    if EXECUTABLE is None:
        pytest.skip(ABSENT)
    with chromium() as opened:
        yield opened


@pytest.fixture
def view(browser: Browser, served: Gateway) -> Iterator[OpenView]:
    """Return what opens the page; it must not have complained when the test ends."""
    opened: list[View] = []

    def open_page(**options: Any) -> View:
        found = View(browser, served.url, **{"key": KEY, **options})
        opened.append(found)
        if found.page.evaluate("sessionStorage.getItem('narrowgate-key')") == KEY:
            found.wait_figures()
        return found

    yield open_page
    complaints = [
        each
        for one in opened
        for each in one.complaints
        # Refused until somebody types a key; the browser may tell of it later than the page.
        if not (one.begins_locked and "status of 401" in each)
    ]
    strangers = [each for one in opened for each in one.strangers]
    for each in opened:
        each.close()
    assert (complaints, strangers) == ([], [])


def chat(gateway: Gateway, **fake: Any) -> None:
    """Have one streamed answer."""
    content = body(stream=True, fake={"tokens": 8, **fake})
    gateway.http.post(CHAT, json=content).raise_for_status()
