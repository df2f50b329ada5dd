"""Whether a vLLM still makes tokens: its ``/health`` stays green while its core hangs.

(vLLM issues 36451, 39863 and 45526.) The count of its steps is read instead; when it stands still
although requests are running, and now and then when nothing runs, one token is asked for.
"""

import asyncio
import re
import time

from gateway.errors import ApiError
from gateway.upstream import EngineClient

STEPS = re.compile(rb"^vllm:iteration_tokens_total_count\{[^}]*\} ([0-9.e+]+)$", re.MULTILINE)

IDLE_PROBE_EVERY_S = 30.0
"""How often an engine without work is asked for a token."""

PROBE_TIMEOUT_S = 10.0

_PROBE = {"prompt": "1", "max_tokens": 1, "temperature": 0}
_REQUEST_ID = "pulse"


class VllmPulse:
    """Reads the steps of one engine, and asks it for a token when they say nothing."""

    def __init__(self, client: EngineClient) -> None:
        self._client = client
        self._steps: float | None = None
        self._last_token = time.monotonic()
        self._refuses = False
        """It answers, and makes no tokens for us: it embeds, or limits who may ask."""

    async def beats(self, timeout_s: float, *, is_busy: bool) -> bool:
        """Return whether it made a step since the last call, or makes one now."""
        if not await self._client.is_healthy(timeout_s):
            return False
        now = time.monotonic()
        if not is_busy:
            is_due = now - self._last_token >= IDLE_PROBE_EVERY_S
            return not is_due or await self._makes_a_token(timeout_s)
        steps = await self._read_steps(timeout_s)
        has_moved = steps is not None and steps != self._steps
        self._steps = steps
        if has_moved:
            self._last_token = now
            return True
        # All it runs may wait for a slow reader, which is no fault of its own.
        return await self._makes_a_token(timeout_s)

    async def _read_steps(self, timeout_s: float) -> float | None:
        found = STEPS.findall(await self._client.read_metrics(timeout_s))
        return sum(map(float, found)) if found else None

    async def _makes_a_token(self, timeout_s: float) -> bool:
        if self._refuses:
            return True
        try:
            async with asyncio.timeout(min(timeout_s, PROBE_TIMEOUT_S)):
                await self._client.complete(_PROBE, _REQUEST_ID)
        except TimeoutError:
            return False
        except ApiError as error:
            self._refuses = error.status < 500
            return self._refuses
        self._last_token = time.monotonic()
        return True
