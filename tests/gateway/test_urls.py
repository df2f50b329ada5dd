"""Engines elsewhere that are none: what is told of their addresses."""

import asyncio
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from gateway.backends.url import RemoteEngine
from gateway.errors import ChildFailed
from gateway.upstream import EngineClient
from tests.ports import free_port


class _Site(BaseHTTPRequestHandler):
    """A web server that is no engine."""

    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def site() -> Iterator[str]:
    """Return the address of a server that has none of an engine's paths."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Site) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def refused(url: str) -> str:
    """Return why an engine at an address is not taken."""

    async def connect() -> None:
        client = EngineClient(url, served_name="m", read_timeout_s=5)
        await RemoteEngine.connect(client, timeout_s=1.5)

    with pytest.raises(ChildFailed) as told:
        asyncio.run(connect())
    return str(told.value)


def test_a_server_that_is_no_engine(site: str) -> None:
    """What it answers is told, and what to do."""
    assert refused(site) == (
        f"m: no engine was ready at {site} within 1.5 s: it answers /health with 404: "
        "start it, or correct 'urls'"
    )


def test_an_address_where_nobody_listens() -> None:
    """That is told as another thing."""
    assert "it takes no connection: start it" in refused(f"http://127.0.0.1:{free_port()}")
