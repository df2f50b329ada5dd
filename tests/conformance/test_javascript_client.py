"""The official JavaScript client streams, aborts and raises as with OpenAI."""

import json
import subprocess
from typing import Any

import pytest

from tests.conformance.cached import javascript_client
from tests.gateway.harness import Gateway, eventually


def counts(gateway: Gateway) -> dict[str, float]:
    """Return the engine's counts, and how many clients have left the gateway."""
    left = gateway.metric("client_disconnects_total")
    return {**gateway.engine_state(), "left": left}


@pytest.fixture(scope="module")
def before(gateway: Gateway) -> dict[str, float]:
    """Return the counts before the client came; others have used the gateway too."""
    return counts(gateway)


@pytest.fixture(scope="module")
def seen(gateway: Gateway, before: dict[str, float]) -> dict[str, Any]:
    """Return what the client saw of the gateway."""
    home = javascript_client()
    command = ["node", "client.mjs", f"{gateway.url}/v1"]
    done = subprocess.run(
        command, cwd=home, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_plain_and_streamed(seen: dict[str, Any]) -> None:
    """Text, role and finish reason arrive; usage is null until the last chunk."""
    assert seen["plain"] == {"text": " aaa aab", "usage": 5}
    streamed = seen["streamed"]
    assert (streamed["text"], streamed["finish"]) == (" aaa aab aac aad", "stop")
    assert streamed["roles"] == ["assistant"]
    *before, last = streamed["usages"]
    assert set(before) == {None}
    assert last["total_tokens"] == 7


def test_abort_reaches_the_engine(
    seen: dict[str, Any], before: dict[str, float], gateway: Gateway
) -> None:
    """A stream that the client aborts stops at the client, and decoding stops in the engine."""
    assert seen["aborted"]["chunks"] == 3
    eventually(lambda: counts(gateway)["cancelled"] == before["cancelled"] + 1)
    eventually(lambda: counts(gateway)["running"] == 0)
    state = counts(gateway)
    assert state["decoded"] - before["decoded"] < 1000
    eventually(lambda: counts(gateway)["left"] == before["left"] + 1)


def test_errors_are_the_clients_own(seen: dict[str, Any]) -> None:
    """The client raises its own classes with our code, parameter and request id."""
    unknown = {"type": "invalid_request_error", "hasId": True}
    assert seen["unknownModel"] == unknown | {
        "kind": "NotFoundError",
        "status": 404,
        "code": "model_not_found",
        "param": "model",
    }
    assert seen["unknownField"] == unknown | {
        "kind": "BadRequestError",
        "status": 400,
        "code": "unsupported_parameter",
        "param": "shout",
    }
    assert seen["broken"] == {"kind": "APIError", "code": "engine_unavailable"}


def test_models_are_listed(seen: dict[str, Any]) -> None:
    """The client's pages of models have both names."""
    assert seen["listed"] == ["tiny", "tiny@int4"]
