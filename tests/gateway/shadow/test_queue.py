"""The queue of captured replies: bounded, in order, and not for ever."""

import asyncio

from gateway.shadow.queue import ShadowQueue


def test_order_bound_and_age() -> None:
    """Oldest first, no room beyond the size, and what waited too long is given up."""
    now = [0.0]
    old: list[str] = []

    async def use() -> None:
        queue: ShadowQueue[str] = ShadowQueue(3, 10, on_old=old.append, clock=lambda: now[0])
        waiting = asyncio.ensure_future(queue.get())
        await asyncio.sleep(0)
        assert queue.put_nowait("a")
        assert await waiting == (0.0, "a")
        assert [queue.put_nowait(each) for each in "bcde"] == [True, True, True, False]
        now[0] = 4
        since, item = await queue.get()
        queue.put_back(since, item)
        assert await queue.get() == (0.0, "b")
        assert queue.put_nowait("f")
        now[0] = 11
        assert await queue.get() == (4.0, "f")
        assert old == ["c", "d"]
        queue.put_nowait("g")
        assert (queue.clear(), len(queue)) == (["g"], 0)

    asyncio.run(use())
