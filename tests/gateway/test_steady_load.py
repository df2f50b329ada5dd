"""Steady load: every request gets its whole answer or a refusal, and is counted exactly once."""

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from tests.gateway.bare_client import BareClient, Reply, ask
from tests.gateway.harness import Gateway, body, eventually

NUM_REQUESTS = 128
NUM_TOKENS = 6
OUTCOMES = ("ok", "rejected", "shed", "timeout", "client_abort", "error")
PLACES = 8


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Return a gateway with fewer places than there are clients."""
    tiny = {"model": "fake", "recipe": "int4", "max_running": PLACES}
    models = {"tiny": tiny | {"max_queued": 16}, "patient": tiny | {"max_queued": 64}}
    running = Gateway(tmp_path_factory.mktemp("narrow"), {"models": models}, {})
    running.wait_ready()
    eventually(lambda: '"loading"' not in running.http.get("/ready").text)
    yield running
    running.close()


def outcomes(gateway: Gateway) -> Counter[str]:
    """Return how many requests ended how."""
    return Counter({each: int(gateway.metric("requests_total", outcome=each)) for each in OUTCOMES})


async def load(
    num_clients: int, num_requests: int, request: Callable[[int], Coroutine[Any, Any, Any]]
) -> list[Any]:
    """Run numbered requests, so many at a time, and return their results."""
    numbers = iter(range(num_requests))
    results: list[Any] = []

    async def client() -> None:
        results.extend([await request(number) for number in numbers])

    async with asyncio.timeout(60), asyncio.TaskGroup() as clients:
        for _ in range(num_clients):
            clients.create_task(client())
    return results


@pytest.mark.parametrize("num_clients", [1, 4, 16, 64])
def test_every_request_gets_its_whole_answer(gateway: Gateway, num_clients: int) -> None:
    """Plain and streamed in turn: all 200 and complete, each with an id, tokens counted exactly."""
    before, total = outcomes(gateway), gateway.metric("requests_total")
    tokens = gateway.metric("generated_tokens_total")
    fake = {"tokens": NUM_TOKENS, "pace_s": 0.001}
    replies: list[Reply] = asyncio.run(
        load(
            num_clients,
            NUM_REQUESTS,
            lambda number: ask(gateway.port, body(stream=number % 2 == 0, fake=fake)),
        )
    )
    assert [reply.status for reply in replies] == [200] * NUM_REQUESTS
    assert all(b" aaa aab aac aad aae aaf" in text_of(reply) for reply in replies)
    ids = {re.findall(r"x-request-id: (\S+)", reply.headers)[0] for reply in replies}
    assert len(ids) == NUM_REQUESTS
    eventually(lambda: gateway.metric("requests_total") == total + NUM_REQUESTS)
    assert outcomes(gateway) - before == {"ok": NUM_REQUESTS}
    assert gateway.metric("generated_tokens_total") == tokens + NUM_REQUESTS * NUM_TOKENS
    assert gateway.metric("requests_running") == 0


def text_of(reply: Reply) -> bytes:
    """Return the text of an answer; a stream must have its end mark."""
    if "text/event-stream" not in reply.headers:
        return reply.content
    assert reply.content.count(b"data: [DONE]") == 1
    return b"".join(re.findall(rb'"delta":\{"content":"([^"]*)"', reply.content))


def test_a_queue_is_worked_off(narrow: Gateway) -> None:
    """64 clients at 8 places all get their answers, and nobody waits longer than the work lasts."""
    fake = {"tokens": 10, "pace_s": 0.005}  # 16 rounds of 50 ms
    request = body(stream=True, fake=fake) | {"model": "patient"}
    replies = asyncio.run(load(64, NUM_REQUESTS, lambda _: ask(narrow.port, request)))
    assert [reply.status for reply in replies] == [200] * NUM_REQUESTS
    waits = narrow.metric("queue_seconds_count", model="patient")
    assert waits >= 64 - PLACES
    assert narrow.metric("queue_seconds_bucket", model="patient", le="5.0") == waits
    eventually(lambda: narrow.metric("requests_running") == 0)
    assert narrow.metric("requests_waiting") == 0


KINDS: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
    ({"tokens": 5, "pace_s": 0.002}, {}),
    ({"tokens": 5, "pace_s": 0.002}, {"stream": True}),
    ({}, {"temperature": 9}),
    ({}, {"model": "nobody"}),
    ({"status": 500}, {}),
    ({"fault": "error", "after": 1}, {"stream": True}),
    ({"fault": "truncate", "after": 1}, {"stream": True}),
    ({"head_s": 60}, {}),
    ({"tokens": 4000, "pace_s": 0.01}, {"stream": True}),
)
_WAITS_FOR_EVER, _LEAVES = 7, 8


async def ask_and_tell(gateway: Gateway, number: int) -> str:
    """Send one request of the mix and return how it ended, as its client saw it."""
    kind = number % len(KINDS)
    fake, fields = KINDS[kind]
    headers = {"x-request-timeout-ms": "200"} if kind == _WAITS_FOR_EVER else {}
    client = await BareClient.send(gateway.port, body(fake=fake) | fields, headers)
    reply = await client.read(num_tokens=2 if kind == _LEAVES else None)
    client.leave(with_reset=number % 2 == 0)
    if reply.status == 200:
        if kind == _LEAVES:
            return "client_abort"
        return "error" if b'"error"' in reply.content else "ok"
    by_status = {400: "rejected", 404: "rejected", 502: "error", 503: "shed", 504: "timeout"}
    return by_status[reply.status]


def test_clients_and_counters_agree(narrow: Gateway) -> None:
    """Of a mix at 64 clients, what they saw is what was counted, outcome by outcome."""
    before, total = outcomes(narrow), narrow.metric("requests_total")
    num_requests = 40 * len(KINDS)
    seen = Counter(asyncio.run(load(64, num_requests, lambda each: ask_and_tell(narrow, each))))
    assert seen.total() == num_requests
    assert set(seen) == set(OUTCOMES)
    eventually(lambda: narrow.metric("requests_total") == total + num_requests)
    assert outcomes(narrow) - before == seen
    assert narrow.metric("requests_running") == narrow.metric("requests_waiting") == 0


def test_requests_leave_nothing_behind(gateway: Gateway) -> None:
    """Of answers, streams, refusals and clients that leave no object stays, not one for each."""
    num_requests = 100 * len(KINDS)
    fast = [({**fake, "head_s": 0} if "head_s" in fake else fake, more) for fake, more in KINDS]

    async def request(number: int) -> None:
        fake, fields = fast[number % len(KINDS)]
        more = {"model": f"nobody-{number}"} if "model" in fields else fields
        client = await BareClient.send(gateway.port, body(fake=fake) | more)
        await client.read(num_tokens=2 if number % len(KINDS) == _LEAVES else None)
        client.leave(with_reset=number % 2 == 0)

    def blocks_after_load() -> int:
        asyncio.run(load(16, num_requests, request))
        eventually(lambda: gateway.metric("requests_running") == 0)
        return gateway.num_blocks()

    found = [blocks_after_load(), blocks_after_load()]  # while the first run lasts pools fill
    for _ in range(4):  # the rings of the last minutes may get a few steps
        found.append(blocks_after_load())
        if found[-1] - found[-2] < num_requests / 2:
            break
    assert found[-1] - found[-2] < num_requests / 2, found
