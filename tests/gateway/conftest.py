"""Gateways over fake engines."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.harness import Gateway, eventually

StartGateway = Callable[..., Gateway]


@pytest.fixture(scope="session")
def shared_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Run a gateway that tests share; they must leave its engine alive."""
    shared = Gateway(tmp_path_factory.mktemp("gateway"), {"max_body_bytes": 65536}, {})
    shared.wait_ready()
    yield shared
    shared.close()


@pytest.fixture
def gateway(shared_gateway: Gateway) -> Gateway:
    """Return the shared gateway once all that it was asked is in its counts.

    A stream ends for its client before it is counted.
    """
    eventually(lambda: shared_gateway.metric("requests_running") == 0)
    eventually(lambda: shared_gateway.engine_state()["running"] == 0)
    return shared_gateway


@pytest.fixture
def start_gateway(tmp_path: Path) -> Iterator[StartGateway]:
    """Return what starts a gateway of the test's own; it is ended with the test."""
    started: list[Gateway] = []

    def start(
        *, ready: bool = True, launch: dict[str, Any] | None = None, **settings: Any
    ) -> Gateway:
        gateway = Gateway(tmp_path, settings, launch or {})
        started.append(gateway)
        gateway.wait_listening()
        if ready:
            gateway.wait_ready()
        return gateway

    yield start
    for gateway in started:
        gateway.close()
