"""The memory of this process as the system counts it."""

import resource
import sys
from contextlib import suppress
from pathlib import Path

import psutil


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
