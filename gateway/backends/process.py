"""One supervised child process: started, watched, its log captured, ended with all it started."""

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import time
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from gateway.backends.pulse import HealthPulse, Pulse
from gateway.backends.resident import cpu_s, resident_bytes
from gateway.errors import ChildFailed
from gateway.logs import FIELDS
from gateway.upstream import EngineClient

logger = logging.getLogger(__name__)

OnLine = Callable[[str], None]

TAIL_LINES = 50
MAX_LINE_BYTES = 16 * 1024 * 1024
"""A line is cut here; reports travel as one JSON line, so the bound is generous."""

_PR_SET_PDEATHSIG = 1


class EngineLog(Protocol):
    """Makes sense of an engine's log."""

    @property
    def cause(self) -> str | None:
        """Return what ended the engine; None if the log does not tell."""

    def hear(self, line: str) -> None:
        """Take one line."""

    def settle(self) -> None:
        """Take note that the engine is ready: errors of the start are over."""


class ChildProcess:
    """A child in a process group of its own that cannot outlive us, even if we are killed.

    The kernel sends it ``death_signal`` when this process ends, however that happens.
    """

    def __init__(self, process: Process, *, on_stdout: OnLine, on_stderr: OnLine) -> None:
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
        is_told: bool = False,
    ) -> "ChildProcess":
        """Start ``command``, with ``environment`` added to ours.

        ``niceness`` is how far it stands back for other processes, ``is_told`` whether
        :meth:`tell` will be called.

        Raises:
            ChildFailed: it cannot be started.
        """
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=PIPE if is_told else asyncio.subprocess.DEVNULL,
                stdout=PIPE,
                stderr=PIPE,
                start_new_session=True,
                preexec_fn=_die_with_parent(death_signal, niceness),
                env={**os.environ, **(environment or {})},
            )
        except OSError as error:
            raise ChildFailed(f"cannot start {command[0]}: {error.strerror}") from None
        return cls(process, on_stdout=on_stdout, on_stderr=on_stderr)

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
        return self._process.returncode is not None

    def tell(self, line: str) -> None:
        """Write one line to its standard input, and end that; one that has ended hears nothing."""
        if self._process.stdin is not None:
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.close()
        self.last_heard = time.monotonic()

    async def wait(self) -> int:
        """Wait until it has ended and its output is read; return the exit code."""
        code = await self._process.wait()
        # A grandchild can hold the pipes open, so do not wait for their end for ever.
        await asyncio.wait(self._readers, timeout=1.0)
        return code

    async def stop(self, grace_s: float) -> None:
        """Ask it to end, and kill its whole group after ``grace_s`` seconds; safe to repeat."""
        try:
            if self._process.returncode is None and grace_s > 0:
                with contextlib.suppress(TimeoutError, ProcessLookupError):
                    self._process.terminate()
                    async with asyncio.timeout(grace_s):
                        await self._process.wait()
        finally:
            self._kill_group()
        await self.wait()
        for reader in self._readers:
            reader.cancel()

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


class EngineProcess:
    """An engine that is a child process; ready once :meth:`start` has returned.

    One that is begun before it is known what it serves is ready after :meth:`serve`.
    """

    def __init__(
        self,
        child: ChildProcess,
        client: EngineClient,
        *,
        backend: str,
        pulse: Pulse,
        log: EngineLog | None = None,
    ) -> None:
        self._child = child
        self._pulse = pulse
        self._log = log
        self.client = client
        self.backend = backend

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        client: EngineClient,
        *,
        backend: str,
        timeout_s: float,
        environment: Mapping[str, str] | None = None,
        pulse: Pulse | None = None,
        log: EngineLog | None = None,
        niceness: int = 0,
    ) -> "EngineProcess":
        """Start an engine and wait until it answers that it is well.

        Raises:
            ChildFailed: it ended or stayed silent; its last words are in the message.
        """
        engine = await cls._begin(
            command,
            client,
            backend=backend,
            environment=environment,
            pulse=pulse,
            log=log,
            niceness=niceness,
        )
        await engine._settle(timeout_s)
        return engine

    @classmethod
    async def begin(
        cls, command: Sequence[str], client: EngineClient, *, backend: str, niceness: int
    ) -> "EngineProcess":
        """Start an engine that is to be told on its standard input what it serves.

        Raises:
            ChildFailed: it cannot be started.
        """
        return await cls._begin(command, client, backend=backend, niceness=niceness, is_told=True)

    @classmethod
    async def _begin(
        cls,
        command: Sequence[str],
        client: EngineClient,
        *,
        backend: str,
        environment: Mapping[str, str] | None = None,
        pulse: Pulse | None = None,
        log: EngineLog | None = None,
        niceness: int,
        is_told: bool = False,
    ) -> "EngineProcess":
        forward = _forward_to_log(client.served_name, log)
        child = await ChildProcess.start(
            command,
            on_stdout=forward,
            on_stderr=forward,
            environment=environment,
            niceness=niceness,
            is_told=is_told,
        )
        return cls(child, client, backend=backend, pulse=pulse or HealthPulse(client), log=log)

    async def serve(self, directory: Path, timeout_s: float) -> None:
        """Tell an engine that was begun what it serves, and wait until it is well.

        Raises:
            ChildFailed: it ended or stayed silent; its last words are in the message.
        """
        self._child.tell(str(directory))
        await self._settle(timeout_s)

    @property
    def pid(self) -> int:
        """Return the engine's process id."""
        return self._child.pid

    @property
    def has_ended(self) -> bool:
        """Return whether its process is gone."""
        return self._child.has_ended

    @property
    def last_words(self) -> str:
        """Return what ended the engine, as far as its log tells, else the log's last line."""
        return (self._log.cause if self._log else None) or self._child.last_words

    async def is_healthy(self, timeout_s: float, *, is_busy: bool) -> bool:
        """Return whether the engine shows that it gets on."""
        return await self._pulse.beats(timeout_s, is_busy=is_busy)

    def resident_bytes(self) -> int:
        """Return the memory that the engine and its children hold."""
        return resident_bytes(self._child.pid)

    def cpu_s(self) -> float:
        """Return the processor time that the engine has used, in seconds."""
        return cpu_s(self._child.pid)

    async def wait(self) -> int:
        """Wait until the engine has ended and return its exit code."""
        return await self._child.wait()

    async def stop(self, grace_s: float) -> None:
        """End the engine and drop all connections to it."""
        await self._child.stop(grace_s)
        await self.client.aclose()

    async def _settle(self, timeout_s: float) -> None:
        try:
            await self._become_ready(timeout_s)
            if self._log is not None:
                self._log.settle()
        except BaseException:
            await self.stop(0)
            raise

    async def _become_ready(self, timeout_s: float) -> None:
        ended = asyncio.ensure_future(self.wait())
        healthy = asyncio.ensure_future(self.client.wait_healthy(self._child.has_spoken))
        done: set[asyncio.Future[Any]] = set()
        try:
            # What writes makes progress: a large model may take longer than any fixed time.
            while not done and (left_s := self._patience_left_s(timeout_s)) > 0:
                done, _ = await asyncio.wait(
                    {ended, healthy}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED
                )
        finally:
            ended.cancel()
            healthy.cancel()
            await asyncio.gather(ended, healthy, return_exceptions=True)
        name = self.client.served_name
        if ended in done:
            raise ChildFailed(
                f"the engine of {name} {ending(ended.result())} while it started: {self.last_words}"
            )
        if not done:
            raise ChildFailed(
                f"the engine of {name} was neither ready nor heard for {timeout_s:g} s: "
                f"{self.last_words}"
            )

    def _patience_left_s(self, timeout_s: float) -> float:
        return self._child.last_heard + timeout_s - time.monotonic()


def ending(code: int) -> str:
    """Return how a process with this exit code ended, in words."""
    if code >= 0:
        return f"ended with code {code}"
    hint = " (out of memory?)" if -code == signal.SIGKILL else ""
    return f"was killed by {signal.Signals(-code).name}{hint}"


async def _read_lines(stream: asyncio.StreamReader | None, on_line: OnLine) -> None:
    if stream is None:
        return
    rest = b""
    while chunk := await stream.read(65536):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            on_line(line.decode(errors="replace").rstrip("\r"))
        rest = rest[:MAX_LINE_BYTES]
    if rest:
        on_line(rest.decode(errors="replace"))


def _forward_to_log(name: str, log: EngineLog | None) -> OnLine:
    def forward(line: str) -> None:
        if log is not None:
            log.hear(line)
        logger.info("[%s] %s", name, line, extra={FIELDS: {"engine": name}})

    return forward


def _die_with_parent(death_signal: signal.Signals, niceness: int) -> Callable[[], None]:
    # Everything is looked up here, before the fork: little is safe after it.
    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()
    number = int(death_signal)

    def ask_kernel() -> None:
        prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)
        if niceness:
            os.nice(niceness)

    return ask_kernel
