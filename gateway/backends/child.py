"""One child process: started on its processors, its output read, ended with all it started."""

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path

from gateway.backends.spawn import Spawned, spawn
from gateway.errors import ChildFailed

logger = logging.getLogger(__name__)

OnLine = Callable[[str], None]

TAIL_LINES = 50
MAX_LINE_BYTES = 16 * 1024 * 1024
"""A line is cut here; reports travel as one JSON line, so the bound is generous."""

_WEIGH_ATTEMPTS, _WEIGH_AGAIN_S = 5, 0.11


class ChildProcess:
    """A child in a process group of its own that cannot outlive us, even if we are killed.

    The kernel sends it ``death_signal`` when this process ends, however that happens.
    """

    def __init__(self, process: Spawned, *, on_stdout: OnLine, on_stderr: OnLine) -> None:
        self._process = process
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._on_stdout = on_stdout
        self._on_stderr = on_stderr
        self._is_killed = False
        self.last_heard = time.monotonic()
        """When it last wrote a line, or started."""
        self.has_spoken = asyncio.Event()
        """Set by each line; for one who waits for the next to clear."""
        self._readers = [
            asyncio.ensure_future(_read_lines(process.stdout, self._hear)),
            asyncio.ensure_future(_read_lines(process.stderr, self._log)),
        ]

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        *,
        on_stdout: OnLine,
        on_stderr: OnLine,
        death_signal: signal.Signals = signal.SIGKILL,
        environment: Mapping[str, str] | None = None,
        niceness: int = 0,
        processors: Set[int] | None = None,
        is_told: bool = False,
    ) -> "ChildProcess":
        """Start ``command``, with ``environment`` added to ours.

        ``niceness`` is how far it stands back for other processes, ``processors`` are those that it
        and all it starts are held to (None: ours), ``is_told`` says whether :meth:`tell` will be
        called.

        Raises:
            ChildFailed: it cannot be started.
        """
        around = {**os.environ, **(environment or {})}
        if shutil.which(command[0], path=around.get("PATH")) is None:
            raise ChildFailed(f"cannot start {command[0]}: No such file, or none to run")
        try:
            process = await spawn(
                command,
                death_signal=death_signal,
                environment=around,
                niceness=niceness,
                processors=processors,
                is_told=is_told,
            )
        except OSError as error:
            raise ChildFailed(f"cannot start {command[0]}: {error.strerror}") from None
        child = cls(process, on_stdout=on_stdout, on_stderr=on_stderr)
        if processors is not None and process.processors != processors:
            logger.warning(
                "process %d may run on processors %s: it could not be held to %s",
                process.pid,
                sorted(process.processors),
                sorted(processors),
            )
        if niceness:
            try:
                await _stand_back(process.pid, niceness)
            except asyncio.CancelledError:
                await child.stop(0)
                raise
        return child

    @property
    def pid(self) -> int:
        """Return the process id, which is also the id of its group."""
        return self._process.pid

    @property
    def last_words(self) -> str:
        """Return the last line of its log."""
        return self._tail[-1] if self._tail else "it wrote no log"

    @property
    def has_ended(self) -> bool:
        """Return whether the process is gone."""
        return self._process.ended.done()

    def tell(self, line: str) -> None:
        """Write one line to its standard input, and end that; one that has ended hears nothing."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.close()
        self.last_heard = time.monotonic()

    async def wait(self) -> int:
        """Wait until it has ended and its output is read; return the exit code."""
        code = await asyncio.shield(self._process.ended)
        # A grandchild can hold the pipes open, so do not wait for their end for ever.
        await asyncio.wait(self._readers, timeout=1.0)
        return code

    async def stop(self, grace_s: float) -> None:
        """Ask it to end, and kill its whole group after ``grace_s`` seconds; safe to repeat."""
        try:
            if not self.has_ended and grace_s > 0:
                with contextlib.suppress(TimeoutError, ProcessLookupError):
                    os.kill(self.pid, signal.SIGTERM)
                    async with asyncio.timeout(grace_s):
                        await asyncio.shield(self._process.ended)
        finally:
            self._kill_group()
        await self.wait()
        for reader in self._readers:
            reader.cancel()
        if self._process.stdin is not None:
            self._process.stdin.close()

    def _kill_group(self) -> None:
        if self._is_killed:
            return  # the number may belong to others by now
        self._is_killed = True
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _hear(self, line: str) -> None:
        self._note()
        self._on_stdout(line)

    def _log(self, line: str) -> None:
        self._note()
        if line.strip():
            self._tail.append(line.strip())
        self._on_stderr(line)

    def _note(self) -> None:
        self.last_heard = time.monotonic()
        self.has_spoken.set()


def ending(code: int) -> str:
    """Return how a process with this exit code ended, in words."""
    if code >= 0:
        return f"ended with code {code}"
    hint = " (out of memory?)" if -code == signal.SIGKILL else ""
    return f"was killed by {signal.Signals(-code).name}{hint}"


async def _read_lines(stream: asyncio.StreamReader, on_line: OnLine) -> None:
    rest = b""
    while chunk := await stream.read(65536):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            on_line(line.decode(errors="replace").rstrip("\r"))
        rest = rest[:MAX_LINE_BYTES]
    if rest:
        on_line(rest.decode(errors="replace"))


async def _stand_back(pid: int, niceness: int) -> None:
    """Give the session that a child leads the weight of its niceness.

    Where the kernel shares the processors out among sessions (``sched_autogroup_enabled``), a
    child's niceness counts inside its own session alone.
    """
    with contextlib.suppress(OSError):  # another kernel, or the child is gone
        for _ in range(_WEIGH_ATTEMPTS):
            if _weigh(pid, niceness):
                return
            await asyncio.sleep(_WEIGH_AGAIN_S)


def _weigh(pid: int, niceness: int) -> bool:
    """Set the weight of a child's session; return False if it is to be tried again.

    Raises:
        OSError: the kernel has no such weights, or the child is gone.
    """
    theirs = Path(f"/proc/{pid}/autogroup")
    name, _, _ = theirs.read_text().partition(" ")
    if name == Path("/proc/self/autogroup").read_text().partition(" ")[0]:
        return True  # it leads no session: the weight would be ours, too
    file = os.open(theirs, os.O_WRONLY)
    try:
        os.write(file, f"{niceness}\n".encode())
    except BlockingIOError:  # the kernel lets all users together do so ten times a second
        return False
    finally:
        os.close(file)
    return True
