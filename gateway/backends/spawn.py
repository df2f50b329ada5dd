"""A process is started beside the event loop, by a thread that then waits for its end.

The loops of asyncio and uvloop fork on their own thread and wait there until the child has become
its program: 6 to 18 ms in which no stream moves on.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_LEAST_URGENT = 19
_BOUND = Path(__file__).with_name("bound.py")


@dataclass(frozen=True, slots=True)
class Spawned:
    """A process that leads a session of its own, and the near ends of its pipes."""

    pid: int
    stdin: IO[bytes] | None
    stdout: asyncio.StreamReader
    stderr: asyncio.StreamReader
    transports: tuple[asyncio.BaseTransport, ...]
    """Of the last two."""
    ended: asyncio.Future[int]
    """Its exit code, the number of a signal below 0; not to be cancelled."""


async def spawn(
    command: Sequence[str],
    *,
    death_signal: signal.Signals,
    environment: Mapping[str, str],
    niceness: int,
    processors: Set[int] | None,
    is_told: bool,
) -> Spawned:
    """Start ``command`` in ``environment``; when this process ends, it gets ``death_signal``.

    Where a sandbox forbids that it is held to ``processors`` it runs all the same.

    Raises:
        OSError: no process can be started.
    """

    def start() -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_BOUND), str(int(death_signal)), parent, *command],
            bufsize=0,
            stdin=subprocess.PIPE if is_told else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env=dict(environment),
        )
        # It has an interpreter to start before it becomes what others inherit this from.
        with contextlib.suppress(OSError):
            if niceness:
                lowered = os.getpriority(os.PRIO_PROCESS, 0) + niceness
                os.setpriority(os.PRIO_PGRP, process.pid, min(_LEAST_URGENT, lowered))
            if processors is not None:
                os.sched_setaffinity(process.pid, processors)
        return process

    parent = str(os.getpid())
    keeper = _Keeper(start, asyncio.get_running_loop())
    keeper.start()
    try:
        process = await asyncio.shield(keeper.started)
    except asyncio.CancelledError:
        keeper.started.add_done_callback(_end_unwanted)
        raise
    try:
        outputs = [await _reader(pipe) for pipe in (process.stdout, process.stderr)]
    except BaseException:
        _kill(process)
        raise
    (stdout, _), (stderr, _) = outputs
    transports = tuple(transport for _, transport in outputs)
    return Spawned(process.pid, process.stdin, stdout, stderr, transports, keeper.ended)


class _Keeper(threading.Thread):
    """Lives as long as the child: the kernel takes the end of this thread for its parent's."""

    def __init__(
        self, start: Callable[[], "subprocess.Popen[bytes]"], loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(name="child", daemon=True)
        self._start = start
        self._loop = loop
        self.started: asyncio.Future[subprocess.Popen[bytes]] = loop.create_future()
        self.ended: asyncio.Future[int] = loop.create_future()

    def run(self) -> None:
        try:
            process = self._start()
        except BaseException as error:  # of whoever waits for it
            self._tell(self.started.set_exception, error)
            return
        self._tell(self.started.set_result, process)
        self._tell(self.ended.set_result, process.wait())

    def _tell(self, settle: Callable[..., None], outcome: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(settle, outcome)


async def _reader(pipe: IO[bytes] | None) -> tuple[asyncio.StreamReader, asyncio.BaseTransport]:
    loop, reader = asyncio.get_running_loop(), asyncio.StreamReader()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    return reader, transport


def _end_unwanted(started: "asyncio.Future[subprocess.Popen[bytes]]") -> None:
    if not started.cancelled() and started.exception() is None:
        _kill(started.result())


def _kill(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
