"""The official Python client's own tests, run against a gateway over the embedded engine."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

import httpx
import pytest
import yaml

from tests.conformance.cached import python_client_tests
from tests.ports import free_port

FILES = ("chat/test_completions.py", "test_completions.py", "test_models.py")
MODELS = ("gpt-6-astra", "gpt-3.5-turbo-instruct")
"""The names that these tests ask for."""

EXCEPTIONS: tuple[tuple[str, str], ...] = (
    (
        "answers are not stored, so there is none to read, change or delete: 404",
        r"chat\.test_completions\..*::test_(method|raw_response|streaming_response)_"
        r"(retrieve|update|delete)\[",
    ),
    (
        "answers are not stored, so there are none to list: 405",
        r"chat\.test_completions\..*::test_(method|raw_response|streaming_response)_list"
        r"(_with_all_params)?\[",
    ),
    (
        "models are the operator's, no client deletes them: 405",
        r"test_models\..*::test_(method|raw_response|streaming_response)_delete\[",
    ),
    (
        "one request with every parameter there is, filled with values of the right type only: "
        "'max_tokens' 0, 'best_of' 0, a bias for the token 'foo', 'stream_options' without a "
        "stream, sound, moderation and a web search: 400, and the first one is named",
        r"test_completions\..*::test_method_create_with_all_params_overload_[12]\[",
    ),
)
"""Tests that fail, by the reason; all others must pass, and none of these may."""

START_LIMIT_S = 120


@pytest.fixture(scope="module")
def served(tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve a tiny model with random weights under the names of the tests; return the URL."""
    directory = tmp_path_factory.mktemp("served")
    port = free_port()
    model = {"model": str(tiny_llama_dir), "recipe": "full", "threads": 1, "max_model_len": 64}
    settings = directory / "settings.yaml"
    settings.write_text(yaml.safe_dump({"port": port, "models": dict.fromkeys(MODELS, model)}))
    command = [sys.executable, "-m", "gateway", "serve", "--config", str(settings)]
    with (directory / "log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=os.environ | {"NARROWGATE_HOME": str(directory)}
        )
    url = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + START_LIMIT_S
        while not _is_ready(url):
            assert process.poll() is None, (directory / "log").read_text()
            assert time.monotonic() < end, "the gateway did not become ready"
            time.sleep(0.1)
        yield f"{url}/v1"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def _is_ready(url: str) -> bool:
    try:
        models = httpx.get(f"{url}/ready").json()["models"]
    except httpx.TransportError:
        return False
    return set(models.values()) == {"ready"}


@pytest.fixture(scope="module")
def outcomes(served: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return for each of the client's tests what went wrong, empty where nothing did.

    Those over aiohttp are left out: that is another transport of the client, not another server.
    """
    source, site = python_client_tests(version("openai"))
    report = tmp_path_factory.mktemp("report") / "report.xml"
    options = ["-q", "-o", "addopts=", "-p", "no:cacheprovider", "-p", "no:schemathesis"]
    options += ["-k", "not aiohttp", f"--junitxml={report}"]
    files = [f"tests/api_resources/{name}" for name in FILES]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *files],
        cwd=source,
        env=os.environ | {"TEST_API_BASE_URL": served, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert report.is_file(), done.stdout + done.stderr
    cases = ElementTree.parse(report).iter("testcase")  # noqa: S314 (pytest has just written it)
    return {f"{case.get('classname')}::{case.get('name')}": _problem(case) for case in cases}


def _problem(case: ElementTree.Element) -> str:
    found = [child for child in case if child.tag in {"failure", "error", "skipped"}]
    return found[0].get("message") or "no message" if found else ""


def _is_exception(name: str) -> bool:
    return any(re.search(pattern, name) for _, pattern in EXCEPTIONS)


def test_everything_else_passes(outcomes: dict[str, str]) -> None:
    """Every test of chat completions, completions and models passes, but for the exceptions."""
    passed = {name for name, problem in outcomes.items() if not problem}
    failed = {name: problem for name, problem in outcomes.items() if problem}
    assert {name: text for name, text in failed.items() if not _is_exception(name)} == {}
    assert len(passed) >= 80


@pytest.mark.parametrize(("reason", "pattern"), EXCEPTIONS)
def test_exceptions_are_refusals(outcomes: dict[str, str], reason: str, pattern: str) -> None:
    """Each exception fails with the status that its reason names, so none is out of date."""
    found = {name: text for name, text in outcomes.items() if re.search(pattern, name)}
    assert found
    status = reason.split(": ")[-1].split(",")[0]
    assert all(f"Error code: {status}" in text for text in found.values()), found
