"""Requests whose slices lead elsewhere: what a request tells before its answer, and who answers."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from gateway.app import Application, create_service
from gateway.pool.pool import Pool
from gateway.settings import load_settings
from tests.gateway.fake_launch import FakeLaunch
from tests.gateway.harness import CHAT

TEXT = "/v1/completions"
LADDER = ["int4", "int8"]


def chat(content: Any = "Tell me about the sea.", **fields: Any) -> dict[str, Any]:
    """Return a chat request."""
    return {"messages": [{"role": "user", "content": content}]} | fields


@asynccontextmanager
async def gateway(
    *slices: str, launch: FakeLaunch | None = None
) -> AsyncIterator[tuple[Pool, httpx.AsyncClient]]:
    """Yield the pool and a client of a gateway whose int8 answers these slices."""
    model = {"model": "fake", "ladder": LADDER, "extra_parameters": ["fake", "messages"]}
    shadow = {"slices": {"team": ["blue"]}, "ledger": {"path": "off"}}
    settings = load_settings(None, {"models": {"tiny": model}, "shadow": shadow}, {})
    service = create_service(settings, launch=launch or FakeLaunch())
    try:
        await service.pool.ensure_ready()
        await service.pool.control.route("tiny@int8", slices, 1.0)
        transport = httpx.ASGITransport(Application(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            yield service.pool, client
    finally:
        await service.pool.close(0)


async def who(client: httpx.AsyncClient, path: str, fields: dict[str, Any]) -> str:
    """Return the variant that answers."""
    reply = await client.post(path, json={"model": "tiny"} | fields)
    assert reply.status_code == 200, reply.text
    return str(reply.headers["x-narrowgate-variant"])


def test_each_dimension_that_a_request_tells() -> None:
    """Each of them sends a request to the other rung, and leaves its counterpart where it was."""
    again = [{"role": role, "content": "x"} for role in ("user", "assistant", "user")]
    code, long = "def double(x): return 2 * x", "word " * 200
    turns = {"messages": again}
    cases: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
        ("length:128-511", CHAT, chat(long), chat()),
        ("turns:multi", CHAT, turns, chat()),
        ("script:cyrillic", CHAT, chat("Привет, море"), chat()),
        ("domain:code", CHAT, chat([{"type": "text", "text": code}]), chat()),
        ("domain:code", TEXT, {"prompt": code}, {"prompt": "The sea"}),
        ("format:json", CHAT, chat(response_format={"type": "json_object"}), chat()),
        ("sampling:greedy", CHAT, chat(temperature=0), chat()),
        ("metadata.team:blue", CHAT, chat(metadata={"team": "blue"}), chat(metadata={"a": "b"})),
        # A key that text completions do not know, and nobody has checked.
        ("turns:multi", TEXT, {"prompt": "x", "messages": ["user"]}, {"prompt": "x"}),
    ]

    async def ask() -> None:
        async with gateway("position:256+") as (pool, client):  # which keeps int8 loaded
            for name, path, inside, outside in cases:
                assert await who(client, path, inside) == "int4"
                await pool.control.route("tiny@int8", [name], 1.0)
                is_told = inside.get("messages") != ["user"]
                assert await who(client, path, inside) == ("int8" if is_told else "int4"), name
                assert await who(client, path, outside) == "int4", name
                assert await who(client, path, {**inside, "model": "tiny@int4"}) == "int4"
                await pool.control.end_routes("tiny", [name])

    asyncio.run(ask())


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_routed_rung_that_fails_costs_no_request(is_stream: bool) -> None:
    """Where its engine is killed before the request, the active one answers."""

    async def ask() -> None:
        launch = FakeLaunch()
        async with gateway("all", launch=launch) as (_, client):
            assert await who(client, CHAT, chat(stream=is_stream)) == "int8"
            (engine,) = [e for e in launch.engines if e.client.served_name == "tiny@int8"]
            os.kill(engine.pid, signal.SIGKILL)
            assert await who(client, CHAT, chat(stream=is_stream)) == "int4"

    asyncio.run(ask())
