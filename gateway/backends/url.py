"""Engines that others run: reached by their address, neither started nor ended here."""

import asyncio

from gateway.backends.pulse import HealthPulse, Pulse
from gateway.errors import ChildFailed
from gateway.upstream import EngineClient

BACKEND = "url"


class RemoteEngine:
    """An engine at an address; it is lost only by silence."""

    backend = BACKEND

    def __init__(self, client: EngineClient, pulse: Pulse) -> None:
        self.client = client
        self._pulse = pulse

    @classmethod
    async def connect(
        cls, client: EngineClient, *, timeout_s: float, pulse: Pulse | None = None
    ) -> "RemoteEngine":
        """Wait until the engine answers that it is well.

        Raises:
            ChildFailed: it did not in time.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await client.wait_healthy()
        except TimeoutError:
            try:
                complaint = await client.complaint() or "was well too late"
            finally:
                await client.aclose()
            raise ChildFailed(
                f"{client.served_name}: no engine was ready at {client.base_url} within "
                f"{timeout_s:g} s: it {complaint}: start it, or correct 'urls'"
            ) from None
        except BaseException:
            await client.aclose()
            raise
        return cls(client, pulse or HealthPulse(client))

    @property
    def last_words(self) -> str:
        """Return where its log is not."""
        return f"the log is with the engine at {self.client.base_url}"

    async def is_healthy(self, timeout_s: float, *, is_busy: bool) -> bool:
        """Return whether it shows that it gets on."""
        return await self._pulse.beats(timeout_s, is_busy=is_busy)

    def resident_bytes(self) -> int:
        """Return 0: its memory is not this machine's."""
        return 0

    def cpu_s(self) -> float:
        """Return 0: its processors are not this machine's."""
        return 0.0

    async def wait(self) -> int:
        """Wait for ever: its end is seen as silence only."""
        await asyncio.Event().wait()
        return 0

    async def stop(self, grace_s: float) -> None:
        """Close the connections to it."""
        await self.client.aclose()
