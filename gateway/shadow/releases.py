"""Engines are told to forget what they kept for a score, beside everything else."""

import asyncio
import logging
from contextvars import Context

from gateway.errors import ApiError
from gateway.upstream import EngineClient

logger = logging.getLogger(__name__)


class Releases:
    """Sends the word without waiting; an engine that misses it forgets by itself in time."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def send(self, client: EngineClient, capture_id: str) -> None:
        """Have an engine forget a capture; neither waits nor fails."""
        # In a context of its own: nothing of it belongs to the request's span or log lines.
        task = asyncio.get_running_loop().create_task(_send(client, capture_id), context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Stop sending: the engines are about to end."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _send(client: EngineClient, capture_id: str) -> None:
    try:
        await client.forget_capture(capture_id)
    except ApiError as error:
        logger.debug("a capture is left to its age: %s", error)
