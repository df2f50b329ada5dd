"""When the shadow works: at once on a free event loop, at last on one that is never free."""

import asyncio

import pytest

from gateway.shadow.leisure import FREE_S, LONGEST_S, STEP_S, leisure
from tests.gateway.shadow.fake_time import FakeTime


def waited(busy_s: float, *, until: float = 1.0) -> float:
    """Return how many seconds it waits on a loop whose rounds take ``busy_s`` until then."""
    loop = FakeTime()

    async def be_busy() -> None:
        while loop.time() < until:
            loop.work(busy_s)
            await asyncio.sleep(0)

    async def use() -> float:
        other = asyncio.create_task(be_busy())
        await leisure(loop.time)
        other.cancel()
        return loop.time()

    return loop.run(use())


def test_a_free_loop_is_waited_for_one_step() -> None:
    """Nothing else runs: two milliseconds, and one look."""
    assert waited(0, until=0) == pytest.approx(STEP_S)


def test_short_rounds_are_free_ones() -> None:
    """Others may have had something to do, if it was next to nothing."""
    assert waited(FREE_S / 4) <= STEP_S + FREE_S


@pytest.mark.parametrize("busy_s", [2 * FREE_S, 0.001, 0.007])
def test_a_loop_that_is_never_free_is_waited_for_to_the_bound(busy_s: float) -> None:
    """And no longer than one step and the two rounds of its end, or nothing were ever scored."""
    assert LONGEST_S <= waited(busy_s) <= LONGEST_S + STEP_S + 2 * busy_s


def test_a_loop_that_becomes_free_is_not_waited_for_longer() -> None:
    """The next look finds it so."""
    assert 0.02 <= waited(0.001, until=0.02) <= 0.02 + 2 * STEP_S
