"""How a running engine shows that it lives."""

from typing import Protocol

from gateway.upstream import EngineClient


class Pulse(Protocol):
    """What the watch over an engine asks now and then."""

    async def beats(self, timeout_s: float, *, is_busy: bool) -> bool:
        """Return whether the engine shows within ``timeout_s`` seconds that it gets on.

        ``is_busy``: requests are running on it.
        """


class HealthPulse:
    """The pulse of an engine whose ``/health`` tells the truth, as the embedded one's does."""

    def __init__(self, client: EngineClient) -> None:
        self._client = client

    async def beats(self, timeout_s: float, *, is_busy: bool) -> bool:
        """Return whether it answers that it is well."""
        return await self._client.is_healthy(timeout_s)
