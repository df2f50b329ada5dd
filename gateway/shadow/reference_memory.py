"""The memory that references share: who holds how much of it, and who makes room for another."""

import asyncio
import time
from collections.abc import Callable, Collection
from typing import Protocol

from gateway.errors import StartupError
from gateway.specs import VariantSpec


class NoRoom(StartupError):
    """Other references hold the memory now."""


class Tenant(Protocol):
    """What holds memory; its ``num_bytes`` are its own until its process has ended."""

    spec: VariantSpec
    num_bytes: int
    num_users: int
    last_used: float

    @property
    def is_starting(self) -> bool:
        """Return whether it holds memory and is not there yet."""

    async def make_way(self, wait_s: float) -> None:
        """End once nobody asks it; return at once where it lets go of its memory by itself.

        Never waits for one that claims memory: that one waits for the end of this claim.

        Raises:
            TimeoutError: it is asked for longer than ``wait_s``.
        """


class ReferenceMemory:
    """Sets memory aside, for one claimant after another; no limit where ``limit`` is None.

    A claimant waits for ``wait_s`` at most until those that must go are asked no more.
    """

    def __init__(
        self, limit: int | None, tenants: Callable[[], Collection[Tenant]], *, wait_s: float
    ) -> None:
        self._limit = limit
        self._tenants = tenants
        self._wait_s = wait_s
        self._turn = asyncio.Lock()

    def has(self, num_bytes: int) -> bool:
        """Return whether so many bytes are free."""
        return self._limit is None or self._num_held() + num_bytes <= self._limit

    async def take(self, claimant: Tenant, num_bytes: int, *, may_evict: bool) -> None:
        """Set memory aside for a claimant, which holds it from then on.

        Those that are not asked now are ended first, the one used least lately before others, and
        those that start last of all.

        Raises:
            NoRoom: others hold it and may not be ended, or are asked all the time.
            StartupError: it is more than all of them may hold.
        """
        if self._limit is not None and num_bytes > self._limit:
            raise StartupError(
                f"the reference of {claimant.spec.alias} needs {num_bytes} bytes, "
                f"'shadow.reference.memory' is {self._limit}: raise it"
            )
        # One at a time, or two would take the same bytes.
        async with self._turn:
            until = time.monotonic() + self._wait_s
            while not self.has(num_bytes):
                others = [each for each in self._tenants() if each.num_bytes]
                if not (may_evict and others):
                    raise self._refused(claimant, num_bytes)
                first = min(others, key=_rank)
                try:
                    await first.make_way(max(0.0, until - time.monotonic()))
                except TimeoutError:
                    raise self._refused(claimant, num_bytes) from None
            claimant.num_bytes = num_bytes

    def _num_held(self) -> int:
        return sum(each.num_bytes for each in self._tenants())

    def _refused(self, claimant: Tenant, num_bytes: int) -> NoRoom:
        return NoRoom(
            f"the reference of {claimant.spec.alias} needs {num_bytes} bytes, and there is no "
            f"room for it now: others hold {self._num_held()} of {self._limit} bytes, which is "
            "'shadow.reference.memory': wait, or raise it"
        )


def _rank(tenant: Tenant) -> tuple[bool, bool, float]:
    """Return what puts those first that can best be spared."""
    return tenant.is_starting, tenant.num_users > 0, tenant.last_used
