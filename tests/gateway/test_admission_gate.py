"""Turns: bounded, in order, fair between keys, and never lost."""

import asyncio
import random
import time

import pytest

from gateway.admission.gate import Gate, Ticket


def test_room_is_bounded() -> None:
    """As many run as may, as many wait as may, and the next one finds it full."""
    gate = Gate(max_running=2, max_queued=1)
    tickets = [gate.join("a") for _ in range(2)]
    assert [ticket.is_running for ticket in tickets] == [True, True]
    assert not gate.is_full
    tickets.append(gate.join("a"))
    assert (gate.num_waiting, gate.is_full) == (1, True)
    tickets[0].give_back()
    assert [ticket.is_running for ticket in tickets] == [True, True, True]
    assert (gate.num_waiting, gate.is_full) == (0, False)
    for ticket in tickets[1:]:
        ticket.give_back()
    assert gate.join("a").is_running


def test_keys_take_turns() -> None:
    """A key with many waiting requests does not hold back one with few; each keeps its order."""
    gate = Gate(max_running=1, max_queued=99)
    running = gate.join("x")
    waiting = [(name, gate.join(name[0])) for name in ("a1", "a2", "a3", "a4", "b1", "b2", "c1")]
    order = []
    for _ in range(len(waiting)):
        running.give_back()
        name, running = next(entry for entry in waiting if entry[1].is_running)
        waiting.remove((name, running))
        order.append(name)
    assert order == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]


def test_leaving_the_queue_gives_the_place_to_nobody() -> None:
    """One that leaves while it waits frees a place in the queue, not at the engine."""
    gate = Gate(max_running=1, max_queued=2)
    running, leaving, staying = gate.join("a"), gate.join("a"), gate.join("b")
    leaving.give_back()
    assert gate.num_waiting == 1
    assert not staying.is_running
    running.give_back()
    assert [ticket.is_running for ticket in (staying, leaving)] == [True, False]


def test_turns_are_never_lost() -> None:
    """After any order of coming, leaving and ending all places are free again."""

    async def visit(gate: Gate, generator: random.Random) -> None:
        ticket = gate.join(generator.choice("abc"))
        try:
            async with asyncio.timeout(generator.random() * 0.01):
                await ticket.wait()
                running.append(ticket)
                assert len(running) <= 3
                await asyncio.sleep(generator.random() * 0.004)
        except TimeoutError:
            pass
        finally:
            if ticket in running:
                running.remove(ticket)
            ticket.give_back()

    async def main() -> None:
        generator = random.Random(7)
        gate = Gate(max_running=3, max_queued=999)
        async with asyncio.TaskGroup() as group:
            for _ in range(400):
                group.create_task(visit(gate, generator))
        assert gate.num_waiting == 0
        assert [gate.join("a").is_running for _ in range(4)] == [True, True, True, False]

    running: list[Ticket] = []
    asyncio.run(main())


def test_wait_is_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry-After is queue times service time over places, from 1 to 120 seconds."""
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    gate = Gate(max_running=2, max_queued=999)
    assert gate.retry_after_s == 1
    first, second = gate.join("a"), gate.join("a")
    now = 10.0
    first.give_back()
    second.give_back()
    assert gate.retry_after_s == 5  # one request of 10 s, two places
    for _ in range(5):
        gate.join("a")
    assert gate.retry_after_s == 20  # three wait before it
    for _ in range(100):
        gate.join("a")
    assert gate.retry_after_s == 120
