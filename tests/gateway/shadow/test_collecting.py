"""Replies that have ended: each is collected or dropped with its reason, whatever happens."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from gateway.registry import Metrics
from gateway.shadow.candidate import Candidate
from gateway.shadow.collecting import APART_S, FETCH_AFTER_S, MAX_COLLECTING, Collecting
from gateway.shadow.tally import Tally
from tests.gateway.shadow.fake_time import FakeTime


class Bench:
    """Candidates whose replies end at once, and what became of them."""

    def __init__(self, collect: Callable[[Candidate], Awaitable[None]] | None = None) -> None:
        self.tally = Tally(Metrics())
        self.collected: list[tuple[str, float]] = []
        self.collecting = Collecting(collect or self._collect)

    def end(self, count: int) -> None:
        """Let so many replies end, all at once."""
        for number in range(count):
            self.collecting.begin(
                Candidate(
                    f"id-{number}",
                    "tiny",
                    {},
                    tally=self.tally,
                    make_capture=lambda info, spec: None,
                    on_reply=lambda candidate: None,
                    on_drop=lambda candidate, reason: None,
                )
            )

    def counts(self) -> dict[str, object]:
        """Return what became of them."""
        return dict(self.tally.of("tiny"))

    async def _collect(self, candidate: Candidate) -> None:
        self.collected.append((candidate.request_id, asyncio.get_running_loop().time()))
        candidate.score()


def test_replies_without_room_are_dropped() -> None:
    """Of a hundred at once 64 are collected, in order, and the others are dropped at once."""

    async def use() -> None:
        bench = Bench()
        bench.end(100)
        assert bench.counts() == {
            "candidates": 100,
            "scored": 0,
            "dropped": {"queue_full": 36},
            "in_flight": 64,
        }
        await bench.collecting.settle()
        assert [name for name, _ in bench.collected] == [f"id-{each}" for each in range(64)]
        assert bench.counts() == {
            "candidates": 100,
            "scored": 64,
            "dropped": {"queue_full": 36},
            "in_flight": 0,
        }
        bench.end(1)  # there is room again
        await bench.collecting.settle()
        assert len(bench.collected) == 65

    FakeTime().run(use())


def test_replies_that_end_together_are_collected_apart() -> None:
    """The first a little later than its end, each other one behind the one before."""

    async def use() -> None:
        bench = Bench()
        began = asyncio.get_running_loop().time()
        bench.end(3)
        await bench.collecting.settle()
        times = [time - began for _, time in bench.collected]
        assert times == pytest.approx([FETCH_AFTER_S + APART_S * each for each in range(3)])

    FakeTime().run(use())


def test_what_is_under_way_at_the_end_is_dropped() -> None:
    """Those that wait, those that have not begun to, and those that are being fetched."""

    async def use() -> None:
        async def never(candidate: Candidate) -> None:
            await asyncio.Event().wait()

        bench = Bench(never)
        bench.end(2)
        await asyncio.sleep(FETCH_AFTER_S + APART_S / 2)
        bench.end(MAX_COLLECTING)
        await bench.collecting.close()
        assert bench.counts() == {
            "candidates": MAX_COLLECTING + 2,
            "scored": 0,
            "dropped": {"queue_full": 2, "stopped": MAX_COLLECTING},
            "in_flight": 0,
        }

    FakeTime().run(use())
