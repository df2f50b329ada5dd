"""What runbooks tell people to use exists, and their commands work: tried on a gateway."""

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Match

from gateway.api.routes import make_router
from gateway.cli.parser import make_parser
from tests.gateway.harness import Gateway
from tests.grafana.runbook import Runbook, runbooks
from tests.grafana.selectors import known_labels

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
EVERY = pytest.mark.parametrize("found", runbooks(), ids=lambda each: each.name)


SETTINGS: dict[str, Any] = {
    "models": {
        "MODEL": {"model": "fake", "ladder": [{"recipe": "int4", "name": "VARIANT"}, "full"]}
    },
    "shadow": {"rate": 0.5},
}
"""Models and variants with the names that stand for any in the runbooks."""


def is_route(method: str, path: str) -> bool:
    """Return whether the gateway has it."""
    scope = {"type": "http", "method": method, "path": path}
    return any(route.matches(scope)[0] is Match.FULL for route in make_router().routes)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Return a gateway with a key for administrators."""
    directory = tmp_path_factory.mktemp("runbooks")
    keys = directory / "keys.yaml"
    keys.write_text("keys: [{name: operator, key: sk-operator, admin: true}]")
    found = Gateway(directory, SETTINGS | {"api_keys_file": str(keys)}, {})
    try:
        found.wait_ready()
        yield found
    finally:
        found.close()


def status_of(command: str, gateway: Gateway) -> str:
    """Return the status that a shell's curl gets."""
    words = command.replace("curl ", "curl --silent --output /dev/null --write-out '%{http_code}' ")
    found = subprocess.run(
        ["bash", "-c", words],  # noqa: S607
        env=os.environ | {"GATEWAY": gateway.url, "ADMIN_KEY": "sk-operator"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return found.stdout


@EVERY
def test_the_command_works(found: Runbook, gateway: Gateway) -> None:
    """As it stands there: the gateway does it, or the program understands it."""
    (command,) = found.commands
    program, *words = shlex.split(command)
    if program == "narrowgate":
        make_parser().parse_args(words)  # exits if it does not know them
    else:
        assert program == "curl"
        assert status_of(command, gateway) == "200"


KEY = '-H "authorization: Bearer $ADMIN_KEY"'


@pytest.mark.parametrize(
    "command",
    [
        f"curl -X POST $GATEWAY/admin/models/MODEL@full/activated {KEY}",
        "curl -X POST $GATEWAY/admin/models/MODEL@full/activate",
        f"curl $GATEWAY/admin/models/MODEL@full/activate {KEY}",
        f"""curl -X POST $GATEWAY/admin/shadow {KEY} -d '{{"rate": 1}}'""",
    ],
)
def test_wrong_commands_are_noticed(command: str, gateway: Gateway) -> None:
    """A path that is not there, no key, another method, a body that is not understood."""
    assert status_of(command, gateway) in {"400", "401", "404", "405"}


@EVERY
def test_what_stands_for_something_is_said(found: Runbook) -> None:
    """The line at the head names what a reader has to put in, and what to do without ``full``."""
    (command,) = found.commands
    head = found.text.split("\n")[2]
    for name in ("$GATEWAY", "$ADMIN_KEY", "MODEL", "VARIANT"):
        assert name not in command or f"`{name}`" in head
    assert ("@full" in command) == ("Without a rung `full`" in head)


@EVERY
def test_words_in_the_text_exist(found: Runbook) -> None:
    """Metrics, settings, paths and alerts that it mentions."""
    names = {each.name for each in runbooks()}
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in known_labels()}
    prose = re.sub(r"```.*?```", "", found.text, flags=re.DOTALL)
    for word in re.findall(r"`([^`]+)`", prose):
        if word.startswith("narrowgate_"):
            assert word in families
        elif word.startswith("shadow."):
            assert f"`{word.partition(':')[0]}" in README or word.partition(":")[0] in README
        elif word.startswith("GET /"):
            assert is_route("GET", word.removeprefix("GET "))
        elif word.startswith("narrowgate "):
            assert word.split()[1] in README
    assert set(re.findall(r"Narrowgate[A-Z]\w+", prose)) <= names
