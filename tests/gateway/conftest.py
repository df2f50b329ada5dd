"""Gateways over fake engines."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.harness import Gateway

StartGateway = Callable[..., Gateway]


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Return a ready gateway that tests share; they must leave its engine alive."""
    shared = Gateway(tmp_path_factory.mktemp("gateway"), {"max_body_bytes": 65536}, {})
    shared.wait_ready()
    yield shared
    shared.close()


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
