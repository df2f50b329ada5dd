"""What the gateway needs of an engine, whatever kind it is."""

from typing import Protocol

from gateway.upstream import EngineClient


class Engine(Protocol):
    """A started engine; its owner alone stops it."""

    @property
    def backend(self) -> str:
        """Return the kind of the engine, as a metric's label."""

    @property
    def client(self) -> EngineClient:
        """Return the client that talks to it."""

    @property
    def last_words(self) -> str:
        """Return the last line of its log, for an error message."""

    async def is_healthy(self, timeout_s: float, *, is_busy: bool) -> bool:
        """Return whether it gets on; ``is_busy``: requests are running on it."""

    def resident_bytes(self) -> int:
        """Return the memory that it holds on this machine."""

    def cpu_s(self) -> float:
        """Return the processor time that it has used on this machine, in seconds."""

    async def wait(self) -> int:
        """Wait until it has ended and return its exit code."""

    async def stop(self, grace_s: float) -> None:
        """End it: let it finish for ``grace_s`` seconds, then kill it; safe to repeat."""
