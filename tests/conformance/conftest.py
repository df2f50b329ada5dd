"""Gateways that other people's clients talk to."""

from collections.abc import Iterator

import pytest

from tests.gateway.harness import Gateway


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Return a ready gateway over the fake engine; tests must leave the engine alive."""
    shared = Gateway(tmp_path_factory.mktemp("conformance"), {"read_timeout_s": 5}, {})
    shared.wait_ready()
    yield shared
    shared.close()
