"""What runbooks tell people to use exists: routes, flags, bodies, metrics, settings, alerts."""

import json
import re
import shlex
from pathlib import Path

import pytest
from starlette.routing import Match

from gateway.api.admin import ShadowRate
from gateway.api.routes import make_router
from gateway.cli.parser import make_parser
from tests.grafana.runbook import Runbook, runbooks
from tests.grafana.selectors import known_labels

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
KEY = "authorization: Bearer $ADMIN_KEY"
EVERY = pytest.mark.parametrize("found", runbooks(), ids=lambda each: each.name)


def is_route(method: str, path: str) -> bool:
    """Return whether the gateway has it."""
    scope = {"type": "http", "method": method, "path": path}
    return any(route.matches(scope)[0] is Match.FULL for route in make_router().routes)


def refusal(command: str) -> str:
    """Return what is wrong with a command, or nothing."""
    program, *words = shlex.split(command)
    if program == "narrowgate":
        make_parser().parse_args(words)  # exits if it does not know them
        return ""
    if program != "curl":
        return f"what is {program}?"
    method, path, body = "GET", "", None
    while words:
        word = words.pop(0)
        if word == "-X":
            method = words.pop(0)
        elif word == "-H":
            header = words.pop(0)
            if header != KEY:
                return f"no header {header}"
        elif word == "-d":
            body = json.loads(words.pop(0))
        else:
            path = word.removeprefix("$GATEWAY")
    if not is_route(method, path):
        return f"no route {method} {path}"
    if path == "/admin/shadow" and method == "POST":
        ShadowRate.model_validate(body)
    return ""


@EVERY
def test_the_command_exists(found: Runbook) -> None:
    """As the app and the program have it."""
    (command,) = found.commands
    assert refusal(command) == ""


@pytest.mark.parametrize(
    "command",
    [
        "curl -X POST $GATEWAY/admin/models/MODEL@full/activated",
        "curl $GATEWAY/admin/models/MODEL@full/activate",
        "curl -X POST $GATEWAY/admin/models/MODEL/load -H 'x-key: $ADMIN_KEY'",
        "systemctl restart narrowgate",
    ],
)
def test_wrong_commands_are_noticed(command: str) -> None:
    """A path, a method, a header or a program that is not there."""
    assert refusal(command)


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
