"""When the thread that all requests share has time for the shadow."""

import asyncio
import time
from collections.abc import Callable

STEP_S = 0.002
"""Tokens of requests that are decoded together come within so long of each other."""
FREE_S = 0.0001
"""A round of the event loop that takes longer had something else to do."""
LONGEST_S = 0.05


async def leisure(clock: Callable[[], float] = time.monotonic) -> None:
    """Wait until the event loop has nothing else to do, 2 ms at least.

    On a loop that is never free: until the look that ends after 50 ms, or later. ``clock`` is in
    seconds. Between two calls should be no more work than a request can wait for: half a
    millisecond.
    """
    until = clock() + LONGEST_S
    while True:
        await asyncio.sleep(STEP_S)
        began = clock()
        await asyncio.sleep(0)
        ended = clock()
        if ended - began < FREE_S or ended >= until:
            return
