"""The memory of this process as the system counts it."""

import ctypes
import resource
import sys
from contextlib import suppress
from pathlib import Path

import psutil


def return_free_memory() -> None:
    """Give the system back what the allocator holds and nobody uses.

    glibc keeps freed blocks of up to 32 MiB for later ones, which in a walk through layers mostly
    do not fit: without this, memory grows from layer to layer though what lives does not. Other
    allocators are left alone.
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


class PeakMemory:
    """Watches by how much the process grows from now on."""

    def __init__(self) -> None:
        # Linux forgets the peak so far if told to; elsewhere an earlier, higher peak counts.
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        self._before = psutil.Process().memory_info().rss

    @property
    def total_bytes(self) -> int:
        """Return the highest resident size of the process."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024

    @property
    def grown_bytes(self) -> int:
        """Return how far that is above the size at the start."""
        return max(0, self.total_bytes - int(self._before))
