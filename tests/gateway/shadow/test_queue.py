"""The queues of captured replies: in order, not for ever, and within one bound."""

import asyncio

from gateway.shadow.queue import ShadowQueue
from gateway.shadow.queues import ShadowQueues


def test_order_and_age() -> None:
    """Oldest first, what is put back before that, and what waited too long is given up."""
    now = [0.0]
    old: list[str] = []
    lengths: list[int] = []

    async def use() -> None:
        queue: ShadowQueue[str] = ShadowQueue(
            10,
            on_old=old.append,
            on_change=lambda: lengths.append(len(queue)),
            clock=lambda: now[0],
        )
        waiting = asyncio.ensure_future(queue.get())
        await asyncio.sleep(0)
        queue.put("a")
        assert await waiting == (0.0, "a")
        for each in "bcd":
            queue.put(each)
        now[0] = 4
        since, item = await queue.get()
        queue.put_back(since, item)
        assert await queue.get() == (0.0, "b")
        queue.put("f")
        now[0] = 11
        assert await queue.get() == (4.0, "f")
        assert old == ["c", "d"]
        queue.put("g")
        queue.put("h")
        assert queue.give_up_newest() == "h"
        assert (queue.clear(), len(queue)) == (["g"], 0)
        assert lengths == [1, 0, 1, 2, 3, 2, 3, 2, 3, 2, 1, 0, 1, 2, 1, 0]

    asyncio.run(use())


class Books:
    """Queues of these names for four items, and what they told."""

    def __init__(self, *names: str) -> None:
        self.now = 0.0
        self.old: list[str] = []
        self.full: list[str] = []
        self.lengths: list[int] = []
        self.queues: ShadowQueues[str] = ShadowQueues(
            names,
            4,
            10,
            on_old=self.old.append,
            on_full=self.full.append,
            on_length=self.lengths.append,
            clock=lambda: self.now,
        )

    def put(self, name: str, *items: str) -> list[bool]:
        """Put items for which there is room; return for which of them there was."""
        found = []
        for item in items:
            found.append(self.queues.has_room(name))
            if found[-1]:
                self.queues.put(name, item)
        return found


def test_one_alone_has_all_the_room() -> None:
    """Up to the bound; what comes then is refused."""
    books = Books("a", "b")
    assert books.put("a", *"12345") == [True] * 4 + [False]
    assert (len(books.queues), books.full, max(books.lengths)) == (4, [], 4)


def test_the_longest_queue_makes_room() -> None:
    """It gives up its newest, until both are of one length; together they keep to the bound."""
    books = Books("a", "b", "c")
    books.put("a", *"1234")
    assert books.put("b", *"567") == [True, True, False]
    assert books.full == ["4", "3"]
    assert books.put("a", "8") == [False]
    assert books.put("c", "9") == [True]
    assert len(books.queues) == 4
    assert max(books.lengths) == 4
    assert sorted(books.queues.clear()) == ["1", "5", "6", "9"]
    assert (len(books.queues), books.lengths[-1]) == (0, 0)


def test_what_is_old_leaves_room_whosever_it_is() -> None:
    """A queue that nobody takes from is aged by what is put into others."""
    books = Books("a", "b")
    books.put("a", *"1234")
    books.now = 11
    assert books.put("b", *"5678") == [True] * 4
    assert (books.old, books.full) == (list("1234"), [])
