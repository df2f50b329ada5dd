"""The memory and the processor time of a child, as Linux counts them."""

import os
from contextlib import suppress
from pathlib import Path

_PROC = Path("/proc")


def resident_bytes(session: int) -> int:
    """Return the resident memory of all processes of a session, shared pages counted in each."""
    page = os.sysconf("SC_PAGE_SIZE")
    return sum(pages * page for found, pages in _sessions() if found == session)


def cpu_s(pid: int) -> float:
    """Return the processor time of a process and of its children that have ended, in seconds."""
    try:
        # The name may hold spaces and parentheses; everything after the last one is numbers.
        fields = (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:  # it has ended
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _sessions() -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for entry in _PROC.iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError):  # it has ended meanwhile
            # The name may hold spaces and parentheses; everything after the last one is numbers.
            fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
            found.append((int(fields[3]), int(fields[21])))
    return found
