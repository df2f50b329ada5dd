"""Rates: sliding windows, tokens put right afterwards, and no failure because Redis failed."""

import asyncio
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.admission.rate_store import RateStore
from gateway.admission.rates import Rates, Reservation
from gateway.admission.window import Window
from gateway.api_key import ApiKey
from gateway.envelope import render
from gateway.errors import RequestRateExceeded, SettingsError, TokenRateExceeded
from tests.gateway.conftest import StartGateway
from tests.gateway.harness import CHAT, Gateway, body, eventually
from tests.ports import free_port

KEY = ApiKey(name="t", key="k", requests_per_minute=3, tokens_per_minute=100)


@pytest.fixture(autouse=True)
def _clear_of_a_minute() -> None:
    keep_clear_of_a_minute()


def keep_clear_of_a_minute() -> None:
    """Wait for the next minute if this one is nearly over.

    Windows in memory turn with the clock's minute, so what a test counts must not lie across one.
    """
    left_s = 60 - time.time() % 60
    if left_s < 5:
        time.sleep(left_s + 0.01)


@pytest.mark.parametrize(
    ("window", "remaining", "reset_s", "wait_s"),
    [
        (Window(0, 0, 0, 0), 10, 0, 0),
        (Window(0, 0, 4, 100), 6, 100, 0),
        (Window(10, 30, 0, 0), 5, 30, 0),
        (Window(10, 60, 0, 0), 0, 60, 6),  # a tenth of the older counter fades in 6 s
        (Window(0, 0, 10, 90), 0, 90, 36),  # 30 s to the turn, then a tenth of a minute
        (Window(0, 0, 20, 90), 0, 90, 63),  # one that is over its limit
        (Window(20, 30, 0, 0), 0, 30, 3),
        (Window(0, 0, -5, 90), 10, 0, 0),
    ],
)
def test_window(window: Window, remaining: int, reset_s: float, wait_s: float) -> None:
    """What is left, until when, and how long to wait follow from the two counters."""
    assert window.remaining(10) == remaining
    assert window.reset_s() == reset_s
    assert window.wait_s(10, 1) == pytest.approx(wait_s)


def store_in_memory(redis_url: str | None = None, failures: list[int] | None = None) -> RateStore:
    """Return a store and note its failures."""
    noted = [] if failures is None else failures
    return RateStore(redis_url, on_failure=lambda: noted.append(1))


def test_requests_are_limited() -> None:
    """The fourth request of three is refused with OpenAI's headers and a time to wait."""

    async def main() -> None:
        rates = Rates(store_in_memory())
        left = [(await rates.reserve(KEY, 1)).headers for _ in range(3)]
        assert [headers["x-ratelimit-remaining-requests"] for headers in left] == ["2", "1", "0"]
        with pytest.raises(RequestRateExceeded) as caught:
            await rates.reserve(KEY, 1)
        status, headers, _ = render(caught.value)
        assert (status, caught.value.type, caught.value.code) == (
            429,
            "requests",
            "rate_limit_exceeded",
        )
        assert 1 <= int(headers["retry-after"]) <= 120
        assert headers["x-ratelimit-limit-requests"] == "3"
        assert 0 < float(headers["x-ratelimit-reset-requests"].removesuffix("s")) <= 120

    asyncio.run(main())


def test_tokens_are_put_right() -> None:
    """The real number takes the place of the estimate, above it and below it, never below zero."""

    async def left(rates: Rates, key: ApiKey) -> int:
        reservation = await rates.reserve(key, 0)
        return int(reservation.headers["x-ratelimit-remaining-tokens"])

    async def main() -> None:
        key = ApiKey(name="t", key="k", tokens_per_minute=100)
        rates = Rates(store_in_memory())
        assert (await rates.reserve(key, 60)).num_tokens == 60
        with pytest.raises(TokenRateExceeded) as caught:
            await rates.reserve(key, 60)
        assert caught.value.type == "tokens"
        assert "has 40 of 100 tokens left" in caught.value.message
        await rates.settle(key, 60, 10)
        assert await left(rates, key) == 90
        await rates.settle(key, 0, 500)
        with pytest.raises(TokenRateExceeded):
            await rates.reserve(key, 1)
        await rates.settle(key, 9999, 0)
        assert await left(rates, key) == 100
        await rates.reserve(key, 100)
        with pytest.raises(TokenRateExceeded):
            await rates.reserve(key, 1)

    asyncio.run(main())


def test_a_guess_beyond_the_limit_can_pass() -> None:
    """A request whose estimate is more than a whole minute is let in when the minute is free."""

    async def main() -> Reservation:
        return await Rates(store_in_memory()).reserve(KEY, 5000)

    assert asyncio.run(main()).num_tokens == 100


def test_redis_url_is_checked() -> None:
    """An URL that Redis's client cannot read ends the start in one line."""
    with pytest.raises(SettingsError, match="redis_url"):
        store_in_memory("redis://host:notaport/0")


def test_redis_down(caplog: pytest.LogCaptureFixture) -> None:
    """Without its Redis a gateway counts alone, says so once and fails no request."""
    failures: list[int] = []

    async def main() -> None:
        rates = Rates(store_in_memory(f"redis://127.0.0.1:{free_port()}", failures))
        for _ in range(3):
            await rates.reserve(KEY, 1)
        with pytest.raises(RequestRateExceeded):
            await rates.reserve(KEY, 1)

    asyncio.run(main())
    assert failures == [1]
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.fixture
def redis_port(tmp_path: Path) -> Iterator[int]:
    """Return the port of a Redis of the test's own."""
    command = shutil.which("redis-server")
    if command is None:
        pytest.skip("there is no redis-server: apt-get install redis-server")
    port = free_port()
    words = [
        command,
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--dir",
        str(tmp_path),
    ]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    output = server.stdout
    assert output is not None
    while "Ready to accept connections" not in output.readline():
        assert server.poll() is None
    yield port
    server.kill()
    server.communicate()


def test_redis_counts_for_all(redis_port: int, caplog: pytest.LogCaptureFixture) -> None:
    """Two stores share a count in Redis, corrections included."""

    async def main() -> None:
        stores = [store_in_memory(f"redis://127.0.0.1:{redis_port}") for _ in range(2)]
        assert await stores[0].take("t", limit=10, cost=8)
        assert not await stores[1].take("t", limit=10, cost=3)
        await stores[1].correct("t", -5)
        assert (await stores[0].window("t")).remaining(10) == 7
        await stores[0].correct("t", 90)
        assert (await stores[1].window("t")).count == 93
        await stores[1].correct("t", -1000)
        assert (await stores[0].window("t")).count == 0
        for store in stores:
            await store.close()

    asyncio.run(main())
    assert not caplog.records


def ask(gateway: Gateway, **fields: Any) -> Any:
    """Return the reply to a short chat with the key ``sk-t``."""
    headers = {"authorization": "Bearer sk-t"}
    return gateway.http.post(CHAT, json=body() | fields, headers=headers)


def test_two_gateways_share_a_limit(redis_port: int, start_gateway: StartGateway) -> None:
    """A key's requests on two gateways count together; when Redis dies, both go on serving."""
    keys = [{"name": "t", "key": "sk-t", "requests_per_minute": 4, "tokens_per_minute": 900}]
    options: dict[str, Any] = {"api_keys": keys, "redis_url": f"redis://127.0.0.1:{redis_port}"}
    one, two = (start_gateway(ready=False, **options) for _ in range(2))
    one.wait_ready()
    two.wait_ready()
    keep_clear_of_a_minute()
    replies = [ask(gateway) for gateway in (one, two, one, two)]
    assert [reply.status_code for reply in replies] == [200] * 4
    left = [reply.headers["x-ratelimit-remaining-requests"] for reply in replies]
    assert left == ["3", "2", "1", "0"]
    for gateway in (one, two):
        reply = ask(gateway)
        assert (reply.status_code, reply.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert 1 <= int(reply.headers["retry-after"]) <= 120
        assert gateway.metric("admission_rejections_total", reason="request_rate") == 1
        assert gateway.metric("rate_store_failures_total") == 0
    with socket.create_connection(("127.0.0.1", redis_port)) as redis:
        redis.sendall(b"SHUTDOWN NOSAVE\r\n")
        assert redis.recv(1) == b""
    assert ask(one).status_code == 200
    assert one.metric("rate_store_failures_total") == 1


def test_tokens_of_a_request_are_settled(start_gateway: StartGateway) -> None:
    """After a reply the key has lost what the engine reports, not what was reserved."""
    keys = [{"name": "t", "key": "sk-t", "tokens_per_minute": 1000}]
    gateway = start_gateway(api_keys=keys)
    keep_clear_of_a_minute()
    first = ask(gateway, max_tokens=500)
    assert first.headers["x-ratelimit-remaining-tokens"] == "496"  # 13 bytes and 500 tokens
    used = first.json()["usage"]["total_tokens"]
    second = ask(gateway, max_tokens=500)
    assert int(second.headers["x-ratelimit-remaining-tokens"]) == 496 - used
    with gateway.http.stream(
        "POST", CHAT, json=body(stream=True), headers={"authorization": "Bearer sk-t"}
    ) as stream:
        assert int(stream.headers["x-ratelimit-remaining-tokens"]) == 1000 - 2 * used - 4
        stream.read()
    total = eventually(lambda: gateway.metric("key_tokens_total", key="t"))
    assert eventually(lambda: gateway.metric("key_tokens_total", key="t") == 3 * used), total
    assert gateway.metric("key_requests_total", key="t") == 3
