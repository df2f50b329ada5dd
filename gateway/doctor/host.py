"""What the system says of this machine: files under ``/proc``, ``/sys`` and ``/dev``."""

import os
from collections.abc import Iterator
from pathlib import Path


class Host:
    """The machine, read from the files below ``root``."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def read(self, path: str) -> str | None:
        """Return a file's text; None where it is not there or not for us."""
        try:
            return (self._root / path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None

    def exists(self, path: str) -> bool:
        """Return whether a file is there."""
        return (self._root / path).exists()

    def shared_memory(self) -> int | None:
        """Return the size of ``/dev/shm`` in bytes; None where there is none."""
        try:
            found = os.statvfs(self._root / "dev/shm")
        except OSError:
            return None
        return found.f_blocks * found.f_frsize

    def processor(self) -> dict[str, str]:
        """Return the fields of the first processor."""
        fields: dict[str, str] = {}
        for line in (self.read("proc/cpuinfo") or "").splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
        return fields

    def memory(self) -> dict[str, int]:
        """Return the sizes of ``/proc/meminfo``, in bytes."""
        found = {}
        for line in (self.read("proc/meminfo") or "").splitlines():
            key, _, value = line.partition(":")
            number = value.removesuffix("kB").strip()
            if number.isdecimal():
                found[key] = int(number) * 1024
        return found

    def cpu_quota(self) -> float | None:
        """Return how many processors the control groups grant; None without a limit."""
        quotas = []
        for text in self._cgroup_files("cpu.max"):
            most, _, period = text.partition(" ")
            if most.isdecimal() and period.strip().isdecimal():
                quotas.append(int(most) / int(period))
        most_us = (self.read("sys/fs/cgroup/cpu/cpu.cfs_quota_us") or "").strip()
        period_us = (self.read("sys/fs/cgroup/cpu/cpu.cfs_period_us") or "").strip()
        if most_us.isdecimal() and period_us.isdecimal():  # -1 is no limit
            quotas.append(int(most_us) / int(period_us))
        return min(quotas, default=None)

    def memory_limit(self) -> int | None:
        """Return the memory that the control groups grant, in bytes; None without a limit."""
        texts = [*self._cgroup_files("memory.max")]
        texts.append(self.read("sys/fs/cgroup/memory/memory.limit_in_bytes") or "")
        limits = [int(text) for text in texts if text.strip().isdecimal()]
        # Version 1 writes "no limit" as a number near 2**63.
        return min((limit for limit in limits if limit < 1 << 60), default=None)

    def _cgroup_files(self, name: str) -> Iterator[str]:
        """Return the contents of a file of version 2, of our group and all above."""
        for line in (self.read("proc/self/cgroup") or "").splitlines():
            if not line.startswith("0::/"):
                continue
            group = Path("sys/fs/cgroup") / line.removeprefix("0::/")
            for place in (group, *group.parents):
                if place.is_relative_to("sys/fs/cgroup"):
                    text = self.read(str(place / name))
                    if text is not None:
                        yield text
