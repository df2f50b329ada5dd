"""When the thread that all requests share has time for the shadow."""

import asyncio
import time

_STEP_S = 0.002
"""Tokens of requests that are decoded together come within so long of each other."""
_FREE_S = 0.0001
"""A round of the event loop that takes longer had something else to do."""
_LONGEST_S = 0.05


async def leisure() -> None:
    """Wait until the event loop has nothing else to do; on a busy one for 50 ms, no longer.

    Between two calls should be no more work than a request can wait for: half a millisecond.
    """
    until = time.monotonic() + _LONGEST_S
    while True:
        await asyncio.sleep(_STEP_S)
        began = time.monotonic()
        await asyncio.sleep(0)
        ended = time.monotonic()
        if ended - began < _FREE_S or ended > until:
            return
