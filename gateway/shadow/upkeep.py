"""Work that goes on beside requests for as long as the service runs."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

logger = logging.getLogger(__name__)

_PAUSE_AFTER_DEFECT_S = 1.0


async def again_and_again(work: Callable[[], Awaitable[None]]) -> None:
    """Begin again after a defect, which must not end the service."""
    while True:
        try:
            return await work()
        except Exception:
            # The border of this task.
            logger.exception("work beside requests begins again after a defect")
            await asyncio.sleep(_PAUSE_AFTER_DEFECT_S)
